"""What a stage needs is checked in seconds, and what is wrong is an error with the fix."""

import socket
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core import checks
from lotlip_data.pipeline.core.checks import (
    check_captioner,
    check_gpus,
    check_hub,
    check_model,
    check_ray,
    check_storage,
)
from lotlip_data.pipeline.core.findings import Check, Level, require


def test_errors_are_raised_together_and_warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    require([Check("a", Level.OK, "works"), Check("b", Level.WARNING, "may fail", "look")])
    assert caplog.messages == ["b: may fail; look"]
    with pytest.raises(UserError, match=r"^a: is wrong; mend it\nb: is missing$"):
        require([Check("a", Level.ERROR, "is wrong", "mend it"), Check("b", Level.ERROR, "is missing")])


def test_a_missing_model_folder_is_an_error_here_and_a_warning_where_engines_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CaptionerConfig(name="mine", kind="llava", model=str(tmp_path / "none"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check_captioner(config).level is check_model("image tower", config.model).level is Level.ERROR
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert check_captioner(config).level is check_model("image tower", config.model).level is Level.WARNING
    assert check_captioner(config.replace(model="tiny-instructblip")).level is Level.ERROR  # wrong on every machine
    assert check_captioner(config.replace(model="tiny-llava")).level is Level.OK
    assert check_captioner(config, on_node=True).level is Level.ERROR  # a node of the cluster, where the engine runs


def test_a_captioner_without_a_model_of_transformers_is_not_checked() -> None:
    assert check_captioner(CaptionerConfig(name="x", kind="openai", model="any name")).level is Level.OK


@pytest.mark.parametrize(
    ("asked", "available", "level"),
    [(0, 0, Level.OK), (1, 0, Level.ERROR), (0.5, 1, Level.OK), (2, 1, Level.ERROR), (8, None, Level.OK)],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, asked: float, available: float | None, level: Level) -> None:
    monkeypatch.setattr(checks, "available_gpus", lambda: available)
    assert check_gpus("features", asked).level is level


def test_too_few_gpus_are_explained_by_the_state_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "available_gpus", lambda: 0)
    monkeypatch.setattr(checks, "check_gpu_driver", lambda: Check("GPUs", Level.ERROR, "old driver", "update it"))
    assert str(check_gpus("features", 1)) == "features: asks for 1 GPU; old driver; update it"


def test_the_storage_of_a_run_is_tried_without_leaving_anything(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    assert check_storage("run", str(run)).level is Level.OK
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert check_storage("run", str(tmp_path / "file")).level is Level.ERROR
    assert check_storage("run", "nonsense://bucket/run").level is Level.ERROR


def test_a_storage_that_overwrites_objects_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.storage, "create", lambda url, data: True)
    check = check_storage("run", str(tmp_path))
    assert check.level is Level.ERROR and "If-None-Match" in check.finding and "conditional writes" in check.fix


def test_a_hub_that_does_not_answer_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port.getsockname()[1]}")
        check = check_hub()
    assert check.level is Level.WARNING and "cannot be reached" in check.finding and "HF_ENDPOINT" in check.fix


def test_a_hub_that_the_environment_forbids_is_named_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*arguments: object, **options: object) -> None:
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.utils._http.get_session", forbid)
    monkeypatch.setattr("huggingface_hub.utils.get_session", forbid)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", forbid)
    asked = [check_hub(), check_captioner(CaptionerConfig(name="x", kind="llava", model="someone/llava"))]
    for check in asked:
        assert "HF_HUB_OFFLINE forbids asking the hub" in check.finding and "unset HF_HUB_OFFLINE" in check.fix


def test_the_address_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "local", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert check_ray().level is Level.OK
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        for prefix in ("", "ray://"):
            monkeypatch.setenv("RAY_ADDRESS", f"{prefix}127.0.0.1:{port.getsockname()[1]}")
            assert check_ray().level is Level.ERROR and "no cluster answers" in str(check_ray())
        port.listen()
        assert check_ray().level is Level.OK
    for address in ("head", "head:many", "no-such-host.invalid:6379"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        assert check_ray().level is Level.ERROR and "RAY_ADDRESS" in str(check_ray())
