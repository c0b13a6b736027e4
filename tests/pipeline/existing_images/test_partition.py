"""Containers become the last shards of a run, in seeded order; samples are exact over lists and containers together."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest, with_absolute_paths
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.existing_images.filtering import usable_rows
from lotlip_data.pipeline.existing_images.partition import ExistingImages, read_container_shard
from lotlip_data.pipeline.url_lists.partition import Partition, load_partition, partition
from tests.pipeline.existing_fixture import jpeg, write_tar

TARS, IMAGES, URLS = 5, 6, 40


def sources(folder: Path) -> list[dict[str, Any]]:
    """A list of URLs, and tars."""
    rows = "".join(f"http://a.example/{index}.jpg,x\n" for index in range(URLS))
    (folder / "list.csv").write_text("url,caption\n" + rows)
    for tar in range(TARS):
        write_tar(folder / f"{tar}.tar", {f"{tar}-{image}.jpg": jpeg(tar * IMAGES + image) for image in range(IMAGES)})
    return [
        {"name": "web", "files": ["list.csv"]},
        {"name": "tars", "files": [f"{tar}.tar" for tar in range(TARS)], "text": None},
    ]


def partitioned(
    folder: Path, listed: list[dict[str, Any]], name: str = "run", **settings: Any
) -> tuple[Run, Partition]:
    content = {"name": "mine", "sources": listed, "captioners": [], "samples_per_shard": 10, **settings}
    run = Run.at(str(folder / name))
    manifest = with_absolute_paths(Manifest.model_validate(content), str(folder))
    return run, partition(manifest, run, ExistingImages)


def used(run: Run, parts: Partition) -> tuple[set[str], set[str]]:
    """The URLs and the names of images that the shards of a run use."""
    urls: set[str] = set()
    names: set[str] = set()
    source = Manifest.model_validate({"name": "x", "sources": [{"name": "tars", "files": ["a.tar"], "text": None}]})
    for shard in range(parts.shards):
        if parts.is_container(shard):
            listed = read_container_shard(run, shard)
            own = [row.name for row in usable_rows(listed.container, source.sources[0], images=False)]
            drawn = [name for name, is_drawn in zip(own, listed.draws(own), strict=True) if is_drawn]
            assert len(drawn) == parts.rows_of(shard) or not listed.highest
            names.update(drawn)
        else:
            own = pq.read_table(run.list_shard(shard))["url"].to_pylist()
            assert len(own) == parts.rows_of(shard)
            urls.update(own)
    return urls, names


@pytest.fixture
def mixed(tmp_path: Path) -> list[dict[str, Any]]:
    return sources(tmp_path)


def test_containers_come_last_in_an_order_that_the_seed_decides(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    run, parts = partitioned(tmp_path, mixed)
    assert (parts.shards, parts.first_container, parts.container_rows) == (4 + TARS, 4, [10] * TARS)
    assert (parts.uncounted, parts.unit) == (list(range(4, 4 + TARS)), "image")
    assert [len(part) for part in used(run, parts)] == [URLS, TARS * IMAGES]

    def order(name: str, seed: int) -> list[str]:
        run, parts = partitioned(tmp_path, mixed, name, seed=seed)
        shards = range(parts.first_container, parts.shards)
        return [read_container_shard(run, shard).container.url for shard in shards]

    orders = [order(f"run-{seed}", seed) for seed in range(3)]
    assert order("again", 1) == orders[1]
    assert len({tuple(names) for names in orders}) > 1 and len({frozenset(names) for names in orders}) == 1


@pytest.mark.parametrize("sample", [1, 25, URLS + TARS * IMAGES - 1, 1000])
def test_the_sample_of_a_manifest_is_exact_over_lists_and_containers(
    tmp_path: Path, mixed: list[dict[str, Any]], sample: int
) -> None:
    run, parts = partitioned(tmp_path, mixed, sample=sample)
    urls, names = used(run, parts)
    assert len(urls) + len(names) == parts.images == min(sample, URLS + TARS * IMAGES)
    if sample == 25:
        assert urls and names


def test_own_samples_are_drawn_before_that_of_the_manifest(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    own = [mixed[0] | {"sample": 12}, mixed[1] | {"sample": 7}]
    run, parts = partitioned(tmp_path, own)
    urls, names = used(run, parts)
    assert (len(urls), len(names), parts.images) == (12, 7, 19)
    run, parts = partitioned(tmp_path, own, "both", sample=10)
    fewer = used(run, parts)
    assert fewer[0] <= urls and fewer[1] <= names and sum(map(len, fewer)) == 10
    other_seed = [own[0], own[1] | {"seed": 1}]
    assert used(*partitioned(tmp_path, other_seed, "other"))[1] != names


def test_a_partition_without_containers_is_read_as_before(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    run, parts = partitioned(tmp_path, mixed[:1])
    plan = json.loads(storage.read_bytes(run.plan))
    del plan["container_rows"], plan["content_sha256"]
    storage.replace(run.plan, json.dumps(plan).encode())
    assert load_partition(run) == parts
    assert (parts.first_container, parts.rows_of(3), parts.is_container(3)) == (4, 10, False)


def test_lists_of_a_killed_attempt_are_replaced(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    run = Run.at(str(tmp_path / "run"))
    for shard in (0, 5, 70):
        storage.create(run.container_list(shard), b"of another manifest")
        storage.create(run.list_shard(shard), b"of another manifest")
    run, parts = partitioned(tmp_path, mixed)
    assert [len(part) for part in used(run, parts)] == [URLS, TARS * IMAGES]
    numbers = [f"{shard:05d}.{'json' if parts.is_container(shard) else 'parquet'}" for shard in range(parts.shards)]
    assert storage.list_names(run.lists) == sorted([*numbers, "plan.json"])


def test_a_source_that_cannot_be_read_leaves_the_run_free(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    missing = [mixed[0], mixed[1] | {"files": ["missing.tar"]}]
    with pytest.raises(UserError, match=r"missing\.tar"):
        partitioned(tmp_path, missing)
    assert not storage.exists(Run.at(str(tmp_path / "run")).manifest)
    partitioned(tmp_path, mixed)


def test_a_damaged_list_is_one_error_with_its_remedy(tmp_path: Path, mixed: list[dict[str, Any]]) -> None:
    run, parts = partitioned(tmp_path, mixed)
    shard = parts.first_container
    storage.replace(run.container_list(shard), artifacts.encode_json({"source": "tars"}))
    with pytest.raises(UserError, match=r"`container` is missing.*rebuilds both"):
        read_container_shard(run, shard)
