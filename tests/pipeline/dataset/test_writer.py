"""The files of a shard are written in little memory, on any storage, and by several drivers at once."""

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.formats.dataset_index import ShardRecord
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.curation.filters import Filters
from lotlip_data.pipeline.dataset.metadata import Recipe
from lotlip_data.pipeline.dataset.publish import publish
from lotlip_data.pipeline.dataset.verify import verify
from lotlip_data.synthetic.caption_writers import WRITERS
from tests.pipeline import run_fixture as fake_run

MIB = 1 << 20
RECIPE = Recipe({name: f"{name}@1" for name in WRITERS}, Filters())


def test_the_images_of_a_shard_are_never_in_memory_together(tmp_path: Path) -> None:
    """96 images of 1 MiB each need less than 16 MiB of memory, including the 4 MiB chunks in which files are copied."""
    fake = fake_run.make(tmp_path, shards=0)
    rows: list[dict[str, Any]] = []
    for number in range(96):
        row = fake_run.listed_row(f"{number:09d}", f"http://images.test/{3_000_000 + number}.jpg", ["a"], ["web"])
        rows.append(row | {"status": "success", "sha256": f"{number:064d}", "width": 8, "height": 8})
    fake_run.commit_images(fake.run, 0, rows, [(row, bytes([number]) * MIB) for number, row in enumerate(rows)])
    for name in WRITERS:
        fake_run.write_captions(fake.run, name, 0, fake_run.captions_of(fake.run, name, 0))
    fake_run.build(Run.at(str(tmp_path)), RECIPE, 0)  # so that imports and caches are not measured
    storage.remove(fake.run.shards)
    tracemalloc.start()
    record = fake_run.build(fake.run, RECIPE, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert record.outputs[0].tar.bytes > 96 * MIB
    assert peak < 16 * MIB


def test_a_run_on_remote_storage_gives_the_same_shards(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=2)
    bucket = f"/shards-{tmp_path.name}"
    fsspec.filesystem("memory").put(fake.run.url, f"{bucket}/run", recursive=True)
    remote = Run.at(f"memory:/{bucket}/run")
    for run in (fake.run, remote):
        records = [fake_run.build(run, RECIPE, shard) for shard in range(2)]
        publish(run, fake.manifest, RECIPE, records)
        assert verify(run) == []
    names = storage.list_names(fake.run.shards)
    assert storage.list_names(remote.shards) == names and len(names) == 8
    for name in names:
        if name not in (dataset_index.MARKERS, dataset_index.DATASET_JSON):  # both name the inputs of the shards
            assert storage.read_bytes(f"{remote.shards}/{name}") == storage.read_bytes(f"{fake.run.shards}/{name}")


def test_drivers_that_build_one_shard_at_once_agree(tmp_path: Path) -> None:
    fake = fake_run.make(tmp_path, shards=1, images=64)
    start, built = threading.Barrier(4), list[ShardRecord]()

    def drive() -> None:
        start.wait()
        built.append(fake_run.build(fake.run, RECIPE, 0))

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 4 and all(record == built[0] for record in built)
    publish(fake.run, fake.manifest, RECIPE, built[:1])
    assert verify(fake.run) == []
