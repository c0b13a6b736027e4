"""Packed texts have the features and gradients of texts padded to 128 tokens, with almost no padding computed."""

import copy

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lotlip_data.training import packing
from lotlip_data.training.models.towers import TextSettings, TextTower
from lotlip_data.training.packing import embed_packed, pack_cheapest, pack_rows, pack_texts
from tests.training.models import reference
from tests.training.models.reference import META, expected
from tests.training.peak_memory import peak_memory

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
TOWERS = {(m, path): reference.text_tower(m, path) for m in META["corner_tokens"] for path in ("sdpa", "eager")}
CASES = pytest.mark.parametrize(("corners", "attention"), TOWERS)


def texts(corners, lengths, seed=0):
    """Token ids of texts of these lengths, in the tokenizer's form, with words that the goldens use."""
    words = np.setdiff1d(np.unique(expected("m0.input_ids")), [0])
    rng = np.random.default_rng(seed)
    corner_ids = range(META["vocab_size"], META["vocab_size"] + corners)
    return [[101, *corner_ids, *rng.choice(words, max(0, n - corners - 2)).tolist(), 102] for n in lengths]


def padded(tower, ids, length=128):
    rows = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids])
    return tower(rows)


def gradients(tower, features):
    """Gradients of a sum of the features in which each one has a different weight."""
    tower.zero_grad()
    weights = torch.cos(torch.arange(features.numel(), dtype=features.dtype)).view(features.shape) / len(features)
    (features * weights).sum().backward()
    return {name: value.grad.clone() for name, value in tower.named_parameters() if value.grad is not None}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys() and expected
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@CASES
def test_packed_features_of_the_golden_texts_are_the_authors(corners, attention):
    ids = reference.tokenizer(corners).encode(META["texts"]).ids
    with torch.no_grad():
        embedded = embed_packed(TOWERS[corners, attention], pack_texts(TOWERS[corners, attention], ids))
    torch.testing.assert_close(embedded.features, expected(f"m{corners}.features"), **TOLERANCE)
    assert embedded.tokens == sum(map(len, ids)) <= embedded.computed_tokens < 128 * len(ids)


@CASES
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(6, 128), min_size=1, max_size=9), chunks=st.integers(1, 4))
def test_features_and_gradients_equal_the_padded_ones_for_any_lengths(corners, attention, lengths, chunks):
    tower, ids = TOWERS[corners, attention], texts(corners, lengths)
    expected_features, features = padded(tower, ids), embed_packed(tower, pack_texts(tower, ids), chunks).features
    torch.testing.assert_close(features, expected_features, **TOLERANCE)
    assert_same(gradients(tower, features), gradients(tower, expected_features))


@CASES
def test_words_that_are_moved_back_have_the_features_of_masked_padding_before_them(corners, attention):
    tower, ids, padding = TOWERS[corners, attention], texts(corners, [40, 9, 30, 64, 12]), [3, 100, 0]
    spaced = [
        [*row[: corners + 1], *[0] * moved, *row[corners + 1 :]]
        for row, moved in zip(ids, [*padding, 0, 0], strict=True)
    ]
    expected_features, packed = padded(tower, spaced), pack_texts(tower, ids, padding)
    features = embed_packed(tower, packed, chunks=2).features
    torch.testing.assert_close(features, expected_features, **TOLERANCE)
    assert_same(gradients(tower, features), gradients(tower, expected_features))
    assert packed.tokens == 40 + 9 + 30 + 64 + 12
    unmoved = embed_packed(tower, pack_texts(tower, ids)).features
    assert not torch.allclose(features[:2], unmoved[:2], atol=1e-3)
    torch.testing.assert_close(features[2:], unmoved[2:], **TOLERANCE)


