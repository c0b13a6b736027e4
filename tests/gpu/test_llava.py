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
from tests.gpu.availability import first_gpu_gib, gpus_of_nvidia_smi
from tests.gpu.engine_process import Answer, Job, run
from tests.gpu.scale import Scale, both, only_gpu

CACHE_TOLERANCE = 0.15
"""Largest deviation of the cache from the estimate, as a share of it."""
MAX_CORES = 8.0
"""Cores that an actor on a GPU gets in examples/8x80gb.yaml; its engine must not need more."""
MIN_GPU_GIB = 20.0
"""Memory of a GPU below which a 7B model in 16 bit has no room for a cache."""
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
    return kv_cache_tokens(
        sizes, first_gpu_gib() if scale.on_gpu else 0, utilization, 1, scale.options.get("kv_cache_gib")
    )


def require_memory(scale: Scale, gib: float, what: str) -> None:
    """Skip the test if the first GPU has less memory than `what` needs."""
    if scale.on_gpu and first_gpu_gib() < gib:
        pytest.skip(f"{what} needs a GPU of {gib:g} GiB; this one has {first_gpu_gib():.1f}")


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


def capability(listed: list[str]) -> tuple[int, int]:
    """Compute capability of the first GPU that nvidia-smi lists."""
    if not listed:
        pytest.skip("nvidia-smi lists no GPU, so its compute capability is not known")
    major, _, minor = listed[0].rpartition(",")[2].strip().partition(".")
    return int(major), int(minor)


@both(slow=True)
def test_llava_starts_and_captions_at_7b_shapes(
    scale: Scale, checkpoint: Any, figures: dict[str, Any], tmp_path: Path
) -> None:
    require_memory(scale, MIN_GPU_GIB, "LLaVA at 7B shapes")
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
                "cores": round(entry.cpu_seconds / entry.seconds, 2),
            }
            for entry in answer.rounds
        ],
        "threads_of_children": answer.threads,
    }
    check_rounds(scale, answer)
    assert answer.capacity["dtype"] == scale.dtype
    deviation = figures["cache_tokens"] / figures["expected_cache_tokens"] - 1
    assert abs(deviation) <= CACHE_TOLERANCE
    assert max(entry.cpu_seconds / entry.seconds for entry in answer.rounds) <= MAX_CORES


@only_gpu
def test_llava_in_fp8_has_a_larger_cache(scale: Scale, checkpoint: Any, figures: dict[str, Any]) -> None:
    if reason := fp8_skip_reason(capability(gpus_of_nvidia_smi())):
        pytest.skip(reason)
    require_memory(scale, MIN_GPU_GIB, "LLaVA at 7B shapes")
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
