"""On Ray, scores of a run whose driver is killed are those of a calm one, with models and with comparisons."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import inspection
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.scoring import test_image_features
from tests.pipeline.scoring.test_stage import contents, edit, rows
from tests.support.processes import kill_driver

pytestmark = pytest.mark.slow
model = test_image_features.model
SECONDS = 300


def start(command: str, run: Run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lotlip_data.pipeline.cli", command, run.url, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output


def scored(run: Run) -> int:
    return sum(path.endswith(".parquet") and "/." not in path for path in storage.list_below(run.scores))


def test_a_killed_driver_loses_no_scores_and_the_next_one_gives_those_of_a_calm_run(tmp_path: Path, model: str) -> None:
    run = fake_run.make(tmp_path / "killed", shards=6, writers=("llava", "sharegpt4v")).run
    scorers = [
        {"kind": "similarity", "model": model},
        {"kind": "agreement", "model": model},
        {"kind": "repetition", "options": {"near": True}},
        {"kind": "placeholder"},
    ]
    edit(run, scores=scorers, clean={"scores": [{"score": "score", "of": "sub_captions", "lowest": 0.2}]})
    shutil.copytree(run.url, tmp_path / "calm")
    calm = Run.at(str(tmp_path / "calm"))
    end(start("score", calm))
    for files in (1, 9, 15):
        driver = start("score", run)
        deadline = time.monotonic() + SECONDS
        while scored(run) < files and driver.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kill_driver(driver)
    end(start("score", run))
    assert scored(run) == 4 * 6 and contents(run) == contents(calm)
    for each in (run, calm):
        end(start("shard", each))
        assert inspection.verify(each).problems == []
    assert rows(run) == rows(calm)
