"""Data of the study: written once, with the web's noise, and evaluated on scenes that no training uses."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from lotlip_data.pipeline.study import data
from lotlip_data.pipeline.study.world import SHARDS
from lotlip_data.synthetic.hard_scenes import short_text, web_text
from lotlip_data.synthetic.scenes import class_names
from lotlip_data.training.data.dataset import open_dataset
from tests.pipeline.study.results_fixture import DESIGN, SMALL


def test_the_data_of_a_seed_are_written_once_with_features_and_noisy_raw_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second call changes nothing. Another design has other data."""
    monkeypatch.chdir(tmp_path)
    data.write(".", SMALL, 1)
    assert data.is_written(".", SMALL, 1) and not data.is_written(".", DESIGN, 1) and not data.is_written(".", SMALL, 2)
    folder = data.folder(".", SMALL, 1)
    dataset = open_dataset(str(folder))
    assert dataset.samples == SMALL.scenes and len(dataset.shards) == SHARDS
    assert len(list(Path(folder, "features").rglob("*.npz"))) == SHARDS
    raw = [row for shard in dataset.shards for row in pq.read_table(shard.parquet_url)["raw"].to_pylist()]
    scenes = data.BLOCKS.training_scenes(1, SMALL.scenes)
    assert raw == [web_text(scene, SMALL.noise) for scene in scenes]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".tar", ".npz")}
    data.write(".", SMALL, 1)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def test_the_evaluation_has_near_twins_different_short_texts_and_no_training_scene() -> None:
    scenes = data.evaluation_scenes(1, SMALL.gallery)
    kinds = (scenes.unrelated, scenes.grouped, scenes.short, scenes.classified)
    assert [len(each) for each in kinds] == [16, 16, 8, 8]
    assert [len(part) for part in scenes.split(np.zeros((len(scenes.all), 1)))] == [16, 16, 8, 8]
    assert len(set(map(short_text, scenes.short))) == 8
    for first in range(0, 16, 4):
        group = scenes.grouped[first : first + 4]
        assert len({scene.objects for scene in group}) == 4 and len({scene.background for scene in group}) == 1
    training = {scene.seed for scene in data.BLOCKS.training_scenes(1, data.BLOCKS.training)}
    assert not training & {scene.seed for scene in scenes.all}
    seeds = list(data.BLOCKS.evaluation_seeds(1))
    assert set(seeds) >= {scene.seed for scene in data.evaluation_scenes(1, DESIGN.gallery).all}
    assert len(class_names()) == 64