@pytest.mark.parametrize("corners", [0, 2])
def test_padding_that_a_causal_tower_sees_is_tokens_before_the_words(corners):
    """As [SOT, padding, words, EOT] of Long-CLIP's tokenizer, whose padding is 0. [EOT] and the corners stay behind."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPTextConfig(**sizes, vocab_size=100, max_position_embeddings=40, eos_token_id=99)
    torch.manual_seed(0)
    tower = TextTower(transformers.CLIPTextModel(config), 16, TextSettings(corners)).eval()
    ids = [[98, *range(5, 5 + length), 99, *range(100, 100 + corners)] for length in (7, 12, 3)]
    spaced = [[row[0], *[0] * moved, *row[1:]] for row, moved in zip(ids, (4, 20, 0), strict=True)]
    with torch.no_grad():
        packed = pack_texts(tower, ids, (4, 20))
        alone = torch.cat([tower(torch.tensor([row])) for row in spaced])
        torch.testing.assert_close(embed_packed(tower, packed).features, alone, **TOLERANCE)
    assert packed.tokens == sum(map(len, spaced)) and packed.layout.position.max() == 33


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), extra=st.integers(0, 20))
def test_every_text_is_in_one_row_and_no_two_rows_would_fit_into_one(lengths, extra):
    width = max(lengths) + extra
    rows = pack_rows(lengths, width)
    assert sorted(text for row in rows for text in row) == list(range(len(lengths)))
    used = sorted(sum(lengths[text] for text in row) for row in rows)
    assert used[-1] <= width and (len(used) < 2 or used[0] + used[1] > width)


def test_texts_as_long_as_the_papers_need_little_padding():
    """32 samples with a raw text and 3 long texts: less than a tenth more tokens, instead of more than 80%."""
    rng = np.random.default_rng(0)
    lengths = [*rng.poisson(18, 32) + 4, *rng.poisson(22, (96, 3)).sum(1) + 6]
    rows, width = pack_cheapest(lengths, 768)
    computed = width * len(rows)
    assert computed < 1.08 * sum(lengths) < 0.55 * 128 * len(lengths)


@pytest.mark.parametrize("corners", [0, 2])
@pytest.mark.parametrize(
    ("model", "packed"), [("Roberta", True), ("Albert", True), ("MPNet", True), ("MobileBert", False)]
)
def test_any_encoder_gives_packed_texts_the_features_of_single_texts(model, packed, corners):
    """Positions that start at 2, shared layers, relative positions; MobileBERT mixes neighboring tokens."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{model}Config")(**sizes, vocab_size=200, max_position_embeddings=80)
    torch.manual_seed(0)
    tower = TextTower(getattr(transformers, f"{model}Model")(config), 16, TextSettings(corners)).eval()
    ids = [[3, *range(200, 200 + corners), *range(5, 5 + length), 4] for length in (5, 30, 9, 44, 12, 7)]
    with torch.no_grad():
        embedded = embed_packed(tower, pack_texts(tower, ids))
        torch.testing.assert_close(
            embedded.features, torch.cat([tower(torch.tensor([row])) for row in ids]), **TOLERANCE
        )
    assert tower.supports_packing == packed == (embedded.computed_tokens < len(ids) * max(map(len, ids)))


def test_a_row_can_have_more_padding_than_the_encoder_has_positions(monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=200, max_position_embeddings=16)
    tower = TextTower(transformers.BertModel(config), 16, TextSettings(2)).eval()
    ids = [[3, 200, 201, *range(5, 5 + length), 4] for length in (12, 12, 3)]
    monkeypatch.setattr(packing, "pack_cheapest", lambda lengths, hidden: ([[0, 1], [2]], 64))
    with torch.no_grad():
        alone = torch.cat([tower(torch.tensor([row])) for row in ids])
        torch.testing.assert_close(embed_packed(tower, pack_texts(tower, ids)).features, alone, **TOLERANCE)


def test_the_check_for_packing_leaves_the_tower_unchanged():
    tower = copy.deepcopy(TOWERS[2, "sdpa"]).train()
    tower.encoder.eval()  # as a locked encoder
    state = torch.get_rng_state()
    assert tower.supports_packing
    assert tower.training and not tower.encoder.training and torch.equal(torch.get_rng_state(), state)


def test_dropout_is_the_same_when_a_chunk_is_computed_again():
    """The output is linear in the last weights, so their gradient shows the features of the backward pass."""
    tower = reference.text_tower(2, "sdpa").train()
    embedded = embed_packed(tower, pack_texts(tower, texts(2, [9, 30, 31, 80])), chunks=3)
    first = embedded.features.detach()
    torch.manual_seed(99)  # the generator can change between the two passes
    embedded.features.square().sum().backward()
    pooled_by_gradient = (tower.proj.weight.grad * tower.proj.weight).sum()
    torch.testing.assert_close(pooled_by_gradient, 2 * first.square().sum(), rtol=1e-5, atol=0)


def test_chunks_bound_the_memory_of_both_passes():
    tower = reference.text_tower(2, "sdpa")
    tower.encoder.embeddings.requires_grad_(False)  # a gradient as large as the vocabulary would hide the rest
    ids = texts(2, [64] * 32)

    def peak(chunks):
        with peak_memory() as memory:
            embed_packed(tower, pack_texts(tower, ids), chunks).features.square().sum().backward()
        return memory.peak

    assert peak(8) < peak(1) / 3


def test_rows_have_widths_that_matrix_units_compute_fast():
    for lengths in ([9], [31, 30, 80], [128] * 5, [77, 5, 5, 5]):
        rows, width = pack_cheapest(lengths, 768)
        assert width % 8 == 0 and width >= max(lengths)
        assert all(sum(lengths[text] for text in row) <= width for row in rows)
