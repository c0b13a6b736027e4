"""A training on Ray workers makes every step once, also if a worker is lost."""

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
COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli", "train"]


@pytest.fixture(scope="module")
def run_and_towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ray_train")
    run = pathlib.Path(write_run(folder / "run"))
    (run / "manifest.yaml").write_text("name: x\nsources: [{name: a, files: [a.csv]}]\n")
    return run, write_towers(folder / "towers", dropout=0.0)


def command(run, name, settings):
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    ray = ["--ray", "--workers", "2", "--gpus", "0", "--cpus", "0.5"]
    return [*COMMAND, str(run), "--method", "lotlip", "--name", name, *arguments, *ray]


def environment():
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**variables, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def logged_steps(run, name):
    path = run / "train" / name / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_machine_has_cpus_for_are_an_error_at_once(run_and_towers, tmp_path, monkeypatch):
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.pipeline.model_stages.ray_train import train_on_ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    workers = Workers(workers=100, cpus=2, gpus=0)
    with pytest.raises(UserError, match=r"need 200 CPU \(it has 2\) of this machine; lower `workers`"):
        train_on_ray({}, Run.at(str(run_and_towers[0])), str(tmp_path), workers)
    with pytest.raises(UserError, match="asks for 8 GPUs, and this machine has 0"):
        train_on_ray({}, Run.at(str(run_and_towers[0])), str(tmp_path), Workers(workers=1, gpus=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("8", "'8' is not a mapping of settings"),
        ({"worker": 8}, "`worker`: there is no such setting; did you mean `workers`"),
        ({"workers": 0}, "`workers`: 0 is too small; it must be at least 1"),
        ({"workers": 1.5}, "`workers`: 1.5 should be a valid integer"),
        ({"gpus": "all"}, "`gpus`: 'all' should be a valid number"),
    ],
)
def test_invalid_settings_of_workers_are_reported(settings, message):
    with pytest.raises(UserError, match=message):
        Workers.parse(settings)


def test_settings_of_workers_are_parsed():
    assert Workers.parse({"workers": 8, "gpus": 0.5}) == Workers(workers=8, gpus=0.5, cpus=4)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_after_a_lost_worker_the_training_resumes_from_the_last_checkpoint(run_and_towers):
    run, towers = run_and_towers
    driver = subprocess.Popen(command(run, "lost", {**SETTINGS, **towers}), env=environment())
    try:
        checkpoints = run / "train" / "lost" / "checkpoints"
        deadline = time.monotonic() + 500
        while not list(checkpoints.glob("*.ckpt")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        descendants = psutil.Process(driver.pid).children(recursive=True)
        workers = [process for process in descendants if "RayTrainWorker" in title(process)]
        assert len(workers) == 2
        workers[-1].send_signal(signal.SIGKILL)
        assert driver.wait(500) == 0
    finally:
        driver.kill()
        driver.wait()
    assert logged_steps(run, "lost") == list(range(1, 84))
    assert json.loads((run / "train" / "lost" / "done.json").read_text())["steps"] == 83


@pytest.mark.slow
def test_a_user_error_ends_the_training_at_once_with_its_message(run_and_towers):
    run, towers = run_and_towers
    process = subprocess.run(
        command(run, "wrong", {**SETTINGS, **towers, "batch": 25}), env=environment(), capture_output=True, text=True
    )
    assert process.returncode == 2 and "batch: 25 cannot be shared by 2 processes" in process.stdout
