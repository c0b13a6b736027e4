"""`doctor` names what is wrong with a machine, the nodes of a cluster, a manifest and a run, one line per check."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.storage_retry import StorageError
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.core import gpus
from lotlip_data.pipeline.core.checks import check_storage
from lotlip_data.pipeline.core.findings import Check, Level
from lotlip_data.pipeline.core.gpus import InstalledGpus, TorchGpus
from lotlip_data.pipeline.core.machine import versions
from lotlip_data.pipeline.readiness import doctor, manifest_checks
from lotlip_data.pipeline.readiness.doctor import HERE, Diagnosis, NodeCheck
from lotlip_data.pipeline.readiness.manifest_checks import check_lists
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from tests.faults.s3 import BUCKET, s3_server


def write_manifest(folder: Path, captioners: str, files: str = "list.csv") -> str:
    (folder / "list.csv").write_text("url,caption\nhttp://a.example/1,x\n")
    (folder / "m.yaml").write_text(
        f"name: m\nsources: [{{name: web, files: {files}}}]\ncaptioners: {captioners}\n"
        "train: [{method: lotlip, preset: demo}]\n"
    )
    return str(folder / "m.yaml")


def test_a_manifest_that_can_run_exits_with_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    manifest = write_manifest(tmp_path, "[tiny-llava]")
    ended = CliRunner().invoke(app, ["doctor", manifest, "--run", str(tmp_path / "run")])
    assert ended.exit_code == 0, ended.output
    for line in ("source 'web': 1 file", "captioner 'tiny-llava': tiny-llava", "run: "):
        assert f"ok       {line}" in ended.output
    assert "doctor: 0 errors" in ended.output and not (tmp_path / "run").exists()


def test_errors_have_one_line_with_the_fix_and_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    pool = "{engine_options: {endpoint: 'http://h:1/v1', api_key_env: NOT_SET_ANYWHERE}}"
    captioners = f"[{{preset: llava, model: /no/folder}}, {{name: far, kind: openai, model: x, pool: {pool}}}]"
    manifest = write_manifest(tmp_path, captioners, "missing.csv")
    ended = CliRunner().invoke(app, ["doctor", manifest, "--json"])
    assert ended.exit_code == 1
    figures = json.loads(ended.stdout)
    errors = {check["subject"]: check for check in figures["checks"] if check["level"] == "error"}
    assert errors.keys() == {"source 'web'", "captioner 'llava'", "captioner 'far'"}
    assert figures["counts"]["error"] == 3
    assert "there is no such folder" in errors["captioner 'llava'"]["finding"] and errors["captioner 'llava'"]["fix"]
    assert "NOT_SET_ANYWHERE" in errors["captioner 'far'"]["finding"]


def test_a_run_that_cannot_be_reached_is_one_error_beside_the_other_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "file").write_text("")
    for arguments in ([write_manifest(tmp_path, "[tiny-llava]")], []):
        ended = CliRunner().invoke(app, ["doctor", *arguments, "--run", "nonsense://bucket/run"])
        lines = ended.output.splitlines()
        assert ended.exit_code == 1 and len([line for line in lines if line.startswith("error")]) == 1
        assert any(line.startswith("error    run: ") for line in lines)
        assert any(line.startswith("ok       Python: ") for line in lines)


def test_every_node_is_checked_where_it_is(ray_cluster: None, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, "[tiny-llava]")
    ended = CliRunner().invoke(app, ["doctor", manifest, "--ray", "--json", "--run", str(tmp_path / "run")])
    assert ended.exit_code == 0, ended.output
    machines = {check["machine"] for check in json.loads(ended.stdout)["checks"]}
    (node,) = machines - {HERE}
    subjects = {check["subject"] for check in json.loads(ended.stdout)["checks"] if check["machine"] == node}
    assert {"Python", "GPUs", "Ray's GPUs", "captioner 'tiny-llava'", "run"} <= subjects


@pytest.mark.parametrize(
    ("counted", "seen", "level"),
    [(0, 0, Level.OK), (1, 0, Level.ERROR), (8, 8, Level.OK), (4, 8, Level.WARNING), (8, 7, Level.ERROR)],
)
def test_the_gpus_that_ray_counts_are_those_that_torch_sees(
    counted: float, seen: int, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = InstalledGpus(seen, bool(seen), "580.95.05")
    monkeypatch.setattr(gpus.InstalledGpus, "detect", classmethod(lambda cls: installed))
    for module in (gpus, doctor):
        monkeypatch.setattr(module, "ask_torch", lambda: TorchGpus("2.14.0", "13.0", [("H100", 2**36)] * seen))
    checks = NodeCheck([], None, versions(), counted)({"GPU": counted})
    assert {check.level for check in checks if check.subject == "Ray's GPUs"} == {level}


def test_gpus_that_ray_hides_from_the_task_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus.InstalledGpus, "detect", classmethod(lambda cls: InstalledGpus(1, True, "580.95.05")))

    def ask_torch() -> TorchGpus:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
        return TorchGpus("2.14.0", "13.0", [] if hidden else [("H100", 2**36)])

    for module in (gpus, doctor):
        monkeypatch.setattr(module, "ask_torch", ask_torch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks = NodeCheck([], None, versions(), 1)({"GPU": 1})
    assert {check.level for check in checks if "GPUs" in check.subject} == {Level.OK}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_only_nodes_that_can_hold_an_engine_need_its_model() -> None:
    (job,) = resolve_captioners([{"preset": "llava", "model": "/no/folder"}])
    check = NodeCheck([job], None, versions(), cluster_gpus=8)

    def subjects(gpus: float) -> list[str]:
        return [found.subject for found in check({"GPU": gpus}) if found.level is Level.ERROR]

    assert "captioner 'llava'" not in subjects(0)
    assert "captioner 'llava'" in subjects(8)


def test_a_run_on_s3_needs_its_bucket_and_conditional_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()  # it has the endpoint of an earlier test
        assert check_storage("run", f"s3://{BUCKET}/run").level is Level.OK
        assert fsspec.filesystem("s3").find(BUCKET) == []
        missing = check_storage("run", "s3://no-such-bucket/run")
        assert missing.level is Level.ERROR and "bucket" in str(missing)


def test_nodes_with_one_finding_share_a_line() -> None:
    full = Check("disk", Level.ERROR, "is full", "free space")
    diagnosis = Diagnosis({HERE: [Check("Python", Level.OK, "3.11")], "a": [full], "b": [full]})
    for name in "cdefg":
        diagnosis.checks[name] = [Check("disk", Level.OK, f"{name} GiB")]
    assert diagnosis.lines() == [
        "ok       Python: 3.11",
        "error    a, b: disk: is full; free space",
        "ok       5 nodes (c, d, e, …): disk: c GiB",
    ]
    assert diagnosis.problems == ["a: disk: is full; free space", "b: disk: is full; free space"]
    assert diagnosis.to_dict()["counts"] == {"ok": 6, "warning": 0, "error": 2}


def test_a_cluster_that_does_not_answer_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    ended = CliRunner().invoke(app, ["doctor", "--ray"])
    assert ended.exit_code == 1 and ended.output.count("no cluster answers") == 1


def test_the_remedy_of_a_source_is_that_of_its_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object) -> list[str]:
        raise StorageError("s3://bucket/l.csv: no credentials for this storage. Set AWS_PROFILE.")

    manifest = Manifest.parse({"name": "m", "sources": [{"name": "web", "files": str(tmp_path / "no.csv")}]}, "m")
    (missing,) = check_lists(manifest)
    assert str(missing).endswith("there is no such file; correct `files` or the columns of this source")
    monkeypatch.setattr(manifest_checks, "files_of", refuse)
    (refused,) = check_lists(manifest)
    assert str(refused).endswith("Set AWS_PROFILE.")
