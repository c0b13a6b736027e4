"""Several processes are one: the loss, the gradients and the samples of the global batch, whatever their number."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lotlip_data.training.config import METHODS, make_config
from lotlip_data.training.data import dataset as data
from lotlip_data.training.trainer import train
from tests.support.ports import free_ports
from tests.training.run_fixture import TOLD_TRAINING, write_run, write_towers

SETTINGS = {"batch": 24, "epochs": 4, "warm_up": 2, "lr": 1e-3, "context_length": 96, "checkpoint_every": 2}

# Each process writes the global batch's loss and gradients, at the first step, without dropout: of every method.
FIRST_STEP = """
import json, pathlib, sys, torch
from lotlip_data.training import distributed
from lotlip_data.training.config import make_config
from lotlip_data.training.data.dataset import open_dataset
from lotlip_data.training.trainer import Trainer
torch.set_num_threads(1)
run, out, all_settings = sys.argv[1:]
with distributed.process_group() as of:
    for name, settings in json.loads(all_settings).items():
        trainer = Trainer(make_config(**settings), open_dataset(run), out, of)
        trainer.read_in_lanes(4)
        if trainer.config.images == "features":
            trainer.images.fill(of)
        loss, _ = trainer.objective(trainer.batch(0))
        loss.total.backward()
        parts = distributed.sum_over(torch.stack([loss.total, loss.short, loss.long]).detach(), of)
        learning = {n: p for n, p in trainer.towers.named_parameters() if p.requires_grad}
        distributed.sum_gradients(list(learning.values()), of)
        found = {"loss": parts, **{n: p.grad for n, p in learning.items() if p.grad is not None}}
        torch.save(found, pathlib.Path(out, f"{name}-{of.size}-{of.rank}.pt"))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return write_run(folder / "run", (30, 20, 13)), write_towers(folder / "towers", dropout=0.0)


def start(size, script, *arguments, stderr=None, **variables):
    """So many processes, as torchrun starts them: in its environment's variables."""
    (port,) = map(str, free_ports(1))
    given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, **given, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        for rank in range(size)
    ]


def kill(processes):
    for process in processes:
        process.kill()
        process.wait()


def ended(processes):
    """What each one said, on standard output and error, once it has ended; none outlives this."""
    try:
        return [process.communicate(timeout=600) for process in processes]
    finally:
        kill(processes)


def finish(processes):
    """What the first one said."""
    said = ended(processes)
    assert [process.returncode for process in processes] == [0] * len(processes)
    return said[0][0]


def test_loss_and_gradients_of_2_and_4_processes_are_those_of_one_for_every_method(world, tmp_path):
    run, towers = world
    settings = {method: {**SETTINGS, **towers, "method": method} for method in METHODS}
    settings["pieces"] = {**SETTINGS, **towers, "accumulate": 2}
    settings["mean"] = {**SETTINGS, **towers, "reduction": "mean"}
    settings["both towers in pieces"] = {**settings["lotlip_scratch"], "accumulate": 3}
    for size in (1, 2, 4):
        finish(start(size, FIRST_STEP, run, tmp_path, json.dumps(settings)))
    for name in settings:
        alone = torch.load(tmp_path / f"{name}-1-0.pt")
        assert any(value.abs().max() > 0 for key, value in alone.items() if key != "loss")
        for size in (2, 4):
            for rank in range(size):
                found = torch.load(tmp_path / f"{name}-{size}-{rank}.pt")
                assert found.keys() == alone.keys()
                for key, value in alone.items():
                    torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5 * max(1, value.abs().max()))


def test_lanes_share_the_samples_without_overlap_and_show_each_once_an_epoch():
    counts, samples = (30, 20, 13), 63
    for lanes in (1, 2, 4, 7):
        order = data.Order(counts, seed=1, lanes=lanes)
        epochs = [[], []]
        for lane in range(lanes):
            length = samples * (lane + 1) // lanes - samples * lane // lanes
            stream = [place for start in range(0, 2 * length, 5) for place in order.take(start, 5, lane)][: 2 * length]
            for epoch, shard, row in stream:
                epochs[epoch].append((shard, row))
        for epoch in epochs:
            assert sorted(epoch) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def test_a_lane_reads_shards_of_its_own():
    """Of 40 shards in 4 lanes, none is read by two lanes but those at the three borders."""
    order = data.Order([10] * 40, seed=0, lanes=4)
    read = [{shard for _, shard, _ in order.take(0, 100, lane)} for lane in range(4)]
    assert sum(map(len, read)) <= 40 + 3


