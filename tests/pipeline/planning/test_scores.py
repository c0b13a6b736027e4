"""The plan says what scoring takes: from the run, from a measurement, or that it is unknown."""

import time
from pathlib import Path

import pytest

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.planning.scores import format_text, plan_scores
from tests.pipeline import run_fixture as fake_run


def manifest(*scores: dict[str, object]) -> Manifest:
    source = {"name": "web", "files": ["web.csv"]}
    captioners = [{"preset": "tiny-llava"}, {"preset": "tiny-sharegpt4v"}]
    content = {"name": "mine", "sources": [source], "captioners": captioners, "scores": list(scores)}
    return Manifest.model_validate(content)


def test_without_a_measurement_the_speed_is_unknown_and_bytes_are_estimated() -> None:
    plan = plan_scores(manifest({"kind": "repetition"}), 1_000_000)
    (cost,) = plan.scorers
    texts = 1 + 2 * 7.16
    assert (cost.images, cost.done, cost.images_per_s) == (1_000_000, 0, None)
    assert cost.stored_bytes == round(1e6 * (60 + 4 * texts)) and cost.scratch_bytes == round(1e6 * 32 * texts)
    assert format_text(plan)[1].strip() == "speed unknown; measure it with --time"


def test_the_speed_is_measured_here_or_taken_from_the_run(tmp_path: Path) -> None:
    plan = plan_scores(manifest({"kind": "repetition"}), 1000, measure=16)
    assert plan.scorers[0].images_per_s and plan.scorers[0].speed == "measured with 16 images"
    run = fake_run.make(tmp_path / "run", shards=2, images=8).run
    now = int(time.time())
    ledger.record(run.score_ledger("repetition"), 0, WorkRecord(8, 0, 0, now, now, spent=2000))
    (cost,) = plan_scores(manifest({"kind": "repetition"}), 16, run, measure=16).scorers
    assert (cost.images_per_s, cost.speed, cost.done) == (4.0, "measured in the run", 8)
    assert cost.task_hours == pytest.approx(cost.images / 4 / 3600)
