"""`lotlip-data run` whose driver is killed in the middle of every stage gives the results of an undisturbed run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.synthetic.http_server import SceneServer
from lotlip_data.synthetic.scenes import SPLITS
from lotlip_data.synthetic.url_list import write_list, write_manifest
from tests.support.processes import kill_driver

SHARDS, IMAGES = 24, 10
CAPTIONERS = ("tiny-instructblip", "tiny-llava")
TRAINING: dict[str, Any] = {"preset": "demo", "epochs": 8, "batch": 16, "warm_up": 5, "checkpoint_every": 5}
METHODS = ("lit", "lotlip")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def start(folder: Path, run: Run) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "lotlip_data.pipeline.cli",
        "run",
        str(folder / "images.yaml"),
        run.url,
        "--json",
    ]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)


def committed(run: Run) -> dict[str, tuple[set[Path], int]]:
    """For every stage: the committed objects, and the number of objects of a complete run."""
    folder = Path(run.url)
    return {
        "download": (set(folder.glob("images/*_stats.json")), SHARDS),
        "recaption": (set(folder.glob("captions/*/*.parquet")), SHARDS * len(CAPTIONERS)),
        "shard": (set(folder.glob("shards/.done/[0-9]*.json")), SHARDS),
        "train": (set(folder.glob("train/*/checkpoints/*")), 1 << 30),
        "evaluate": (set(folder.glob("eval/*.json")), len(METHODS)),
    }


def kill_in(stage: str, folder: Path, run: Run) -> None:
    """Start the run, kill it once the stage has committed an object, and check that it has not committed all."""
    before = {path: path.stat().st_mtime_ns for paths, _ in committed(run).values() for path in paths}
    driver = start(folder, run)
    deadline = time.monotonic() + 900
    while not committed(run)[stage][0]:
        assert driver.poll() is None, f"the run ended before {stage} committed an object"
        assert time.monotonic() < deadline, f"{stage} committed no object"
        time.sleep(0.005)
    kill_driver(driver)
    done, total = committed(run)[stage]
    assert 0 < len(done) < total, f"{stage}: {len(done)} of {total} were committed at the kill"
    if stage == "train":
        assert not all(Path(run.train(name), "done.json").exists() for name in METHODS)
    for path, committed_at in before.items():
        if "checkpoints" not in path.parts:
            assert path.stat().st_mtime_ns == committed_at, f"{path} was written again"


def results(run: Run) -> dict[str, Any]:
    """All results that must not depend on kills."""
    folder = Path(run.url)
    by_name: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in ("shards/*.tar", "shards/*.parquet", "train/*/model/model.safetensors")
        for path in sorted(folder.glob(pattern))
    }
    for name in CAPTIONERS:
        for shard in ledger.captioned_shards(run, name):
            by_name[f"{name} {shard}"] = pq.read_table(run.caption_shard(name, shard)).to_pylist()
    for name in METHODS:
        evaluation = json.loads(Path(run.evaluation(name)).read_text())
        by_name[f"eval {name}"] = evaluation["retrieval"], evaluation["classification"]
    return by_name


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_a_run_killed_in_every_stage_gives_the_results_of_an_undisturbed_one(tmp_path: Path) -> None:
    """At each kill, some but not all units are committed. No committed unit is written again. All results are equal."""
    undisturbed, killed = Run.at(str(tmp_path / "undisturbed")), Run.at(str(tmp_path / "a killed run"))
    with SceneServer() as server:
        write_list(str(tmp_path / "images.tsv"), server.url, SPLITS["images"][: SHARDS * IMAGES - 10], {"dead": 10})
        write_manifest(
            str(tmp_path / "images.yaml"),
            "images.tsv",
            samples_per_shard=IMAGES,
            captioners=list(CAPTIONERS),
            train=[{"method": method, **TRAINING} for method in METHODS],
            evaluate=["world"],
        )
        assert start(tmp_path, undisturbed).wait() == 0
        stages: list[str] = list(committed(killed))
        for stage in stages:
            kill_in(stage, tmp_path, killed)
        assert start(tmp_path, killed).wait() == 0
        assert start(tmp_path, killed).wait() == 0  # with every stage complete
    expected, actual = results(undisturbed), results(killed)
    assert list(actual) == list(expected)
    assert [name for name in expected if actual[name] != expected[name]] == []
    assert len(expected) == 2 * SHARDS + len(METHODS) + len(CAPTIONERS) * SHARDS + len(METHODS)
