"""Evaluation reports its figures, keeps finished results, and is never repeated."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.synthetic.eval_sets import classification_sets, retrieval_sets
from lotlip_data.synthetic.scenes import SPLITS, render, sample_scene
from lotlip_data.training.config import make_config
from lotlip_data.training.evaluation.evaluate import evaluate_zero_shot, read_results
from lotlip_data.training.evaluation.models import TextFeatures, load_embedder
from lotlip_data.training.evaluation.outcomes import decode_outcomes
from lotlip_data.training.evaluation.selection import Choice
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
    assert read_results(str(out)) == results
    for name in ("long", "short"):
        figures = results["retrieval"][name]
        assert all(0 <= figures[way]["R@1"] <= figures[way]["R@10"] <= 1 for way in ("t2i", "i2t"))
    assert results["retrieval"]["long"]["images"] == results["retrieval"]["long"]["texts"] == 40
    assert 0 < results["retrieval"]["long"]["cut"] < 1 and results["retrieval"]["short"]["cut"] == 0
    assert results["classification"]["colour-shape"]["classes"] == 64
    with captured_messages() as second:
        assert evaluate_zero_shot(model, str(out), **sets) == results
    first = [line for line in first if not line.endswith(" left")]  # progress, which depends on the machine's load
    assert second == [f"{out}: already evaluated; nothing to do", *first]
    t2i, cut = (results["retrieval"]["long"][name] for name in ("t2i", "cut_tokens"))
    low, high = results["retrieval"]["long"]["intervals"]["t2i"]["R@1"]
    assert first[0].startswith(f"long: text to image R@1 {t2i['R@1']:.1%} [{low:.1%}, {high:.1%}], image to text R@1 ")
    assert first[1].startswith("long: ") and first[1].endswith(f"; {cut:.1%} of all their tokens are cut")
    assert [line.partition(":")[0] for line in first] == [
        name for name in ("long", "short", "colour-shape") for _ in "ab"
    ]
    with pytest.raises(UserError, match="other sets"):
        evaluate_zero_shot(model, str(out), retrieval_sets=retrieval_sets(41))


@dataclass
class _Pairs:
    """Six images, each with two texts. Those in `bad` cannot be read. Counts how often its images are read."""

    name: str
    bad: frozenset[int] = frozenset()
    reads: int = 0
    texts: Sequence[str] = tuple(f"text {text} of image {index}" for index in range(6) for text in "ab")
    image_of_text: Sequence[int] = tuple(index for index in range(6) for _ in "ab")

    def images(self):
        self.reads += 1
        return (None if i in self.bad else render(sample_scene(SPLITS["evaluation"][i])) for i in range(6))


def test_an_image_that_cannot_be_read_is_an_error_or_is_left_out_with_its_texts(model, tmp_path):
    bad = _Pairs("some", frozenset({1, 4}))
    with pytest.raises(UserError, match=r"some: 2 images cannot be read, for example image 1; .*--allow-partial"):
        evaluate_zero_shot(model, str(tmp_path / "bad.json"), retrieval_sets=[bad])
    results = evaluate_zero_shot(model, str(tmp_path / "bad.json"), retrieval_sets=[bad], allow_partial=True)
    partial = results["retrieval"]["some"]
    assert (partial["images"], partial["texts"], partial["damaged"]) == (4, 8, ["image 1", "image 4"])
    readable = [index for index in range(6) if index not in bad.bad]
    rest = _Pairs("rest", texts=[t for t, i in zip(bad.texts, bad.image_of_text, strict=True) if i in readable])
    rest.image_of_text, rest.images = [0, 0, 1, 1, 2, 2, 3, 3], lambda: [i for i in bad.images() if i is not None]
    whole = evaluate_zero_shot(model, str(tmp_path / "rest.json"), retrieval_sets=[rest])["retrieval"]["rest"]
    assert {way: partial[way] for way in ("t2i", "i2t")} == {way: whole[way] for way in ("t2i", "i2t")}


def test_an_interrupted_evaluation_resumes_at_the_set_that_was_interrupted(model, tmp_path):
    first, second = _Pairs("first"), _Pairs("second", frozenset({0}))
    with pytest.raises(UserError):
        evaluate_zero_shot(model, str(tmp_path / "x.json"), retrieval_sets=[first, second])
    second.bad = frozenset()
    whole = evaluate_zero_shot(model, str(tmp_path / "x.json"), retrieval_sets=[first, second])
    assert first.reads == 1 and second.reads == 2 and set(whole["retrieval"]) == {"first", "second"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


class _Classes:
    """Four images of four classes. Two classes have the same name, as two pairs of ImageNet's have."""

    name, labels, class_names, templates = "c", (0, 1, 2, 3), ("red", "crane", "blue", "crane"), ("{}",)

    def images(self):
        return map(render, map(sample_scene, SPLITS["evaluation"][:4]))


