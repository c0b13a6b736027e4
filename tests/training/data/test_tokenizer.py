"""Tokens of texts: the cases that the goldens of `test_parity` do not cover."""

import pytest

from lotlip_data.manifests.subcaptions import join, split
from lotlip_data.training.data.tokenizer import BertTextTokenizer, clean_text
from tests.training.models import reference

CLS, SEP = 101, 102


def test_whitespace_entities_and_broken_encodings_are_cleaned():
    assert clean_text("  a\n\t b &amp;amp; c â€” d  ") == "a b & c — d"


@pytest.mark.parametrize("form", ["authors", "punkt"])
@pytest.mark.parametrize("corners", [0, 2, 4])
def test_the_context_length_counts_all_tokens_and_the_last_is_sep(form, corners):
    tokenizer = reference.tokenizer(corners, form=form, context_length=16)
    encoded = tokenizer.encode(["short", "A dog. " * 20, ""])
    assert [len(ids) for ids in encoded.ids] == [3 + corners, 16, 2 + corners]
    assert encoded.truncated == [False, True, False]
    for ids in encoded.ids:
        assert ids[: corners + 1] == [CLS, *range(30522, 30522 + corners)] and ids[-1] == SEP


def test_a_text_that_just_fits_is_not_truncated():
    tokenizer = reference.tokenizer(2, context_length=8)
    encoded = tokenizer.encode(["a dog and cat", "a dog and cat too"])
    assert encoded.truncated == [False, True] and [len(ids) for ids in encoded.ids] == [8, 8]


def test_the_punkt_form_keeps_full_stops_and_does_not_split_after_dr():
    tokenizer = reference.tokenizer(0, form="punkt")
    ids = tokenizer.encode(["A man walks past Dr. Smith. A bus follows."]).ids[0]
    assert tokenizer.tokenizer.convert_ids_to_tokens(ids) == (
        ["[CLS]", "a", "man", "walks", "past", "dr", ".", "smith", ".", "[SEP]", "a", "bus", "follows", ".", "[SEP]"]
    )


@pytest.mark.parametrize("mode", ["punkt", "authors"])
def test_joined_sub_captions_have_the_tokens_of_their_text(mode):
    text = "A red car is parked. Two dogs run. The sky is pale."
    tokenizer = reference.tokenizer(2)
    assert tokenizer.encode([join(split(text, mode), mode)]) == tokenizer.encode([text])


def test_a_context_without_room_for_text_is_rejected():
    with pytest.raises(ValueError, match="context_length: 6 leaves no room"):
        reference.tokenizer(4, context_length=6)


def test_a_tokenizer_without_cls_is_rejected():
    with pytest.raises(ValueError, match="no cls_token"):
        BertTextTokenizer(object(), vocab_size=10, context_length=8, corner_tokens=0)


def test_a_token_without_a_word_embedding_is_rejected_before_it_is_taken_for_a_corner_token():
    tokenizer = reference.tokenizer(0).tokenizer
    size = len(tokenizer)
    BertTextTokenizer(tokenizer, vocab_size=size, context_length=8, corner_tokens=2)
    with pytest.raises(ValueError, match=f"number {size - 1}, but the model has word embeddings for {size - 1} tokens"):
        BertTextTokenizer(tokenizer, vocab_size=size - 1, context_length=8, corner_tokens=2)
