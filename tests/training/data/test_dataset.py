"""The order of the samples and the choice of their texts depend on the seed and the position alone."""

import collections
import dataclasses
import hashlib
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.training.data import dataset as data
from lotlip_data.training.data.text_picker import TextPicker
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
    batches = data.Batches(dataset, TextPicker(dataset.captioners, 0, 3, "punkt"), batch_size=4, seed=0)
    assert all(texts.short and texts.long == [] for texts in batches.texts(batches.samples(0)))


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
