"""Corner tokens can be left out of a model: the features of texts stay as they are."""

import pytest
import torch
from transformers import AutoTokenizer, MobileBertConfig, MobileBertModel

from lotlip_data.training.export.corners import without_corner_tokens
from tests.training.export.tiny_models import TEXTS, write_model, write_roberta
from tests.training.run_fixture import TINY, write_towers


@pytest.mark.parametrize("encoder", ["bert", "roberta"])
@pytest.mark.parametrize("corners", [1, 2, 4])
def test_without_corner_tokens_texts_keep_their_features_and_their_length(tmp_path, encoder, corners):
    tower = {"text_tower": write_roberta(tmp_path / "roberta")} if encoder == "roberta" else {}
    model = write_model(tmp_path / "model", corner_tokens=corners, **tower)
    smaller = without_corner_tokens(model)
    assert smaller.tokenizer.corner_tokens == 0 and smaller.tokenizer.context_length == 40 - corners
    assert [len(ids) + corners for ids in smaller.tokenizer.encode(TEXTS).ids] == [
        len(ids) for ids in model.tokenizer.encode(TEXTS).ids
    ]
    torch.testing.assert_close(smaller.embed_texts(TEXTS), model.embed_texts(TEXTS), rtol=0, atol=1e-6)


def test_the_longest_context_reaches_the_last_position(tmp_path):
    """Every row of the position table but those of the corner tokens is used, in the same order."""
    model = write_model(tmp_path / "model", context_length=128)
    smaller = without_corner_tokens(model)
    long = ["red square " * 100]
    assert len(smaller.tokenizer.encode(long).ids[0]) == 126
    torch.testing.assert_close(smaller.embed_texts(long), model.embed_texts(long), rtol=0, atol=1e-6)


def test_a_model_without_corner_tokens_is_returned_as_it_is(tmp_path):
    model = write_model(tmp_path / "model", method="lit")
    assert without_corner_tokens(model) is model


def test_register_tokens_cannot_be_left_out(tmp_path):
    assert without_corner_tokens(write_model(tmp_path / "model", method="register")) is None


def test_corner_tokens_stay_where_the_text_tower_would_compute_other_features(tmp_path):
    """MobileBERT mixes the embeddings of neighboring tokens, so the text sees the corner tokens."""
    towers = write_towers(tmp_path / "towers")
    tokenizer = AutoTokenizer.from_pretrained(towers["text_tower"])
    tokenizer.save_pretrained(tmp_path / "mobile")
    sizes = {**TINY, "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32}
    torch.manual_seed(0)
    MobileBertModel(MobileBertConfig(**sizes, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "mobile")
    model = write_model(tmp_path / "model", **{**towers, "text_tower": str(tmp_path / "mobile")})
    assert without_corner_tokens(model) is None
