"""Results of the study for tests: figures are given per arm and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from lotlip_data.pipeline.study.design import ARMS, Design, Gallery
from lotlip_data.pipeline.study.world import METRICS

DESIGN = Design()
SMALL = Design(
    settings=DESIGN.settings | {"batch": 16, "warm_up": 1, "checkpoint_every": 1},
    steps=3,
    scenes=48,
    gallery=Gallery(unrelated=16, groups=4, twins=3, short=8, classified=8),
)
FLAT = {"step": [10.0 * step for step in range(1, 11)], "loss": [2.0] * 10, "short": [1.0] * 10, "long": [1.0] * 10}


def make_result(arm: str, seed: int, value: float, design: Design = DESIGN, **changes: Any) -> dict[str, Any]:
    """A result whose figures all equal `value`."""
    figures = dict.fromkeys((name for names in METRICS.values() for name in names), value)
    key = ARMS[arm].key(design)
    return {
        "key": key,
        "arm": arm,
        "seed": seed,
        "steps": 100,
        "seconds": 36.0,
        "figures": figures,
        "chance": 10.0,
        "curve": FLAT,
    } | changes


def make_results(values: Mapping[str, Sequence[float]], first_seed: int = 0) -> list[dict[str, Any]]:
    """Results of arms: one value per seed."""
    return [
        make_result(arm, seed, value) for arm, of_arm in values.items() for seed, value in enumerate(of_arm, first_seed)
    ]
