"""Whole trainings, small enough for seconds: they resume exactly, stop on signals, and report unusable inputs."""

import json
import pathlib
import re
import signal
import subprocess
import sys
import threading
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.training import trainer
from lotlip_data.training.batch_encoder import BatchEncoder
from lotlip_data.training.checkpointing import CheckpointManager
from lotlip_data.training.config import ConfigError, make_config
from lotlip_data.training.loss import Loss, lotlip_loss
from lotlip_data.training.metrics import TrainingDiverged
from lotlip_data.training.models.lotlip import CheckpointError, LoTLIP, load_model
from lotlip_data.training.signals import StopSignal
from lotlip_data.training.trainer import Trainer, train
from tests.training.models.tiny_models import write_clip, write_siglip
from tests.training.run_fixture import TRAINING_SCRIPT, write_run, write_towers

SETTINGS = {"batch": 16, "epochs": 10, "warm_up": 2, "lr": 1e-3, "checkpoint_every": 4, "context_length": 96}
STEPS = 31  # 10 epochs of 50 samples, in full batches of 16


@pytest.fixture(scope="module")
def run_and_settings(tmp_path_factory):
    """A run of 50 samples in two shards, in a folder with a space in its name, and the settings of a training on it."""
    folder = tmp_path_factory.mktemp("a run")
    return write_run(folder / "run"), {**SETTINGS, **write_towers(folder / "towers")}


def _train_in_process(run, out, settings):
    """Train in another process until it ends. Returns the lines that it printed, and its exit code."""
    arguments = [sys.executable, "-c", TRAINING_SCRIPT, run, str(out), json.dumps(settings)]
    default_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # background jobs ignore SIGINT
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, preexec_fn=default_sigint)
    output, _ = process.communicate()
    return output.splitlines(), process.returncode


def _steps_done(lines):
    return [int(match[1]) for line in lines if (match := re.match(r"done (\d+)", line))]


def _metrics(out):
    """The lines of metrics.jsonl, without the values that depend on the machine."""
    measured = {"samples_per_second", "tokens_per_second", "memory_gib"}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def _weights(out):
    return load_file(out / "model" / "model.safetensors")


def _are_equal(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


@pytest.fixture(scope="module")
def uninterrupted(run_and_settings, tmp_path_factory):
    """The folder of a training of a method that nothing interrupted, in one process and one thread."""
    run, settings = run_and_settings
    folder, trained = tmp_path_factory.mktemp("uninterrupted"), set()

    def folder_of(method):
        if method not in trained:
            lines, _ = _train_in_process(run, folder / method, {**settings, "method": method})
            assert _steps_done(lines) == list(range(STEPS))
            trained.add(method)
        return folder / method

    return folder_of


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lit", "lotlip", "lotlip_scratch", "longclip", "debias", "multi_positive"])
def test_a_training_killed_and_resumed_ends_with_the_bits_of_an_uninterrupted_one(
    run_and_settings, uninterrupted, tmp_path, monkeypatch, method
):
    run, settings = run_and_settings
    settings = {**settings, "method": method}
    monkeypatch.setenv("SIGNAL_AFTER", "0 13")  # after the last checkpoint, which has 12 steps
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGKILL)))
    lines, exit_code = _train_in_process(run, tmp_path, settings)
    assert _steps_done(lines) == list(range(14)) and exit_code == -signal.SIGKILL
    monkeypatch.delenv("SIGNAL_AFTER")
    lines, _ = _train_in_process(run, tmp_path, settings)
    assert f"resuming after step 12 of {STEPS}" in lines
    assert _steps_done(lines) == list(range(12, STEPS))

    expected = uninterrupted(method)
    assert _are_equal(_weights(expected), _weights(tmp_path))
    assert _metrics(expected) == _metrics(tmp_path) and len(_metrics(expected)) == STEPS


def _assert_exact_resume(run, settings, folder, monkeypatch):
    """A training that is killed and resumed ends with the bits of one that nothing interrupted."""
    _train_in_process(run, folder / "a", settings)
    monkeypatch.setenv("SIGNAL_AFTER", "0 13")
    monkeypatch.setenv("SIGNAL", str(int(signal.SIGKILL)))
    assert _train_in_process(run, folder / "b", settings)[1] == -signal.SIGKILL
    monkeypatch.delenv("SIGNAL_AFTER")
    lines, _ = _train_in_process(run, folder / "b", settings)
    assert f"resuming after step 12 of {STEPS}" in lines
    assert _are_equal(_weights(folder / "a"), _weights(folder / "b"))
    assert _metrics(folder / "a") == _metrics(folder / "b") and len(_metrics(folder / "a")) == STEPS


