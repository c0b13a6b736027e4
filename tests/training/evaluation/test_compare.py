"""Comparisons pair the queries that two results share, say which differences are real, and what is missing."""

import numpy as np
import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation import metrics
from lotlip_data.training.evaluation.bootstrap import paired_interval, share_interval, unpaired_interval
from lotlip_data.training.evaluation.compare import compare
from lotlip_data.training.evaluation.outcomes import Outcomes, retrieval_outcomes
from lotlip_data.training.evaluation.results import group_by_model
from lotlip_data.training.evaluation.selection import selection_outcomes

NAMES = ("a", "b")


def _retrieval(name, t2i, i2t, texts_per_image=1, queries="q", task="dci", **protocol):
    """An evaluation whose queries have these outcomes at k = 1."""
    hits = {way: {"R@1": torch.tensor(found)} for way, found in (("t2i", t2i), ("i2t", i2t))}
    outcomes = retrieval_outcomes(hits, [j // texts_per_image for j in range(len(t2i))], queries)
    figures = metrics.shares(hits) | {"images": len(i2t), "texts": len(t2i), "cut": 0.0, "damaged": []}
    return {
        "retrieval": {task: figures | {"intervals": outcomes.intervals()}},
        "classification": {},
        "outcomes": {task: outcomes.encode()},
        "protocol": {task: {"context_length": 77, **protocol}},
        "settings": {"model": name, "name": name, "tasks": {task: {"title": task.upper()}}},
    }


def _compare(first, second):
    results = [group_by_model([evaluation])[name] for name, evaluation in zip(NAMES, (first, second), strict=True)]
    return compare(*results, NAMES)


def _hits(better=0, seed=0, queries=500):
    """Outcomes, of which those of the first `better` queries are hits."""
    found = np.random.default_rng(seed).random(queries) < 0.6
    found[:better] = True
    return found


def test_a_real_difference_is_named_and_one_within_the_noise_is_not():
    first, second = _hits(), _hits(better=60)
    noise = first ^ (np.random.default_rng(1).random(500) < 0.05)
    comparison = _compare(_retrieval("a", first, first), _retrieval("b", second, noise))
    t2i, i2t = comparison.differences
    assert (t2i.path, t2i.verdict, t2i.differing) == (("t2i", "R@1"), "b is higher", int((first != second).sum()))
    assert t2i.interval == paired_interval(first, second, np.ones(500, np.int64))
    assert t2i.difference == pytest.approx(second.mean() - first.mean())
    assert (i2t.path, i2t.verdict) == (("i2t", "R@1"), "not decided")
    [exchanged, _] = _compare(_retrieval("a", second, first), _retrieval("b", first, first)).differences
    assert exchanged.verdict == "a is higher"


@pytest.mark.parametrize(("differing", "verdict"), [(5, "not decided"), (6, "b is higher")])
def test_fewer_than_six_queries_decide_nothing(differing, verdict):
    first = np.zeros(500, np.bool_)
    second = np.arange(500) < differing
    [t2i, _] = _compare(_retrieval("a", first, first), _retrieval("b", second, first)).differences
    assert t2i.interval[0] > 0 and t2i.verdict == verdict


def test_the_texts_of_one_image_are_drawn_together():
    first = np.random.default_rng(2).random(500) < 0.6
    second = np.repeat(np.random.default_rng(3).random(100) < 0.66, 5)
    pair = [_retrieval(name, found, found[::5], 5) for name, found in zip(NAMES, (first, second), strict=True)]
    comparison = _compare(*pair)
    t2i, i2t = comparison.differences
    assert (t2i.clusters, i2t.clusters) == (100, 100)
    assert t2i.interval == paired_interval(first, second, np.full(100, 5))
    assert "the queries of one image are drawn together" in comparison.text()


def test_other_queries_give_an_unpaired_interval_and_a_warning():
    first, second = _hits(), _hits(seed=1)[:400]
    pair = _retrieval("a", first, first), _retrieval("b", second, second, queries="other")
    comparison = _compare(*pair)
    intervals = share_interval(first, np.ones(500, np.int64)), share_interval(second, np.ones(400, np.int64))
    expected = unpaired_interval(first.mean(), intervals[0], second.mean(), intervals[1])
    assert comparison.differences[0].interval == pytest.approx(expected, abs=1e-12)
    assert comparison.differences[0].to_dict()["paired"] is False
    assert comparison.warnings == ("DCI: the results have different images or texts, so their intervals are unpaired",)


def test_different_protocols_are_a_warning():
    pair = _retrieval("a", _hits(), _hits()), _retrieval("b", _hits(), _hits(), context_length=248)
    assert _compare(*pair).warnings == ("Measured with different protocols, DCI: context length 77 (a) / 248 (b)",)


def test_results_of_earlier_releases_are_named_with_the_remedy():
    old = _retrieval("b", _hits(), _hits())
    del old["outcomes"], old["protocol"], old["retrieval"]["dci"]["intervals"]
    comparison = _compare(_retrieval("a", _hits(), _hits()), old)
    assert comparison.differences == ()
    [missing] = comparison.missing
    assert missing.startswith("DCI: not compared, because b has no outcome per query") and "evaluate this" in missing
    assert missing in comparison.text() and comparison.to_dict()["missing"] == [missing]


def test_a_task_of_one_model_only_is_named():
    pair = _retrieval("a", _hits(), _hits()), _retrieval("b", _hits(), _hits(), task="iiw")
    assert _compare(*pair).missing == ("DCI: b has no result of it", "IIW: a has no result of it")


def test_damaged_outcomes_are_an_error():
    damaged = _retrieval("b", _hits(), _hits())
    damaged["outcomes"]["dci"]["t2i"]["R@1"] = "AAAA"
    with pytest.raises(UserError, match="b, DCI: the outcomes per query are damaged"):
        _compare(_retrieval("a", _hits(), _hits()), damaged)


def test_accuracies_are_compared():
    evaluations = []
    for name, found in zip(NAMES, (_hits(), _hits(better=80)), strict=True):
        outcomes = Outcomes("q", {("top1",): found})
        figures = {"top1": found.mean(), "images": 500, "classes": 7, "damaged": []}
        evaluations.append(
            {"retrieval": {}, "classification": {"imagenet": figures}, "outcomes": {"imagenet": outcomes.encode()}}
            | {"settings": {"model": name, "name": name}}
        )
    comparison = _compare(*evaluations)
    assert [(each.task, each.path, each.verdict) for each in comparison.differences] == [
        ("imagenet", ("top1",), "b is higher")
    ]
    assert "| imagenet | Acc. |" in comparison.text() and "imagenet & Acc. &" in comparison.text("latex")


def _selection(name, found):
    """An evaluation with two queries of each picture, one of either category."""
    hits = {"accuracy": torch.tensor(found)}
    pictures = [query // 2 for query in range(len(found))]
    outcomes = selection_outcomes(hits, ["x", "y"] * (len(found) // 2), pictures, "q", has_overall=True)
    figures = {
        "accuracy": {category: float(bits.mean()) for (_, category), bits in outcomes.hits.items()},
        "queries": {category: len(bits) for (_, category), bits in outcomes.hits.items()},
        "images": len(found) // 2,
        "texts": 7,
        "cut": 0.0,
        "damaged": [],
        "intervals": outcomes.intervals(),
    }
    return {
        "retrieval": {},
        "classification": {},
        "selection": {"fg-ovd": figures},
        "outcomes": {"fg-ovd": outcomes.encode()},
        "settings": {"model": name, "name": name},
    }


def test_accuracies_with_hard_negatives_are_compared_by_category():
    first = _hits(queries=600)
    second = first | (np.arange(600) % 2 == 0)
    comparison = _compare(_selection("a", first), _selection("b", second))
    assert [(each.path, each.verdict) for each in comparison.differences] == [
        (("accuracy", "overall"), "b is higher"),
        (("accuracy", "x"), "b is higher"),
        (("accuracy", "y"), "not decided"),
    ]
    overall = comparison.differences[0]
    assert overall.interval == paired_interval(first, second, np.full(300, 2)) and overall.clusters == 300
    text = comparison.text()
    assert "| fg-ovd | x Acc. |" in text and "the queries of one image are drawn together" in text


def test_a_models_name_is_one_cell_also_with_a_vertical_bar():
    names = ("a|1", "b")
    results = [group_by_model([_retrieval(name, _hits(), _hits())])[name] for name in names]
    lines = [line for line in compare(*results, names).text().splitlines() if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1 and len(lines) == 4


def test_of_two_equal_results_of_a_model_the_one_with_outcomes_is_taken():
    new = _retrieval("a", _hits(), _hits())
    old = {**new, "outcomes": {}, "retrieval": {"dci": {**new["retrieval"]["dci"]}}}
    del old["retrieval"]["dci"]["intervals"]
    for pair in ([old, new], [new, old]):
        assert group_by_model(pair)["a"]["dci"].encoded_outcomes is not None