def test_only_the_first_class_of_a_name_can_be_right_as_in_published_results(model, tmp_path):
    """The model recognises all images. It takes the second crane for the first, which counts as wrong."""

    class Perfect:
        identity, context_length, text_form = "k", 8, "authors"

        def embed_images(self, images):
            return torch.eye(3)[[0, 1, 2, 1]][: len(list(images))]

        def embed_texts(self, texts):
            return TextFeatures(
                torch.eye(3)[[("red", "crane", "blue").index(text) for text in texts]], [1] * len(texts)
            )

    results = evaluate_zero_shot(Perfect(), str(tmp_path / "c.json"), classification_sets=[_Classes()])
    figures = results["classification"]["c"]
    assert figures["top1"] == 0.75 and figures["classes"] == 4


def test_results_of_other_images_are_not_reused(model, tmp_path):
    """The stamp of a set identifies its images. A partial evaluation is not a complete one."""
    pairs, out = _Pairs("some"), str(tmp_path / "x.json")
    pairs.stamp = "a"
    results = evaluate_zero_shot(model, out, retrieval_sets=[pairs])
    assert evaluate_zero_shot(model, out, retrieval_sets=[pairs]) == results and pairs.reads == 1
    with pytest.raises(UserError, match="other images"):
        evaluate_zero_shot(model, out, retrieval_sets=[pairs], allow_partial=True)
    pairs.stamp = "b"
    with pytest.raises(UserError, match="other images"):
        evaluate_zero_shot(model, out, retrieval_sets=[pairs])


@pytest.mark.parametrize("content", [None, b"", b"no json", b"{}", b"[]"])
def test_an_output_file_with_other_contents_is_an_error(model, tmp_path, content):
    out = tmp_path / "x.json"
    out.mkdir() if content is None else out.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json: (no|the field)"):
        evaluate_zero_shot(model, str(out), retrieval_sets=[_Pairs("some")])


@pytest.mark.parametrize("broken", ["images", "texts"])
def test_features_that_are_not_finite_are_an_error(tmp_path, broken):
    """The training has diverged: comparisons with NaN would be true for every item, or for none."""

    class Diverged:
        identity, context_length, text_form = "d", 8, "authors"

        def _features(self, count, kind):
            return torch.full((count, 3), torch.nan if kind == broken else 3**-0.5)

        def embed_images(self, images):
            return self._features(len(list(images)), "images")

        def embed_texts(self, texts):
            return TextFeatures(self._features(len(texts), "texts"), [1] * len(texts))

    for sets in ({"retrieval_sets": [_Pairs("some")]}, {"classification_sets": [_Classes()]}):
        with pytest.raises(UserError, match=f"{broken}: .* not finite numbers"):
            evaluate_zero_shot(Diverged(), str(tmp_path / "x.json"), **sets)


def test_the_shares_of_texts_and_of_tokens_that_are_cut_are_reported(tmp_path):
    class Short:
        identity, context_length, text_form = "s", 8, "authors"

        def embed_images(self, images):
            return torch.eye(6)[: len(list(images))]

        def embed_texts(self, texts):
            return TextFeatures(torch.eye(6).repeat_interleave(2, 0), [4] * 6 + [8, 8, 8, 8, 12, 16])

    results = evaluate_zero_shot(Short(), str(tmp_path / "x.json"), retrieval_sets=[_Pairs("some")])
    figures = results["retrieval"]["some"]
    assert (figures["cut"], figures["cut_tokens"]) == (2 / 12, 12 / 84)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(UserError, match="so it is not a model"):
        load_embedder(str(tmp_path))


def test_the_synthetic_sets_have_unseen_scenes_and_distinct_short_texts():
    long, short = retrieval_sets(300)
    assert len(set(short.texts)) == len(short.texts) == len(short.scenes)
    assert all(scene.seed in SPLITS["evaluation"] for scene in (*long.scenes, *short.scenes))
    [classes] = classification_sets(2)
    names = [f"{scene.objects[0].colour} {scene.objects[0].shape}" for scene in classes.scenes]
    assert names == [classes.class_names[label] for label in classes.labels] and len(names) == 128
    assert all(scene.seed in SPLITS["evaluation"] for scene in classes.scenes)


