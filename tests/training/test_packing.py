"""Texts that share rows have the features and gradients of texts padded to 128, and next to no padding is computed."""

import copy

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from lotlip_data.training import packing
from lotlip_data.training.models.towers import TextSettings, TextTower
from lotlip_data.training.packing import cheapest_rows, embed, shared_rows
from tests.training.models import reference
from tests.training.models.reference import META, expected
from tests.training.peak_memory import peak_memory

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
TOWERS = {(m, path): reference.text_tower(m, path) for m in META["corner_tokens"] for path in ("sdpa", "eager")}
CASES = pytest.mark.parametrize(("corners", "attention"), TOWERS)


def texts(corners, lengths, seed=0):
    """Token ids as the tokenizer lays them out, of these lengths, of words that the goldens use."""
    words = np.setdiff1d(np.unique(expected("m0.input_ids")), [0])
    rng = np.random.default_rng(seed)
    corner_ids = range(META["vocab_size"], META["vocab_size"] + corners)
    return [[101, *corner_ids, *rng.choice(words, max(0, n - corners - 2)).tolist(), 102] for n in lengths]


def padded(tower, ids, length=128):
    rows = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids])
    return tower(rows)


def gradients(tower, features):
    """Of a function of the features that no two of them enter alike."""
    tower.zero_grad()
    weights = torch.cos(torch.arange(features.numel(), dtype=features.dtype)).view(features.shape) / len(features)
    (features * weights).sum().backward()
    return {name: value.grad.clone() for name, value in tower.named_parameters() if value.grad is not None}


def assert_same(found, wanted):
    assert found.keys() == wanted.keys() and wanted
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@CASES
def test_features_of_the_goldens_texts_are_the_authors(corners, attention):
    ids = reference.tokenizer(corners).encode(META["texts"]).ids
    with torch.no_grad():
        embedded = embed(TOWERS[corners, attention], ids)
    torch.testing.assert_close(embedded.features, expected(f"m{corners}.features"), **TOLERANCE)
    assert embedded.real == sum(map(len, ids)) <= embedded.computed < 128 * len(ids)


@CASES
@settings(max_examples=6)
@given(lengths=st.lists(st.integers(6, 128), min_size=1, max_size=9), pieces=st.integers(1, 4))
def test_features_and_gradients_are_the_padded_ones_for_any_lengths(corners, attention, lengths, pieces):
    tower, ids = TOWERS[corners, attention], texts(corners, lengths)
    whole, found = padded(tower, ids), embed(tower, ids, pieces).features
    torch.testing.assert_close(found, whole, **TOLERANCE)
    assert_same(gradients(tower, found), gradients(tower, whole))


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=40), more=st.integers(0, 20))
def test_every_text_is_in_one_row_and_no_two_rows_would_fit_into_one(lengths, more):
    width = max(lengths) + more
    found = shared_rows(lengths, width)
    assert sorted(index for row in found for index in row) == list(range(len(lengths)))
    filled = sorted(sum(lengths[index] for index in row) for row in found)
    assert filled[-1] <= width and (len(filled) < 2 or filled[0] + filled[1] > width)


def test_lengths_like_the_papers_cost_little_padding():
    """32 samples of a raw text and 3 long ones: a tenth on top of the real tokens, not the whole of it again."""
    rng = np.random.default_rng(0)
    lengths = [*rng.poisson(18, 32) + 4, *rng.poisson(22, (96, 3)).sum(1) + 6]
    rows, width = cheapest_rows(lengths, 768)
    computed = width * len(rows)
    assert computed < 1.08 * sum(lengths) < 0.55 * 128 * len(lengths)


@pytest.mark.parametrize("corners", [0, 2])
@pytest.mark.parametrize(
    ("model", "sharing"), [("Roberta", True), ("Albert", True), ("MPNet", True), ("MobileBert", False)]
)
def test_any_encoder_gives_the_features_of_texts_that_stand_alone(model, sharing, corners):
    """Positions that begin at 2, shared layers, relative positions; MobileBERT's look at neighbours."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, f"{model}Config")(**sizes, vocab_size=200, max_position_embeddings=80)
    torch.manual_seed(0)
    tower = TextTower(getattr(transformers, f"{model}Model")(config), 16, TextSettings(corners)).eval()
    ids = [[3, *range(200, 200 + corners), *range(5, 5 + length), 4] for length in (5, 30, 9, 44, 12, 7)]
    with torch.no_grad():
        embedded = embed(tower, ids)
        torch.testing.assert_close(
            embedded.features, torch.cat([tower(torch.tensor([row])) for row in ids]), **TOLERANCE
        )
    assert tower.shares_rows == sharing == (embedded.computed < len(ids) * max(map(len, ids)))


def test_a_row_may_be_emptier_than_the_encoder_has_positions(monkeypatch):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, vocab_size=200, max_position_embeddings=16)
    tower = TextTower(transformers.BertModel(config), 16, TextSettings(2)).eval()
    ids = [[3, 200, 201, *range(5, 5 + length), 4] for length in (12, 12, 3)]
    monkeypatch.setattr(packing, "cheapest_rows", lambda lengths, hidden: ([[0, 1], [2]], 64))
    with torch.no_grad():
        alone = torch.cat([tower(torch.tensor([row])) for row in ids])
        torch.testing.assert_close(embed(tower, ids).features, alone, **TOLERANCE)


def test_trying_whether_texts_may_share_rows_leaves_a_tower_as_it_was():
    tower = copy.deepcopy(TOWERS[2, "sdpa"]).train()
    tower.encoder.eval()  # as of a locked one
    state = torch.get_rng_state()
    assert tower.shares_rows
    assert tower.training and not tower.encoder.training and torch.equal(torch.get_rng_state(), state)


def test_dropout_is_the_same_when_a_piece_is_computed_again():
    """A tower whose output is linear in its last weights gives this gradient only from the features it gave."""
    tower = reference.text_tower(2, "sdpa").train()
    embedded = embed(tower, texts(2, [9, 30, 31, 80]), pieces=3)
    first = embedded.features.detach()
    torch.manual_seed(99)  # whatever happens between the two passes
    embedded.features.square().sum().backward()
    pooled_by_gradient = (tower.proj.weight.grad * tower.proj.weight).sum()
    torch.testing.assert_close(pooled_by_gradient, 2 * first.square().sum(), rtol=1e-5, atol=0)


def test_pieces_bound_the_memory_of_both_passes():
    tower = reference.text_tower(2, "sdpa")
    tower.encoder.embeddings.requires_grad_(False)  # a gradient as large as the vocabulary would hide the rest
    ids = texts(2, [64] * 32)

    def peak(pieces):
        with peak_memory() as memory:
            embed(tower, ids, pieces).features.square().sum().backward()
        return memory.peak

    assert peak(8) < peak(1) / 3
