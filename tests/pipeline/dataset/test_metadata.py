"""dataset.json is written and read entry by entry, in little memory; its layout does not change its meaning."""

import json
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lotlip_data.manifests import digests, storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import FileRecord, ShardFile, ShardRecord
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset import metadata
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.publish import publish
from tests.pipeline.run_fixture import make_manifest

RECIPE = Recipe({"llava": "llava@1"}, Filters.of(make_manifest()))


def records(count: int) -> Iterator[ShardRecord]:
    """Markers of shards; each third shard has validation samples too."""
    for shard in range(count):
        outputs = []
        for split in ("train", "validation") if shard % 3 == 0 else ("train",):
            files = [FileRecord(f"{split}-{shard:05d}.{kind}", 10, f"{shard:064x}") for kind in ("tar", "parquet")]
            outputs.append(ShardFile(split, 4, {"llava": 3}, *files, folder="shards"))
        samples = sum(output.samples for output in outputs)
        dropped_list = f"shard/{shard:05d}-{shard:012x}.parquet"
        versions = dict.fromkeys(metadata.PACKAGES, "1")
        drops = {"near_duplicate": 2}, {"llava": {"repetition": 1}}
        yield ShardRecord(
            shard, f"{shard:012x}", RECIPE.id, 10, samples, *drops, dropped_list, versions, tuple(outputs)
        )


def test_dataset_json_has_the_records_of_the_shards_and_their_sums(tmp_path: Path) -> None:
    run, expected = Run.at(str(tmp_path)), list(records(7))
    assert publish(run, make_manifest(), RECIPE, expected)
    content = dataset_index.read_index(run)
    assert dataset_index.read_records(run, content) == expected
    assert content["splits"] == {"train": {"shards": 7, "samples": 28}, "validation": {"shards": 3, "samples": 12}}
    assert (content["fetched"], content["samples"], content["bytes"]) == (70, 40, 200)
    assert (content["long_texts"], content["dropped"]) == ({"llava": 30}, {"near_duplicate": 14})
    assert content["dropped_texts"] == {"llava": {"repetition": 7}}


@pytest.mark.parametrize("indent", [1, 2, None])
def test_another_layout_of_dataset_json_is_read_the_same_and_nothing_is_replaced(
    tmp_path: Path, indent: int | None
) -> None:
    run, expected = Run.at(str(tmp_path)), list(records(3))
    for name in ("train-00000.tar", "train-00000.parquet"):
        storage.create(f"{run.shards}/{name}", b"")
    assert publish(run, make_manifest(), RECIPE, expected) and not publish(run, make_manifest(), RECIPE, expected)
    written = Path(run.dataset).read_text()
    content = json.loads(written)
    del content[digests.JSON_KEY]  # as for a file that was edited
    lists = {"inputs", "shards", "validation", "replaced"}
    summary = {name: value for name, value in content.items() if name not in lists}
    Path(run.dataset).write_text(json.dumps(content, indent=indent))
    assert dataset_index.read_index(run) == content
    assert {
        name: value for name, value in dataset_index.read_dataset_summary(run).items() if name not in lists
    } == summary
    publish(run, make_manifest(), RECIPE, expected)
    assert Path(run.dataset).read_text() == written
    assert storage.list_names(run.shards)[-2:] == ["train-00000.parquet", "train-00000.tar"]


@pytest.mark.parametrize("damage", ["{", '{"schema_version": 1}'])
def test_a_damaged_dataset_json_is_reported_and_stays(tmp_path: Path, damage: str) -> None:
    run = Run.at(str(tmp_path))
    storage.create(run.dataset, damage.encode())
    with pytest.raises(dataset_index.DatasetError, match=r"dataset\.json: (not JSON|has schema version 1)"):
        publish(run, make_manifest(), RECIPE, records(1))
    with pytest.raises(dataset_index.DatasetError, match=r"dataset\.json: (not JSON|has schema version 1)"):
        dataset_index.read_dataset_summary(run)
    assert Path(run.dataset).read_text() == damage


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("shards", 0, "tar", "sha256"), r"`shards\.0\.tar\.sha256` is missing"),
        (("shards", 0, "samples"), r"`shards\.0\.samples` is missing"),
        (("inputs", 1, "dropped_texts"), r"`inputs\.1\.dropped_texts` is missing"),
        (("manifest", "sources", 0, "name"), r"`manifest\.sources\.0\.name` is missing"),
        (("manifest", "clean"), r"`manifest\.clean` is missing"),
        (("rules", "validation"), r"`rules\.validation` is missing"),
        (("replaced",), "`replaced` is missing"),
    ],
)
def test_a_wrong_inner_key_of_a_dataset_json_without_a_digest_is_named(
    tmp_path: Path, path: tuple[str | int, ...], message: str
) -> None:
    run = Run.at(str(tmp_path))
    publish(run, make_manifest(), RECIPE, records(3))
    content = json.loads(Path(run.dataset).read_text())
    del content[digests.JSON_KEY]
    *parents, name = path
    parent = content
    for step in parents:
        parent = parent[step]
    parent[f"{name}x"] = parent.pop(name)
    Path(run.dataset).write_text(json.dumps(content))
    with pytest.raises(dataset_index.DatasetError, match=rf"dataset\.json: the field {message}\. Remove it and run"):
        dataset_index.read_index(run)


@pytest.mark.parametrize("read", [dataset_index.read_index, dataset_index.read_dataset_summary])
def test_a_flipped_bit_of_dataset_json_is_an_error(tmp_path: Path, read: Callable[[Run], object]) -> None:
    """Also for the reader that skips the entries, and for the writer, which removes what the old version lists."""
    run, file = Run.at(str(tmp_path)), tmp_path / "shards" / "dataset.json"
    publish(run, make_manifest(), RECIPE, records(3))
    content = file.read_bytes()
    last = len(content) - 100
    for position in [*range(3, last, 41), *range(last, len(content) - 4)]:
        file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(dataset_index.DatasetError, match=r"dataset\.json: "):
            read(run)
        with pytest.raises(dataset_index.DatasetError, match=r"dataset\.json: "):
            publish(run, make_manifest(), RECIPE, records(3))


def test_memory_grows_by_less_than_two_kilobytes_per_shard(tmp_path: Path) -> None:
    """Publishing, publishing the same again, and reading the summary. The entries as objects would take 6 to 8 kB."""
    peaks = []
    for count in (100, 1000):
        run = Run.at(str(tmp_path / str(count)))
        tracemalloc.start()
        for again in (False, True):
            assert publish(run, make_manifest(), RECIPE, records(count)) is not again
        dataset_index.read_dataset_summary(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 900 < 2000