class _Random:
    """A model with random features of images and texts, drawn again for each model."""

    context_length, text_form = 8, "authors"
    preprocessing = {"resolution": "32 x 32", "resizing": "r", "normalisation": "n"}

    def __init__(self, seed):
        self.identity, self._random = f"random {seed}", torch.Generator().manual_seed(seed)

    def _features(self, count):
        return torch.nn.functional.normalize(torch.randn(count, 3, generator=self._random), dim=-1)

    def embed_images(self, images):
        return self._features(len(list(images)))

    def embed_texts(self, texts):
        return TextFeatures(self._features(len(texts)), [1] * len(texts))


@dataclass
class _Questions:
    """Six regions of three pictures, with two queries each. Those in `bad` cannot be read."""

    name: str
    bad: frozenset[int] = frozenset()
    has_overall: bool = True
    has_text_only: bool = False
    image_of_choice: Sequence[int] = tuple(index for index in range(6) for _ in "ab")
    picture_of_image: Sequence[int] = (0, 0, 1, 1, 2, 2)

    @property
    def choices(self):
        """Two right captions each; two wrong ones in category a, one in b."""
        return [
            Choice(name, (f"1 of {index}", f"2 of {index}"), tuple(f"{k} of {index}" for k in wrong))
            for index in range(6)
            for name, wrong in (("a", (3, 4)), ("b", (5,)))
        ]

    def images(self):
        return (None if i in self.bad else render(sample_scene(SPLITS["evaluation"][i])) for i in range(6))


