"""Samples are in the files of their split, within the limits of a file, each sample once."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import ShardFile
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.curation.filters import Filters, split_of
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.synthetic.caption_writers import WRITERS
from lotlip_data.training.data import dataset as data
from tests.pipeline import run_fixture as fake_run


def make(folder: Path, images: int = 40, shards: int = 1, **settings: Any) -> tuple[Run, list[ShardFile]]:
    fake = fake_run.make(folder, shards=shards, images=images, **settings)
    recipe = Recipe({name: f"{name}@1" for name in WRITERS}, Filters.of(fake.manifest))
    records = [fake_run.build(fake.run, recipe, number) for number in range(shards)]
    publish(fake.run, fake.manifest, recipe, records)
    assert verify(fake.run) == []
    return fake.run, [output for record in records for output in record.outputs]


def uids(run: Run, outputs: list[ShardFile]) -> list[list[str]]:
    return [pq.read_table(f"{run.shards}/{output.parquet.name}")["uid"].to_pylist() for output in outputs]


def test_the_validation_share_holds_and_a_larger_share_moves_no_sample_back_to_training() -> None:
    all_uids = [uid_from_url(f"http://images.test/{number}") for number in range(20_000)]
    before: set[str] = set()
    for share in (0.0, 0.001, 0.1, 0.5):
        validation = {uid for uid in all_uids if split_of(uid, share) == "validation"}
        assert abs(len(validation) - share * 20_000) <= 4 * (share * (1 - share) * 20_000) ** 0.5
        assert before <= validation
        before = validation


def test_validation_samples_are_in_separate_files_and_are_not_trained_on(tmp_path: Path) -> None:
    run, outputs = make(tmp_path, shards=2, validation=0.3)
    assert [output.tar.name for output in outputs] == [
        f"{split}-0000{number}.tar" for number in (0, 1) for split in ("train", "validation")
    ]
    for output, uids_of_file in zip(outputs, uids(run, outputs), strict=True):
        assert {split_of(uid, 0.3) for uid in uids_of_file} == {output.split}
        assert output.samples == len(uids_of_file) > 0
    content = dataset_index.read_index(run)
    counts = {
        split: sum(output.samples for output in outputs if output.split == split) for split in dataset_index.SPLITS
    }
    assert {split: counts_of_split["samples"] for split, counts_of_split in content["splits"].items()} == counts
    assert content["samples"] == sum(counts.values()) == 80
    assert data.open_dataset(run.url).samples == counts["train"]


def test_a_dataset_that_grows_keeps_its_split(tmp_path: Path) -> None:
    small, small_outputs = make(tmp_path / "small", images=20, validation=0.3)
    large, large_outputs = make(tmp_path / "large", images=60, validation=0.3)
    splits = [
        {
            uid: output.split
            for output, uids_of_file in zip(outputs, uids(run, outputs), strict=True)
            for uid in uids_of_file
        }
        for run, outputs in ((small, small_outputs), (large, large_outputs))
    ]
    assert splits[0].items() <= splits[1].items() and len(splits[1]) == 60


@pytest.mark.parametrize("limit, sizes", [(40, [40]), (39, [39, 1]), (16, [16, 16, 8]), (1, [1] * 40)])
def test_no_tar_exceeds_the_limit_of_samples(tmp_path: Path, limit: int, sizes: list[int]) -> None:
    run, outputs = make(tmp_path, max_samples=limit)
    assert [output.samples for output in outputs] == sizes
    assert [output.tar.name for output in outputs] == [f"train-00000-{index:02d}.tar" for index in range(len(sizes))]
    uids_of_files = uids(run, outputs)
    assert len({uid for uids_of_file in uids_of_files for uid in uids_of_file}) == 40
    assert sum(map(len, uids_of_files)) == 40


def test_no_tar_exceeds_the_limit_of_bytes_and_each_is_as_full_as_possible(tmp_path: Path) -> None:
    limit = 60_000
    run, outputs = make(tmp_path, max_bytes=limit)
    assert len(outputs) > 3 and all(output.tar.bytes <= limit for output in outputs)
    for output in outputs[:-1]:
        per_sample = output.tar.bytes / output.samples
        assert output.tar.bytes + 1.5 * per_sample + 10_240 > limit
    assert sum(map(len, uids(run, outputs))) == 40


def test_a_sample_larger_than_the_limit_gets_its_own_tar(tmp_path: Path) -> None:
    _, outputs = make(tmp_path, images=3, max_bytes=1)
    assert [output.samples for output in outputs] == [1, 1, 1]


def test_dataset_json_lists_every_file_with_its_input_shard_and_its_origin(tmp_path: Path) -> None:
    run, outputs = make(tmp_path, shards=2, images=6, max_samples=4, validation=0.3)
    content = json.loads(Path(run.dataset).read_text())
    entries = [*content["shards"], *content["validation"]]
    assert sorted(entry["tar"]["name"] for entry in entries) == sorted(output.tar.name for output in outputs)
    assert all(entry["tar"]["name"].split("-")[1] == f"{entry['input']:05d}" for entry in entries)
    assert {"sha256", "bytes", "name"} == set(entries[0]["tar"]) == set(entries[0]["parquet"])
    assert content["captioners"] == {name: f"{name}@1" for name in WRITERS}
    assert content["rules"]["max_samples"] == 4 and content["manifest"]["name"] == "fake"
    assert "pyarrow" in content["versions"] and len(content["inputs"]) == 2
