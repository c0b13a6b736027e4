"""A study ends with one result per arm and seed, whatever interrupts it and wherever its folder is moved."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lotlip_data.pipeline.study import cells
from lotlip_data.pipeline.study.design import ARMS, plan_seeds
from lotlip_data.pipeline.study.jobs import DataJob, TrainingJob, plan_jobs, result_url
from lotlip_data.pipeline.study.main import run_study
from lotlip_data.pipeline.study.results import read_folder
from tests.pipeline.study.results_fixture import SMALL, make_result

ONLY = ("lit", "lotlip")


def test_every_arm_has_the_same_seeds_and_what_it_needs_comes_first(tmp_path: Path) -> None:
    jobs = plan_jobs(str(tmp_path), SMALL, ARMS.values(), plan_seeds(False, 3))
    assert len(jobs) == len(set(jobs)) == 3 * (1 + len(ARMS))
    for position, job in enumerate(jobs):
        assert set(job.prerequisites()) <= set(jobs[:position])


def test_a_model_that_another_arm_starts_from_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job is not done before the model is there. An arm that nothing starts from keeps none."""
    monkeypatch.chdir(tmp_path)
    start, other = TrainingJob(ARMS["lit"], 0), TrainingJob(ARMS["debias"], 0)
    assert other.prerequisites() == (DataJob(0), start)
    DataJob(0).run(".", SMALL)
    for job in (start, other):
        job.run(".", SMALL)
        assert job.is_done(".", SMALL)
    models = Path("models")
    assert [path.name for path in models.iterdir()] == [start.name(SMALL)]
    result = Path(f"results/{start.name(SMALL)}.json").read_bytes()
    (models / start.name(SMALL)).rename("elsewhere")
    assert not start.is_done(".", SMALL), "other arms start from it"
    start.run(".", SMALL)
    assert start.is_done(".", SMALL) and Path(f"results/{start.name(SMALL)}.json").read_bytes() == result
    assert not any(Path("work").iterdir())


def test_what_is_done_needs_neither_data_nor_models(tmp_path: Path) -> None:
    """So results of another machine leave only what they lack: for `debias`, its CLIP's model again, and the data."""
    for seed, missing in ((0, "lit_long"), (1, "debias"), (2, None)):
        for name in ARMS:
            if name != missing:
                result = make_result(name, seed, 1.0, SMALL)
                cells.create(result_url(str(tmp_path), f"{result['key']}-{seed}"), result)
    needed = [DataJob(0), TrainingJob(ARMS["lit_long"], 0)]
    needed += [DataJob(1), TrainingJob(ARMS["lit"], 1), TrainingJob(ARMS["debias"], 1)]
    assert plan_jobs(str(tmp_path), SMALL, ARMS.values(), plan_seeds(False, 3)) == needed


def _results(folder: Path) -> dict[str, dict]:
    """The results without their times."""
    return {f"{each['arm']}-{each['seed']}": each | {"seconds": None} for each in read_folder(str(folder))}


@pytest.mark.slow
def test_a_study_that_is_killed_and_moved_ends_with_the_results_of_an_uninterrupted_one(tmp_path: Path) -> None:
    """It is killed in the middle of a training, after a checkpoint, and its folder is moved before the next call."""
    design = dataclasses.replace(SMALL, steps=60)
    whole, first, moved = (tmp_path / name for name in ("whole", "first", "moved"))
    assert run_study(str(whole), str(tmp_path / "out"), None, ONLY, 3, 1, design=design).left == 0

    program = subprocess.Popen([sys.executable, "-m", "tests.pipeline.study.test_jobs", str(first)])
    while not list(first.glob("work/*/checkpoints/*")):
        assert program.poll() is None
        time.sleep(0.02)
    program.send_signal(signal.SIGKILL)
    program.wait()
    first.rename(moved)
    assert run_study(str(moved), str(tmp_path / "out"), None, ONLY, 3, 1, design=design).left == 0
    assert _results(moved) == _results(whole) and len(_results(whole)) == 3 * len(ONLY)
    assert str(tmp_path) not in "".join(path.read_text() for path in (moved / "results").iterdir())
    before = {path.name: path.read_bytes() for path in (moved / "results").iterdir()}
    assert run_study(str(moved), str(tmp_path / "out"), None, ONLY, 3, 1, design=design).done == 0
    assert before == {path.name: path.read_bytes() for path in (moved / "results").iterdir()}
    assert json.loads(next(iter(before.values())))["steps"] == 60


if __name__ == "__main__":
    run_study(sys.argv[1], sys.argv[1], None, ONLY, 3, 1, design=dataclasses.replace(SMALL, steps=60))
