"""A captioner's process takes no more memory for many shards than for a few, nor for large shards than for small ones.

An image, kept, would be 120 kB as stored and 0.8 MB decoded; what is kept is its caption's row of about 2 kB, until its
unit is committed.
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
    """The peak memory after each of the shards, in bytes, of a process that captions them one after another."""
    run = Run.at(str(folder))
    for shard, size in enumerate(sizes):
        memory_run.write(run, shard, size)
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.recaptioning.memory_run", run.url, engine, *map(str, sizes)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(("engine", "few"), [("stub", 12), ("transformers", 4)])
def test_four_times_the_shards_take_at_most_25_megabytes_more(engine: str, few: int, tmp_path: Path) -> None:
    """Of 64 images each: those of the further shards, kept, would be 90 MB as stored, at least."""
    after = peaks(tmp_path, engine, [64] * 4 * few)
    assert after[-1] - after[few - 1] <= 25 * MB


@pytest.mark.parametrize("engine", ["stub", "transformers"])
def test_a_shard_four_times_as_large_takes_at_most_25_megabytes_more(engine: str, tmp_path: Path) -> None:
    """512 images, twice, for what a first commit allocates, and then 2,048: 180 MB more as stored."""
    _, small, large = peaks(tmp_path, engine, [512, 512, 2048])
    assert large - small <= 25 * MB
