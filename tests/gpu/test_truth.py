"""Section 2: on tiny models, vLLM and transformers give the same texts, with each model runner and under preemption."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest

from lotlip_data.captioners.gpu_memory import read_model_sizes
from lotlip_data.captioners.registry import get_default
from tests.gpu.engine_process import EXACT, Answer, Job, run_together
from tests.gpu.scale import GIB, Scale, both

FLOAT32_AGREEMENT, HALF_AGREEMENT = 0.99, 0.90
"""Least share of equal texts: a near tie between two tokens may fall either way, in 16 bit more often."""
SCARCE_CAPTIONS, SCARCE_TOKENS = 2, 128
"""Captions that fit in the cache at their greatest length when preemption is forced, and that length. More of them
start, since they are short at first."""
AT_ONCE = {"gpu": 8, "tiny": 2}
"""Engines that run at the same time."""
RUNNERS = ("V1", "V2")


def share_of_equal(texts: list[str | None], others: list[str | None]) -> float:
    """Share of images with equal texts in both. An image without a text in either counts as different."""
    equal = [text is not None and text == other for text, other in zip(texts, others, strict=True)]
    return sum(equal) / len(equal)


def jobs_of(scale: Scale) -> dict[str, tuple[Job, Mapping[str, str]]]:
    """Each engine by name, with its environment."""
    exact, half = {"dtype": "float32"}, {"dtype": scale.dtype}
    jobs: dict[str, tuple[Job, Mapping[str, str]]] = {}

    def add(name: str, kind: str, engine: str, settings: dict[str, Any], runner: str = "", **options: Any) -> None:
        environment = dict(EXACT) if settings["dtype"] == "float32" else {}
        if runner:
            environment["VLLM_USE_V2_MODEL_RUNNER"] = str(int(runner == "V2"))
        captioner = get_default(f"tiny-{kind}").to_dict() | settings
        resources = {"gpu_memory_utilization": 0.1, "kv_cache_gib": 0.25, **options} if engine == "vllm" else {}
        jobs[name] = (Job(captioner, engine, resources, scale.texts, scale.pixels), environment)

    for kind in ("llava", "instructblip"):
        add(f"{kind} transformers", kind, "transformers", exact)
        add(f"{kind} V1", kind, "vllm", exact, "V1")
    if scale.on_gpu:  # the CPU build of vLLM has one model runner
        add("llava V2", "llava", "vllm", exact, "V2")
        add("instructblip V2", "instructblip", "vllm", exact, "V2")
    add("llava 16 bit transformers", "llava", "transformers", half)
    add("llava 16 bit", "llava", "vllm", half)
    # vLLM counts preemptions only with its statistics. A caption takes a further block several times before it ends.
    arguments = {"disable_log_stats": False, "block_size": 32}
    scarce = {"kv_cache_gib": scarce_cache_gib(), "max_num_seqs": 16, "engine_args": arguments}
    add("llava scarce", "llava", "vllm", exact | {"max_new_tokens": SCARCE_TOKENS}, **scarce)
    return jobs


def scarce_cache_gib() -> float:
    """The cache for SCARCE_CAPTIONS captions of SCARCE_TOKENS tokens, in float32."""
    config = get_default("tiny-llava").replace(dtype="float32")
    sizes = read_model_sizes(config)
    assert sizes
    tokens = sizes.image_tokens + sizes.prompt_tokens + SCARCE_TOKENS
    return SCARCE_CAPTIONS * tokens * sizes.stored_as("float32", None, "auto").kv_bytes_per_token / GIB


@cache
def answers(scale_name: str) -> dict[str, Answer]:
    """The answers of all engines."""
    from tests.gpu.scale import GPU, TINY

    jobs = jobs_of({"gpu": GPU, "tiny": TINY}[scale_name])
    names, done = list(jobs), dict[str, Answer]()
    for start in range(0, len(names), AT_ONCE[scale_name]):
        batch = names[start : start + AT_ONCE[scale_name]]
        done |= zip(batch, run_together([jobs[name] for name in batch]), strict=True)
    return done


def texts(answer: Answer) -> list[str | None]:
    return answer.rounds[0].texts


@both(slow=True)
@pytest.mark.parametrize("kind", ["llava", "instructblip"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_float32_texts_are_those_of_transformers(scale: Scale, kind: str, runner: str, figures: dict[str, Any]) -> None:
    answer = answers(scale.name).get(f"{kind} {runner}")
    if answer is None:
        pytest.skip("the CPU build of vLLM has no second model runner")
    assert answer.runner == runner
    share = share_of_equal(texts(answer), texts(answers(scale.name)[f"{kind} transformers"]))
    figures[f"equal_float32_{kind}_{runner.lower()}"] = share
    assert share >= FLOAT32_AGREEMENT


@both(slow=True)
def test_16_bit_texts_are_those_of_transformers(scale: Scale, figures: dict[str, Any]) -> None:
    answer, other = answers(scale.name)["llava 16 bit"], answers(scale.name)["llava 16 bit transformers"]
    share = share_of_equal(texts(answer), texts(other))
    figures |= {"equal_16_bit": share, "default_runner": answer.runner}
    assert answer.capacity["dtype"] == other.capacity["dtype"] == scale.dtype
    assert share >= HALF_AGREEMENT


@both(slow=True)
def test_captions_that_are_put_back_have_the_same_texts(scale: Scale, figures: dict[str, Any]) -> None:
    answer = answers(scale.name)["llava scarce"]
    share = share_of_equal(texts(answer), texts(answers(scale.name)["llava transformers"]))
    figures |= {"preemptions": answer.preemptions, "equal_after_preemption": share}
    assert answer.preemptions
    assert share >= FLOAT32_AGREEMENT
