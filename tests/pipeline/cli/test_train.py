"""`train` on the command line: the step in its last line is the step at which it resumes."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.training.run_fixture import write_run, write_towers

COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli", "train"]
SETTINGS = {"batch": 16, "epochs": 4000, "warm_up": 2, "context_length": 96, "checkpoint_every": 12}


@pytest.fixture(scope="module")
def run_and_arguments(tmp_path_factory):
    """A run with a dataset, and the arguments of a training of 12,500 steps, which is stopped after a few."""
    folder = tmp_path_factory.mktemp("training")
    run = pathlib.Path(write_run(folder / "run"))
    (run / "manifest.yaml").write_text("name: x\nsources: [{name: a, files: [a.csv]}]\n")
    settings = {**SETTINGS, **write_towers(folder / "towers")}
    return run, [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@contextlib.contextmanager
def started(run, *arguments):
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*COMMAND, str(run), *arguments]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=restore) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_last_line_of_a_stopped_training_names_the_step_at_which_it_resumes(run_and_arguments, number):
    run, arguments = run_and_arguments
    name = f"by-{number}"
    metrics = run / "train" / name / "metrics.jsonl"
    with started(run, "--method", "lit", "--name", name, *arguments) as stopped:
        while not metrics.exists() and stopped.poll() is None:  # it is written with the first checkpoint
            time.sleep(0.05)
        stopped.send_signal(number)
        output, _ = stopped.communicate()
    assert stopped.returncode == 130
    last = output.splitlines()[-1]
    match = re.fullmatch(r"by-\d+: stopped; run the same command to resume after step (\d+) of 12500", last)
    assert match, output
    assert int(match[1]) == json.loads(metrics.read_text().splitlines()[-1])["step"]  # the last completed step
    with started(run, "--method", "lit", "--name", name, *arguments) as again:
        resumed = next(line for line in again.stdout if re.search("resuming|starting again", line))
    assert f"resuming after step {match[1]} of 12500" in resumed


def test_no_resume_leaves_an_existing_training_and_names_the_remedies(run_and_arguments):
    run, arguments = run_and_arguments
    (run / "train" / "existing").mkdir(parents=True)
    (run / "train" / "existing" / "done.json").write_text("{}")
    with started(run, "--method", "lit", "--name", "existing", "--no-resume", *arguments) as refused:
        output, _ = refused.communicate()
    assert refused.returncode == 2
    assert "train/existing: already contains a training." in output
    assert "Give this training another name, or delete that folder" in output
