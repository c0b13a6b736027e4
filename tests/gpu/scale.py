"""The two sizes of the suite: `gpu`, at the shapes of the published models, and `tiny`, with the same assertions on a
CPU, so that the suite itself is known to work.
"""

from dataclasses import dataclass
from typing import Any

import pytest

GIB = 2**30


@dataclass(frozen=True, eq=False)
class Scale:
    """What differs between the sizes.

    Attributes:
        name: `gpu` or `tiny`.
        dtype: 16-bit precision of engines.
        texts: Number of images whose captions are compared.
        images: Number of images of a measured round.
        pixels: Width and height of the images.
        caption_tokens: Length to which captions are forced.
        windows: Captions at a time of the measured rounds; None is what the engine recommends.
        options: Options of every vLLM engine.
        training: Sizes of the training.
    """

    name: str
    dtype: str
    texts: int
    images: int
    pixels: int
    caption_tokens: int
    windows: tuple[int | None, ...]
    options: dict[str, Any]
    training: dict[str, Any]

    @property
    def on_gpu(self) -> bool:
        return self.name == "gpu"


GPU = Scale("gpu", "bfloat16", 256, 384, 512, 140, (64, 128, None), {}, {"batch": 256, "steps": 20, "samples": 1024})
TINY = Scale(
    "tiny", "bfloat16", 16, 16, 96, 12, (4, None), {"kv_cache_gib": 0.01}, {"batch": 16, "steps": 6, "samples": 50}
)  # a CPU has no fixed memory for the cache


def both(*, slow: bool) -> Any:
    """Parametrizes a test by `scale`: on a GPU, and tiny in the fast or, if it starts an engine, the slow tests."""
    tiny = pytest.param(TINY, id="tiny", marks=[pytest.mark.slow] if slow else [])
    return pytest.mark.parametrize("scale", [tiny, pytest.param(GPU, id="gpu", marks=pytest.mark.gpu)])


only_gpu = pytest.mark.parametrize("scale", [pytest.param(GPU, id="gpu", marks=pytest.mark.gpu)])