def told_after(rank, step, number):
    """The variables by which a TOLD_TRAINING's process sends itself the signal."""
    return {"TOLD_AFTER": f"{rank} {step}", "TOLD": str(int(number))}


def train_until_killed(*arguments):
    """Two processes, of which the first one dies in its sixth step: no checkpoint of that one is begun."""
    processes = start(2, TOLD_TRAINING, *arguments, **told_after(0, 5, signal.SIGKILL))
    try:
        said, _ = processes[0].communicate(timeout=600)
    finally:
        kill(processes)
    assert said.splitlines()[-1] == "done 5" and processes[0].returncode == -signal.SIGKILL


def _curve(out):
    timed = {"samples_per_second", "tokens_per_second", "memory_gib"}
    lines = map(json.loads, (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_bit_for_bit_like_undisturbed_ones(world, tmp_path):
    run, towers = world
    settings = json.dumps({**SETTINGS, **towers})
    finish(start(2, TOLD_TRAINING, run, tmp_path / "a", settings))
    train_until_killed(run, tmp_path / "b", settings)
    assert "going on after step 4 of 10" in finish(start(2, TOLD_TRAINING, run, tmp_path / "b", settings))
    assert _curve(tmp_path / "a") == _curve(tmp_path / "b") and len(_curve(tmp_path / "a")) == 10
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_two_processes_of_which_one_is_told_to_stop_end_after_the_same_step_and_lose_none(world, tmp_path, told):
    run, towers = world
    settings = json.dumps({**SETTINGS, **towers, "checkpoint_every": 500})
    finish(start(2, TOLD_TRAINING, run, tmp_path / "a", settings))
    between_two_steps = told_after(told, 3, signal.SIGTERM)  # the next one is whole, and the last
    processes = start(2, TOLD_TRAINING, run, tmp_path / "b", settings, **between_two_steps)
    for said, _ in ended(processes):
        assert [line for line in said.splitlines() if line.startswith("done")] == [f"done {step}" for step in range(5)]
    assert processes[0].returncode != 0 != processes[1].returncode
    assert "going on after step 5 of 10" in finish(start(2, TOLD_TRAINING, run, tmp_path / "b", settings))
    assert _curve(tmp_path / "a") == _curve(tmp_path / "b") and len(_curve(tmp_path / "a")) == 10
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
    assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.slow
def test_a_training_of_two_processes_goes_on_in_one_with_the_same_samples(world, tmp_path, caplog):
    """And so with the same losses, but for the order of a sum."""
    run, towers = world
    settings = {**SETTINGS, **towers}
    finish(start(2, TOLD_TRAINING, run, tmp_path / "a", json.dumps(settings)))
    train_until_killed(run, tmp_path / "b", json.dumps(settings))
    caplog.clear()
    train(make_config(**settings), run, str(tmp_path / "b"))
    assert "going on after step 4 of 10" in caplog.messages and not any(
        "order of samples" in line for line in caplog.messages
    )
    for alone, two in zip(_curve(tmp_path / "b"), _curve(tmp_path / "a"), strict=True):
        assert alone["loss"] == pytest.approx(two["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_number_of_processes_that_does_not_fit_goes_on_in_another_order_and_says_so(world, tmp_path):
    run, towers = world
    settings = json.dumps({**SETTINGS, **towers})
    train_until_killed(run, tmp_path / "a", settings)
    said = finish(start(3, TOLD_TRAINING, run, tmp_path / "a", settings))
    assert "3 processes in place of 2: from here on in another order of samples" in said
    assert "going on after step 4 of 10" in said
    assert [line["step"] for line in _curve(tmp_path / "a")] == list(range(1, 11))


def test_a_wrong_setting_ends_every_process_with_the_same_message(world, tmp_path):
    run, towers = world
    settings = json.dumps({**SETTINGS, **towers, "batch": 25})
    processes = start(2, TOLD_TRAINING, run, tmp_path / "a", settings, stderr=subprocess.PIPE)
    for _, told in ended(processes):
        assert "batch: 25 cannot be shared by 2 processes" in told
    assert [process.returncode for process in processes] == [1, 1]


THREADS = """
import pathlib
from lotlip_data.training import distributed
def gloo():
    return sum("gloo" in comm.read_text() for comm in pathlib.Path("/proc/self/task").glob("*/comm"))
with distributed.process_group():
    from transformers import AutoModel
    print(gloo() > 0)
print(gloo())
"""


def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that does may abort a process that ends, though its training was done."""
    assert [said for said, _ in ended(start(2, THREADS))] == ["True\n0\n"] * 2
