"""Converting ShareGPT4V continues after a kill at any step, and each rejection is one line with its reason."""

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from lotlip_data.captioners.convert import sharegpt4v
from lotlip_data.captioners.convert.sharegpt4v import convert
from lotlip_data.manifests.checkpoints import weights as checkpoint_files
from lotlip_data.manifests.errors import UserError
from tests.captioners.convert import tiny_sharegpt4v
from tests.support.logs import captured_messages

SHARDS = 3


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return tiny_sharegpt4v.write(tmp_path_factory.mktemp("published") / "x", shards=SHARDS)


@pytest.fixture
def source(published, tmp_path):
    """A copy that a test may damage, with the tower next to it."""
    shutil.copytree(published.parent, tmp_path / "x")
    return tmp_path / "x" / "model"


@pytest.fixture(scope="module")
def expected(published, tmp_path_factory):
    """Bytes by file name of an undisturbed conversion, without the record of its source."""
    out = tmp_path_factory.mktemp("expected")
    convert(str(published), str(out))
    return contents(out)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "conversion.json"}


def quietly(source, out, **options):
    with captured_messages() as messages:
        done = convert(str(source), str(out), **options)
    return done, messages


def refused(source, out, **options):
    with pytest.raises(UserError) as raised:
        quietly(source, out, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


class Killed(BaseException):
    """The code under test does not catch this."""


def forked(function, *arguments):
    """Run a function in a fork of this process. Returns the exit code, and the function's result if that is 0."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    child = context.Process(target=lambda: sender.send(function(*arguments)))
    child.start()
    sender.close()
    child.join(120)
    return child.exitcode, receiver.recv() if child.exitcode == 0 else None


def convert_until(source, out, steps):
    """Convert, and die by SIGKILL before step number `steps`: a rename of a .part, a write or a verification."""
    remaining = steps

    def die_at_zero(function):
        def call(*arguments, **options):
            nonlocal remaining
            remaining -= 1
            if remaining < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for owner, name in (
        (Path, "rename"),
        (Path, "write_text"),
        (sharegpt4v, "write_weights"),
        (sharegpt4v, "_verify"),
    ):
        setattr(owner, name, die_at_zero(getattr(owner, name)))
    return quietly(source, out)


@pytest.mark.slow
def test_after_a_kill_at_any_step_it_continues_and_writes_the_same_files(source, expected, tmp_path):
    """In between, the folder is not marked as complete; finished files are kept."""
    for steps in itertools.count():
        out = tmp_path / f"out-{steps}"
        exitcode, _ = forked(convert_until, source, out, steps)
        if exitcode == 0:
            break
        assert exitcode == -signal.SIGKILL
        assert not (out / "config.json").exists()
        finished = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
        assert forked(quietly, source, out)[0] == 0
        assert all((out / name).stat().st_ino == inode for name, inode in finished.items())
        assert contents(out) == expected
    assert steps > 15


def test_after_repeated_kills_it_completes(source, expected, tmp_path):
    """Each start gets three steps further than the one before."""
    out = tmp_path / "out"
    codes = [forked(convert_until, source, out, 3 + 3 * start)[0] for start in range(8)]
    assert codes[0] == -signal.SIGKILL and codes[-1] == 0
    assert contents(out) == expected


def test_finished_files_are_kept_and_a_partial_one_is_not(source, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write = checkpoint_files.save_file

    def dies_in_the_second(weights, file, **options):
        if "00002" in file.name:
            file.write_bytes(b"half")
            raise Killed
        write(weights, file, **options)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(checkpoint_files, "save_file", dies_in_the_second)
        quietly(source, out)
    assert sorted(path.name for path in out.iterdir()) == ["conversion.json", "model-00001-of-00004.safetensors"]
    (out / "model-00002-of-00004.safetensors.part").write_bytes(b"half")  # as SIGKILL leaves it
    done, said = quietly(source, out)
    assert done and [line for line in said if line.endswith("kept")] == ["model-00001-of-00004.safetensors: kept"]
    assert contents(out) == expected


def test_a_second_run_does_nothing(source, tmp_path):
    out = tmp_path / "out"
    quietly(source, out)
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    done, said = quietly(source, out)
    assert not done and said == [f"{out}: converted already, nothing to do"]
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_the_source_is_not_changed(source, tmp_path):
    before = {path: path.read_bytes() for path in source.parent.rglob("*") if path.is_file()}
    quietly(source, tmp_path / "out")
    assert {path: path.read_bytes() for path in source.parent.rglob("*") if path.is_file()} == before


def test_two_concurrent_conversions_do_not_mix(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    started, resume = threading.Event(), threading.Event()
    write = sharegpt4v.write_weights

    def slowly(*arguments):
        started.set()
        resume.wait(30)
        write(*arguments)

    monkeypatch.setattr(sharegpt4v, "write_weights", slowly)
    first = threading.Thread(target=quietly, args=(source, out))
    first.start()
    assert started.wait(30)
    message = refused(source, out)
    resume.set()
    first.join()
    assert message == f"{out}: another conversion is writing here; wait for it, or give another folder"
    assert (out / "config.json").exists()


def test_a_changed_source_is_not_mixed_with_an_earlier_conversion(source, tmp_path):
    out = tmp_path / "out"
    quietly(source, out)
    os.utime(source / "pytorch_model-00001-of-00003.bin", (1, 1))
    assert refused(source, out) == (
        f"{out}: holds a conversion of a different or changed checkpoint; delete it, or give another folder"
    )


def test_a_full_disk_is_reported_and_finished_files_stay(source, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write = checkpoint_files.save_file

    def full(weights, file, **options):
        if "00003" in file.name:
            raise OSError(28, "No space left on device")
        write(weights, file, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_file", full)
        assert refused(source, out) == (f"{out}: the disk is full; make room and run it again, finished files are kept")
    assert not list(out.glob("*.part"))
    _, said = quietly(source, out)
    assert sum(line.endswith("kept") for line in said) == 2
    assert contents(out) == expected


def test_a_disk_that_is_too_small_is_rejected_before_weights_are_written(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    message = refused(source, tmp_path / "out")
    assert "GiB are free; make room first" in message
    assert not list((tmp_path / "out").glob("model*"))


def test_a_corrupted_output_file_is_detected(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    write = sharegpt4v.write_weights

    def corrupts(file, weights):
        write(file, {n: (-w if n.endswith("layers.1.mlp.up_proj.weight") else w) for n, w in weights.items()})

    with monkeypatch.context() as patch:
        patch.setattr(sharegpt4v, "write_weights", corrupts)
        message = refused(source, out)
    assert "differs from" in message and message.endswith("delete it and run the command again")
    assert not (out / "config.json").exists()
    Path(message.partition(":")[0]).unlink()
    assert quietly(source, out)[0]


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("where", ["model", "tower"])
def test_code_in_a_weight_file_is_not_run(where, source, tmp_path):
    trap = tmp_path / "trap"
    file = (
        source / "pytorch_model-00002-of-00003.bin" if where == "model" else source.parent / "tower/pytorch_model.bin"
    )
    torch.save({"model.norm.weight": Evil(trap)}, file)
    message = refused(source, tmp_path / "out")
    assert message.startswith(f"{file.resolve()}: holds code or objects besides tensors")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Evil(trap)))  # without the protection, it does something
    assert trap.exists()


def truncate(file, by=1000):
    file.write_bytes(file.read_bytes()[:-by])


def test_missing_or_damaged_files_are_reported(source, tmp_path):
    out = tmp_path / "out"
    shard, index = source / "pytorch_model-00002-of-00003.bin", source / "pytorch_model.bin.index.json"
    whole = shard.read_bytes()
    truncate(shard)
    assert f"{shard}: is damaged or was not fetched whole ({len(whole) - 1000:,} bytes)" in refused(source, out)
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 1\n")
    assert f"{shard}: is a pointer of Git LFS, not the weights; run `git lfs pull`" in refused(source, out)
    shard.unlink()
    assert refused(source, out) == f"{source}: {index.name} names {shard.name}, which is missing; fetch it too"
    shard.write_bytes(whole)
    text = index.read_text()
    index.write_text("{")
    assert f"{index}: has no weight_map" in refused(source, out)
    index.unlink()
    assert refused(source, out) == (
        f"{source}: pytorch_model-00001-of-00003.bin is one of several files, but {index.name} is missing; fetch it too"
    )
    index.write_text(text)
    (source / "tokenizer.model").unlink()
    assert refused(source, out) == f"{source}: has neither tokenizer.model nor tokenizer.json; fetch one of them"
    (source / "tokenizer.model").write_bytes(b"half")
    assert f"{source}: its tokenizer cannot be read" in refused(source, out)


def test_a_truncated_safetensors_file_is_reported(tmp_path):
    source = tiny_sharegpt4v.write(tmp_path / "x", file_format="safetensors", shards=2)
    truncate(source / "model-00002-of-00002.safetensors")
    assert "model-00002-of-00002.safetensors: is damaged or was not fetched whole" in refused(source, tmp_path / "out")


def modify(file, change):
    weights = torch.load(file, weights_only=True) if file.suffix == ".bin" else load_file(file)
    change(weights)
    torch.save(weights, file) if file.suffix == ".bin" else save_file(weights, file)


def test_tensors_that_do_not_belong_together_are_reported(source, tmp_path):
    out = tmp_path / "out"
    tower = source.parent / "tower" / "pytorch_model.bin"
    untouched = tower.read_bytes()
    modify(tower, lambda weights: weights.pop("vision_model.pre_layrnorm.bias"))
    assert "1 weights are missing, such as vision_tower.vision_model.pre_layrnorm.bias" in refused(source, out)
    wrong = {"vision_model.pre_layrnorm.bias": torch.ones(7)}
    modify(tower, lambda weights: weights.update(wrong))
    assert (
        "1 weights have the wrong shape, such as vision_tower.vision_model.pre_layrnorm.bias (7,) instead of (32,)"
        in refused(source, out)
    )
    tower.write_bytes(untouched)
    deeper = {"vision_model.encoder.layers.9.mlp.fc1.bias": torch.ones(64)}
    modify(tower, lambda weights: weights.update(deeper))
    assert "1 weights have no place in the model, such as vision_tower" in refused(source, out)
    tower.write_bytes(untouched)
    shard = source / "pytorch_model-00002-of-00003.bin"
    untouched = shard.read_bytes()
    modify(shard, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(1)}))
    assert "lora_A" in refused(source, out)
    modify(shard, lambda weights: weights.update({"base_model.x": torch.ones(1)}))
    assert f"{shard}: base_model.x belongs to neither ShareGPT4V nor a CLIP tower" in refused(source, out)
    shard.write_bytes(untouched)
    modify(shard, lambda weights: weights.update({"lm_head.weight": torch.ones(1)}))
    assert f"{shard}: lm_head.weight is also in another file; fetch the checkpoint again" == refused(source, out)
    assert not list(out.glob("model*"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "llava", "in the layout of LLaVA already, so it needs no conversion"),
        ("mm_projector_type", "linear", "mm_projector_type is 'linear', and only 'mlp2x_gelu' can be converted"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end is True, and only False can be converted"),
        ("mm_vision_select_feature", "cls_patch", "mm_vision_select_feature is 'cls_patch', and only 'patch'"),
        ("mm_vision_tower", None, "mm_vision_tower is not set; give a tower with --vision-tower"),
        ("mm_vision_tower", "/nowhere/tower", "/nowhere/tower: there is no such folder, for the vision tower"),
    ],
)
def test_another_model_is_rejected(field, value, message, source, tmp_path):
    edit(source / "config.json", **{field: value})
    assert message in refused(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tower_that_cannot_be_fetched_is_reported_with_the_fix(source, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    edit(source / "config.json", mm_vision_tower="Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12")
    message = refused(source, tmp_path / "out")
    assert message.startswith(
        "Lin-Chen/ShareGPT4V-7B_Pretrained_vit-large336-l12: is not on this machine, and HF_HUB_OFFLINE forbids"
    )
    assert message.endswith("fetch it, and give its folder with --vision-tower")
    assert quietly(source, tmp_path / "out", vision_tower=str(source.parent / "tower"))[0]


def test_an_invalid_target_is_rejected(source, tmp_path):
    tower = source.parent / "tower"
    assert (
        refused(source, source)
        == f"{source}: is the folder of the checkpoint, which stays as it is; give another for the result"
    )
    assert "is the folder of its vision tower" in refused(source, source / ".." / "tower")
    assert refused(source, source.parent) == f"{source.parent}: holds other files; give a new or empty folder"
    assert "is a file" in refused(source, tower / "config.json")
    assert "give a folder on this machine" in refused(source, "s3://bucket/models")
    assert refused(tmp_path / "nothing", tmp_path / "out") == (
        f"{tmp_path / 'nothing'}: there is no such folder, for the checkpoint; correct the path, or give the id of a "
        "model"
    )
    assert "config.json: there is no such file" in refused(source.parent, tmp_path / "out")


def own_memory():
    """Return the anonymous memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")) / 1024


def growth_of(convert, source, out):
    """Return the peak growth of this process's memory in MiB while it converts."""
    peak, done, before = 0.0, threading.Event(), own_memory()

    def watch():
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    convert(source, out)
    done.set()
    watcher.join()
    return peak - before


@pytest.mark.parametrize("file_format", ["bin", "safetensors"])
def test_memory_does_not_grow_with_the_checkpoint(file_format, tmp_path, monkeypatch):
    """The growth is below a quarter of one of four weight files: weights are memory-mapped."""
    monkeypatch.setattr(tiny_sharegpt4v, "INNER", 2**15)
    monkeypatch.setattr(tiny_sharegpt4v, "LAYERS", 4)
    options = {"file_format": file_format, "shards": 4}
    assert forked(lambda: bool(tiny_sharegpt4v.write(tmp_path / "x", **options)))[1]
    sizes = [file.stat().st_size / 2**20 for file in (tmp_path / "x" / "model").glob("*model-*")]
    assert sum(sizes) > 90 and len(sizes) == 4
    exitcode, grown = forked(growth_of, quietly, tmp_path / "x" / "model", tmp_path / "out")
    assert exitcode == 0 and grown < max(sizes) / 4
