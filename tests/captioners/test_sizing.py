"""What fits in a GPU's memory, against examples calculated by hand, and what an engine does by default on a GPU."""

import pytest

from lotlip_data.captioners.sizing import (
    INSTRUCTBLIP,
    LLAVA,
    Gpu,
    ModelSizes,
    Precision,
    Share,
    engine_defaults,
    kv_cache_tokens,
    max_sequences,
    reading_defaults,
    resolve_dtype,
)
from lotlip_data.manifests.errors import UserError

KIB_PER_GIB = 2**20
SMALL = ModelSizes(parameters=2**29, layers=16, kv_heads=4, head_size=4, image_tokens=30, prompt_tokens=10)
"""1 GiB of weights, 1 KiB of cache per token."""


def test_the_cache_takes_what_weights_and_working_memory_leave() -> None:
    """(0.5 × 40 − 6 − 1) GiB of 1 KiB per token; captions of 30 + 10 + 140 tokens: 75,730 of them, in steps of 16."""
    assert kv_cache_tokens(SMALL, 40, 0.5) == 13 * KIB_PER_GIB
    assert max_sequences(SMALL, 40, 0.5) == 75_728
    assert max_sequences(SMALL, 40, 0.5, caption_tokens=60.5) == 135_632  # of 100.5 tokens: 135,636.7
    assert max_sequences(SMALL, 10, 0.5) == 0


def test_on_several_gpus_each_has_its_own_working_memory_and_the_weights_exist_once() -> None:
    """2 × (0.5 × 40 − 6) − 1 GiB; with an explicit cache size, 2 × 3 GiB."""
    assert kv_cache_tokens(SMALL, 40, 0.5, gpus=2) == 27 * KIB_PER_GIB
    assert kv_cache_tokens(SMALL, 40, 0.5, gpus=2, cache_gib=3) == 6 * KIB_PER_GIB


def test_with_more_gpus_than_heads_each_head_is_on_several_gpus() -> None:
    """8 × (0.5 × 40 − 6) − 1 GiB; 4 heads on 8 GPUs exist twice, so a token takes 2 KiB. Or 8 × 3 GiB."""
    assert kv_cache_tokens(SMALL, 40, 0.5, gpus=4) == 55 * KIB_PER_GIB
    assert kv_cache_tokens(SMALL, 40, 0.5, gpus=8) == 111 * KIB_PER_GIB // 2
    assert kv_cache_tokens(SMALL, 40, 0.5, gpus=8, cache_gib=3) == 12 * KIB_PER_GIB


A100_40 = Gpu("NVIDIA A100-SXM4-40GB", 42_300_000_000, (8, 0))
A100_80 = Gpu("NVIDIA A100-SXM4-80GB", 84_930_000_000, (8, 0))
H100 = Gpu("NVIDIA H100 80GB HBM3", 84_930_000_000, (9, 0))
H200 = Gpu("NVIDIA H200", 150_120_000_000, (9, 0))
L4 = Gpu("NVIDIA L4", 23_600_000_000, (8, 9))
V100 = Gpu("Tesla V100-SXM2-32GB", 34_080_000_000, (7, 0))
FLOAT16 = Precision(own_dtype="float16")
FP8 = Precision(own_dtype="float16", quantization="fp8_per_channel", kv_cache_dtype="fp8_hopper")


@pytest.mark.parametrize(
    ("gpu", "model", "sequences"),
    [(A100_40, LLAVA, 32), (A100_80, LLAVA, 128), (H100, LLAVA, 128), (H200, LLAVA, 272), (H100, INSTRUCTBLIP, 480)],
)
def test_the_number_of_captions_at_a_time_follows_from_the_gpu_that_is_there(
    gpu: Gpu, model: ModelSizes, sequences: int
) -> None:
    defaults = engine_defaults(gpu, model, FLOAT16, Share())
    assert (defaults.dtype, defaults.max_num_seqs, defaults.batch_size) == ("float16", sequences, 32)


