"""Evaluation: what it reports, and that it is done once."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.eval_sets import classification_sets, retrieval_sets
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot
from lotlip_data.training.evaluation.models import TextFeatures, load_embedder
from lotlip_data.training.models.lotlip import load_model
from tests.support.logs import captured_messages
from tests.training.run_fixture import write_towers


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    towers = write_towers(folder / "towers")
    load_model(make_config(**towers, context_length=64)).save(str(folder / "model"))
    return load_embedder(str(folder / "model"))


def test_results_are_committed_and_not_computed_again(model, tmp_path):
    out = tmp_path / "eval" / "lotlip.json"
    sets = {"retrieval_sets": retrieval_sets(40), "classification_sets": classification_sets(1)}
    with captured_messages() as first:
        results = evaluate_zero_shot(model, str(out), **sets)
    assert json.loads(out.read_text()) == results
    for name in ("long", "short"):
        found = results["retrieval"][name]
        assert all(0 <= found[way]["R@1"] <= found[way]["R@10"] <= 1 for way in ("t2i", "i2t"))
    assert results["retrieval"]["long"]["images"] == results["retrieval"]["long"]["texts"] == 40
    assert 0 < results["retrieval"]["long"]["cut"] < 1 and results["retrieval"]["short"]["cut"] == 0
    assert results["classification"]["colour-shape"]["classes"] == 64
    with captured_messages() as second:
        assert evaluate_zero_shot(model, str(out), **sets) == results
    assert second == [f"{out}: evaluated already; nothing to do", *first]
    figures, cut = (results["retrieval"]["long"][name] for name in ("t2i", "cut_tokens"))
    assert first[0].startswith(f"long: text to image R@1 {figures['R@1']:.1%}, image to text R@1 ")
    assert first[1].startswith("long: ") and first[1].endswith(f"; {cut:.1%} of all their tokens are cut")
    assert [line.partition(":")[0] for line in first] == [
        name for name in ("long", "short", "colour-shape") for _ in "ab"
    ]
    with pytest.raises(UserError, match="other sets"):
        evaluate_zero_shot(model, str(out), retrieval_sets=retrieval_sets(41))


@dataclass
class _Pairs:
    """Images of which some cannot be read, each with two texts; it counts how often it is asked for its images."""

    name: str
    bad: frozenset[int] = frozenset()
    asked: int = 0
    texts: Sequence[str] = tuple(f"text {text} of image {index}" for index in range(6) for text in "ab")
    image_of_text: Sequence[int] = tuple(index for index in range(6) for _ in "ab")

    def images(self):
        self.asked += 1
        return (None if i in self.bad else render(sample_scene(SPLITS["evaluation"][i])) for i in range(6))


def test_an_image_that_cannot_be_read_ends_it_or_is_left_out_with_its_texts_and_counted(model, tmp_path):
    bad = _Pairs("some", frozenset({1, 4}))
    with pytest.raises(UserError, match=r"some: 2 images cannot be read, image 1 for one; .*--allow-partial"):
        evaluate_zero_shot(model, str(tmp_path / "bad.json"), retrieval_sets=[bad])
    found = evaluate_zero_shot(model, str(tmp_path / "bad.json"), retrieval_sets=[bad], allow_partial=True)[
        "retrieval"
    ]["some"]
    assert (found["images"], found["texts"], found["damaged"]) == (4, 8, ["image 1", "image 4"])
    left = [index for index in range(6) if index not in bad.bad]
    rest = _Pairs("rest", texts=[t for t, i in zip(bad.texts, bad.image_of_text, strict=True) if i in left])
    rest.image_of_text, rest.images = [0, 0, 1, 1, 2, 2, 3, 3], lambda: [i for i in bad.images() if i is not None]
    alone = evaluate_zero_shot(model, str(tmp_path / "rest.json"), retrieval_sets=[rest])["retrieval"]["rest"]
    assert {way: found[way] for way in ("t2i", "i2t")} == {way: alone[way] for way in ("t2i", "i2t")}


def test_an_evaluation_that_was_killed_goes_on_with_the_set_that_it_was_at(model, tmp_path):
    first, second = _Pairs("first"), _Pairs("second", frozenset({0}))
    with pytest.raises(UserError):
        evaluate_zero_shot(model, str(tmp_path / "x.json"), retrieval_sets=[first, second])
    second.bad = frozenset()
    whole = evaluate_zero_shot(model, str(tmp_path / "x.json"), retrieval_sets=[first, second])
    assert first.asked == 1 and second.asked == 2 and set(whole["retrieval"]) == {"first", "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


class _Classes:
    """Four images, each of its own class; two classes have the same name, as two pairs of ImageNet's have."""

    name, labels, class_names, templates = "c", (0, 1, 2, 3), ("red", "crane", "blue", "crane"), ("{}",)

    def images(self):
        return map(render, map(sample_scene, SPLITS["evaluation"][:4]))


