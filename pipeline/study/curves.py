"""Loss curves of trainings, and whether a training has reached its plateau.

The plateau criterion: from the fourth fifth of the steps to the last one, the mean loss falls by less than
PLATEAU_SHARE of its whole fall below chance. The learning rate falls to zero by then, which flattens any curve. So the
criterion alone is not enough; the notes compare with trainings of twice the steps.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lotlip_data.manifests.iteration import batched
from lotlip_data.training.config import TrainConfig

POINTS = 50
PLATEAU_SHARE = 0.05

Curve = dict[str, list[float]]
"""`step`, and the mean loss of the steps since the point before: `loss`, and its parts `short` and `long`."""


def loss_curve(lines: Sequence[Mapping[str, Any]]) -> Curve:
    """The curve of a training in POINTS points, or one per step if there are fewer. `lines` are its metrics.jsonl."""
    parts = list(batched(lines, math.ceil(len(lines) / POINTS)))
    curve: Curve = {"step": [part[-1]["step"] for part in parts]}
    for name in ("loss", "short", "long"):
        curve[name] = [round(fmean(line[name] for line in part), 4) for part in parts]
    return curve


def chance_loss(config: TrainConfig) -> float:
    """The loss of guessing, for a training with softmax and one long text per step."""
    from lotlip_data.training.loss import loss_of_guessing, term_factors

    long_terms = config.long_texts_of(1) * (1 + (config.corner_tokens if config.corner_loss else 0))
    short_factor, long_factor = term_factors(long_terms, config.reduction, config.short_weight)
    return (short_factor + long_terms * long_factor) * loss_of_guessing(config.batch)


def last_fall(curve: Mapping[str, Sequence[float]], chance: float) -> float:
    """The fall from the fourth to the last fifth of the steps, as a share of that below chance; 1 if there is none."""
    loss = curve["loss"]
    fifth = max(1, len(loss) // 5)
    before, last = fmean(loss[-2 * fifth : -fifth]), fmean(loss[-fifth:])
    return (before - last) / (chance - last) if last < chance else 1.0
