"""A loss curve has a bounded number of points, each the mean of some steps in a row, and no step is left out."""

import json
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.reporting.trainings import POINTS, LossCurve, read_losses


@pytest.mark.parametrize("steps", [1, 2, 2 * POINTS - 1, 2 * POINTS, 12_345])
def test_a_curve_is_bounded_and_keeps_mean_and_order(steps: int) -> None:
    curve = LossCurve()
    for step in range(1, steps + 1):
        curve.add(step, float(step % 100))
    assert 1 <= len(curve.steps) == len(curve.losses) < 2 * POINTS
    assert curve.steps == sorted(curve.steps) and curve.steps[0] > 0 and curve.steps[-1] <= steps
    per_point = round(curve.steps[-1] - curve.steps[-2]) if steps > 1 else 1
    covered = per_point * len(curve.steps)
    assert steps - per_point < covered <= steps
    expected = sum(step % 100 for step in range(1, covered + 1)) / covered
    assert sum(curve.losses) / len(curve.losses) == pytest.approx(expected)
    assert (curve.last_step, curve.last_loss) == (steps, float(steps % 100))


def test_unreadable_lines_are_counted_and_do_not_cost_the_others(tmp_path: Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in range(1, 11)]
    lines[3:3] = ["{", '{"step": 4}', '{"step": 4, "loss": NaN}', "[1]", ""]
    storage.create(run.training_metrics("lotlip"), "\n".join(lines).encode())
    storage.create(run.training_metrics("cut"), b'{"step": 1, "lo')
    storage.create(run.training_done("without-metrics"), b"{}")
    curves, problems = read_losses(run)
    assert list(curves) == ["lotlip"] and curves["lotlip"].steps == list(map(float, range(1, 11)))
    assert [problem.partition(" lines")[0] for problem in problems] == [
        f"{run.training_metrics('cut')}: 1",
        f"{run.training_metrics('lotlip')}: 4",
    ]


def test_a_run_without_trainings_has_no_curves(tmp_path: Path) -> None:
    assert read_losses(Run.at(str(tmp_path / "run"))) == ({}, [])
