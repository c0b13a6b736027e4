"""Weight files of every age are read; what is no weight file is named for what it is, and nothing in it is executed."""

import io
import tarfile
from pathlib import Path

import pytest
import torch

from lotlip_data.manifests.checkpoints.weights import read_weights
from lotlip_data.manifests.errors import UserError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


@pytest.mark.parametrize("zipped", [True, False], ids=["torch 1.6 and later", "before torch 1.6"])
def test_both_formats_of_torch_are_read(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, file, _use_new_zipfile_serialization=zipped)
    weights = read_weights(file)
    assert weights.keys() == TENSORS.keys()
    assert all(torch.equal(weights[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_damaged(tmp_path: Path, zipped: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[:-900])
    with pytest.raises(UserError, match="is damaged or was not fetched whole"):
        read_weights(file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
    ],
)
def test_what_was_downloaded_in_place_of_weights_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / name)


def test_formats_that_can_only_be_read_by_executing_code_are_named(tmp_path: Path) -> None:
    script = tmp_path / "pytorch_model.bin"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with pytest.raises(UserError, match="is a TorchScript archive"):
        read_weights(script)
    old = tmp_path / "model.bin"
    with tarfile.open(old, "w") as archive:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(UserError, match=r"legacy \.tar format"):
        read_weights(old)


def test_code_in_a_file_of_either_format_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    for zipped in (True, False):
        torch.save({"a": Path}, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match="holds code or objects besides tensors"):
            read_weights(file)
