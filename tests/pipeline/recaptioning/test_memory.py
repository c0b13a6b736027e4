"""The memory of a captioner's process grows neither with the number of shards nor with their size.

An image has 120 kB as stored and 0.8 MB decoded. The process keeps only the row of its caption, of about 2 kB, until
the shard is committed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lotlip_data.manifests.run_layout import Run
from tests.pipeline.recaptioning import memory_run
from tests.support.paths import ROOT

MB = 10**6
pytestmark = pytest.mark.slow


def peaks(folder: Path, engine: str, sizes: list[int]) -> list[int]:
    """The peak memory in bytes after each shard, of a process that captions shards of these sizes in turn."""
    run = Run.at(str(folder))
    for shard, size in enumerate(sizes):
        memory_run.write_shard(run, shard, size)
    process = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.recaptioning.memory_run", run.url, engine, *map(str, sizes)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(process.stdout)


@pytest.mark.parametrize(("engine", "shards"), [("stub", 12), ("transformers", 4)])
def test_four_times_the_shards_take_at_most_25_megabytes_more(engine: str, shards: int, tmp_path: Path) -> None:
    """The shards have 64 images each. Images of the additional shards would take at least 90 MB as stored."""
    after = peaks(tmp_path, engine, [64] * 4 * shards)
    assert after[-1] - after[shards - 1] <= 25 * MB


@pytest.mark.parametrize("engine", ["stub", "transformers"])
def test_a_shard_four_times_as_large_takes_at_most_25_megabytes_more(engine: str, tmp_path: Path) -> None:
    """Shards of 512, 512 and 2,048 images. The last one has 180 MB more as stored.

    The first one excludes what a first commit allocates.
    """
    _, small, large = peaks(tmp_path, engine, [512, 512, 2048])
    assert large - small <= 25 * MB
