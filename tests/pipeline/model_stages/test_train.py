"""What a training needs is checked before anything slow starts: first the dataset, then the towers."""

from pathlib import Path

import huggingface_hub.constants
import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings.training import TrainingEntry
from lotlip_data.pipeline.core import ray_tasks
from lotlip_data.pipeline.model_stages import train as train_stage
from lotlip_data.pipeline.model_stages.train import train
from lotlip_data.training.devices import local_device
from tests.pipeline.run_fixture import make_manifest
from tests.training.run_fixture import write_run

PAPER = TrainingEntry(method="lotlip")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("no_hub")
def test_towers_that_cannot_be_had_are_named_together_before_a_training_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.at(write_run(tmp_path / "run", (4,)))
    with pytest.raises(UserError) as error:
        train(make_manifest(), run, [PAPER])
    image, text = str(error.value).splitlines()
    assert image.startswith("image tower: timm/vit_base_patch16_224.augreg_in21k: is not on this machine")
    assert text.startswith("text tower: google-bert/bert-base-uncased: is not on this machine")
    assert "Retrying" not in caplog.text


@pytest.mark.usefixtures("no_hub")
def test_a_missing_dataset_is_named_before_the_hub_is_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run has no dataset yet"):
        train(make_manifest(), Run.at(str(tmp_path)), [PAPER])


def test_trainings_side_by_side_compute_where_ray_reserved_their_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch sees a GPU of the worker's machine, and Ray gave none to the task."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ray_tasks, "_assigned", lambda resource: 0.0)
    monkeypatch.setattr(train_stage, "_fit", lambda *arguments: local_device())
    assert train_stage._fit_in_task(Run.at("/nowhere"), True, PAPER) == torch.device("cpu")
