"""`train` on the command line: what its last line promises is true."""

import pathlib
import re
import signal
import subprocess
import sys
from functools import partial

import pytest

from tests.training.world_run import write_run, write_towers

COMMAND = [sys.executable, "-m", "lotlip_data.pipeline.cli", "train"]
SETTINGS = {"batch": 16, "epochs": 40, "warm_up": 2, "context_length": 96}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run with a dataset, and the arguments of a training of 125 steps."""
    folder = tmp_path_factory.mktemp("world")
    run = pathlib.Path(write_run(folder / "run"))
    (run / "manifest.yaml").write_text("name: x\nsources: [{name: a, files: [a.csv]}]\n")
    settings = {**SETTINGS, **write_towers(folder / "towers")}
    return run, [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def start(run, *arguments):
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
    return subprocess.Popen([*COMMAND, str(run), *arguments], stdout=subprocess.PIPE, text=True, preexec_fn=heeds)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_the_last_line_of_a_stopped_training_says_from_which_step_it_goes_on(world, number, code):
    run, given = world
    name = f"by-{number}"
    stopped = start(run, "--method", "lit", "--name", name, *given)
    lines = []
    for line in stopped.stdout:
        lines.append(line)
        if " step 12/125" in line:
            stopped.send_signal(number)
    assert stopped.wait() == code
    found = re.fullmatch(r"by-\d+: stopped; the same command goes on after step (\d+) of 125\n", lines[-1])
    assert found and 12 <= int(found[1]) < 125
    again, _ = start(run, "--method", "lit", "--name", name, *given).communicate()
    assert f"going on after step {found[1]} of 125" in again


def test_without_resume_a_training_that_is_there_is_left_and_what_can_be_done_is_said(world):
    run, given = world
    (run / "train" / "there").mkdir(parents=True)
    (run / "train" / "there" / "done.json").write_text("{}")
    asked = start(run, "--method", "lit", "--name", "there", "--no-resume", *given)
    said, _ = asked.communicate()
    assert asked.returncode == 2
    assert "train/there: there is a training already. Give this one another name, or remove that folder" in said
