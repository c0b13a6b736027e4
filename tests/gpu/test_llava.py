"""Section 3: LLaVA at 7B shapes with random weights: starts, cache, throughput, CPU time; then in FP8."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.captioners.base import CaptionerConfig, EngineOptions
from lotlip_data.captioners.gpu_memory import read_model_sizes
from lotlip_data.captioners.registry import get_default
from lotlip_data.captioners.sizing import FP8_WEIGHTS_CAPABILITY, kv_cache_tokens
from tests.captioners import tiny_checkpoints
from tests.gpu import shapes
from tests.gpu.availability import gpus_of_nvidia_smi
from tests.gpu.engine_process import Answer, Job, run
from tests.gpu.scale import GIB, Scale, both, only_gpu

CACHE_TOLERANCE = 0.15
"""Largest deviation of the cache from the estimate, as a share of it."""
MAX_CPU_MS_PER_IMAGE = 100.0
"""An engine on a GPU gets 8 cores; 24 images a second may take a third of them."""
FP8_SETTINGS = ("quantization", "kv_cache_dtype")
"""In which the preset for FP8 differs."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`checkpoint(scale)`: the folder of the model at that scale."""
    folder = tmp_path_factory.mktemp("llava")

    @cache
    def write(scale: Scale) -> Path:
        target = folder / scale.name
        target.mkdir()
        return shapes.write_llava(target) if scale.on_gpu else tiny_checkpoints.write_llava(target)

    return write


def job(scale: Scale, model: Path, *, windows: tuple[int | None, ...], **settings: Any) -> Job:
    """LLaVA with random weights, whose captions have exactly `caption_tokens` tokens."""
    lengths = {"min_new_tokens": scale.caption_tokens, "max_new_tokens": scale.caption_tokens}
    captioner = {"name": "llava", "kind": "llava", "model": str(model), "dtype": scale.dtype, **lengths, **settings}
    options = scale.options | {"engine_args": {"load_format": "dummy"}}
    return Job(captioner, "vllm", options, scale.images, scale.pixels, windows)


def expected_cache_tokens(scale: Scale, job: Job) -> int:
    """The estimate of the cache on this machine's first GPU."""
    config = CaptionerConfig.from_dict(job.captioner)
    sizes = read_model_sizes(config)
    assert sizes
    sizes = sizes.stored_as(scale.dtype, config.quantization, "auto")
    utilization = EngineOptions().gpu_memory_utilization
    return kv_cache_tokens(sizes, _gpu_gib() if scale.on_gpu else 0, utilization, 1, scale.options.get("kv_cache_gib"))


def _gpu_gib() -> float:
    from lotlip_data.pipeline.core.gpus import ask_torch

    return ask_torch().gpus[0][1] / GIB


def check_rounds(scale: Scale, answer: Answer) -> None:
    """Every image has a caption of the forced length."""
    for entry in answer.rounds:
        assert entry.tokens == [scale.caption_tokens] * scale.images
        assert set(entry.finish_reasons) == {"length"}


def fp8_skip_reason(capability: tuple[int, int]) -> str:
    """Why FP8 is not tried on a GPU of this compute capability; empty if it is."""
    if capability >= FP8_WEIGHTS_CAPABILITY:
        return ""
    needed, found = (".".join(map(str, pair)) for pair in (FP8_WEIGHTS_CAPABILITY, capability))
    return f"FP8 needs a GPU of compute capability {needed} (Ada, Hopper) or newer; this one has {found}"


def _capability() -> tuple[int, int]:
    major, _, minor = gpus_of_nvidia_smi()[0].rpartition(",")[2].strip().partition(".")
    return int(major), int(minor)


@both(slow=True)
def test_llava_starts_and_captions_at_7b_shapes(
    scale: Scale, checkpoint: Any, figures: dict[str, Any], tmp_path: Path
) -> None:
    caches = {
        "VLLM_CACHE_ROOT": str(tmp_path / "vllm"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    model = checkpoint(scale)
    if scale.on_gpu:  # without compiling, the second start is as long as the first
        cold = run(job(scale, model, windows=()), **caches)
        figures["cold_start_seconds"] = cold.start_seconds
    work = job(scale, model, windows=scale.windows)
    answer = run(work, **caches)
    best = max(entry.images_per_second for entry in answer.rounds)
    figures |= {
        "warm_start_seconds": answer.start_seconds,
        "runner": answer.runner,
        "device": answer.capacity["device"],
        "dtype": answer.capacity["dtype"],
        "sequences": answer.capacity["sequences"],
        "cache_tokens": answer.capacity["cache_tokens"],
        "expected_cache_tokens": expected_cache_tokens(scale, work),
        "images_per_second": round(best, 2),
        "rounds": [
            {
                "captions_at_a_time": entry.window,
                "images_per_second": round(entry.images_per_second, 2),
                "cpu_ms_per_image": round(entry.cpu_ms_per_image, 1),
            }
            for entry in answer.rounds
        ],
        "threads_of_children": answer.threads,
    }
    check_rounds(scale, answer)
    assert answer.capacity["dtype"] == scale.dtype
    deviation = figures["cache_tokens"] / figures["expected_cache_tokens"] - 1
    assert abs(deviation) <= CACHE_TOLERANCE
    assert not scale.on_gpu or min(entry.cpu_ms_per_image for entry in answer.rounds) <= MAX_CPU_MS_PER_IMAGE


@only_gpu
def test_llava_in_fp8_has_a_larger_cache(scale: Scale, checkpoint: Any, figures: dict[str, Any]) -> None:
    if reason := fp8_skip_reason(_capability()):
        pytest.skip(reason)
    preset = get_default("llava-fp8").to_dict()
    fp8 = {name: preset[name] for name in FP8_SETTINGS}
    answer = run(job(scale, checkpoint(scale), windows=(None,), **fp8))
    figures |= {
        "fp8_start_seconds": answer.start_seconds,
        "fp8_cache_tokens": answer.capacity["cache_tokens"],
        "fp8_images_per_second": round(answer.rounds[0].images_per_second, 2),
    }
    check_rounds(scale, answer)
    assert figures["fp8_cache_tokens"] > figures.get("cache_tokens", 0)
