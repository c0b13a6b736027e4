"""Training steps of the methods that train a whole CLIP, for `train.py`: packed texts against padded ones.

Both forms have the same towers (the shapes of CLIP ViT-B/16), pixels, texts, loss and dtype, and train both towers. The
plain form pads all texts to the method's number of positions, as the methods' published codes do, and autograd computes
its loss.
"""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from train_losses import plain_loss, timed

from lotlip_data.training.loss import lotlip_loss, project_on_principal_components
from lotlip_data.training.models.towers import TwoTowers, build
from lotlip_data.training.packing import embed_packed, pack_texts

PIXELS, PATCH, WIDTH = 224, 16, 512  # pixels, pixels, numbers of a feature
START, END, PADDING = 49406, 49407, 0  # token ids of CLIP
TOKENS = 22
"""Mean tokens of a sub-caption (paper)."""


@dataclass(frozen=True)
class Method:
    """What decides the cost of a method's step."""

    positions: int
    """Text positions, to which the plain form pads."""
    parts: tuple[int, ...]
    """Sub-captions of each text of an image, the short text first."""
    loss: dict[str, Any] = field(default_factory=dict)
    """Options of the loss."""
    components: int | None = None
    """Principal components that the short texts are matched to."""
    prefix_padding: bool = False
    """Whether the short texts begin with padding of random length, which the tower computes in both forms."""


METHODS = {
    "longclip": Method(248, (1, 6), {"label_smoothing": 0.1}, components=32),
    "debias": Method(248, (5, 6), {"label_smoothing": 0.1, "short_weight": 0.1}, components=32, prefix_padding=True),
    "multi_positive": Method(77, (1, 1, 1, 2, 2, 2, 3, 3), {"bias": torch.tensor(-10.0, requires_grad=True)}),
}


def measure_methods(layers: int, samples: int, pairs: int, dtype: torch.dtype) -> dict[str, float]:
    """Print one line per method, and return the ratios of the plain time to ours, forward and backward."""
    return {name: _measure(name, method, layers, samples, pairs, dtype) for name, method in METHODS.items()}


def _measure(name: str, method: Method, layers: int, samples: int, pairs: int, dtype: torch.dtype) -> float:
    towers, pixels = _make_towers(layers, method.positions), torch.randn(samples, 3, PIXELS, PIXELS)
    ids, padding = _draw_texts(method, samples)
    forms: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: towers.text(_pad(ids, padding, method.positions)),
        "ours": lambda: embed_packed(towers.text, pack_texts(towers.text, ids, padding)).features,
    }
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    losses: dict[str, float] = {}

    def step(form: str) -> float:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            image, texts = towers.image(pixels), forms[form]()
        image = F.normalize(image.float(), dim=-1)
        # [B, K, D]: the short text first. `ids` has the short texts of all images, then the others, image by image.
        by_text = F.normalize(texts.float()[:, 0], dim=-1)
        by_image = torch.cat([by_text[:samples, None], by_text[samples:].unflatten(0, (samples, -1))], dim=1)
        options = dict(method.loss)
        if method.components:
            options["short_image"] = project_on_principal_components(image, min(method.components, samples))
        if form == "plain":
            loss = plain_loss(image, by_image, towers.scale, **options)
        else:
            loss = lotlip_loss(image, by_image[:, 0], by_image[:, 1:, None], towers.scale, **options).total
        loss.backward()
        return loss.item()

    for turn in range(pairs + 1):  # the first is a warm-up
        for form in forms if turn % 2 else reversed(forms):
            towers.zero_grad(set_to_none=True)
            elapsed, losses[form] = timed(lambda form=form: step(form))
            if turn:
                seconds[form].append(elapsed)
    if not math.isclose(losses["plain"], losses["ours"], rel_tol=0.01):  # bfloat16 alone explains less
        raise RuntimeError(f"{name}: the forms compute different losses: {losses}")
    ratio = statistics.median(plain / own for plain, own in zip(seconds["plain"], seconds["ours"], strict=True))
    speed = samples / statistics.median(seconds["ours"])
    print(
        f"{name}: {speed:.2f} samples/s, {sum(map(len, ids)) / samples:.0f} text tokens of "
        f"{len(method.parts) * method.positions} padded ones per sample, loss {losses['ours']:.4f} (plain: "
        f"{losses['plain']:.4f}); {ratio:.2f} times plain",
        flush=True,
    )
    return round(ratio, 3)


def _make_towers(layers: int, positions: int) -> TwoTowers:
    """The towers of CLIP ViT-B/16 with random weights, both of them trained."""
    torch.manual_seed(0)
    image = {"model_type": "clip_vision_model", "image_size": PIXELS, "patch_size": PATCH, "num_hidden_layers": layers}
    text = {"model_type": "clip_text_model", "num_hidden_layers": layers, "max_position_embeddings": positions}
    text |= {"bos_token_id": START, "eos_token_id": END}
    description = {"image": image, "text": text, "projection": WIDTH, "pooling": "pooler"}
    return build(description | {"corner_tokens": 0, "mask": True}).train()


def _draw_texts(method: Method, samples: int) -> tuple[list[list[int]], list[int]]:
    """The token ids of the short texts of all images, then of the other texts, image by image; and the padding before
    each short text."""
    rng = np.random.default_rng(0)

    def text(parts: int) -> list[int]:
        length = sum(max(4, round(rng.normal(TOKENS, 7))) for _ in range(parts))
        return [START, *rng.integers(1000, 40_000, min(length, method.positions - 2)).tolist(), END]

    short, *others = method.parts
    ids = [text(short) for _ in range(samples)] + [text(parts) for _ in range(samples) for parts in others]
    free = [method.positions - len(each) for each in ids[:samples]]
    return ids, [int(rng.random() * each) for each in free] if method.prefix_padding else []


def _pad(ids: list[list[int]], padding: list[int], positions: int) -> Tensor:
    """int64 [N, positions]: the texts with their padding on both sides; the first token stays the first."""
    before = [*padding, *[0] * (len(ids) - len(padding))]
    rows = [[row[0], *[PADDING] * moved, *row[1:]] for row, moved in zip(ids, before, strict=True)]
    return torch.tensor([[*row, *[PADDING] * (positions - len(row))] for row in rows])
