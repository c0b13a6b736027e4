"""A pipeline says what would fail in its later stages before its first one starts."""

from pathlib import Path

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.stages import run_pipeline
from tests.pipeline import run_fixture as fake_run


def manifest(folder: Path) -> dict[str, object]:
    return {
        "name": "mine",
        "sources": [{"name": "web", "files": [str(folder / "list.csv")]}],
        "captioners": [
            {"name": "instructblip", "kind": "llava", "model": str(folder / "none")},
            {"name": "llava", "kind": "llava", "model": "tiny-instructblip"},
            "tiny-llava",
        ],
        "train": [{"method": "lit", "preset": "demo", "name": "lit", "image_tower": str(folder / "vit")}],
    }


def test_every_model_that_cannot_be_had_is_named_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run_pipeline(manifest(tmp_path), tmp_path / "run")
    first, second, tower = str(caught.value).splitlines()
    assert first.startswith(f"captioner 'instructblip': {tmp_path}/none: there is no such folder; ")
    assert "tiny-instructblip: config.json: model_type='instructblip': captioners of this kind need 'llava'" in second
    assert tower.startswith(f"image tower: {tmp_path}/vit: there is no such folder; ")
    assert not (tmp_path / "run").exists()


def test_a_model_that_has_done_its_work_is_not_looked_for(tmp_path: Path) -> None:
    """The next error is that of the lists, which are read after the check of the models."""
    run = fake_run.make(tmp_path / "run", writers=("instructblip", "llava")).run
    content = manifest(tmp_path) | {"train": []}
    with pytest.raises(UserError) as caught:
        run_pipeline(content, run)
    assert "no such folder" not in str(caught.value)
