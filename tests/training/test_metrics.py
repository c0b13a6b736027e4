"""The metrics of a training as JSON lines and for TensorBoard, and when it counts as diverged."""

import json
import math

import pytest
from tensorboardX.proto.event_pb2 import Event

from lotlip_data.training.metrics import DivergenceMonitor, Metrics, TrainingDiverged


def test_a_loss_above_twice_that_of_guessing_stops_the_training_after_ten_steps_in_a_row():
    guessing = 4 * math.log(100)
    monitor = DivergenceMonitor(guessing)
    for _ in range(9):
        monitor.check(2.01 * guessing, 1.0, [])
        assert not monitor.is_healthy
    monitor.check(1.99 * guessing, 1.0, [])
    assert monitor.is_healthy
    with pytest.raises(TrainingDiverged, match=r"twice that of guessing, for 10 steps"):
        for _ in range(10):
            monitor.check(2.01 * guessing, 1.0, [])


def read_events(folder):
    """(step, name, value) of every scalar in the files. A record is a length, its checksum, the event, its checksum."""
    events = []
    for path in sorted(folder.iterdir()):
        content, offset = path.read_bytes(), 0
        while offset < len(content):
            size = int.from_bytes(content[offset : offset + 8], "little")
            event = Event.FromString(content[offset + 12 : offset + 12 + size])
            events += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            offset += size + 16
    return events


def test_json_lines_and_tensorboard_agree_and_resuming_drops_the_steps_that_are_computed_again(tmp_path):
    first = Metrics(str(tmp_path), 0)
    for step in range(1, 6):
        first.add(step, loss=1.0 / step, lr=0.5)
    first.flush()
    resumed = Metrics(str(tmp_path), 3)
    for step in (4, 5):
        resumed.add(step, loss=10.0, lr=0.5)
    resumed.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == pytest.approx([1, 1 / 2, 1 / 3, 10, 10])
    last = {(step, name): value for step, name, value in read_events(tmp_path / "tensorboard")}
    assert {step: last[step, "loss"] for step in range(1, 6)} == pytest.approx({1: 1, 2: 1 / 2, 3: 1 / 3, 4: 10, 5: 10})
