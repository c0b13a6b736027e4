"""Loss, gradients and samples of the global batch do not depend on the number of processes."""

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
from tests.training.models.tiny_models import write_clip, write_siglip
from tests.training.run_fixture import TRAINING_SCRIPT, write_run, write_towers

SETTINGS = {"batch": 24, "epochs": 4, "warm_up": 2, "lr": 1e-3, "context_length": 96, "checkpoint_every": 2}

# Each process writes the loss and gradients of the global batch of the first step, for each of the settings.
FIRST_STEP = """
import json, pathlib, sys, torch
from lotlip_data.training import distributed
from lotlip_data.training.config import make_config
from lotlip_data.training.data.dataset import open_dataset
from lotlip_data.training.trainer import Trainer
from tests.training.run_fixture import batch_loss
torch.set_num_threads(1)
run, out, all_settings = sys.argv[1:]
with distributed.process_group() as group:
    for name, settings in json.loads(all_settings).items():
        trainer = Trainer(make_config(**settings), open_dataset(run), out, group)
        trainer.use_lanes(4)
        if trainer.config.images == "features":
            trainer.images.fill(group)
        loss, _ = batch_loss(trainer, trainer.make_batch(0))
        loss.total.backward()
        losses = distributed.all_reduce_sum(torch.stack([loss.total, loss.short, loss.long]).detach(), group)
        learning = {n: p for n, p in trainer.towers.named_parameters() if p.requires_grad}
        distributed.sum_gradients(list(learning.values()), group)
        result = {"loss": losses, **{n: p.grad for n, p in learning.items() if p.grad is not None}}
        torch.save(result, pathlib.Path(out, f"{name}-{group.size}-{group.rank}.pt"))
"""


@pytest.fixture(scope="module")
def run_and_towers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return write_run(folder / "run", (30, 20, 13), scores=True), write_towers(folder / "towers", dropout=0.0)


def start(size, script, *arguments, stderr=None, **variables):
    """Start `size` processes with the environment variables of torchrun."""
    (port,) = map(str, free_ports(1))
    torchrun = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(size), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**os.environ, **torchrun, **variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
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


def wait_for(processes):
    """Standard output and error of each process, after all have ended. No process outlives the call."""
    try:
        return [process.communicate(timeout=600) for process in processes]
    finally:
        kill(processes)


def finish(processes):
    """Standard output of the first process, after all have succeeded."""
    outputs = wait_for(processes)
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs[0][0]


@pytest.mark.slow
def test_loss_and_gradients_of_2_and_4_processes_are_those_of_one_for_every_method(run_and_towers, tmp_path):
    run, towers = run_and_towers
    settings = {method: {**SETTINGS, **towers, "method": method} for method in METHODS}
    settings["accumulate"] = {**SETTINGS, **towers, "accumulate": 2}
    settings["mean"] = {**SETTINGS, **towers, "reduction": "mean"}
    scores = {"text_weights": "score", "text_temperature": 0.5, "best_sub_captions": 4, "long_texts": 2}
    settings["scores"] = {**SETTINGS, **towers, **scores}
    settings["sigmoid with corners"] = {**SETTINGS, **towers, "loss": "sigmoid", "method": "lotlip"}
    settings["debias with scores"] = {**SETTINGS, **towers, **scores, "method": "debias", "corner_tokens": 2}
    for kind, write in (("clip", write_clip), ("siglip", write_siglip)):
        write(tmp_path / kind)
        start_from = {"start_from": str(tmp_path / kind), "stretch": "linear", "context_length": 40}
        settings[f"{kind}, locked images"] = {**SETTINGS, **start_from}
        settings[f"{kind}, both towers"] = {**SETTINGS, **start_from, "lock_image": False, "images": "pixels"}
        settings[f"{kind}, sigmoid"] = {**SETTINGS, **start_from, "loss": "sigmoid"}
    clip = {"start_from": str(tmp_path / "clip"), "context_length": 40}
    settings["debias from a clip"] = {**SETTINGS, **clip, "method": "debias"}
    settings["accumulate both towers"] = {**settings["lotlip_scratch"], "accumulate": 3}
    for size in (1, 2, 4):
        finish(start(size, FIRST_STEP, run, tmp_path, json.dumps(settings)))
    for name in settings:
        alone = torch.load(tmp_path / f"{name}-1-0.pt")
        assert any(value.abs().max() > 0 for key, value in alone.items() if key != "loss")
        for size in (2, 4):
            for rank in range(size):
                shared = torch.load(tmp_path / f"{name}-{size}-{rank}.pt")
                assert shared.keys() == alone.keys()
                for key, value in alone.items():
                    torch.testing.assert_close(shared[key], value, rtol=1e-5, atol=1e-5 * max(1, value.abs().max()))


def test_lanes_divide_the_samples_and_have_each_once_per_epoch():
    counts, samples = (30, 20, 13), 63
    for lanes in (1, 2, 4, 7):
        order = data.SampleOrder(counts, seed=1, lanes=lanes)
        epochs = [[], []]
        for lane in range(lanes):
            length = samples * (lane + 1) // lanes - samples * lane // lanes
            stream = [place for start in range(0, 2 * length, 5) for place in order.take(start, 5, lane)][: 2 * length]
            for epoch, shard, row in stream:
                epochs[epoch].append((shard, row))
        for epoch in epochs:
            assert sorted(epoch) == [(shard, row) for shard, count in enumerate(counts) for row in range(count)]