WITH_SCORES = {"text_weights": "score", "text_temperature": 0.5, "best_sub_captions": 4, "long_texts": 2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lotlip", "debias", "multi_positive"])
def test_a_training_with_score_weights_killed_and_resumed_ends_with_the_bits_of_an_uninterrupted_one(
    run_and_settings, tmp_path, monkeypatch, method
):
    run = write_run(tmp_path / "run", scores=True)
    settings = {**run_and_settings[1], **WITH_SCORES, "method": method}
    _assert_exact_resume(run, settings, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "later"),
    [("clip", {}), ("siglip", {}), ("clip", {"method": "debias"}), ("siglip", {"loss": "sigmoid"})],
)
def test_a_training_that_starts_from_a_clip_killed_and_resumed_ends_with_the_bits_of_an_uninterrupted_one(
    run_and_settings, tmp_path, monkeypatch, kind, later
):
    run, _ = run_and_settings
    {"clip": write_clip, "siglip": write_siglip}[kind](tmp_path / kind)
    images = {"lock_image": False, "images": "pixels"}
    settings = {**SETTINGS, **images, "start_from": str(tmp_path / kind), "stretch": "longclip", "context_length": 40}
    settings |= later
    _assert_exact_resume(run, settings, tmp_path, monkeypatch)


def test_score_weights_on_a_dataset_without_scores_are_refused_before_the_folder_is_claimed(run_and_settings, tmp_path):
    run, settings = run_and_settings
    with pytest.raises(UserError, match=r"the dataset has no scores .*lotlip-data score"):
        train(make_config(**{**settings, **WITH_SCORES}), run, str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_stopped_by_a_signal_loses_no_step_and_ends_with_the_bits_of_an_uninterrupted_one(
    run_and_settings, uninterrupted, tmp_path, monkeypatch, number
):
    """Also before the first checkpoint is due. The process ends as one that the signal killed."""
    run, settings = run_and_settings
    settings = {**settings, "checkpoint_every": 500}
    monkeypatch.setenv("SIGNAL_AFTER", "0 6")  # between two steps: the next step completes and is the last
    monkeypatch.setenv("SIGNAL", str(int(number)))
    lines, exit_code = _train_in_process(run, tmp_path, settings)
    assert _steps_done(lines) == list(range(8)) and exit_code == -number
    monkeypatch.delenv("SIGNAL_AFTER")
    lines, _ = _train_in_process(run, tmp_path, settings)
    assert f"resuming after step 8 of {STEPS}" in lines
    assert _steps_done(lines) == list(range(8, STEPS))
    expected = uninterrupted("lotlip")
    assert _are_equal(_weights(expected), _weights(tmp_path))
    assert _metrics(expected) == _metrics(tmp_path)


@pytest.fixture
def signal_at(monkeypatch):
    """Sends this process a signal, `times` times, within the forward pass of a step."""
    encode = BatchEncoder.__call__

    def send_at(step, number=signal.SIGINT, times=1):
        steps = iter(range(10_000))

        def encode_then_signal(self, batch):
            features = encode(self, batch)
            for _ in range(times if next(steps) == step else 0):
                signal.raise_signal(number)
            return features

        monkeypatch.setattr(BatchEncoder, "__call__", encode_then_signal)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore SIGINT
    yield send_at
    signal.signal(signal.SIGINT, handler)


def test_a_signal_within_a_step_waits_for_its_end_and_the_message_says_where_it_resumes(
    run_and_settings, tmp_path, signal_at, caplog
):
    run, settings = run_and_settings
    signal_at(5)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    caplog.clear()
    with pytest.raises(KeyboardInterrupt, match="run the same command to resume after step 6 of 31"):
        train(make_config(**settings), run, str(tmp_path))
    assert caplog.messages[-1] == "stopped; run the same command to resume after step 6 of 31"
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004.ckpt", "step-00000006.ckpt"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.parametrize(("echo_seconds", "last_checkpoint"), [(0.0, 4), (3600.0, 6)])
def test_a_second_ctrl_c_takes_effect_at_once_but_an_echo_of_the_first_waits(
    run_and_settings, tmp_path, signal_at, monkeypatch, echo_seconds, last_checkpoint
):
    run, settings = run_and_settings
    monkeypatch.setattr(StopSignal, "ECHO_SECONDS", echo_seconds)
    signal_at(5, times=2)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(**settings), run, str(tmp_path))
    assert max(path.name for path in (tmp_path / "checkpoints").iterdir()) == f"step-{last_checkpoint:08d}.ckpt"


def test_a_signal_in_the_last_step_takes_effect_after_the_training_has_finished(run_and_settings, tmp_path, signal_at):
    run, settings = run_and_settings
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0})
    signal_at(2)
    with pytest.raises(KeyboardInterrupt):
        train(config, run, str(tmp_path))
    assert not train(config, run, str(tmp_path)).did_something


