"""Agreement is the support of a sub-caption by the other captioners' texts; without another one there is none."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast, ViTConfig, ViTModel

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.scoring import agreement
from lotlip_data.pipeline.scoring.agreement import NO_OTHER, NOT_FINITE, Agreement, AgreementOptions
from lotlip_data.pipeline.scoring.base import TextScore
from lotlip_data.pipeline.scoring.sentence_encoder import SentenceEncoder
from tests.pipeline.scoring.models_fixture import ColourModel, scored_image
from tests.pipeline.scoring.test_photographs import ENCODER


@pytest.fixture
def model(monkeypatch):
    model = ColourModel()
    monkeypatch.setattr(agreement, "load_text_encoder", lambda name, device: model)
    return model


def _score(*images, others="best"):
    return list(Agreement("m", AgreementOptions(others=others)).score(images))


@pytest.mark.parametrize(("others", "red", "blue"), [("best", 1, 1), ("mean", (1 + 0.5) / 2, 0.5)])
def test_of_other_captioners_the_best_or_the_mean_support_counts(model, others, red, blue):
    # The angle of red and of red and green is 45°, that of red and blue 90°.
    image = scored_image(a=["red", "blue"], b=["red", "blue"], c=["green", "red green"])
    (scores,) = _score(image, others=others)
    assert scores.texts[0].pieces == pytest.approx((red, blue))
    assert scores.texts[0].score == pytest.approx((red + blue) / 2)


def test_the_own_text_is_no_support(model):
    (scores,) = _score(scored_image(a=["red", "red"], b=["blue"]))
    assert scores.texts == (*(TextScore(pytest.approx(0), (pytest.approx(0),) * count) for count in (2, 1)),)


def test_a_raw_text_has_the_support_of_all_long_texts_and_a_blank_one_none(model):
    (scores,) = _score(scored_image(raw=["red", " "], a=["red"], b=["green"]))
    assert [text.score for text in scores.texts[:2]] == [pytest.approx(1), None]


def test_blank_sub_captions_and_texts_have_no_score_and_support_nothing(model):
    (scores,) = _score(scored_image(a=["red", " "], b=["red"], c=[]))
    assert scores.texts[0] == TextScore(pytest.approx(1), (pytest.approx(1), None))
    assert scores.texts[2] == TextScore(None, ())


def test_an_image_with_fewer_than_two_captioners_has_the_reason(model):
    images = [scored_image(raw=["red"], a=["red"]), scored_image(), scored_image(a=["red"], b=[" "])]
    assert [image.error for image in _score(*images)] == [NO_OTHER] * 3


def test_features_that_are_not_finite_are_the_reason_of_their_image_alone(model):
    images = [scored_image(a=["red"], b=["nan"]), scored_image(a=["red"], b=["red"])]
    assert [image.error for image in _score(*images)] == [NOT_FINITE, None]


def _relative(*images, neighbours):
    return list(Agreement("m", AgreementOptions(neighbours=neighbours)).score(images))


def test_with_neighbours_the_mean_support_of_like_sub_captions_of_other_images_is_subtracted(model):
    # Only `a` writes about green. Its red is supported in two images of three.
    images = [scored_image(raw=["red"], a=["red", "green"], b=["red"]) for _ in range(2)]
    images.append(scored_image(a=["red", " ", "green"], b=["blue"]))
    first, second, third = _relative(*images, neighbours=2)
    assert first == second and first.texts[1].pieces == pytest.approx((1 - 0.5, 0))
    assert third.texts[0].pieces == (pytest.approx(0 - 1), None, pytest.approx(0))
    assert third.texts[0].score == pytest.approx(-0.5) and third.texts[1].score == pytest.approx(-1)
    assert first.texts[0].score == pytest.approx(0)  # raw texts are compared with raw texts


def test_without_like_sub_captions_nothing_is_subtracted_and_reasons_stay(model):
    images = [scored_image(a=["red"], b=["red"]), scored_image(a=["red"])]
    alone, single = _relative(*images, neighbours=30)
    assert alone.texts[0].pieces == pytest.approx((1,)) and single.error == NO_OTHER
    assert _relative(neighbours=30) == []


def test_each_distinct_text_of_a_batch_is_embedded_once(model):
    _score(*[scored_image(raw=["red"], a=["red", "blue"], b=["blue"])] * 3)
    assert sorted(model.embedded) == ["blue", "red"]


def test_a_scorer_travels_without_its_model_and_its_identity_has_model_and_options(model):
    scorer = Agreement("m", AgreementOptions(others="mean"))
    assert scorer.identity == {"version": 1, "model": "colours", "others": "mean", "neighbours": 0}
    list(scorer.score([scored_image(a=["red"], b=["red"])]))
    copy = pickle.loads(pickle.dumps(scorer))
    assert copy._loaded is None and copy.identity == scorer.identity


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A random BERT in the layout of sentence-transformers."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=32)).save_pretrained(folder)
    types = [f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")]
    (folder / "modules.json").write_text(json.dumps([{"idx": i, "type": kind} for i, kind in enumerate(types)]))
    (folder / "1_Pooling").mkdir()
    _pool(folder, "mean_tokens")
    return folder


def _pool(folder, mode):
    modes = dict.fromkeys(("cls_token", "mean_tokens", "max_tokens", "lasttoken"), False) | {mode: True}
    content = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "max_tokens"])
def test_the_pooling_is_that_of_the_folder_and_features_do_not_depend_on_the_batch(encoder_folder, tmp_path, mode):
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "m"))
    _pool(folder, mode)
    encoder, text = SentenceEncoder(str(folder), "cpu"), "a b c"
    tokens = BertTokenizerFast.from_pretrained(folder)(text, return_tensors="pt")
    states = BertModel.from_pretrained(folder).eval()(**tokens).last_hidden_state[0]
    pooled = {"mean_tokens": states.mean(0), "cls_token": states[0], "max_tokens": states.amax(0)}[mode]
    expected = torch.nn.functional.normalize(pooled.detach(), dim=0)
    for texts in ([text], ["a b c d e f g h", text, "h"]):
        torch.testing.assert_close(encoder.embed(texts)[texts.index(text)], expected, rtol=1e-5, atol=1e-6)


def test_the_identity_depends_on_the_pooling_and_on_the_weights(encoder_folder, tmp_path):
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "m"))
    identities = [SentenceEncoder(str(encoder_folder), "cpu").identity, SentenceEncoder(str(folder), "cpu").identity]
    _pool(folder, "cls_token")
    identities.append(SentenceEncoder(str(folder), "cpu").identity)
    assert identities[0] == identities[1] != identities[2]


def test_long_texts_are_truncated_at_the_limit_of_the_folder(encoder_folder, tmp_path):
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "m"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    encoder = SentenceEncoder(str(folder), "cpu")
    assert encoder.context_length == 6
    assert torch.equal(encoder.embed(["a b c d"]), encoder.embed(["a b c d e f g h"]))
    assert SentenceEncoder(str(encoder_folder), "cpu").embed(["a " * 100]).isfinite().all()


def _dense(folder):
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')


def _nan(folder):
    model = BertModel.from_pretrained(folder)
    model.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    model.save_pretrained(folder)


def _another_layer(folder):
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))


def _vit(folder):
    ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=8, patch_size=4)).save_pretrained(folder)  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_dense, "has a module 'Dense', which is not supported"),
        (lambda folder: _pool(folder, "lasttoken"), "pooling .pooling_mode_lasttoken. is not supported"),
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "is no encoder of sentences, or is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "is no encoder of sentences, or is damaged"),
        (_another_layer, "lacks 16 weights, such as encoder.layer.2"),
        (_nan, "features are not finite numbers"),
        (_vit, "does not read texts"),
    ],
)
def test_a_wrong_or_damaged_encoder_is_an_error_of_one_line_that_names_it(encoder_folder, tmp_path, damage, message):
    folder = Path(shutil.copytree(encoder_folder, tmp_path / "m"))
    damage(folder)
    with pytest.raises(UserError, match=f"^{folder}: .*{message}") as error:
        agreement.load_text_encoder(str(folder), "cpu")
    assert "\n" not in str(error.value)


def test_a_model_must_be_named_and_exist(tmp_path):
    with pytest.raises(UserError, match="needs a model"):
        Agreement(None)
    with pytest.raises(UserError, match="there is no such folder"):
        list(Agreement(str(tmp_path / "none")).score([scored_image(a=["x"], b=["y"])]))


@pytest.mark.slow
@pytest.mark.skipif(not ENCODER.is_dir(), reason="the sentence encoder could not be downloaded")
def test_a_real_encoder_finds_the_statements_that_one_captioner_alone_makes():
    image = scored_image(
        a=["A brown dog runs on the beach.", "A man throws a red ball.", "Two ships are on the horizon."],
        b=["A dog is running along the seashore.", "Someone tosses a red ball to it.", "A cat sleeps on a sofa."],
        c=["On a sandy beach a dog runs after a ball.", "In the distance there are two boats."],
    )
    (scores,) = Agreement(str(ENCODER)).score([image])
    supported = [*scores.texts[0].pieces, *scores.texts[1].pieces[:2], *scores.texts[2].pieces]
    assert scores.texts[1].pieces[2] < 0.2 < 0.3 < min(supported)
    assert np.isfinite(supported).all()
