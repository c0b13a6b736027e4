"""The distributions of scores are those of all scores in the dataset, by captioner and source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lotlip_data.pipeline import stages
from lotlip_data.pipeline.dataset.score_tally import QUANTILES, ScoreTally
from lotlip_data.pipeline.dataset.stats import dataset_stats, table
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.dataset.test_score_limits import make_scored
from tests.pipeline.run_fixture import FakeRun
from tests.pipeline.scoring import scorers
from tests.pipeline.scoring.test_stage import edit, rows

pytestmark = pytest.mark.usefixtures("without_ray")
without_ray = scorers.without_ray
WRITERS = ("llava", "sharegpt4v")


@pytest.fixture
def fake(tmp_path: Path) -> FakeRun:
    return make_scored(tmp_path / "run", shards=2)


def expected(values: list[float]) -> dict[str, Any]:
    """The summary of some scores, from all of them."""
    return {"count": len(values), "mean": pytest.approx(np.mean(values)), "deviation": pytest.approx(np.std(values))}


def moments(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in ("count", "mean", "deviation")}


@given(
    st.lists(
        npst.arrays(np.float32, st.integers(0, 30), elements=st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=4
    )
)
def test_percentiles_are_within_0_8_percent_of_those_of_all_scores(parts: list[np.ndarray]) -> None:
    tally = ScoreTally()
    for part in parts:
        tally.add(part)
    values = np.sort(np.concatenate(parts))
    if not len(values):
        assert tally.to_dict(full=True) == {"count": 0}
        return
    exact = values[np.arange(101) * (len(values) - 1) // 100]
    normal = np.maximum(np.abs(exact), np.finfo(np.float32).tiny)
    assert np.all(np.abs(np.array(tally.percentiles()) - exact) <= 0.008 * normal)
    assert tally.percentiles()[0] == values[0] and tally.percentiles()[-1] == values[-1]


def test_percentiles_of_counts_up_to_256_are_exact() -> None:
    tally = ScoreTally()
    tally.add(np.arange(-256, 257, dtype=np.float32))
    assert tally.percentiles() == [float(-256 + 512 * percent // 100) for percent in range(101)]


def test_the_distribution_of_each_scorer_is_that_of_the_dataset(fake: FakeRun) -> None:
    edit(fake.run, clean={"scores": [{"score": "words", "of": "sub_captions", "below": 6}]})
    assert stages.shard(fake.run).failed == []
    samples, stats = list(rows(fake.run).values()), dataset_stats(fake.run)
    assert list(stats["scores"]) == ["score", "words", "rank"]
    assert [stats["scores"][name]["kind"] for name in stats["scores"]] == ["combined", "words", "rank"]
    for name, ending in (("words", ""), ("score", "s")):
        of_scorer = stats["scores"][name]
        for captioner in WRITERS:
            texts = [row[f"{captioner}_{name}"] for row in samples if row[f"{captioner}_{name}"] is not None]
            pieces = [value for row in samples for value in row[f"{captioner}_sub_{name}{ending}"]]
            assert moments(of_scorer["captioners"][captioner]["texts"]) == expected(texts)
            assert moments(of_scorer["captioners"][captioner]["sub_captions"]) == expected(pieces)
        assert moments(of_scorer["raw"]) == expected([v for row in samples for v in row[f"raws_{name}{ending}"]])
    ranks = stats["scores"]["rank"]["images"]
    assert moments(ranks) == expected([row["rank"] for row in samples])
    assert list(ranks["quantiles"]) == [str(percent) for percent in QUANTILES]
    assert ranks["percentiles"][50] == ranks["quantiles"]["50"] == 7
    assert stats["score_limits"] == [{"score": "words", "of": "sub_captions", "minimum": 6.0, "maximum": None}]
    assert stats["dropped_texts"]["llava_sub"]["words_too_low"] > 0
    lines = table(stats)
    assert any(line.startswith("words: sub-captions by llava ") for line in lines)
    assert lines[-1] == "left out by their scores: sub-captions with words below 6"


def test_the_scores_of_a_source_are_those_of_its_images_and_of_its_own_raw_texts(tmp_path: Path) -> None:
    made = fake_run.make(tmp_path / "run", shards=0, writers=["llava"])
    texts = {"a": "one", "b": "two words", "c": "three words now"}
    listed = [
        fake_run.listed_row(f"00000000{number}", f"http://images.test/{number}.jpg", [texts[s] for s in names], names)
        for number, names in enumerate((["a", "b"], ["c"], ["b", "c"]))
    ]
    images = [row | {"status": "success", "sha256": "s", "width": 8, "height": 8} for row in listed]
    fake_run.commit_images(made.run, 0, images, [(row, b"image") for row in images])
    captions = [
        fake_run.caption(row, text) for row, text in zip(images, ("One.", "Two of.", "Three. Of it."), strict=True)
    ]
    fake_run.write_captions(made.run, "llava", 0, captions)
    edit(made.run, scores=[{"kind": "words"}], clean={})
    stages.score(made.run)
    assert stages.shard(made.run).failed == []
    stats = dataset_stats(made.run)
    by_source = stats["scores"]["words"]["sources"]
    assert {name: (row["raw"]["count"], row["raw"]["mean"]) for name, row in by_source.items()} == {
        "a": (1, 1), "b": (2, 2), "c": (2, 3)
    }  # fmt: skip
    pieces = {name: row["captioners"]["llava"]["sub_captions"] for name, row in by_source.items()}
    assert {name: (row["count"], row["mean"]) for name, row in pieces.items()} == {
        "a": (1, 1), "b": (3, pytest.approx(4 / 3)), "c": (3, pytest.approx(5 / 3))
    }  # fmt: skip
    assert any(line.startswith("b: words: raw texts ") for line in table(stats))


def test_statistics_without_scores_are_as_before(fake: FakeRun) -> None:
    edit(fake.run, scores=[], clean={})
    assert stages.shard(fake.run).failed == []
    stats = dataset_stats(fake.run)
    assert "scores" not in stats and "score_limits" not in stats
    assert not any("score" in line for line in table(stats))
