"""The report's section on scores shows the extremes of the dataset and runs nothing that comes from the web."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import inspection, stages
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.reporting import charts, score_examples
from lotlip_data.pipeline.reporting.score_examples import Extremes, find_examples
from lotlip_data.pipeline.scoring.repetition import Repetition, RepetitionOptions
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.dataset.test_calibration import write
from tests.pipeline.reporting.test_report import HOSTILE, Page, visible_text
from tests.pipeline.scoring import scorers
from tests.pipeline.scoring.test_stage import edit, rows
from tests.pipeline.viewer import dataset_fixture

pytestmark = pytest.mark.usefixtures("without_ray")
without_ray = scorers.without_ray
WRITERS = ("llava", "sharegpt4v")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Two shards with the scorers `words` (also of the kind repetition) and `rank`; one text is hostile."""
    monkeypatch.setitem(scorers.SCORERS, "repetition", lambda: Repetition(None, RepetitionOptions()))
    made = fake_run.make(tmp_path / "run", shards=2, writers=WRITERS, min_long_texts=0)
    texts = fake_run.captions_of(made.run, "llava", 0)
    texts[0]["text"] = f"{HOSTILE} {'very ' * 40}long. Short."
    fake_run.write_captions(made.run, "llava", 0, texts)
    limit = {"score": "words", "of": "sub_captions", "below": 2}
    kinds = [{"kind": "words"}, {"kind": "rank"}, {"name": "copies", "kind": "repetition"}]
    edit(made.run, scores=kinds, clean={"scores": [limit]})
    stages.score(made.run)
    assert stages.shard(made.run).failed == []
    return made.run


def test_the_examples_are_the_best_and_the_worst_of_the_dataset(run: Run) -> None:
    found, samples = find_examples(run), list(rows(run).values())
    assert found.problems == [] and list(found.captioners) == list(WRITERS)
    for name in WRITERS:
        pieces, texts = found.captioners[name]
        for each, pairs in (
            (
                pieces,
                [(s, t) for row in samples for s, t in zip(row[f"{name}_sub_scores"], row[f"{name}_sub"], strict=True)],
            ),
            (texts, [(row[f"{name}_score"], row[name]) for row in samples]),
        ):
            values = sorted(score for score, _ in pairs)
            assert each.best[0].score == values[-1] and each.worst[0].score == values[0]
            by_text = {score_examples.shortened(text, score_examples.TEXT_CHARACTERS): score for score, text in pairs}
            for examples, sign in ((each.best, -1), (each.worst, 1)):
                scores = [sign * example.score for example in examples]
                assert scores == sorted(scores) and len({example.text for example in examples}) == 3
                assert all(example.text in by_text for example in examples)
                assert all(example.data_url.startswith("data:image/jpeg;base64,") for example in examples)
    (ranks,) = found.images
    assert ranks.labels == ("best", "worst")  # the scorer's record says that lower ranks are better
    assert [example.score for example in ranks.best] == [0, 1, 2]
    assert [example.score for example in ranks.worst] == [15, 14, 13]
    counts = Counter(piece for row in samples for piece in {p for name in WRITERS for p in row[f"{name}_sub"]})
    shown = [text.images for text in found.frequent["copies"]]
    assert shown == [count for _, count in counts.most_common(len(shown)) if count > 1] and len(shown) > 3


def test_the_page_escapes_texts_and_names_the_limits(run: Run, tmp_path: Path) -> None:
    outcome = inspection.report(run.url, tmp_path / "page.html")
    assert outcome.problems == []
    content = (tmp_path / "page.html").read_text()
    page, text = Page(content), visible_text(content)
    assert not {"script", "iframe", "object", "link", "form"} & set(page.tags)
    inside = ("href=#", "xlink:href=#", "src=data:image/jpeg;base64,")
    assert [attribute for attribute in page.loads if not attribute.startswith(inside)] == []
    assert "href=#scores" in page.loads and page.text.count(HOSTILE) >= 2
    assert "sub-captions with words below 2" in text and "1 (llava_sub)" in text
    assert "Best and worst: llava" in text and "Most frequent sub-captions ( copies)" in text
    assert "words of sub-captions" in text and "rank of images" in text