def test_a_signal_before_an_error_still_ends_the_process_and_the_error_is_logged(
    run_and_settings, tmp_path, signal_at, monkeypatch, caplog
):
    """The study's processes continue with another task after an error, while their parent waits for them to end."""
    run, settings = run_and_settings

    def fail(self, step, state):
        raise OSError("no space left")

    monkeypatch.setattr(CheckpointManager, "save", fail)
    caplog.clear()
    handler = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal_at(1, signal.SIGTERM)
        with pytest.raises(SystemExit):
            train(make_config(**settings), run, str(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert "OSError: no space left" in caplog.messages


def test_a_training_killed_before_its_first_checkpoint_says_that_it_starts_again(run_and_settings, tmp_path, caplog):
    run, settings = run_and_settings
    (tmp_path / "metrics.jsonl").write_text("")
    caplog.clear()
    train(make_config(**{**settings, "epochs": 1, "warm_up": 0}), run, str(tmp_path))
    assert "the previous run stopped before its first checkpoint: starting again at step 1" in caplog.messages


def test_a_finished_training_is_left_alone_and_says_so(run_and_settings, tmp_path, monkeypatch, caplog):
    """Nothing is written: its folder can be on a read-only disk."""
    run, settings = run_and_settings
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
    with pytest.raises(ConfigError, match="loss softmax there, sigmoid now"):
        train(make_config(**{**settings, "epochs": 1, "warm_up": 0, "loss": "sigmoid"}), run, str(tmp_path / "t"))
    with pytest.raises(UserError, match="another name, or delete that folder"):
        train(config, run, str(tmp_path / "t"), resume=False)


def test_a_finished_training_that_was_moved_has_its_model_where_it_is(run_and_settings, tmp_path):
    run, settings = run_and_settings
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0})
    train(config, run, str(tmp_path / "old"))
    (tmp_path / "old").rename(tmp_path / "new")
    assert train(config, run, str(tmp_path / "new")).model == str(tmp_path / "new" / "model")


def test_unusable_settings_do_not_claim_the_folder(run_and_settings, tmp_path):
    run, settings = run_and_settings
    with pytest.raises(UserError, match=r"context_length: .* positions"):
        train(make_config(**{**settings, "context_length": 4096}), run, str(tmp_path / "t"))
    with pytest.raises(UserError, match="nobody"):
        train(make_config(**{**settings, "captioners": ["nobody"]}), run, str(tmp_path / "t"))
    assert not (tmp_path / "t").exists()


def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(run_and_settings, tmp_path, monkeypatch, caplog):
    run, settings = run_and_settings
    config, out = make_config(**{**settings, "epochs": 5}), tmp_path / "t"
    complete_step = Trainer.step

    def interrupt_at_step_9(self, step, batch):
        if step == 9:
            raise KeyboardInterrupt
        return complete_step(self, step, batch)

    monkeypatch.setattr(Trainer, "step", interrupt_at_step_9)
    with pytest.raises(KeyboardInterrupt):
        train(config, run, str(out))
    monkeypatch.setattr(Trainer, "step", complete_step)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000004.ckpt", "step-00000008.ckpt"]
    last = out / "checkpoints" / "step-00000008.ckpt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1  # one bit, in the tensors: torch would load it
    last.write_bytes(data)
    caplog.clear()
    train(config, run, str(out))
    assert any("damaged" in line and "step-00000008" in line for line in caplog.messages)
    assert any("resuming after step 4 of 15" in line for line in caplog.messages)


def test_a_loss_that_is_nan_stops_the_training_with_the_step_and_the_last_checkpoint(
    run_and_settings, tmp_path, monkeypatch
):
    run, settings = run_and_settings
    steps = iter(range(100))

    def nan_at_step_8(*arguments, **options):
        loss = lotlip_loss(*arguments, **options)
        factor = float("nan") if next(steps) == 8 else 1.0
        return Loss(loss.total * factor, loss.short, loss.long)

    monkeypatch.setattr(trainer, "lotlip_loss", nan_at_step_8)
    message = r"step 9: the loss is nan .*; \d+ gradients are not finite, .* is that of step 8\. Lower lr"
    with pytest.raises(TrainingDiverged, match=message):
        train(make_config(**settings), run, str(tmp_path / "t"))


def test_features_are_computed_once_for_all_trainings_of_a_run(run_and_settings, tmp_path, caplog):
    run, settings = run_and_settings
    caplog.clear()
    for name in "ab":
        train(make_config(**{**settings, "epochs": 1, "warm_up": 0}), run, str(tmp_path / name))
    features = list(pathlib.Path(run, "features").rglob("*.npz"))
    assert len(features) == 2 and sum("to compute" in line for line in caplog.messages) <= 1