def test_a_small_gpu_gets_few_captions_at_a_time_and_a_tiny_model_a_bounded_number() -> None:
    small = engine_defaults(L4, LLAVA, FLOAT16, Share())
    assert small.max_num_seqs == small.batch_size == 8
    assert engine_defaults(H200, SMALL, FLOAT16, Share()).max_num_seqs == 1024


def test_half_a_gpu_gets_what_fits_in_half_of_its_memory() -> None:
    """0.45 × 79.1 − 6 − 13.2 GiB are 16.4 GiB: 43 captions of 776 tokens."""
    assert engine_defaults(H100, LLAVA, FLOAT16, Share(utilization=0.45)).max_num_seqs == 32


def test_without_a_gpu_the_precision_is_float32() -> None:
    defaults = engine_defaults(None, LLAVA, FLOAT16, Share())
    assert (defaults.dtype, defaults.max_num_seqs, defaults.batch_size) == ("float32", 64, 16)


def test_weights_in_float32_leave_less_room() -> None:
    sixteen, thirty_two = (
        engine_defaults(H200, LLAVA, Precision(dtype=dtype), Share()).max_num_seqs for dtype in ("bfloat16", "float32")
    )
    assert thirty_two < sixteen / 2


def test_fp8_weights_and_cache_leave_room_for_more_and_the_cache_is_fp8_from_hopper_on() -> None:
    """(0.9 × 79.1 − 6) GiB without 6.3 of the language model and 0.6 of the tower are 58.3 GiB of 0.25 MiB a token."""
    hopper, ada = engine_defaults(H100, LLAVA, FP8, Share()), engine_defaults(L4, LLAVA, FP8, Share())
    assert (hopper.kv_cache_dtype, hopper.max_num_seqs) == ("fp8", 304)
    assert ada.kv_cache_dtype == "auto"


@pytest.mark.parametrize("gpu", [A100_80, V100, None])
def test_fp8_on_a_gpu_that_does_not_multiply_in_it_is_refused(gpu: Gpu | None) -> None:
    with pytest.raises(UserError, match=r"quantization: fp8_per_channel needs a GPU of compute capability 8\.9"):
        engine_defaults(gpu, LLAVA, FP8, Share())


@pytest.mark.parametrize(
    ("dtype", "own", "gpu", "expected"),
    [
        ("auto", "float16", H100, "float16"),
        ("auto", "bfloat16", H100, "bfloat16"),
        ("auto", "bfloat16", V100, "float16"),
        ("auto", "float32", H100, "float32"),
        ("auto", "auto", H100, "auto"),
        ("auto", "float16", None, "float32"),
        ("float32", "float16", H100, "float32"),
    ],
)
def test_auto_is_the_precision_of_the_language_model_on_a_gpu(
    dtype: str, own: str, gpu: Gpu | None, expected: str
) -> None:
    assert resolve_dtype(dtype, own, gpu) == expected


def test_a_gpu_without_bfloat16_refuses_it() -> None:
    with pytest.raises(UserError, match=r"dtype: bfloat16 needs .* 8\.0 or newer, and Tesla V100"):
        resolve_dtype("bfloat16", "float16", V100)


def test_actors_of_a_machine_share_its_cores_and_read_far_ahead_on_gpus() -> None:
    assert reading_defaults(cores=96, gpus=8, sequences=128).decoders == 4
    assert reading_defaults(cores=16, gpus=8, sequences=128).decoders == 2
    assert reading_defaults(cores=2).decoders == 2
    assert reading_defaults(cores=1, gpus=8).decoders == 1
    assert reading_defaults(cores=8, sequences=96).read_batch == 32
    assert reading_defaults(cores=8, gpus=1, sequences=192).read_batch == 64
    assert reading_defaults(cores=8, gpus=1, sequences=544).read_batch == 128
