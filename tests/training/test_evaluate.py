"""Evaluation: what it reports, and that it is done once."""

import json

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.config import make_config
from lotlip_data.training.embedders import load_embedder
from lotlip_data.training.evaluate import evaluate
from lotlip_data.training.train import load_model
from lotlip_data.world.scenes import SPLITS
from lotlip_data.world.tasks import classification_sets, retrieval_sets
from tests.training.world_run import write_towers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    towers = write_towers(folder / "towers")
    load_model(make_config(**towers, context_length=64)).save(str(folder / "model"))
    return load_embedder(str(folder / "model"))


def test_results_are_committed_and_not_computed_again(model, tmp_path):
    out = tmp_path / "eval" / "lotlip.json"
    sets = {"retrieval_sets": retrieval_sets(40), "classification_sets": classification_sets(1)}
    results = evaluate(model, str(out), **sets, say=lambda line: None)
    assert json.loads(out.read_text()) == results
    for name in ("long", "short"):
        found = results["retrieval"][name]
        assert all(0 <= found[way]["R@1"] <= found[way]["R@10"] <= 1 for way in ("t2i", "i2t"))
    assert results["retrieval"]["long"]["images"] == results["retrieval"]["long"]["texts"] == 40
    assert 0 < results["retrieval"]["long"]["cut"] < 1 and results["retrieval"]["short"]["cut"] == 0
    assert results["classification"]["colour-shape"]["classes"] == 64
    said = []
    assert evaluate(model, str(out), **sets, say=said.append) == results and "nothing to do" in said[-1]
    with pytest.raises(UserError, match="other sets"):
        evaluate(model, str(out), retrieval_sets=retrieval_sets(41))


def test_a_folder_without_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no trained model"):
        load_embedder(str(tmp_path))


def test_the_sets_hold_unseen_scenes_and_texts_that_differ():
    long, short = retrieval_sets(300)
    assert len(set(short.texts)) == len(short.texts) == len(short.scenes)
    assert all(scene.seed in SPLITS["evaluation"] for scene in (*long.scenes, *short.scenes))
    [classes] = classification_sets(2)
    named = [f"{scene.things[0].colour} {scene.things[0].shape}" for scene in classes.scenes]
    assert named == [classes.class_names[label] for label in classes.labels] and len(named) == 128
    assert all(scene.seed in SPLITS["evaluation"] for scene in classes.scenes)