class _Known(_Random):
    """A model whose features are given by the text, and for images by their order: the same for equal captions."""

    def embed_texts(self, texts):
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
        features = [torch.randn(3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return TextFeatures(torch.nn.functional.normalize(torch.stack(features), dim=-1), [1] * len(texts))


def test_the_accuracies_of_a_selection_set_are_those_of_its_queries_one_by_one(tmp_path):
    questions = _Questions("some", has_text_only=True)
    results = evaluate_zero_shot(_Known(3), str(tmp_path / "x.json"), selection_sets=[questions])
    figures = results["selection"]["some"]
    images = _Known(3).embed_images(questions.images()).double()
    hits = {("accuracy", "a"): [], ("accuracy", "b"): [], ("text_only", "a"): [], ("text_only", "b"): []}
    for (category, *captions), image in zip(questions.choices, questions.image_of_choice, strict=True):
        right, wrong = (_Known(3).embed_texts(part).features.double() for part in captions)
        hits["accuracy", category].append(bool((right @ images[image]).min() > (wrong @ images[image]).max()))
        hits["text_only", category].append(bool(right[0] @ right[1] > (right @ wrong.T).max()))
    for figure in ("accuracy", "text_only"):
        found = {name: hits[figure, name] for name in ("a", "b")}
        expected = {name: sum(each) / 6 for name, each in found.items()} | {
            "overall": sum(map(sum, found.values())) / 12
        }
        assert figures[figure] == pytest.approx(expected, abs=1e-12) and 0 < expected["overall"] < 1
    assert figures["queries"] == {"overall": 12, "a": 6, "b": 6} and (figures["images"], figures["texts"]) == (3, 30)
    decoded = decode_outcomes(results["outcomes"]["some"], figures, "m")
    assert decoded.intervals() == figures["intervals"] and decoded.clusters["a"].tolist() == [2, 2, 2]
    assert results["protocol"]["some"]["queries"] == 12


def test_a_selection_set_without_an_overall_figure_has_only_those_of_its_categories(tmp_path):
    out = str(tmp_path / "x.json")
    with captured_messages() as messages:
        results = evaluate_zero_shot(_Known(3), out, selection_sets=[_Questions("some", has_overall=False)])
    assert set(results["selection"]["some"]["accuracy"]) == {"a", "b"}
    assert any(line.startswith("some: a accuracy ") and ", b accuracy " in line for line in messages)


def test_the_queries_of_regions_that_cannot_be_read_are_left_out(tmp_path):
    bad = _Questions("some", bad=frozenset({2, 3}))
    bad.paths = [f"picture {number}" for number in bad.picture_of_image]
    with pytest.raises(UserError, match=r"some: 1 image cannot be read, for example picture 1; .*--allow-partial"):
        evaluate_zero_shot(_Known(0), str(tmp_path / "x.json"), selection_sets=[bad])
    results = evaluate_zero_shot(_Known(0), str(tmp_path / "x.json"), selection_sets=[bad], allow_partial=True)
    figures = results["selection"]["some"]
    assert figures["queries"] == {"overall": 8, "a": 4, "b": 4} and figures["damaged"] == ["picture 1"]


def test_a_text_is_compared_with_distractors_too(tmp_path):
    """The images without texts are like the texts, and the others are not: no text is found, but all images are."""

    class Model(_Random):
        def embed_images(self, images):
            return torch.eye(6)[[i % 6 for i, _ in enumerate(images)]]

        def embed_texts(self, texts):
            return TextFeatures(torch.eye(6).repeat_interleave(2, 0)[: len(texts)], [1] * len(texts))

    pairs = _Pairs("some")
    pairs.distractors, pairs.images = 6, lambda: map(render, map(sample_scene, SPLITS["evaluation"][:12]))
    results = evaluate_zero_shot(Model(0), str(tmp_path / "x.json"), retrieval_sets=[pairs])
    figures = results["retrieval"]["some"]
    assert figures["t2i"]["R@1"] == 0.0 and figures["i2t"]["R@1"] == figures["t2i"]["R@5"] == 1.0
    assert (figures["images"], figures["distractors"], results["protocol"]["some"]["distractors"]) == (6, 6, 6)
    assert decode_outcomes(results["outcomes"]["some"], figures, "m").intervals() == figures["intervals"]


def test_results_have_the_outcome_of_each_query_and_intervals_from_them(tmp_path):
    sets = {"retrieval_sets": [_Pairs("some")], "classification_sets": [_Classes()]}
    results = evaluate_zero_shot(_Random(0), str(tmp_path / "x.json"), **sets)
    for kind, name in (("retrieval", "some"), ("classification", "c")):
        figures = results[kind][name]
        outcomes = decode_outcomes(results["outcomes"][name], figures, name)
        assert figures["intervals"] == outcomes.intervals()
    assert results["outcomes"]["some"]["texts_per_image"] == "2x6"
    assert results["bootstrap"] == {"level": 0.95, "resamples": 10_000, "seed": 0}


def test_results_state_their_protocol(tmp_path):
    sets = {"retrieval_sets": [_Pairs("some")], "classification_sets": [_Classes()]}
    protocol = evaluate_zero_shot(_Random(0), str(tmp_path / "x.json"), **sets)["protocol"]
    common = {"context_length": 8, **_Random.preprocessing, "text_form": "published"}
    assert protocol["some"] == {**common, "images": 6, "texts": 12}
    assert protocol["c"] == {**common, "images": 4, "texts": 4, "prompts": protocol["c"]["prompts"]}


def test_two_results_have_the_same_queries_unless_other_images_can_be_read(tmp_path):
    first, second, part = (
        evaluate_zero_shot(model, str(tmp_path / f"{index}.json"), retrieval_sets=[pairs], allow_partial=True)
        for index, (model, pairs) in enumerate(
            [(_Random(0), _Pairs("a")), (_Random(1), _Pairs("a")), (_Random(0), _Pairs("a", frozenset({2})))]
        )
    )
    queries = [results["outcomes"]["a"]["queries"] for results in (first, second, part)]
    assert queries[0] == queries[1] != queries[2]
    assert first["outcomes"]["a"]["t2i"] != second["outcomes"]["a"]["t2i"]


def test_results_of_an_earlier_release_are_kept_and_say_how_to_have_intervals(model, tmp_path):
    out = tmp_path / "x.json"
    results = evaluate_zero_shot(model, str(out), retrieval_sets=[_Pairs("some")])
    old = {name: value for name, value in results.items() if name not in ("outcomes", "protocol", "bootstrap")}
    del old["retrieval"]["some"]["intervals"]
    out.write_text(json.dumps(old))
    pairs = _Pairs("some")
    with captured_messages() as messages:
        assert evaluate_zero_shot(model, str(out), retrieval_sets=[pairs]) == old
    assert pairs.reads == 0 and "to have them, remove it and evaluate again" in messages[1]
    assert messages[2].startswith("some: text to image R@1 ") and "[" not in messages[2]


@pytest.mark.parametrize("field", ["outcomes", "protocol"])
def test_a_file_whose_outcomes_or_protocol_are_no_objects_is_an_error(tmp_path, field):
    content = {"retrieval": {}, "classification": {}, "settings": {}, field: {"dci": 3}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"x\.json: the field `{field}\.dci` is wrong"):
        read_results(str(tmp_path / "x.json"))
