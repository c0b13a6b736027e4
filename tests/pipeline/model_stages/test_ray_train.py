"""A training on Ray's workers is the one of as many processes, also where one of them is lost."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import psutil
import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.training import Workers
from tests.support.processes import title
from tests.training.run_fixture import write_run, write_towers

SETTINGS = {"batch": 24, "epochs": 40, "warm_up": 2, "lr": 1e-3, "context_length": 96, "checkpoint_every": 2}
LINE = [sys.executable, "-m", "lotlip_data.pipeline.cli", "train"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    run = pathlib.Path(write_run(folder / "run"))
    (run / "manifest.yaml").write_text("name: x\nsources: [{name: a, files: [a.csv]}]\n")
    return run, write_towers(folder / "towers", dropout=0.0)


def command(run, name, settings):
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    ray = ["--ray", "--workers", "2", "--gpus", "0", "--cpus", "0.5"]
    return [*LINE, str(run), "--method", "lotlip", "--name", name, *given, *ray]


def environment():
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**found, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def steps(run, name):
    path = run / "train" / name / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("8", "'8' is not a mapping of settings"),
        ({"worker": 8}, "`worker`: there is no such setting; did you mean `workers`"),
        ({"workers": 0}, "`workers`: 0 is too small; it must be at least 1"),
        ({"workers": 1.5}, "`workers`: 1.5 should be a valid integer"),
        ({"gpus": "all"}, "`gpus`: 'all' should be a valid number"),
    ],
)
def test_workers_that_cannot_be_are_told(given, message):
    with pytest.raises(UserError, match=message):
        Workers.parse(given)


def test_workers_are_as_given():
    assert Workers.parse({"workers": 8, "gpus": 0.5}) == Workers(workers=8, gpus=0.5, cpus=4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_lost_worker_costs_the_steps_since_the_last_checkpoint(world):
    run, towers = world
    driver = subprocess.Popen(command(run, "lost", {**SETTINGS, **towers}), env=environment())
    try:
        checkpoints = run / "train" / "lost" / "checkpoints"
        until = time.monotonic() + 500
        while not list(checkpoints.glob("*.ckpt")):
            assert driver.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        below = psutil.Process(driver.pid).children(recursive=True)
        workers = [process for process in below if "RayTrainWorker" in title(process)]
        assert len(workers) == 2
        workers[-1].send_signal(signal.SIGKILL)
        assert driver.wait(500) == 0
    finally:
        driver.kill()
        driver.wait()
    assert steps(run, "lost") == list(range(1, 84))
    assert json.loads((run / "train" / "lost" / "done.json").read_text())["steps"] == 83


@pytest.mark.slow
def test_what_only_a_person_can_mend_ends_the_training_at_once_with_its_message(world):
    run, towers = world
    ended = subprocess.run(
        command(run, "wrong", {**SETTINGS, **towers, "batch": 25}), env=environment(), capture_output=True, text=True
    )
    assert ended.returncode == 2 and "batch: 25 cannot be shared by 2 processes" in ended.stdout