def test_of_classes_of_one_name_the_first_is_taken_as_in_published_results(model, tmp_path):
    """A model that knows all images: the image of the second crane is found as a crane, and so counted wrong."""

    class Knows:
        identity, context_length, text_form = "k", 8, "authors"

        def embed_images(self, images):
            return torch.eye(3)[[0, 1, 2, 1]][: len(list(images))]

        def embed_texts(self, texts):
            return TextFeatures(
                torch.eye(3)[[("red", "crane", "blue").index(text) for text in texts]], [1] * len(texts)
            )

    found = evaluate_zero_shot(Knows(), str(tmp_path / "c.json"), classification_sets=[_Classes()])["classification"][
        "c"
    ]
    assert found["top1"] == 0.75 and found["classes"] == 4


def test_only_the_same_images_are_evaluated_already(model, tmp_path):
    """Of sets that tell their images by a stamp; and what was evaluated of a part is not the whole."""
    pairs, out = _Pairs("some"), str(tmp_path / "x.json")
    pairs.stamp = "a"
    found = evaluate_zero_shot(model, out, retrieval_sets=[pairs])
    assert evaluate_zero_shot(model, out, retrieval_sets=[pairs]) == found and pairs.asked == 1
    with pytest.raises(UserError, match="other images"):
        evaluate_zero_shot(model, out, retrieval_sets=[pairs], allow_partial=True)
    pairs.stamp = "b"
    with pytest.raises(UserError, match="other images"):
        evaluate_zero_shot(model, out, retrieval_sets=[pairs])


@pytest.mark.parametrize("content", [None, b"", b"no json", b"{}", b"[]"])
def test_an_out_that_holds_something_else_is_told(model, tmp_path, content):
    out = tmp_path / "x.json"
    out.mkdir() if content is None else out.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: no"):
        evaluate_zero_shot(model, str(out), retrieval_sets=[_Pairs("some")])


@pytest.mark.parametrize("which", ["images", "texts"])
def test_a_model_that_gives_no_numbers_is_not_measured(tmp_path, which):
    """A training that has diverged: whatever is nearest to nothing would be found everywhere, or nowhere."""

    class Diverged:
        identity, context_length, text_form = "d", 8, "authors"

        def _features(self, count, what):
            return torch.full((count, 3), torch.nan if what == which else 3**-0.5)

        def embed_images(self, images):
            return self._features(len(list(images)), "images")

        def embed_texts(self, texts):
            return TextFeatures(self._features(len(texts), "texts"), [1] * len(texts))

    for sets in ({"retrieval_sets": [_Pairs("some")]}, {"classification_sets": [_Classes()]}):
        with pytest.raises(UserError, match=f"{which}: for .* no numbers"):
            evaluate_zero_shot(Diverged(), str(tmp_path / "x.json"), **sets)


def test_what_is_cut_is_counted_in_texts_and_in_tokens(tmp_path):
    class Short:
        identity, context_length, text_form = "s", 8, "authors"

        def embed_images(self, images):
            return torch.eye(6)[: len(list(images))]

        def embed_texts(self, texts):
            return TextFeatures(torch.eye(6).repeat_interleave(2, 0), [4] * 6 + [8, 8, 8, 8, 12, 16])

    found = evaluate_zero_shot(Short(), str(tmp_path / "x.json"), retrieval_sets=[_Pairs("some")])["retrieval"]["some"]
    assert (found["cut"], found["cut_tokens"]) == (2 / 12, 12 / 84)


def test_a_folder_without_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="no trained model"):
        load_embedder(str(tmp_path))


def test_the_sets_hold_unseen_scenes_and_texts_that_differ():
    long, short = retrieval_sets(300)
    assert len(set(short.texts)) == len(short.texts) == len(short.scenes)
    assert all(scene.seed in SPLITS["evaluation"] for scene in (*long.scenes, *short.scenes))
    [classes] = classification_sets(2)
    named = [f"{scene.objects[0].colour} {scene.objects[0].shape}" for scene in classes.scenes]
    assert named == [classes.class_names[label] for label in classes.labels] and len(named) == 128
    assert all(scene.seed in SPLITS["evaluation"] for scene in classes.scenes)
