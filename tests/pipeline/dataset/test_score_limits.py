"""Limits and standards are those of all scores, whatever the number of shards, and exactly what they leave out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.dataset.score_tally import from_ordered, to_ordered
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.run_fixture import SHARD_SECTION, FakeRun
from tests.pipeline.scoring import scorers
from tests.pipeline.scoring.test_stage import edit, rows

pytestmark = pytest.mark.usefixtures("without_ray")
without_ray = scorers.without_ray
WRITERS = ("llava", "sharegpt4v")


def make_scored(folder: Path, shards: int) -> FakeRun:
    """A run whose texts are scored by their words, and its images by their rank."""
    made = fake_run.make(folder, shards=shards, writers=WRITERS, min_long_texts=0)
    edit(made.run, scores=[{"kind": "words"}, {"kind": "rank"}], clean={})
    stages.score(made.run)
    return made


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    return make_scored(tmp_path / "run", shards=3)


def build(fake: FakeRun, *rules: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The samples of the dataset with these rules."""
    edit(fake.run, clean={"scores": list(rules)})
    assert stages.shard(fake.run).failed == []
    return rows(fake.run)


@given(npst.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False)))
def test_the_order_of_scores_is_that_of_their_bits_and_they_come_back(values: np.ndarray) -> None:
    bits = to_ordered(values)
    assert np.array_equal(from_ordered(bits), values)
    ordered = values[np.argsort(bits, kind="stable")]
    assert np.all(ordered[:-1] <= ordered[1:])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_share_of_the_sub_captions_is_left_out_and_no_more(fake: FakeRun, share: float) -> None:
    everything = build(fake)
    values = sorted(value for row in everything.values() for name in WRITERS for value in row[f"{name}_sub_words"])
    left_out = int(share * len(values))
    kept = build(fake, {"score": "words", "of": "sub_captions", "lowest": share})
    limit = dataset_index.read_index(fake.run)["score_limits"]["limits"][0]["minimum"]
    assert limit == values[left_out]
    for uid, row in everything.items():
        for name in WRITERS:
            pairs = list(zip(row[f"{name}_sub"], row[f"{name}_sub_words"], strict=True))
            expected = [(piece, words) for piece, words in pairs if words >= limit]
            assert list(zip(kept[uid][f"{name}_sub"], kept[uid][f"{name}_sub_words"], strict=True)) == expected
            if len(expected) < len(pairs):
                assert kept[uid][name] == (" ".join(piece for piece, _ in expected) or None)
            else:
                assert kept[uid][name] == row[name]


def test_what_is_left_out_is_counted_and_listed(fake: FakeRun) -> None:
    everything = build(fake)
    build(fake, {"score": "words", "of": "sub_captions", "below": 6})
    index = dataset_index.read_index(fake.run)
    pieces = sum(words < 6 for row in everything.values() for words in row["llava_sub_words"])
    assert pieces and index["dropped_texts"]["llava_sub"] == {"words_too_low": pieces}


def test_samples_raw_texts_and_whole_texts(fake: FakeRun) -> None:
    everything = build(fake)
    most = {uid: max(row[f"{name}_words"] for name in WRITERS) for uid, row in everything.items()}
    cut = sorted(most.values())[12]
    kept = build(fake, {"score": "words", "of": "samples", "below": cut})
    assert set(kept) == {uid for uid, words in most.items() if words >= cut}
    assert dataset_index.read_index(fake.run)["dropped"] == {"words_too_low": 24 - len(kept)}
    kept = build(fake, {"score": "rank", "of": "samples", "above": 9})
    assert len(kept) == 10
    kept = build(fake, {"score": "words", "of": "raw", "below": 3})
    assert set(kept) == {uid for uid, row in everything.items() if row["raws_words"][0] >= 3}
    kept = build(fake, {"score": "words", "of": "texts", "highest": 0.25})
    values = sorted(row[f"{name}_words"] for row in everything.values() for name in WRITERS)
    limit = values[len(values) - 1 - len(values) // 4]
    for uid, row in kept.items():
        for name in WRITERS:
            assert (row[name] is None) == (everything[uid][f"{name}_words"] > limit)
            assert (row[f"{name}_score"] is None) == (row[name] is None) == (row[f"{name}_sub_scores"] == [])


def test_the_combined_score_is_standardised_and_can_be_limited(fake: FakeRun) -> None:
    everything = build(fake)
    combined = np.array([value for row in everything.values() for n in WRITERS for value in row[f"{n}_sub_scores"]])
    assert abs(combined.mean()) < 1e-4 and abs(combined.std() - 1) < 1e-4
    kept = build(fake, {"score": "score", "of": "sub_captions", "lowest": 0.2})
    left = sum(len(row[f"{name}_sub"]) for row in kept.values() for name in WRITERS)
    limit = dataset_index.read_index(fake.run)["score_limits"]["limits"][0]["minimum"]
    assert left == int((combined >= limit).sum()) and limit in combined


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (
            {"score": "sharp", "of": "texts", "below": 1},
            "there is no scorer sharp; the manifest has words, rank, score",
        ),
        ({"score": "rank", "of": "texts", "below": 1}, "rank scores images, so the rule is `of: samples`"),
        ({"score": "words", "of": "texts"}, "give one of `below`, `above`, `lowest` and `highest`; this rule has none"),
        ({"score": "words", "of": "texts", "lowest": 1.5}, "lowest"),
    ],
)
def test_a_rule_that_cannot_apply_is_refused(fake: FakeRun, rule: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        build(fake, rule)


def test_rules_without_scorers_are_refused(fake: FakeRun) -> None:
    edit(fake.run, scores=[], clean={"scores": [{"score": "words", "of": "texts", "below": 1}]})
    with pytest.raises(UserError, match="the manifest has no `scores`"):
        stages.shard(fake.run)


def test_without_scorers_the_dataset_is_as_before(fake: FakeRun) -> None:
    edit(fake.run, scores=[], clean={})
    assert stages.shard(fake.run).failed == []
    index = dataset_index.read_index(fake.run)
    assert "scorers" not in index and "score_limits" not in index and "llava_score" not in index["columns"]


def test_counts_have_no_weight_in_the_combined_score_unless_one_is_given(
    fake: FakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Letters(scorers.WordCount):
        better = "lower"

    monkeypatch.setitem(scorers.SCORERS, "letters", Letters)
    edit(fake.run, scores=[{"kind": "words"}, {"kind": "letters"}])
    stages.score(fake.run)
    build(fake)
    standards = dataset_index.read_index(fake.run)["score_limits"]["standards"]["texts"]
    assert {name: standard["weight"] for name, standard in standards.items()} == {"words": 1.0}
    edit(fake.run, shard=SHARD_SECTION | {"min_long_texts": 0, "score_weights": {"words": 3, "letters": 1}})
    everything = build(fake)
    standards = dataset_index.read_index(fake.run)["score_limits"]["standards"]["texts"]
    assert {name: standard["weight"] for name, standard in standards.items()} == {"words": 3.0, "letters": -1.0}
    for row in everything.values():
        words = (row["llava_words"] - standards["words"]["mean"]) / standards["words"]["deviation"]
        assert row["llava_score"] == pytest.approx((3 * words - words) / 4, rel=1e-5, abs=1e-5)
