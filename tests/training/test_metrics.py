"""What a training tells of itself, and when it gives up."""

import json
import math

import pytest
from tensorboardX.proto.event_pb2 import Event

from lotlip_data.training.metrics import DivergenceMonitor, Metrics, TrainingDiverged


def test_a_loss_above_twice_chance_for_ten_steps_stops_and_fewer_do_not():
    health = DivergenceMonitor(batch=100, terms=4)
    chance = 4 * math.log(100)
    for _ in range(9):
        health.check(2.01 * chance, 1.0, [])
        assert not health.is_sound
    health.check(1.99 * chance, 1.0, [])
    assert health.is_sound
    with pytest.raises(TrainingDiverged, match=r"twice that of guessing, for 10 steps"):
        for _ in range(10):
            health.check(2.01 * chance, 1.0, [])


def events(folder):
    """(step, name, value) of every scalar in the files; a record is a length, its check, the event, its check."""
    found = []
    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            at += size + 16
    return found


def test_lines_and_curves_say_the_same_and_resuming_drops_the_steps_that_are_done_again(tmp_path):
    first = Metrics(str(tmp_path), 0)
    for step in range(1, 6):
        first.add(step, loss=1.0 / step, lr=0.5)
    first.flush()
    again = Metrics(str(tmp_path), 3)
    for step in (4, 5):
        again.add(step, loss=10.0, lr=0.5)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == pytest.approx([1, 1 / 2, 1 / 3, 10, 10])
    found = events(tmp_path / "tensorboard")
    last = {(step, name): value for step, name, value in found}
    assert {step: last[step, "loss"] for step in range(1, 6)} == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3, 4: 10, 5: 10})
