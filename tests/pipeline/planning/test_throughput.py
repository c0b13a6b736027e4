"""`plan --time` measures what an actor does, with its options, threads and window, and names the device."""

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
    """Records how it is used; accepts `window` concurrent calls."""

    window, burst = 3, 1

    def __init__(self, fails: bool = False):
        self.fails, self.captions, self.in_progress, self.peak, self.closed = fails, 0, 0, 0, False

    special_texts = frozenset[str]()

    def prepare(self, image: Any) -> Any:
        return image

    def prepare_texts(self, image: Any, requests: Any) -> Any:
        return [(image, request.prompt) for request in requests]

    async def caption(self, prepared: Any) -> None:
        if self.fails:
            raise CaptionError("the prompt is too long")
        self.in_progress += 1
        self.peak = max(self.peak, self.in_progress)
        await asyncio.sleep(0)
        self.in_progress, self.captions = self.in_progress - 1, self.captions + 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments and the environment of the last engine load; `engine` is the engine that every load returns."""
    record: dict[str, Any] = {"engine": FakeEngine()}

    def load(config: Any, engine: str, **options: Any) -> FakeEngine:
        threads, omp = torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]
        record.update(name=engine, options=options, threads=threads, omp=omp)
        return record["engine"]

    monkeypatch.setattr(throughput, "load_engine", load)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return record


def test_the_engine_runs_with_the_options_and_threads_of_an_actor(loaded: dict[str, Any]) -> None:
    pool = {"engine": "transformers", "num_cpus": 3, "engine_options": {"batch_size": 4}}
    speed = throughput.measure_speed(resolve_captioners([{"preset": "tiny-llava", "pool": pool}])[0], 9)
    assert (loaded["name"], loaded["options"], loaded["threads"], loaded["omp"]) == (
        "transformers",
        {"batch_size": 4},
        3,
        "3",
    )
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (THREADS, None)
    engine = loaded["engine"]
    assert (engine.captions, engine.peak, engine.closed) == (throughput.WARM_UP_IMAGES + 9, 3, True)
    assert speed.on_cpu and speed.source == "measured with 9 images on the CPU with OMP_NUM_THREADS=3"


def test_a_fraction_of_a_cpu_is_one_thread_and_the_environment_takes_precedence(
    loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray does the same."""
    (job,) = resolve_captioners([{"preset": "tiny-llava", "pool": {"num_cpus": 0.5, "concurrency": 2}}])
    throughput.measure_speed(job, 4)
    assert (loaded["threads"], loaded["engine"].peak) == (1, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    throughput.measure_speed(job, 4)
    assert (loaded["threads"], os.environ["OMP_NUM_THREADS"]) == (2, "2")


def test_an_image_is_captioned_with_all_its_texts(loaded: dict[str, Any]) -> None:
    prompts = {"long": "Describe it.", "knowing": "Describe it, knowing: {raw}"}
    (job,) = resolve_captioners([{"preset": "tiny-llava", "prompts": prompts}])
    throughput.measure_speed(job, 4)
    engine = loaded["engine"]
    assert (engine.captions, engine.peak) == (2 * (4 + 4), 2)  # window 3: one image with two texts at a time


def test_the_device_is_a_named_gpu_or_an_endpoint(loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    speed = throughput.measure_speed(resolve_captioners(["tiny-llava"])[0], 4)
    assert not speed.on_cpu and speed.source == "measured with 4 images on NVIDIA A100"
    assert (loaded["threads"], loaded["omp"]) == (1, "1")  # as in an actor with a GPU
    endpoint = {"endpoint": "http://127.0.0.1:1/v1"}
    remote = {"name": "remote", "kind": "openai", "model": "x", "pool": {"engine_options": endpoint}}
    speed = throughput.measure_speed(resolve_captioners([remote])[0], 4)
    assert loaded["options"] == endpoint and speed.source == "measured with 4 images at its endpoint"


def test_an_engine_that_cannot_caption_is_reported_and_closed(loaded: dict[str, Any]) -> None:
    loaded["engine"] = FakeEngine(fails=True)
    with pytest.raises(UserError, match=r"--time: tiny-llava cannot caption.*--speed tiny-llava=IMAGES.*too long"):
        throughput.measure_speed(resolve_captioners(["tiny-llava"])[0], 4)
    assert loaded["engine"].closed and torch.get_num_threads() == THREADS


def test_an_endpoint_without_a_url_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="captioner 'far': endpoint is missing"):
        throughput.measure_speed(resolve_captioners([{"name": "far", "kind": "openai", "model": "x"}])[0], 4)


def test_a_captioner_with_a_given_speed_is_not_measured(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(job: Any, count: int) -> throughput.Speed:
        measured.append((job.config.name, count))
        return throughput.Speed(2.0, "measured", on_cpu=True)

    monkeypatch.setattr(throughput, "measure_speed", measure)
    (tmp_path / "list.csv").write_text("url,caption\nhttp://a.example/1.jpg,x\n")
    text = "name: x\nsources: [{name: a, files: [list.csv]}]\ncaptioners: [tiny-llava, tiny-sharegpt4v]\n"
    (tmp_path / "m.yaml").write_text(text)
    result = CliRunner().invoke(app, ["plan", str(tmp_path / "m.yaml"), "--time", "5", "--speed", "tiny-llava=3"])
    assert result.exit_code == 0 and measured == [("tiny-sharegpt4v", 5)]
    assert "3 images/s per actor (as given)" in result.output and "2 images/s per actor (measured)" in result.output


@pytest.mark.slow
def test_a_captioner_is_measured_on_this_machine() -> None:
    (job,) = resolve_captioners([{"preset": "tiny-llava", "pool": {"engine": "transformers"}}])
    assert throughput.measure_speed(job, 16).images_per_s > 0


def test_an_engine_that_has_no_gpu_in_its_actors_is_not_timed_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (job,) = resolve_captioners([{"preset": "tiny-llava", "pool": {"num_gpus": 0}}])
    with pytest.raises(UserError, match=r"--time: the actors of tiny-llava use no GPU .*CUDA_VISIBLE_DEVICES="):
        throughput.measure_speed(job, 1)
