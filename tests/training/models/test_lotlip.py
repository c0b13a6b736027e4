"""`LoTLIP.load` of a folder that is not a model says what the folder is and which one to give."""

import json
import shutil

import pytest

from lotlip_data.manifests.digests import JSON_KEY
from lotlip_data.training.config import make_config
from lotlip_data.training.models.lotlip import CheckpointError, LoTLIP, load_model
from tests.training.run_fixture import write_towers

OTHER = "not a model of this project, or from an incompatible release"


@pytest.mark.parametrize("config", [None, {"method": "lotlip"}], ids=["without config", "with its settings"])
def test_the_error_for_a_trainings_folder_names_its_model_folder(tmp_path, config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as error:
        LoTLIP.load(str(tmp_path))
    assert str(error.value) == f"{tmp_path}: is not a model, but its subfolder `model` is one; give {tmp_path}/model"


@pytest.mark.parametrize("name", ["metrics.jsonl", "done.json"])
def test_the_error_for_an_unfinished_training_says_so(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"has not finished; give {tmp_path}/model after the training finishes$"):
        LoTLIP.load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", OTHER),
        ('{"format": 3}', OTHER),
        ("[]", "not a JSON object"),
        ("{", "not JSON"),
        (None, r"has no config\.json"),
    ],
)
def test_the_error_for_any_other_folder_does_not_call_it_a_training(tmp_path, content, message):
    (tmp_path / "other.txt").write_text("")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message) as error:
        LoTLIP.load(str(tmp_path))
    assert "subfolder" not in str(error.value) and "not finished" not in str(error.value)


def test_a_model_of_another_release_is_not_taken_for_a_training(tmp_path):
    """Whatever other files the folder has: it has weights."""
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=OTHER):
        LoTLIP.load(str(tmp_path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model."""
    folder = tmp_path_factory.mktemp("saved")
    load_model(make_config(**write_towers(folder / "towers"), context_length=16)).save(str(folder / "model"))
    return folder / "model"


@pytest.mark.parametrize("is_recorded", [True, False], ids=["with digests", "of an earlier release"])
def test_a_model_without_its_tokenizer_is_refused(saved, tmp_path, is_recorded):
    """Its texts would all be the same to it."""
    model = shutil.copytree(saved, tmp_path / "model")
    if not is_recorded:
        config = json.loads((model / "config.json").read_text())
        del config[JSON_KEY], config["files"]
        (model / "config.json").write_text(json.dumps(config))
        LoTLIP.load(str(model))
    for file in model.glob("*token*"):
        file.unlink()
    message = "is missing, but config.json names it" if is_recorded else "cannot read the tokenizer; copy the"
    with pytest.raises(CheckpointError, match=message):
        LoTLIP.load(str(model))


def test_a_flipped_bit_in_any_file_of_a_model_is_named(saved, tmp_path):
    model = shutil.copytree(saved, tmp_path / "model")
    for file in sorted(model.iterdir()):
        content = file.read_bytes()
        for position in range(len(content) // 7, len(content) - 1, max(1, len(content) // 3)):
            file.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
            with pytest.raises(CheckpointError, match=rf"{file}: (is damaged|its content|not JSON)"):
                LoTLIP.load(str(model))
        file.write_bytes(content)
    LoTLIP.load(str(model))


@pytest.mark.parametrize(
    ("field", "value"),
    [("context_length", "16"), ("text_form", "other"), ("towers", {"image": {}}), ("transform", None), ("more", 1)],
)
def test_a_wrong_field_of_config_json_is_named(saved, tmp_path, field, value):
    model = shutil.copytree(saved, tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {field: value}
    del config[JSON_KEY]
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config\.json: the field `{field}[^`]*` is (wrong|missing|unknown)"):
        LoTLIP.load(str(model))
