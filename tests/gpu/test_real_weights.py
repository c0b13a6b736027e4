"""Section 7: with the published weights in the cache, captions of 64 fixed images end by themselves and are clean."""

import statistics
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import try_to_load_from_cache

from lotlip_data.captioners.base import EngineOptions
from lotlip_data.captioners.registry import get_default
from tests.gpu.engine_process import Job, Round, run
from tests.gpu.scale import Scale, both

IMAGES = 64
MIN_STOPPED, MAX_FLAGGED = 0.95, 0.05
TOKENS = {"gpu": (90, 200), "tiny": (20, 120)}
"""Mean length of the captions. The texts of the tiny models are shorter."""
KINDS = ("llava", "sharegpt4v", "instructblip")


def cached_model(kind: str) -> str:
    """A folder of this machine that has the published weights, converted where they must be; empty without one."""
    config = get_default(kind)
    if kind == "sharegpt4v":
        converted = Path(EngineOptions().cache_dir).expanduser() / "converted"
        return next((str(folder) for folder in sorted(converted.glob("ShareGPT4V-7B-*"))), "")
    file = try_to_load_from_cache(config.model, "config.json", revision=config.revision)
    folder = Path(file).parent if isinstance(file, str) else None
    return str(folder) if folder and any(folder.glob("*.safetensors")) else ""


def check_captions(entry: Round, tokens: tuple[int, int]) -> dict[str, float]:
    """Assert what captions of a sound model are like. Returns the figures."""
    count = len(entry.texts)
    figures = {
        "stopped": entry.finish_reasons.count("stop") / count,
        "flagged": sum(map(bool, entry.flags)) / count,
        "tokens": statistics.mean(entry.tokens),
        "images_per_second": round(entry.images_per_second, 2),
    }
    assert figures["stopped"] >= MIN_STOPPED, figures
    assert figures["flagged"] < MAX_FLAGGED, figures
    assert tokens[0] <= figures["tokens"] <= tokens[1], figures
    assert len(set(entry.texts)) > count / 2, "images differ, and so do their captions"
    return figures


@both(slow=True)
@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_fixed_images_are_sound(scale: Scale, kind: str, figures: dict[str, Any]) -> None:
    if not scale.on_gpu:
        config, engine = get_default(f"tiny-{kind}"), "transformers"
    elif model := cached_model(kind):
        config, engine = get_default(kind).replace(model=model), "vllm"
    else:
        fix = "convert it" if kind == "sharegpt4v" else "`lotlip-data fetch-models` downloads it"
        pytest.skip(f"{get_default(kind).model} is not on this machine; {fix}")
    answer = run(Job(config.to_dict(), engine, {}, IMAGES, scale.pixels))
    figures[kind] = check_captions(answer.rounds[0], TOKENS[scale.name])
