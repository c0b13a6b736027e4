"""Training as a whole, on fixtures small enough to train in seconds: it goes on exactly where it was killed."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.checkpoint import CheckpointError, LoTLIP
from lotlip_data.training.config import ConfigError, make_config
from lotlip_data.training.train import TrainingDiverged, train
from tests.training.world_run import TOLD_TRAINING, write_run, write_towers

SETTINGS = {"batch": 16, "epochs": 10, "warm_up": 2, "lr": 1e-3, "checkpoint_every": 4, "context_length": 96}
STEPS = 31  # 10 epochs of 50 samples in batches of 16: full ones only


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of 50 samples in two shards, in a folder with a blank in its name, and the settings of a training on it."""
    folder = tmp_path_factory.mktemp("a world")
    return write_run(folder / "run"), {**SETTINGS, **write_towers(folder / "towers")}


def _start(run, out, settings, script=TOLD_TRAINING):
    arguments = [sys.executable, "-c", script, run, str(out), json.dumps(settings)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def _steps_done(lines):
    return [int(found[1]) for line in lines if (found := re.match(r"done (\d+)", line))]


def _metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["lit", "lotlip", "lotlip_scratch"])
def test_a_training_killed_and_resumed_ends_bit_for_bit_like_an_undisturbed_one(world, tmp_path, method):
    run, settings = world
    settings = {**settings, "method": method}
    undisturbed = _start(run, tmp_path / "a", settings)
    assert _steps_done(undisturbed.communicate()[0].splitlines()) == list(range(STEPS))

    killed = _start(run, tmp_path / "b", settings)
    before = []
    for line in killed.stdout:
        before += _steps_done([line])
        if before and before[-1] == 13:
            os.kill(killed.pid, signal.SIGKILL)
            break
    assert killed.wait() == -signal.SIGKILL and 0 < len(before) < STEPS
    lines = _start(run, tmp_path / "b", settings).communicate()[0].splitlines()
    after = _steps_done(lines)
    assert "going on after step 12 of 31" in lines
    assert after == list(range(12, STEPS)) and len(set(before) & set(after)) < STEPS

    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in "ab")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    timed = {"samples_per_second", "tokens_per_second", "memory_gib"}
    curves = [[{k: v for k, v in line.items() if k not in timed} for line in _metrics(tmp_path / n)] for n in "ab"]
    assert curves[0] == curves[1] and len(curves[0]) == STEPS


def test_a_finished_training_is_left_alone_and_says_so(world, tmp_path):
    run, settings = world
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0})
    first = train(config, run, str(tmp_path / "t"), say=lambda line: None)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*")}
    said = []
    second = train(config, run, str(tmp_path / "t"), say=said.append)
    assert first.did_something and not second.did_something and second.model == first.model
    assert "nothing to do" in said[-1]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*")}
    with pytest.raises(ConfigError, match=r"lr 0\.001 there, 0\.002 now"):
        train(make_config(**{**settings, "epochs": 1, "warm_up": 0, "lr": 2e-3}), run, str(tmp_path / "t"))
    with pytest.raises(UserError, match="choose another name"):
        train(config, run, str(tmp_path / "t"), resume=False)


def test_settings_that_cannot_be_used_do_not_take_the_name(world, tmp_path):
    run, settings = world
    with pytest.raises(UserError, match=r"context_length: .* positions"):
        train(make_config(**{**settings, "context_length": 4096}), run, str(tmp_path / "t"))
    with pytest.raises(UserError, match="nobody"):
        train(make_config(**{**settings, "captioners": ["nobody"]}), run, str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(world, tmp_path, monkeypatch):
    run, settings = world
    config, out = make_config(**{**settings, "epochs": 5}), tmp_path / "t"
    from lotlip_data.training.train import Trainer

    whole = Trainer.step

    def dies(self, step, batch):
        if step == 9:
            raise KeyboardInterrupt
        return whole(self, step, batch)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config, run, str(out), say=lambda line: None)
    monkeypatch.setattr(Trainer, "step", whole)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000004.ckpt", "step-00000008.ckpt"]
    last = out / "checkpoints" / "step-00000008.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1  # one bit, where no format would notice
    last.write_bytes(data)
    said = []
    train(config, run, str(out), say=said.append)
    assert any("damaged" in line and "step-00000008" in line for line in said)
    assert any("going on after step 4 of 15" in line for line in said)


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
        train(make_config(**settings), run, str(tmp_path / "t"), say=lambda line: None)


def test_features_are_computed_once_for_all_trainings_of_a_run(world, tmp_path):
    run, settings = world
    said = []
    for name in "ab":
        train(make_config(**{**settings, "epochs": 1, "warm_up": 0}), run, str(tmp_path / name), say=said.append)
    features = list(pathlib.Path(run, "features").rglob("*.npz"))
    assert len(features) == 2 and sum("to compute" in line for line in said) <= 1


def test_a_saved_model_embeds_as_the_one_in_memory_and_a_damaged_folder_is_refused(world, tmp_path):
    from lotlip_data.training.train import load_model
    from lotlip_data.world.scenes import render, sample_scene

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
    train(config, run, str(tmp_path / "a"), say=lambda line: None)
    file = next(pathlib.Path(run, "features").rglob("*.npz"))
    whole = file.read_bytes()
    broken = bytearray(whole)
    broken[len(whole) // 2] ^= 1
    file.write_bytes(broken)
    try:
        with pytest.raises(UserError, match=r"\.npz: cannot be read .* Remove it"):
            train(config, run, str(tmp_path / "b"), say=lambda line: None)
    finally:
        file.write_bytes(whole)
