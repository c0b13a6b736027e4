"""Similarity is the cosine of image and text, of every text and sub-caption; what cannot be scored has a reason."""

import pickle

import pytest

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.scoring.base import TextScore
from lotlip_data.pipeline.scoring.similarity import NOT_FINITE, Similarity
from lotlip_data.training.evaluation import models
from tests.pipeline.scoring.models_fixture import ColourModel, jpeg, scored_image

RED = jpeg((255, 0, 0))


@pytest.fixture
def model(monkeypatch):
    model = ColourModel(context_length=8)
    monkeypatch.setattr(models, "load_embedder", lambda name, device: model)
    return model


def _score(*images):
    return list(Similarity("m").score(images))


def test_raw_texts_long_texts_and_sub_captions_have_their_cosine(model):
    half = 0.5**0.5
    (scores,) = _score(scored_image(RED, raw=["red"], a=["red", "blue"], b=["green"]))
    assert scores.texts == (
        TextScore(pytest.approx(1)),
        TextScore(pytest.approx(half), (pytest.approx(1), pytest.approx(0))),
        TextScore(pytest.approx(0), (pytest.approx(0),)),
    )
    assert scores.error is None and scores.image is None


def test_a_long_text_beyond_the_limit_has_the_mean_of_its_sub_captions(model):
    long = ["red red", "blue", "red", "red", "red"]  # 6 words and 2 special tokens fit
    (short, cut) = _score(scored_image(RED, a=long), scored_image(RED, a=[*long, "blue"]))
    assert short.texts[0].score == pytest.approx(5 / 26**0.5)
    assert cut.texts[0].score == pytest.approx(4 / 6)


def test_a_blank_text_has_no_score_and_an_image_without_texts_no_error(model):
    blank, empty = _score(scored_image(RED, raw=[" ", ""], a=["red", " "], b=[]), scored_image(RED))
    assert [text.score for text in blank.texts] == [None, None, pytest.approx(1), None]
    assert blank.texts[2].pieces == (pytest.approx(1), None) and empty.texts == () and empty.error is None


def test_an_image_that_cannot_be_decoded_costs_no_other_one_and_its_texts_are_not_embedded(model):
    broken, whole = _score(scored_image(b"no image", raw=["green"]), scored_image(RED, raw=["red"]))
    assert broken.error.startswith("cannot be decoded:") and broken.texts == ()
    assert whole.texts == (TextScore(pytest.approx(1)),) and model.embedded == ["red"]


def test_features_that_are_not_finite_are_the_reason_of_their_image_alone(model):
    assert [image.error for image in _score(scored_image(RED, raw=["nan"]), scored_image(RED, raw=["red"]))] == [
        NOT_FINITE,
        None,
    ]


def test_each_distinct_text_of_a_batch_is_embedded_once(model):
    _score(*[scored_image(RED, raw=["red", "red"], a=["red", "blue"])] * 3)
    assert sorted(model.embedded) == ["blue", "red", "red blue"]


def test_a_scorer_travels_without_its_model_and_keeps_its_identity(model):
    scorer = Similarity("m")
    assert scorer.identity == {"version": 1, "model": "colours"}
    list(scorer.score([scored_image(RED, raw=["red"])]))
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy._loaded is None and copy.identity == scorer.identity


def test_a_missing_or_wrong_model_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match="needs a model"):
        Similarity(None)
    with pytest.raises(UserError, match=f"{tmp_path}: has no config.json, so it is not a model"):
        list(Similarity(str(tmp_path)).score([scored_image(RED)]))