def test_labels_are_drawn_and_bad_ones_are_one_error(run: Run, tmp_path: Path) -> None:
    samples = rows(run)
    labels = [{"uid": uid, "captioner": "llava", "sub_caption": 0, "correct": number % 2}
              for number, uid in enumerate(samples)]  # fmt: skip
    file = write(tmp_path / "labels.csv", labels)
    result = CliRunner().invoke(app, ["report", run.url, "--labels", file, "--no-stats"])
    assert result.exit_code == 0, result.output
    text = visible_text(Path(run.report).read_text())
    assert "Scores and labels" in text and "16 labels, 0 of them without a score." in text
    assert "words of sub-captions" in text and "ROC of sub-captions" in text and "Distributions" not in text
    Path(file).write_text("uid,correct\na,maybe\n")
    before = Path(run.report).read_bytes()
    assert CliRunner().invoke(app, ["report", run.url, "--labels", file]).exit_code != 0
    assert Path(run.report).read_bytes() == before


def test_a_damaged_file_costs_its_own_examples_only(run: Run) -> None:
    Path(run.shards, "train-00001.parquet").write_bytes(b"torn")
    Path(run.shards, "train-00000.tar").unlink()
    found = find_examples(run)
    assert len(found.problems) == 2 and all("train-0000" in problem for problem in found.problems)
    pieces, _ = found.captioners["llava"]
    assert pieces.best and {example.data_url for example in pieces.best} == {""}


def test_a_dataset_without_scores_has_no_section(run: Run, tmp_path: Path) -> None:
    edit(run, scores=[], clean={})
    assert stages.shard(run).failed == []
    inspection.report(run.url, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text().partition('<h2 id="manifest">')[0]
    assert 'id="scores"' not in page and "#scores" not in page
    assert find_examples(run).captioners == {}


def test_the_best_are_not_the_worst_too(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1, samples=4, scorers=dataset_fixture.SCORERS)
    found = find_examples(run)
    for lists in (*found.captioners.values(), found.images):
        for each in lists:
            shown = [example.text or example.uid for example in (*each.best, *each.worst)]
            assert len(shown) == len(set(shown)) and len(each.best) == 3
    assert found.images[0].labels == ("highest", "lowest")  # nothing says which scores of `size` are better


def test_the_extremes_are_kept_whatever_the_batches() -> None:
    scores = np.random.default_rng(0).integers(0, 40, 500).astype(float)
    scores[::7] = np.nan
    places = np.stack([np.arange(500) // 100, np.arange(500) % 100, np.zeros(500, int)], axis=1)
    known = [n for n in range(500) if not np.isnan(scores[n])]
    for size in (1, 9, 500):
        extremes = Extremes()
        for first in range(0, 500, size):
            extremes.add(scores[first : first + size], places[first : first + size])
        for highest, sign in ((True, -1), (False, 1)):
            expected = sorted(known, key=lambda n: (sign * scores[n], n))[: score_examples.CANDIDATES]
            assert extremes.places(highest) == [tuple(places[n]) for n in expected]


@pytest.mark.parametrize("count", [1, 4, 6])
@pytest.mark.parametrize("kind", ["linear", "counts", "equal"])
def test_a_chart_of_scores_names_all_of_them(count: int, kind: str) -> None:
    values: dict[str, list[float]] = {
        "linear": [percent / 50 - 1 for percent in range(101)],
        "counts": [float(10 ** (percent // 20)) for percent in range(101)],
        "equal": [2.0] * 101,
    }
    summaries: dict[str, Any] = {f"<captioner {n}>": {"percentiles": values[kind]} for n in range(count)}
    chart = charts.score_chart(summaries, "score", [0.5])
    for name in summaries:
        words = re.sub(r"\s+", " ", Page(chart).text)
        assert all(word in words for word in name.split())
    assert "<captioner" not in chart


def test_charts_of_labels_are_drawn() -> None:
    row = {"mean": 0.5, "share": 0.25, "low": 0.1, "high": 0.5}
    assert "similarity" in charts.reliability_chart([row], "similarity")
    curves = {f"score {n}": [[0, 0], [0.5, 0.75], [1, 1]] for n in range(5)}
    assert all(name in charts.roc_chart(curves) for name in curves)
