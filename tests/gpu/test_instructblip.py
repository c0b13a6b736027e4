"""Section 4: InstructBLIP at 7B shapes: 16-bit image half, start check, and one export by two actors.

The actors share a GPU: each has half of it, and each engine at most 0.45 of its memory.
"""

from pathlib import Path
from typing import Any

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests.settings.captioners import PoolSettings
from lotlip_data.pipeline.recaptioning.config import engine_options
from tests.captioners import tiny_checkpoints
from tests.gpu import shapes
from tests.gpu.engine_process import Job, run_together
from tests.gpu.scale import Scale, both
from tests.gpu.test_llava import require_memory

ACTORS = 2
MIN_GPU_GIB = 48.0
"""Memory of a GPU below which two 7B models in 16 bit have no room for caches."""


def job(scale: Scale, model: Path, cache: Path) -> Job:
    """InstructBLIP on its part of a GPU. Its language model has random weights, its image half those of the files."""
    lengths = {"min_new_tokens": scale.caption_tokens, "max_new_tokens": scale.caption_tokens}
    captioner = {"name": "ib", "kind": "instructblip", "model": str(model), "dtype": scale.dtype, **lengths}
    options = {**scale.options, "cache_dir": str(cache), "engine_args": {"load_format": "dummy"}}
    pool = PoolSettings(num_gpus=1 / ACTORS, engine_options=options)
    shared = engine_options(CaptionerConfig.from_dict(captioner), pool, 1 / ACTORS)
    return Job(
        captioner, "vllm", shared.explicit | {"engine_args": dict(shared.engine_args)}, scale.images, scale.pixels
    )


@both(slow=True)
def test_two_actors_share_a_gpu_and_one_export(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    require_memory(scale, MIN_GPU_GIB, "two InstructBLIPs at 7B shapes")
    model = tmp_path / "model"
    model.mkdir()
    (shapes if scale.on_gpu else tiny_checkpoints).write_instructblip(model)
    work = job(scale, model, tmp_path / "cache")
    answers = run_together([(work, {})] * ACTORS)
    figures |= {
        "start_seconds": max(answer.start_seconds for answer in answers),
        "image_half": answers[0].image_half,
        "cache_tokens": sum(answer.capacity["cache_tokens"] for answer in answers),
        "images_per_second": round(sum(answer.rounds[0].images_per_second for answer in answers), 2),
        "exports": sum(answer.exports for answer in answers),
    }
    assert {answer.image_half for answer in answers} == {scale.dtype}
    assert {answer.capacity["dtype"] for answer in answers} == {scale.dtype}
    assert figures["exports"] == 1
    assert len(list((tmp_path / "cache" / "language_models").iterdir())) == 1
    for answer in answers:
        assert answer.rounds[0].tokens == [scale.caption_tokens] * scale.images
        assert answer.rounds[0].texts == answers[0].rounds[0].texts or scale.on_gpu  # random weights of one seed
