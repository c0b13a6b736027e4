"""The order of the samples and the choice of their texts depend on the seed and the position alone."""

import collections

import numpy as np
import pytest

from lotlip_data.training.data import dataset as data
from tests.training.run_fixture import write_run


def test_every_epoch_has_every_sample_once_for_any_batch_size():
    counts = (5, 1, 7)
    samples = {(shard, row) for shard, count in enumerate(counts) for row in range(count)}
    for batch in (1, 4, 13, 30):
        order = data.SampleOrder(counts, seed=3)
        stream = [sample for step in range(40) for sample in order.take(step * batch, batch)]
        epochs = collections.defaultdict(list)
        for epoch, shard, row in stream:
            epochs[epoch].append((shard, row))
        full = [epochs[epoch] for epoch in range(len(stream) // 13)]
        assert all(sorted(epoch) == sorted(samples) for epoch in full)
        assert len(full) < 2 or full[0] != full[1]


def test_the_order_depends_on_seed_and_position_alone():
    stream = data.SampleOrder((5, 9), seed=1).take(0, 100)
    assert data.SampleOrder((5, 9), seed=1).take(33, 20) == stream[33:53]
    assert data.SampleOrder((5, 9), seed=2).take(0, 100) != stream


def _sample(**subs):
    return {"raw": "raw", **{f"{name}_sub": pieces for name, pieces in subs.items()}}


def test_sub_captions_are_consecutive_and_every_window_occurs():
    picker = data.TextPicker(["a"], long_texts=1, sub_captions=2, mode="punkt")
    sample = _sample(a=["1.", "2.", "3.", "4."])
    windows = {picker.pick(sample, np.random.default_rng(seed)).long[0] for seed in range(100)}
    assert windows == {"1. 2.", "2. 3.", "3. 4."}


def test_long_texts_are_of_different_captioners_where_there_are_enough():
    sample = _sample(a=["a."], b=["b."], c=["c."])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert len(set(data.TextPicker("abc", 2, 3, "punkt").pick(sample, rng).long)) == 2


def test_other_long_texts_replace_a_missing_one_and_the_raw_text_replaces_all():
    picker = data.TextPicker("abc", 3, 3, "punkt")
    two = picker.pick(_sample(a=["a."], b=[], c=["c."]), np.random.default_rng(0))
    assert len(two.long) == 3 and set(two.long) == {"a.", "c."}
    assert picker.pick(_sample(a=[], b=[], c=None), np.random.default_rng(0)).long == ["raw"] * 3


def test_without_long_texts_only_the_raw_text_is_read(tmp_path):
    dataset = data.open_dataset(write_run(tmp_path, (6,)))
    batches = data.Batches(dataset, data.TextPicker(dataset.captioners, 0, 3, "punkt"), batch_size=4, seed=0)
    assert all(texts.raw and texts.long == [] for texts in batches.texts(batches.samples(0)))


def test_only_the_selected_captioners_are_read(tmp_path):
    dataset = data.open_dataset(write_run(tmp_path / "a run", (3,)))
    assert data.select_captioners(dataset, ()) == dataset.captioners
    row = data.TextReader(dataset, ["llava"]).shard(0)[0]
    assert set(row) == {"key", "raw", "llava_sub"}
    with pytest.raises(data.DataError, match="captioners: the dataset has no blip; it has instructblip, llava"):
        data.select_captioners(dataset, ["blip"])


def test_the_error_for_a_run_without_dataset_names_the_command(tmp_path):
    with pytest.raises(data.DatasetError, match="lotlip-data shard"):
        data.open_dataset(str(tmp_path))
    (tmp_path / "shards").mkdir()
    for content, message in (("{", "not JSON"), ('{"schema_version": 0}', "has schema version 0")):
        (tmp_path / "shards" / "dataset.json").write_text(content)
        with pytest.raises(data.DatasetError, match=message):
            data.open_dataset(str(tmp_path))
