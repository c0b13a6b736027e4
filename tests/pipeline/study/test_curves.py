"""Loss curves keep the means of a training, and the plateau criterion tells a flat curve from a falling one."""

import math

import pytest

from lotlip_data.pipeline.study.curves import PLATEAU_SHARE, POINTS, chance_loss, last_fall, loss_curve
from lotlip_data.pipeline.study.design import ARMS, Design


def test_a_curve_has_the_means_of_equal_parts_and_ends_with_the_last_step() -> None:
    lines = [{"step": step, "loss": float(step), "short": 1.0, "long": step - 1.0} for step in range(1, 1001)]
    curve = loss_curve(lines)
    assert len(curve["step"]) == POINTS and curve["step"][-1] == 1000
    assert curve["loss"][0] == pytest.approx(10.5) and curve["loss"][-1] == pytest.approx(990.5)
    assert loss_curve(lines[:3])["loss"] == [1.0, 2.0, 3.0]


def test_the_last_fall_is_the_share_of_the_whole_fall_between_the_last_two_fifths() -> None:
    def curve(*losses: float) -> dict[str, list[float]]:
        return {"loss": [value for value in losses for _ in range(10)]}

    assert last_fall(curve(9.0, 5.0, 3.0, 2.0, 2.0), 10.0) == 0
    assert PLATEAU_SHARE < last_fall(curve(9.0, 7.0, 6.0, 4.0, 2.0), 10.0) == pytest.approx(0.25)
    assert last_fall(curve(10.0, 10.0, 10.0, 10.0, 10.0), 10.0) == 1, "a loss that never fell has no plateau"


def test_chance_is_the_loss_of_equal_scores_for_each_term() -> None:
    """Short loss, long loss and one term per corner token that has a loss (Eq. 4 to 6); DeBias-CLIP weighs both."""
    terms = {"lit": 1, "lit_long": 2, "lotlip": 4, "lotlip_m4": 6, "register": 2, "longclip": 2, "debias": 1}
    for name, count in terms.items():
        config = ARMS[name].config(Design(), 0)
        assert chance_loss(config) == pytest.approx(count * math.log(config.batch)), name
