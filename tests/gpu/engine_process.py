"""An engine in a process of its own, so that its memory is free afterwards and its environment can be chosen.

As a program, `python -m tests.gpu.engine_process JOB ANSWER` runs the job in the JSON file JOB and writes the answer.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT

READY = "ready"
SECONDS = 600.0

EXACT = {"NVIDIA_TF32_OVERRIDE": "0", "TRITON_F32_DEFAULT": "ieee"}
"""Environment in which products in float32 are exact: neither cuBLAS, cuDNN nor Triton rounds their inputs to TF32."""


@dataclass(frozen=True)
class Job:
    """What the process does.

    Attributes:
        captioner: Settings of the captioner.
        engine: `vllm` or `transformers`.
        options: Options of the engine.
        images: Number of scenes to caption in each round.
        pixels: Width and height of the scenes.
        windows: For each round, the captions at a time; None is what the engine recommends.
        break_batch: Number of the batch of the image half, or of transformers, at which the device breaks.
        hold: Wait to be killed once the engine is ready.
    """

    captioner: Mapping[str, Any]
    engine: str = "vllm"
    options: Mapping[str, Any] = field(default_factory=dict)
    images: int = 16
    pixels: int = 96
    windows: Sequence[int | None] = (None,)
    break_batch: int | None = None
    hold: bool = False


@dataclass(frozen=True)
class Round:
    """One round over all images.

    Attributes:
        window: Captions at a time.
        seconds: Time of the round.
        cpu_seconds: CPU time of the process and its children.
        texts: Text of each image; None where there is none.
        tokens: Length of each caption, 0 where there is none.
        finish_reasons: By image; for an image without a caption, the type of the exception.
        flags: By image, the quality flags.
    """

    window: int
    seconds: float
    cpu_seconds: float
    texts: list[str | None]
    tokens: list[int]
    finish_reasons: list[str]
    flags: list[list[str]]

    @property
    def images_per_second(self) -> float:
        return len(self.texts) / self.seconds

    @property
    def cpu_ms_per_image(self) -> float:
        return 1000 * self.cpu_seconds / len(self.texts)


@dataclass(frozen=True)
class Answer:
    """What the process found.

    Attributes:
        start_seconds: Time to load the engine and to caption plain images.
        capacity: As the engine reports it.
        rounds: One for each window of the job.
        preemptions: Captions that vLLM put back because its cache was full; None unless vLLM counts them.
        threads: Threads of each child process.
        runner: vLLM's model runner, `V1` or `V2`; empty for transformers.
        exports: Language models that this process exported.
        image_half: Precision of an image half outside vLLM; empty if there is none.
    """

    start_seconds: float
    capacity: dict[str, Any]
    rounds: list[Round]
    preemptions: int | None
    threads: list[int]
    runner: str
    exports: int
    image_half: str


def run(job: Job, **environment: str) -> Answer:
    """Run a job to its end in another process."""
    (answer,) = run_together([(job, environment)])
    return answer


def run_together(jobs: Sequence[tuple[Job, Mapping[str, str]]]) -> list[Answer]:
    """Run jobs at the same time, each in another process with further environment variables. None outlives the call."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, str(number)) for number in range(len(jobs))]
        processes = [_start(job, folder, extra) for (job, extra), folder in zip(jobs, folders, strict=True)]
        try:
            for process, folder in zip(processes, folders, strict=True):
                code = process.wait(timeout=SECONDS)
                assert code == 0, f"the engine's process ended with {code}:\n{_output(folder)}"
            return [_read(folder / "answer") for folder in folders]
        finally:
            _end(processes)


@contextmanager
def held(job: Job, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose engine is ready, and which waits to be killed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "0")
        process = _start(job, folder, environment)
        try:
            deadline = time.monotonic() + SECONDS
            while not (folder / READY).exists():
                assert process.poll() is None and time.monotonic() < deadline, _output(folder)
                time.sleep(0.1)
            yield process
        finally:
            _end([process])