def test_a_lane_reads_its_own_shards():
    """Of 40 shards in 4 lanes, only those at the three borders are read by two lanes."""
    order = data.SampleOrder([10] * 40, seed=0, lanes=4)
    read = [{shard for _, shard, _ in order.take(0, 100, lane)} for lane in range(4)]
    assert sum(map(len, read)) <= 40 + 3


def signal_after(rank, step, number):
    """The environment variables that make a process of TRAINING_SCRIPT send itself a signal."""
    return {"SIGNAL_AFTER": f"{rank} {step}", "SIGNAL": str(int(number))}


def train_until_killed(*arguments):
    """Train in two processes until the first one dies after its sixth step, before the checkpoint of that step."""
    processes = start(2, TRAINING_SCRIPT, *arguments, **signal_after(0, 5, signal.SIGKILL))
    try:
        output, _ = processes[0].communicate(timeout=600)
    finally:
        kill(processes)
    assert output.splitlines()[-1] == "done 5" and processes[0].returncode == -signal.SIGKILL


def read_metrics(out):
    """The lines of metrics.jsonl, without the values that depend on the machine."""
    measured = {"samples_per_second", "tokens_per_second", "memory_gib"}
    lines = map(json.loads, (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def assert_equal_models(first, second):
    weights, others = (load_file(out / "model" / "model.safetensors") for out in (first, second))
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def uninterrupted(run_and_towers, tmp_path_factory):
    """The folder of a training of two processes that nothing interrupted."""
    run, towers = run_and_towers
    out = tmp_path_factory.mktemp("uninterrupted") / "t"
    finish(start(2, TRAINING_SCRIPT, run, out, json.dumps({**SETTINGS, **towers})))
    return out


@pytest.mark.slow
def test_two_processes_killed_and_resumed_end_with_the_bits_of_uninterrupted_ones(
    run_and_towers, uninterrupted, tmp_path
):
    run, towers = run_and_towers
    settings = json.dumps({**SETTINGS, **towers})
    train_until_killed(run, tmp_path / "b", settings)
    assert "resuming after step 4 of 10" in finish(start(2, TRAINING_SCRIPT, run, tmp_path / "b", settings))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path / "b") and len(read_metrics(uninterrupted)) == 10
    assert_equal_models(uninterrupted, tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both_after_the_same_step_and_loses_none(
    run_and_towers, uninterrupted, tmp_path, stopped
):
    run, towers = run_and_towers
    settings = json.dumps({**SETTINGS, **towers, "checkpoint_every": 500})
    between_two_steps = signal_after(stopped, 3, signal.SIGTERM)  # the next step completes and is the last
    processes = start(2, TRAINING_SCRIPT, run, tmp_path / "b", settings, **between_two_steps)
    for output, _ in wait_for(processes):
        assert [line for line in output.splitlines() if line.startswith("done")] == [
            f"done {step}" for step in range(5)
        ]
    assert processes[0].returncode != 0 != processes[1].returncode
    assert "resuming after step 5 of 10" in finish(start(2, TRAINING_SCRIPT, run, tmp_path / "b", settings))
    assert read_metrics(uninterrupted) == read_metrics(tmp_path / "b") and len(read_metrics(uninterrupted)) == 10
    assert_equal_models(uninterrupted, tmp_path / "b")


@pytest.mark.slow
def test_a_training_of_two_processes_resumes_in_one_with_the_same_samples(
    run_and_towers, uninterrupted, tmp_path, caplog
):
    """And so with the same losses, up to the order of a sum."""
    run, towers = run_and_towers
    settings = {**SETTINGS, **towers}
    train_until_killed(run, tmp_path / "b", json.dumps(settings))
    caplog.clear()
    train(make_config(**settings), run, str(tmp_path / "b"))
    assert "resuming after step 4 of 10" in caplog.messages and not any(
        "order of the samples" in line for line in caplog.messages
    )
    for alone, two in zip(read_metrics(tmp_path / "b"), read_metrics(uninterrupted), strict=True):
        assert alone["loss"] == pytest.approx(two["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_number_of_processes_that_does_not_divide_the_lanes_resumes_in_another_order_and_says_so(
    run_and_towers, tmp_path
):
    run, towers = run_and_towers
    settings = json.dumps({**SETTINGS, **towers})
    train_until_killed(run, tmp_path / "a", settings)
    output = finish(start(3, TRAINING_SCRIPT, run, tmp_path / "a", settings))
    assert "3 processes instead of 2: the order of the samples changes from here on" in output
    assert "resuming after step 4 of 10" in output
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == list(range(1, 11))


@pytest.mark.slow
def test_a_wrong_setting_ends_every_process_with_the_same_message(run_and_towers, tmp_path):
    run, towers = run_and_towers
    settings = json.dumps({**SETTINGS, **towers, "batch": 25})
    processes = start(2, TRAINING_SCRIPT, run, tmp_path / "a", settings, stderr=subprocess.PIPE)
    for _, errors in wait_for(processes):
        assert "batch: 25 cannot be shared by 2 processes" in errors
    assert [process.returncode for process in processes] == [1, 1]


THREADS = """
import pathlib
from lotlip_data.training import distributed
def gloo_threads():
    return sum("gloo" in comm.read_text() for comm in pathlib.Path("/proc/self/task").glob("*/comm"))
with distributed.process_group():
    from transformers import AutoModel
    print(gloo_threads() > 0)
print(gloo_threads())
"""


@pytest.mark.slow
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """Such a thread can abort a process that is exiting, although its training has finished."""
    assert [output for output, _ in wait_for(start(2, THREADS))] == ["True\n0\n"] * 2
