"""Training as a whole, on fixtures small enough to train in seconds: it goes on exactly where it was killed."""

import json
import pathlib
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.config import ConfigError, make_config
from lotlip_data.training.metrics import TrainingDiverged
from lotlip_data.training.models.lotlip import CheckpointError, LoTLIP
from lotlip_data.training.signals import StopSignal
from lotlip_data.training.trainer import train
from tests.training.run_fixture import TOLD_TRAINING, write_run, write_towers

SETTINGS = {"batch": 16, "epochs": 10, "warm_up": 2, "lr": 1e-3, "checkpoint_every": 4, "context_length": 96}
STEPS = 31  # 10 epochs of 50 samples in batches of 16: full ones only


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of 50 samples in two shards, in a folder with a blank in its name, and the settings of a training on it."""
    folder = tmp_path_factory.mktemp("a world")
    return write_run(folder / "run"), {**SETTINGS, **write_towers(folder / "towers")}


def _start(run, out, settings, script=TOLD_TRAINING):
    arguments = [sys.executable, "-c", script, run, str(out), json.dumps(settings)]
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, preexec_fn=heeds)


def _steps_done(lines):
    return [int(found[1]) for line in lines if (found := re.match(r"done (\d+)", line))]


def _curve(out):
    timed = {"samples_per_second", "tokens_per_second", "memory_gib"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def _weights(out):
    return load_file(out / "model" / "model.safetensors")


def _are_equal(whole, resumed):
    return whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("method", ["lit", "lotlip", "lotlip_scratch"])
def test_a_training_killed_and_resumed_ends_bit_for_bit_like_an_undisturbed_one(world, tmp_path, monkeypatch, method):
    run, settings = world
    settings = {**settings, "method": method}
    undisturbed = _start(run, tmp_path / "a", settings)
    assert _steps_done(undisturbed.communicate()[0].splitlines()) == list(range(STEPS))

    monkeypatch.setenv("TOLD_AFTER", "0 13")  # of which the last checkpoint, of 12 steps, knows nothing
    monkeypatch.setenv("TOLD", str(int(signal.SIGKILL)))
    killed = _start(run, tmp_path / "b", settings)
    assert _steps_done(killed.communicate()[0].splitlines()) == list(range(14)) and killed.returncode == -signal.SIGKILL
    monkeypatch.delenv("TOLD_AFTER")
    lines = _start(run, tmp_path / "b", settings).communicate()[0].splitlines()
    assert f"going on after step 12 of {STEPS}" in lines
    assert _steps_done(lines) == list(range(12, STEPS))

    assert _are_equal(_weights(tmp_path / "a"), _weights(tmp_path / "b"))
    assert _curve(tmp_path / "a") == _curve(tmp_path / "b") and len(_curve(tmp_path / "a")) == STEPS


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """The folder of a training of the world's settings that nobody stopped, by itself and in one thread."""
    run, settings = world
    out = tmp_path_factory.mktemp("undisturbed") / "t"
    assert _start(run, out, settings).communicate()[0].count("done") == STEPS
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_told_to_stop_loses_no_step_and_ends_like_an_undisturbed_one(
    world, undisturbed, tmp_path, monkeypatch, number
):
    """Also before the first checkpoint is due; and it ends as a process that the signal killed."""
    run, settings = world
    settings = {**settings, "checkpoint_every": 500}
    monkeypatch.setenv("TOLD_AFTER", "0 6")  # between two steps: the next one is whole, and the last
    monkeypatch.setenv("TOLD", str(int(number)))
    told = _start(run, tmp_path / "t", settings)
    assert _steps_done(told.communicate()[0].splitlines()) == list(range(8)) and told.returncode == -number
    monkeypatch.delenv("TOLD_AFTER")
    lines = _start(run, tmp_path / "t", settings).communicate()[0].splitlines()
    assert f"going on after step 8 of {STEPS}" in lines
    assert _steps_done(lines) == list(range(8, STEPS))
    assert _are_equal(_weights(undisturbed), _weights(tmp_path / "t"))
    assert _curve(undisturbed) == _curve(tmp_path / "t")


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal, so many times, within the forward pass of one step."""
    from lotlip_data.training.objective import Objective

    loss = Objective.__call__

    def at(step, number=signal.SIGINT, times=1):
        steps = iter(range(10_000))

        def told(self, batch):
            found = loss(self, batch)
            for _ in range(times if next(steps) == step else 0):
                signal.raise_signal(number)
            return found

        monkeypatch.setattr(Objective, "__call__", told)

    held = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    yield at
    signal.signal(signal.SIGINT, held)


def test_a_signal_within_a_step_waits_for_its_end_and_says_from_where_it_goes_on(world, tmp_path, signal_at, caplog):
    run, settings = world
    signal_at(5)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    caplog.clear()
    with pytest.raises(KeyboardInterrupt, match="the same command goes on after step 6 of 31"):
        train(make_config(**settings), run, str(tmp_path))
    assert caplog.messages[-1] == "stopped; the same command goes on after step 6 of 31"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004.ckpt", "step-00000006.ckpt"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize(("echo", "kept"), [(0.0, 4), (3600.0, 6)])
def test_a_second_ctrl_c_does_not_wait_but_its_echo_does(world, tmp_path, signal_at, monkeypatch, echo, kept):
    run, settings = world
    monkeypatch.setattr(StopSignal, "ECHO_SECONDS", echo)
    signal_at(5, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(**settings), run, str(tmp_path))
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == f"step-{kept:08d}.ckpt"


def test_a_signal_in_the_last_step_ends_a_training_that_is_finished(world, tmp_path, signal_at):
    run, settings = world
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0})
    signal_at(2)
    with pytest.raises(KeyboardInterrupt):
        train(config, run, str(tmp_path))
    assert not train(config, run, str(tmp_path)).did_something


def test_a_signal_before_an_error_still_ends_the_process_and_the_error_is_told(
    world, tmp_path, signal_at, monkeypatch, caplog
):
    """The study's processes go on with another task after an error, while their parent waits for their end."""
    run, settings = world
    from lotlip_data.training.checkpointing import CheckpointManager

    def full(self, step, state):
        raise OSError("no space left")

    monkeypatch.setattr(CheckpointManager, "save", full)
    caplog.clear()
    ended = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal_at(1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(make_config(**settings), run, str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, ended)
    assert "OSError: no space left" in caplog.messages


def test_a_training_killed_before_its_first_checkpoint_says_that_it_starts_again(world, tmp_path, caplog):
    run, settings = world
    (tmp_path / "metrics.jsonl").write_text("")
    caplog.clear()
    train(make_config(**{**settings, "epochs": 1, "warm_up": 0}), run, str(tmp_path))
    assert "stopped before its first checkpoint: starting again at step 1" in caplog.messages


def test_a_finished_training_is_left_alone_and_says_so(world, tmp_path, monkeypatch, caplog):
    """Nothing is written: its folder may be on a disk that can only be read."""
    run, settings = world
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0})
    first = train(config, run, str(tmp_path / "t"))
    for name in ("create", "replace"):
        monkeypatch.setattr(storage, name, None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*")}
    caplog.clear()
    second = train(config, run, str(tmp_path / "t"))
    assert first.did_something and not second.did_something and second.model == first.model
    assert "nothing to do" in caplog.messages[-1]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*")}
    with pytest.raises(ConfigError, match=r"lr 0\.001 there, 0\.002 now"):
        train(make_config(**{**settings, "epochs": 1, "warm_up": 0, "lr": 2e-3}), run, str(tmp_path / "t"))
    with pytest.raises(UserError, match="another name, or remove that folder"):
        train(config, run, str(tmp_path / "t"), resume=False)


def test_settings_that_cannot_be_used_do_not_take_the_name(world, tmp_path):
    run, settings = world
    with pytest.raises(UserError, match=r"context_length: .* positions"):
        train(make_config(**{**settings, "context_length": 4096}), run, str(tmp_path / "t"))
    with pytest.raises(UserError, match="nobody"):
        train(make_config(**{**settings, "captioners": ["nobody"]}), run, str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(world, tmp_path, monkeypatch, caplog):
    run, settings = world
    config, out = make_config(**{**settings, "epochs": 5}), tmp_path / "t"
    from lotlip_data.training.trainer import Trainer

    whole = Trainer.step

    def dies(self, step, batch):
        if step == 9:
            raise KeyboardInterrupt
        return whole(self, step, batch)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config, run, str(out))
    monkeypatch.setattr(Trainer, "step", whole)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000004.ckpt", "step-00000008.ckpt"]
    last = out / "checkpoints" / "step-00000008.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1  # one bit, where no format would notice
    last.write_bytes(data)
    caplog.clear()
    train(config, run, str(out))
    assert any("damaged" in line and "step-00000008" in line for line in caplog.messages)
    assert any("going on after step 4 of 15" in line for line in caplog.messages)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_checkpoint(world, tmp_path, monkeypatch):
    run, settings = world
    from lotlip_data.training.objective import Objective

    loss, steps = Objective.__call__, iter(range(100))

    def breaks(self, batch):
        found, tokens = loss(self, batch)
        bad = float("nan") if next(steps) == 8 else 1.0
        return type(found)(found.total * bad, found.short, found.long), tokens

    monkeypatch.setattr(Objective, "__call__", breaks)
    seen = r"step 9: the loss is nan .*not finite: \d+ gradients, the first that of .* is of step 8\. Lower lr"
    with pytest.raises(TrainingDiverged, match=seen):
        train(make_config(**settings), run, str(tmp_path / "t"))


def test_features_are_computed_once_for_all_trainings_of_a_run(world, tmp_path, caplog):
    run, settings = world
    caplog.clear()
    for name in "ab":
        train(make_config(**{**settings, "epochs": 1, "warm_up": 0}), run, str(tmp_path / name))
    features = list(pathlib.Path(run, "features").rglob("*.npz"))
    assert len(features) == 2 and sum("to compute" in line for line in caplog.messages) <= 1


def test_a_saved_model_embeds_as_the_one_in_memory_and_a_damaged_folder_is_refused(world, tmp_path):
    from lotlip_data.synthetic.scenes import render, sample_scene
    from lotlip_data.training.models.lotlip import load_model

    _, settings = world
    model = load_model(make_config(**settings))
    model.save(str(tmp_path / "model"))
    again = LoTLIP.load(str(tmp_path / "model"))
    images, texts = [render(sample_scene(seed), 128) for seed in range(3)], ["One shape. Another.", "", "x " * 300]
    assert torch.equal(model.embed_images(images), again.embed_images(images))
    assert torch.equal(model.embed_texts(texts), again.embed_texts(texts))
    torch.testing.assert_close(again.embed_texts(texts).norm(dim=-1), torch.ones(3))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        LoTLIP.load(str(tmp_path / "model"))
    with pytest.raises(CheckpointError, match=r"there is no config\.json"):
        LoTLIP.load(str(tmp_path))


def test_a_flipped_bit_in_kept_features_is_found(world, tmp_path):
    run, settings = world
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0, "seed": 7})
    train(config, run, str(tmp_path / "a"))
    file = next(pathlib.Path(run, "features").rglob("*.npz"))
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    file.write_bytes(broken)
    try:
        with pytest.raises(UserError, match=r"\.npz: cannot be read .* Remove it"):
            train(config, run, str(tmp_path / "b"))
    finally:
        file.write_bytes(whole)
