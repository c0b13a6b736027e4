"""What is named in place of a model's folder is told, with what to name."""

import json

import pytest

from lotlip_data.training.models.lotlip import CheckpointError, LoTLIP

OTHER = "not a model of this tool, or of another release"


@pytest.mark.parametrize("config", [None, {"method": "lotlip"}], ids=["without config", "with its own"])
def test_a_trainings_folder_is_told_with_the_folder_of_its_model(tmp_path, config):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as told:
        LoTLIP.load(str(tmp_path))
    assert (
        str(told.value)
        == f"{tmp_path}: there is no config.json of a model, but in its folder `model` is one; name {tmp_path}/model"
    )


@pytest.mark.parametrize("name", ["metrics.jsonl", "done.json"])
def test_a_training_that_has_no_model_yet_is_told(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"whose model comes at its end: name {tmp_path}/model then$"):
        LoTLIP.load(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "told"),
    [("{}", OTHER), ('{"format": 2}', OTHER), ("[]", OTHER), ("{", "is not JSON"), (None, "no config")],
)
def test_any_other_folder_is_told_as_what_it_is(tmp_path, content, told):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=told) as error:
        LoTLIP.load(str(tmp_path))
    assert "of a model" not in str(error.value).replace(OTHER, "")


def test_a_model_of_another_release_is_not_taken_for_a_training(tmp_path):
    """Whatever lies beside it: it has weights."""
    for name in ("config.json", "model.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=OTHER):
        LoTLIP.load(str(tmp_path))
