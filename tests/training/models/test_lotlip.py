"""`LoTLIP.load` of a folder that is not a model says what the folder is and which one to give."""

import json

import pytest

from lotlip_data.training.models.lotlip import CheckpointError, LoTLIP

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
