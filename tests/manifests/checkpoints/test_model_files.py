"""A model's folder that lacks a file is named before anything loads it."""

import json
from pathlib import Path

import pytest

from lotlip_data.manifests.checkpoints.hub import ModelUnavailable
from lotlip_data.manifests.checkpoints.model_files import check_files

PARTS = ("model-1.safetensors", "model-2.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete folder with weights in two files."""
    for name in (*PARTS, "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).touch()
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": PARTS[0], "b": PARTS[1], "c": PARTS[0]}}))
    return tmp_path


def test_a_complete_folder_passes(folder: Path) -> None:
    check_files(folder, "mine")
    (folder / INDEX).unlink()
    check_files(folder, "mine")


def test_an_index_of_weights_in_a_format_that_is_not_read_does_not_count(folder: Path) -> None:
    """A download that leaves out `*.bin` keeps their index."""
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "pytorch_model-1.bin"}}))
    check_files(folder, "mine")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ([PARTS[1]], "mine: lacks weights that model.safetensors.index.json lists: model-2.safetensors"),
        ([*PARTS, INDEX], "mine: has no weights, such as model.safetensors"),
        (["tokenizer.json"], "mine: has no tokenizer: none of tokenizer.json, tokenizer.model"),
        (["preprocessor_config.json"], "mine: has no image processor: none of preprocessor_config.json"),
    ],
)
def test_what_is_missing_is_named_with_the_fix(folder: Path, missing: list[str], message: str) -> None:
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ModelUnavailable) as error:
        check_files(folder, "mine")
    assert str(error.value).startswith(message)
    assert "copy or download the model again" in str(error.value)


def test_a_damaged_index_is_named(folder: Path) -> None:
    (folder / INDEX).write_text("{")
    with pytest.raises(ModelUnavailable, match=r"model.safetensors.index.json: is damaged"):
        check_files(folder, "mine")


def test_code_of_the_model_may_read_other_tokenizers(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "tokens.txt")
    check_files(folder, "mine", has_own_code=True)
