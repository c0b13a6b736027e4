"""What `plan --time` measures is what an actor does: its options, its threads, its window; on a device that is told."""

import asyncio
import os
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lotlip_data.captioners.base import CaptionError
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.planning import throughput
from lotlip_data.pipeline.recaptioning.config import resolve_captioners

THREADS = torch.get_num_threads()


class FakeEngine:
    """Notes how it is made and used. `window` calls keep it busy."""

    window, burst = 3, 1

    def __init__(self, fails: bool = False):
        self.fails, self.captions, self.under_way, self.most, self.closed = fails, 0, 0, 0, False

    def prepare(self, image: Any) -> Any:
        return image

    async def caption(self, prepared: Any) -> None:
        if self.fails:
            raise CaptionError("the prompt is too long")
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way, self.captions = self.under_way - 1, self.captions + 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the engine was made with, and the environment then; `engine` is the one that is given out."""
    found: dict[str, Any] = {"engine": FakeEngine()}

    def load(config: Any, engine: str, **options: Any) -> FakeEngine:
        found.update(asked=engine, options=options, threads=torch.get_num_threads(), omp=os.environ["OMP_NUM_THREADS"])
        return found["engine"]

    monkeypatch.setattr(throughput, "load_engine", load)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return found


def test_the_engine_has_the_options_and_threads_of_an_actor(made: dict[str, Any]) -> None:
    pool = {"engine": "transformers", "num_cpus": 3, "engine_options": {"batch_size": 4}}
    speed = throughput.measure_speed(resolve_captioners([{"preset": "tiny-llava", "pool": pool}])[0], 9)
    assert (made["asked"], made["options"], made["threads"], made["omp"]) == ("transformers", {"batch_size": 4}, 3, "3")
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (THREADS, None)
    engine = made["engine"]
    assert (engine.captions, engine.most, engine.closed) == (throughput.WARM_UP + 9, 3, True)
    assert speed.on_cpu and speed.source == "measured with 9 images on the CPU with OMP_NUM_THREADS=3"


def test_a_fraction_of_a_cpu_is_a_thread_and_the_environment_goes_before(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ray does it."""
    (one,) = resolve_captioners([{"preset": "tiny-llava", "pool": {"num_cpus": 0.5, "concurrency": 2}}])
    throughput.measure_speed(one, 4)
    assert (made["threads"], made["engine"].most) == (1, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    throughput.measure_speed(one, 4)
    assert (made["threads"], os.environ["OMP_NUM_THREADS"]) == (2, "2")


def test_a_gpu_is_named_and_an_endpoint_is_neither(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    speed = throughput.measure_speed(resolve_captioners(["tiny-llava"])[0], 4)
    assert not speed.on_cpu and speed.source == "measured with 4 images on NVIDIA A100"
    endpoint = {"endpoint": "http://127.0.0.1:1/v1"}
    far = {"name": "far", "kind": "openai", "model": "x", "pool": {"engine_options": endpoint}}
    speed = throughput.measure_speed(resolve_captioners([far])[0], 4)
    assert made["options"] == endpoint and speed.source == "measured with 4 images at its endpoint"


def test_an_engine_that_does_not_load_or_caption_is_told_and_closed(made: dict[str, Any]) -> None:
    made["engine"] = FakeEngine(fails=True)
    with pytest.raises(UserError, match=r"--time: tiny-llava does not caption.*--speed tiny-llava=IMAGES.*too long"):
        throughput.measure_speed(resolve_captioners(["tiny-llava"])[0], 4)
    assert made["engine"].closed and torch.get_num_threads() == THREADS


def test_an_endpoint_without_its_url_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="captioner 'far': endpoint is missing"):
        throughput.measure_speed(resolve_captioners([{"name": "far", "kind": "openai", "model": "x"}])[0], 4)


def test_a_captioner_whose_speed_is_given_is_not_measured(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def timed(one: Any, count: int) -> throughput.Speed:
        measured.append((one.config.name, count))
        return throughput.Speed(2.0, "measured", on_cpu=True)

    monkeypatch.setattr(throughput, "measure_speed", timed)
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.example/1.jpg,x\n")
    text = "name: x\nsources: [{name: a, files: [list.csv]}]\ncaptioners: [tiny-llava, tiny-sharegpt4v]\n"
    (tmp_path / "m.yaml").write_text(text)
    ended = CliRunner().invoke(app, ["plan", str(tmp_path / "m.yaml"), "--time", "5", "--speed", "tiny-llava=3"])
    assert ended.exit_code == 0 and measured == [("tiny-sharegpt4v", 5)]
    assert "3 images/s an actor (as given)" in ended.output and "2 images/s an actor (measured)" in ended.output


@pytest.mark.slow
def test_a_captioner_is_measured_here() -> None:
    (one,) = resolve_captioners([{"preset": "tiny-llava", "pool": {"engine": "transformers"}}])
    assert throughput.measure_speed(one, 16).images_per_s > 0
