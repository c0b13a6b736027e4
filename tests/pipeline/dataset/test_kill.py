"""If a driver is killed and the command runs again, the dataset equals that of an undisturbed run."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.pipeline.dataset import verify
from lotlip_data.pipeline.dataset.stage import shard
from tests.pipeline import run_fixture as fake_run
from tests.support.paths import ROOT
from tests.support.processes import kill_driver

SHARDS = 48


@pytest.mark.slow
def test_a_killed_driver_leaves_complete_shards_and_the_next_run_builds_the_others(
    tmp_path: Path, ray_cluster: None
) -> None:
    """At the kill some shards are committed. They are not built again, and all bytes are equal in the end."""
    undisturbed, killed = (
        fake_run.make(tmp_path / name, shards=SHARDS, images=12) for name in ("undisturbed", "killed")
    )
    shard(undisturbed.manifest, undisturbed.run)

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.run_fixture", killed.run.url], cwd=ROOT, env=environment
    )
    deadline = time.monotonic() + 300  # the machine may be busy
    while not (done := dataset_index.done_shards(killed.run)):
        assert time.monotonic() < deadline and driver.poll() is None, "the driver has not committed anything"
        time.sleep(0.005)
    kill_driver(driver)
    done = dataset_index.done_shards(killed.run)
    assert 0 < len(done) < SHARDS
    assert not storage.exists(killed.run.dataset)
    modified = {number: _modified(killed.run.shards, number) for number, _ in done}

    summary = shard(killed.manifest, killed.run)
    assert (summary.built, summary.skipped, summary.failed) == (SHARDS - len(done), len(done), [])
    assert {number: _modified(killed.run.shards, number) for number, _ in done} == modified
    names = storage.list_names(undisturbed.run.shards)
    assert storage.list_names(killed.run.shards) == names and len(names) == 2 * SHARDS + 4
    for name in names:
        if name not in (dataset_index.MARKERS, dataset_index.DATASET_JSON):  # both name the inputs of the shards
            assert Path(killed.run.shards, name).read_bytes() == Path(undisturbed.run.shards, name).read_bytes(), name
    assert verify.verify(killed.run) == []


def _modified(folder: str, number: int) -> list[int]:
    return [Path(folder, f"train-{number:05d}.{ending}").stat().st_mtime_ns for ending in ("tar", "parquet")]
