"""The order of the samples and the choice of their texts depend on the seed and the position alone."""

import collections
import dataclasses
import hashlib
import math
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
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


def _scored(**scores):
    """A sample with sub-captions "NAME0.", "NAME1.", … for each captioner, with these scores."""
    sample = {"raw": "raw"}
    for name, (text, pieces) in scores.items():
        sample |= {f"{name}_sub": [f"{name}{index}." for index in range(len(pieces))]}
        sample |= {f"{name}_score": text, f"{name}_sub_scores": pieces}
    return sample


def _shares(picker, sample, draws=4000):
    texts = collections.Counter(picker.pick(sample, np.random.default_rng([1, seed])).long[0] for seed in range(draws))
    return {text: number / draws for text, number in texts.items()}


def test_texts_are_drawn_with_weight_exp_of_score_by_temperature_and_no_score_is_the_mean_weight():
    picker = data.TextPicker("abc", 1, 1, "punkt", data.ScoreUse(temperature=0.5))
    sample = _scored(a=(0.5, [None]), b=(0.0, [0.3]), c=(None, [0.1]))
    e = math.e
    weights = {"a0.": e, "b0.": 1, "c0.": (e + 1) / 2}
    expected = {text: weight / sum(weights.values()) for text, weight in weights.items()}
    assert _shares(picker, sample) == pytest.approx(expected, abs=0.03)


def test_windows_are_drawn_with_the_geometric_mean_of_the_weights_of_their_sub_captions():
    picker = data.TextPicker("a", 1, 2, "punkt", data.ScoreUse(temperature=1.0))
    shares = _shares(picker, _scored(a=(None, [2.0, 0.0, -2.0])))
    first, second = math.exp(1), math.exp(-1)
    expected = {"a0. a1.": first / (first + second), "a1. a2.": second / (first + second)}
    assert shares == pytest.approx(expected, abs=0.03)


def test_texts_without_any_score_are_drawn_alike():
    picker = data.TextPicker("ab", 1, 1, "punkt", data.ScoreUse(temperature=0.1))
    sample = _scored(a=(None, [None, None]), b=(None, [None, None])) | {"b_sub_scores": None}
    assert _shares(picker, sample) == pytest.approx(dict.fromkeys(("a0.", "a1.", "b0.", "b1."), 0.25), abs=0.03)


def test_weighted_long_texts_are_of_different_captioners_where_there_are_enough():
    picker = data.TextPicker("abc", 3, 1, "punkt", data.ScoreUse(temperature=0.01))
    sample = _scored(a=(0.0, [0.0]), b=(5.0, [0.0]), c=(-5.0, [0.0]))
    assert picker.pick(sample, np.random.default_rng(0)).long == ["b0.", "a0.", "c0."]


def test_only_the_best_sub_captions_are_used_in_the_order_of_the_text():
    picker = data.TextPicker("a", 1, 3, "punkt", data.ScoreUse(best=2))
    assert _shares(picker, _scored(a=(None, [0.9, 0.1, 0.2, 0.8]))) == {"a0. a3.": 1}
    # None is as the mean of the others, and of equal scores the first counts.
    assert _shares(picker, _scored(a=(None, [0.0, None, 1.0, 1.0, 1.0]))) == {"a2. a3.": 1}
    assert _shares(picker, _scored(a=(None, [None, 0.0, 1.0]))) == {"a0. a2.": 1}


def test_a_sample_with_scores_is_drawn_as_ever_where_scores_are_not_used():
    plain, sample = data.TextPicker("ab", 2, 1, "punkt"), _scored(a=(9.0, [9.0, 0.0]), b=(0.0, [0.0, 9.0]))
    without = {name: value for name, value in sample.items() if "score" not in name}
    for seed in range(50):
        picks = [plain.pick(each, np.random.default_rng(seed)) for each in (sample, without)]
        assert picks[0] == picks[1]


def test_a_dataset_without_scores_is_one_error_that_names_the_settings_and_the_commands(tmp_path):
    dataset = data.open_dataset(write_run(tmp_path, (3,)))
    with pytest.raises(data.DataError, match=r"no scores \(llava_score, llava_sub_scores\).*lotlip-data score"):
        data.TextReader(dataset, ["llava"], scores=True)


def test_scores_that_do_not_match_their_sub_captions_are_damage(tmp_path):
    dataset = data.open_dataset(write_run(tmp_path, (3,), scores=True))
    assert set(data.TextReader(dataset, ["llava"], scores=True).shard(0)[0]) == {
        "key", "raw", "llava_sub", "llava_score", "llava_sub_scores"
    }  # fmt: skip
    path = pathlib.Path(dataset.shards[0].parquet_url)
    table = pq.read_table(path)
    short = pa.array([[0.5]] * 3, pa.list_(pa.float32()))
    pq.write_table(table.set_column(table.column_names.index("llava_sub_scores"), "llava_sub_scores", short), path)
    content, shard = path.read_bytes(), dataset.shards[0]
    sha256 = hashlib.sha256(content).hexdigest()
    shard = dataclasses.replace(shard, parquet=dataclasses.replace(shard.parquet, bytes=len(content), sha256=sha256))
    reader = data.TextReader(dataclasses.replace(dataset, shards=(shard,)), ["llava"], scores=True)
    with pytest.raises(data.DataError, match=r"has 1 scores for \d sub-captions of llava"):
        reader.shard(0)


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