def _start(job: Job, folder: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    (folder / "job").write_text(json.dumps(asdict(job)))
    command = [sys.executable, "-m", "tests.gpu.engine_process", str(folder / "job"), str(folder / "answer")]
    with (folder / "output").open("wb") as output:
        return subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=ROOT,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _output(folder: Path) -> str:
    return (folder / "output").read_text(errors="replace")[-6000:]


def _end(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(file: Path) -> Answer:
    content = json.loads(file.read_text())
    return Answer(**content | {"rounds": [Round(**entry) for entry in content["rounds"]]})


# In the process


def _work(job: Job, answer: Path) -> None:
    started = time.monotonic()
    exports = _count_exports() if job.engine == "vllm" and "instructblip" in job.captioner["kind"] else []
    from lotlip_data.captioners.base import CaptionerConfig
    from lotlip_data.captioners.registry import load_engine
    from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene

    config = CaptionerConfig.from_dict(job.captioner)
    engine: Any = load_engine(config, job.engine, **job.options)
    with asyncio.Runner() as runner:
        runner.run(_warm_up(engine))
        start_seconds = time.monotonic() - started
        if job.hold:
            answer.with_name(READY).touch()
            signal.pause()
        if job.break_batch is not None:
            _break_device(engine, job.break_batch)
        images = [render(sample_scene(seed), job.pixels) for seed in SPLITS["captioner_test"][: job.images]]
        rounds = [runner.run(_caption_all(engine, config, images, window or engine.window)) for window in job.windows]
        result = Answer(
            start_seconds=round(start_seconds, 2),
            capacity=asdict(engine.capacity),
            rounds=rounds,
            preemptions=_preemptions(),
            threads=_child_threads(),
            runner=_runner(engine),
            exports=len(exports),
            image_half=str(getattr(getattr(engine, "_vision", None), "dtype", "")).removeprefix("torch."),
        )
        answer.write_text(json.dumps(asdict(result)))
    engine.close()


async def _warm_up(engine: Any) -> None:
    """The check of every start: plain images of three shapes."""
    from PIL import Image

    from lotlip_data.pipeline.recaptioning.worker import WARM_UP_SIZES

    for size in WARM_UP_SIZES:
        await engine.caption(engine.prepare(Image.new("RGB", size, "grey")))


async def _caption_all(engine: Any, config: Any, images: Sequence[Any], window: int) -> Round:
    from lotlip_data.captioners.base import Caption
    from lotlip_data.captioners.quality_flags import find_flags

    slots = asyncio.Semaphore(window)

    async def caption(image: Any) -> Any:
        async with slots:
            return await engine.caption(await asyncio.to_thread(engine.prepare, image))

    started, cpu = time.monotonic(), _cpu_seconds()
    results = await asyncio.gather(*map(caption, images), return_exceptions=True)
    seconds, cpu = time.monotonic() - started, _cpu_seconds() - cpu
    captions = [result if isinstance(result, Caption) else None for result in results]
    return Round(
        window=window,
        seconds=seconds,
        cpu_seconds=cpu,
        texts=[caption.text if caption else None for caption in captions],
        tokens=[caption.tokens if caption else 0 for caption in captions],
        finish_reasons=[
            caption.finish_reason if caption else type(result).__name__
            for caption, result in zip(captions, results, strict=True)
        ],
        flags=[find_flags(caption, config) if caption else [] for caption in captions],
    )


def _break_device(engine: Any, batch: int) -> None:
    """Let the GPU fail at a batch as a sick one does; every later call fails too. Without a GPU, raise its error."""
    import torch

    batcher = getattr(engine, "_embed", None) or engine._batcher
    run_batch, numbers = batcher._run, itertools.count()

    def run(items: list[Any]) -> list[Any]:
        if next(numbers) >= batch:
            if not torch.cuda.is_available():
                raise torch.AcceleratorError("CUDA error: device-side assert triggered")
            torch.zeros(4, device="cuda")[torch.tensor([9], device="cuda")]
            torch.cuda.synchronize()
        result: list[Any] = run_batch(items)
        return result

    batcher._run = run


def _count_exports() -> list[Path]:
    """The folders of the language models that this process exports from now on."""
    from lotlip_data.captioners.engines import vllm_prompt_embeds

    exported: list[Path] = []
    export = vllm_prompt_embeds._export

    def count(*arguments: Any, **options: Any) -> None:
        exported.append(Path(arguments[2]))
        export(*arguments, **options)

    vllm_prompt_embeds._export = count
    return exported


def _preemptions() -> int | None:
    from prometheus_client import REGISTRY

    counters = [metric for metric in REGISTRY.collect() if metric.name == "vllm:num_preemptions"]
    samples = [sample.value for metric in counters for sample in metric.samples if sample.name.endswith("_total")]
    return int(sum(samples)) if samples else None


def _runner(engine: Any) -> str:
    llm = getattr(engine, "_llm", None)
    return "" if llm is None else "V2" if llm.vllm_config.use_v2_model_runner else "V1"


def _cpu_seconds() -> float:
    """CPU time of this process and its children, as far as they live."""
    import psutil

    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return float(sum(time.user + time.system for time in times))


def _child_threads() -> list[int]:
    import psutil

    return [child.num_threads() for child in psutil.Process().children(recursive=True)]


if __name__ == "__main__":
    _work(Job(**json.loads(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