def test_a_saved_model_embeds_as_the_one_in_memory_and_a_damaged_folder_is_rejected(run_and_settings, tmp_path):
    _, settings = run_and_settings
    model = load_model(make_config(**settings))
    model.save(str(tmp_path / "model"))
    loaded = LoTLIP.load(str(tmp_path / "model"))
    images, texts = [render(sample_scene(seed), 128) for seed in range(3)], ["One shape. Another.", "", "x " * 300]
    assert torch.equal(model.embed_images(images), loaded.embed_images(images))
    assert torch.equal(model.embed_texts(texts), loaded.embed_texts(texts))
    torch.testing.assert_close(loaded.embed_texts(texts).norm(dim=-1), torch.ones(3))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is damaged"):
        LoTLIP.load(str(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="is not a model, but its subfolder `model` is one"):
        LoTLIP.load(str(tmp_path))


def test_a_flipped_bit_in_cached_features_is_detected(run_and_settings, tmp_path):
    run, settings = run_and_settings
    config = make_config(**{**settings, "epochs": 1, "warm_up": 0, "seed": 7})
    train(config, run, str(tmp_path / "a"))
    file = next(pathlib.Path(run, "features").rglob("*.npz"))
    content = file.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    file.write_bytes(damaged)
    try:
        with pytest.raises(UserError, match=r"\.npz: cannot be read .* Remove it"):
            train(config, run, str(tmp_path / "b"))
    finally:
        file.write_bytes(content)


def test_a_gpu_that_is_too_small_for_a_step_is_an_error_that_says_what_to_set(run_and_settings, tmp_path, monkeypatch):
    run, settings = run_and_settings

    def out_of_memory(self, step, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.\nMore lines")

    monkeypatch.setattr(Trainer, "step", out_of_memory)
    with pytest.raises(ConfigError, match=r"step 1: .* tokens\. Set accumulate to 2 \(it is 1\).*90\.00 GiB") as raised:
        train(make_config(**settings), run, str(tmp_path / "t"))
    assert "More lines" not in str(raised.value)


def test_texts_are_packed_in_the_threads_that_read_ahead(run_and_settings, tmp_path, monkeypatch):
    """Packing on the main thread would make the GPU wait in every step."""
    run, settings = run_and_settings
    threads, pack = set(), trainer.pack_texts

    def record_thread(*arguments):
        threads.add(threading.current_thread())
        return pack(*arguments)

    monkeypatch.setattr(trainer, "pack_texts", record_thread)
    train(make_config(**{**settings, "epochs": 1}), run, str(tmp_path / "t"))
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize(("has_gpu", "has_bf16", "expected"), [(0, 0, "float32"), (1, 1, "bf16"), (1, 0, "float32")])
def test_the_precision_auto_is_the_fast_one_of_the_device(has_gpu, has_bf16, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(has_gpu))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bool(has_bf16))
    assert trainer._resolve_precision(make_config(), str(tmp_path)).precision == expected
    assert trainer._resolve_precision(make_config(precision="bf16"), str(tmp_path)).precision == "bf16"


def test_a_training_keeps_the_precision_that_it_started_with(run_and_settings, tmp_path, monkeypatch):
    run, settings = run_and_settings
    config = make_config(**{**settings, "epochs": 1})
    train(config, run, str(tmp_path))
    assert json.loads((tmp_path / "config.json").read_text())["precision"] == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert trainer._resolve_precision(config, str(tmp_path)).precision == "float32"


def test_a_model_of_the_sigmoid_loss_records_its_bias_and_one_of_the_softmax_has_none(run_and_settings, tmp_path):
    _, settings = run_and_settings
    for loss in ("softmax", "sigmoid"):
        model = load_model(make_config(**settings, loss=loss))
        model.save(str(tmp_path / loss))
        loaded = LoTLIP.load(str(tmp_path / loss))
        assert _are_equal(model.towers.state_dict(), loaded.towers.state_dict())
        config = json.loads((tmp_path / loss / "config.json").read_text())
        assert config["format"] == (3 if loss == "sigmoid" else 1)
        has_bias = ("logit_bias" in config["towers"], "logit_bias" in model.towers.state_dict())
        assert has_bias == (loss == "sigmoid",) * 2
    assert (loaded.towers.scale.item(), loaded.towers.logit_bias.item()) == pytest.approx((10.0, -10.0))
    with torch.no_grad():  # the scale of SigLIP's checkpoints is above the limit that CLIP's has
        loaded.towers.log_scale.fill_(5.0)
    loaded.towers.clamp_scale()
    assert loaded.towers.log_scale.item() == 5.0
