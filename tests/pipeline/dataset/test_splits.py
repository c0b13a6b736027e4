"""How samples are laid out in files: by split, and within the limits; every sample once."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import dataset_index
from lotlip_data.manifests.dataset_index import ShardFile
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sample_id import uid_from_url
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


def test_the_share_is_kept_and_a_sample_never_comes_back_to_training() -> None:
    every = [uid_from_url(f"http://images.test/{number}") for number in range(20_000)]
    before: set[str] = set()
    for share in (0.0, 0.001, 0.1, 0.5):
        chosen = {uid for uid in every if split_of(uid, share) == "validation"}
        assert abs(len(chosen) - share * 20_000) <= 4 * (share * (1 - share) * 20_000) ** 0.5
        assert before <= chosen
        before = chosen


def test_validation_samples_are_in_files_of_their_own_and_nothing_trains_on_them(tmp_path: Path) -> None:
    run, outputs = make(tmp_path, shards=2, validation=0.3)
    assert [output.tar.name for output in outputs] == [
        f"{split}-0000{number}.tar" for number in (0, 1) for split in ("train", "validation")
    ]
    for output, there in zip(outputs, uids(run, outputs), strict=True):
        assert {split_of(uid, 0.3) for uid in there} == {output.split}
        assert output.samples == len(there) > 0
    described = dataset_index.read_index(run)
    counts = {
        split: sum(output.samples for output in outputs if output.split == split) for split in dataset_index.SPLITS
    }
    assert {split: figures["samples"] for split, figures in described["splits"].items()} == counts
    assert described["samples"] == sum(counts.values()) == 80
    assert data.open_dataset(run.url).samples == counts["train"]


def test_a_dataset_that_grows_keeps_its_split(tmp_path: Path) -> None:
    small, few = make(tmp_path / "small", images=20, validation=0.3)
    large, many = make(tmp_path / "large", images=60, validation=0.3)
    split_at = [
        {uid: output.split for output, there in zip(outputs, uids(run, outputs), strict=True) for uid in there}
        for run, outputs in ((small, few), (large, many))
    ]
    assert split_at[0].items() <= split_at[1].items() and len(split_at[1]) == 60


@pytest.mark.parametrize("most, sizes", [(40, [40]), (39, [39, 1]), (16, [16, 16, 8]), (1, [1] * 40)])
def test_no_tar_has_more_samples_than_asked_for(tmp_path: Path, most: int, sizes: list[int]) -> None:
    run, outputs = make(tmp_path, max_samples=most)
    assert [output.samples for output in outputs] == sizes
    assert [output.tar.name for output in outputs] == [f"train-00000-{index:02d}.tar" for index in range(len(sizes))]
    found = uids(run, outputs)
    assert len({uid for few in found for uid in few}) == 40
    assert sum(map(len, found)) == 40


def test_no_tar_has_more_bytes_than_asked_for_and_none_could_have_held_the_next_sample(tmp_path: Path) -> None:
    limit = 60_000
    run, outputs = make(tmp_path, max_bytes=limit)
    assert len(outputs) > 3 and all(output.tar.bytes <= limit for output in outputs)
    for output in outputs[:-1]:
        per_sample = output.tar.bytes / output.samples
        assert output.tar.bytes + 1.5 * per_sample + 10_240 > limit
    assert sum(map(len, uids(run, outputs))) == 40


def test_a_sample_that_is_larger_than_a_tar_may_be_gets_one_of_its_own(tmp_path: Path) -> None:
    _, outputs = make(tmp_path, images=3, max_bytes=1)
    assert [output.samples for output in outputs] == [1, 1, 1]


def test_dataset_json_tells_every_file_with_its_input_and_where_it_comes_from(tmp_path: Path) -> None:
    run, outputs = make(tmp_path, shards=2, images=6, max_samples=4, validation=0.3)
    described = json.loads(Path(run.dataset).read_text())
    told = [*described["shards"], *described["validation"]]
    assert sorted(one["tar"]["name"] for one in told) == sorted(output.tar.name for output in outputs)
    assert all(one["tar"]["name"].split("-")[1] == f"{one['input']:05d}" for one in told)
    assert {"sha256", "bytes", "name"} == set(told[0]["tar"]) == set(told[0]["parquet"])
    assert described["captioners"] == {name: f"{name}@1" for name in WRITERS}
    assert described["rules"]["max_samples"] == 4 and described["manifest"]["name"] == "fake"
    assert "pyarrow" in described["versions"] and len(described["inputs"]) == 2
