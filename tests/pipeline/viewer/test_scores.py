"""The pages show the scores of a dataset that has some, and find and order samples by them over all shards."""

import itertools
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.schema import DROPPED
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.app import View, create_app
from lotlip_data.pipeline.viewer.samples import open_samples
from lotlip_data.pipeline.viewer.scoring import TINTS, Scoring
from tests.pipeline import run_fixture
from tests.pipeline.viewer import dataset_fixture
from tests.pipeline.viewer.dataset_fixture import CAPTIONERS, SCORERS, Row

COLUMN_ENDS = {"score": "scores", "similarity": "similarity", "agreement": "agreement"}


def client(run: Run) -> TestClient:
    return TestClient(create_app(View(run, seconds=60)), base_url="http://localhost")


def some_missing(number: int, row: Row) -> None:
    """Leave out a text, all scores of a text, and that of a sub-caption."""
    if number % 7 == 0:
        row |= {"sharegpt4v": None, "sharegpt4v_sub": []}
        for scorer, end in COLUMN_ENDS.items():
            row |= {f"sharegpt4v_{scorer}": None, f"sharegpt4v_sub_{end}": []}
    if number % 5 == 0:
        row |= {"llava_similarity": None, "size": None}
        row["llava_sub_similarity"] = [None, *row["llava_sub_similarity"][1:]]


def make_rows(count: int) -> list[Row]:
    rows = [dataset_fixture.row_of(number) for number in range(count)]
    for number, row in enumerate(rows):
        dataset_fixture.add_scores(number, row)
        some_missing(number, row)
    return rows


ROWS = make_rows(30)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three shards of 10 samples, in row groups of 4."""
    folder = tmp_path_factory.mktemp("view") / "a run"
    return dataset_fixture.make(folder, change=some_missing, scorers=SCORERS)


@pytest.fixture(scope="module")
def web(run: Run) -> TestClient:
    return client(run)


def numbers(page: str) -> list[int]:
    """The numbers of the samples on a page, from their cards."""
    cards = re.findall(r'<article class="card" id="s(\d+)-(\d+)">', page)
    return [10 * int(file) + int(row) for file, row in cards]


def values_of(row: Row, text: str, score: str, level: str) -> list[float]:
    """The scores of a sample that count, in plain Python."""
    if score == "size":
        values = [row["size"]]
    else:
        values = []
        for name in [text] if text else CAPTIONERS:
            if name == "raw":
                values += [] if level else row[f"raws_{COLUMN_ENDS[score]}"]
            else:
                values += row[f"{name}_sub_{COLUMN_ENDS[score]}"] if level else [row[f"{name}_{score}"]]
    return [value for value in values if value is not None]


@pytest.mark.parametrize("score", ["", "similarity", "size"])
@pytest.mark.parametrize("level", ["", "sub_captions"])
@pytest.mark.parametrize("text", ["", "raw", "llava"])
def test_a_range_and_an_order_are_those_of_a_plain_loop(web: TestClient, score: str, level: str, text: str) -> None:
    values = [values_of(row, text, score or "score", level) for row in ROWS]
    known = sorted(value for of_row in values for value in of_row) or [0.5]
    low, high = known[len(known) // 4], known[len(known) // 2]
    chosen = {"score": score, "level": level, "text": text, "size": "48", "show": "full"}
    for limits in ({"low": low}, {"high": high}, {"low": low, "high": high}):
        page = web.get("/", params=chosen | {name: str(value) for name, value in limits.items()}).text
        least, most = limits.get("low", -math.inf), limits.get("high", math.inf)
        expected = [n for n, of_row in enumerate(values) if any(least <= value <= most for value in of_row)]
        assert numbers(page) == expected
        assert f"{len(expected)} sample" in page and "of 30 match" in page
    for sort, pick, sign in (("score-high", max, -1), ("score-low", min, 1)):
        order = sorted(range(30), key=lambda n: (sign * pick(values[n]) if values[n] else math.inf, n))
        assert numbers(web.get("/", params=chosen | {"sort": sort}).text) == order


def test_a_range_and_words_have_to_be_met_by_the_same_text(web: TestClient) -> None:
    red = {"q": "red", "score": "similarity", "low": "0.5", "show": "full", "size": "48"}
    expected = [
        number
        for number, row in enumerate(ROWS)
        if any((row[name] or "").count("red") and (row[f"{name}_similarity"] or 0) >= 0.5 for name in CAPTIONERS)
    ]
    assert numbers(web.get("/", params=red).text) == expected and 0 < len(expected) < 15
    wrong = web.get("/", params=red | {"low": "7"}).text
    assert "Search without" in wrong and "a score of at least 7.0" in wrong
    uids = web.get("/uids", params=red).text.split()
    assert [int(uid, 16) for uid in uids] == expected


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"score": "sharpness"}, "choose one of score, similarity, agreement, size"),
        ({"low": "much"}, "is not a score; enter a number such as 0.25"),
        ({"high": "nan"}, "is not a score"),
        ({"low": "1" * 40}, "is not a score"),
        ({"level": "texts"}, "choose one of sub_captions"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(web: TestClient, parameters: dict[str, str], problem: str) -> None:
    response = web.get("/", params=parameters)
    assert response.status_code == 400 and problem in unescape(response.text)


def test_sub_captions_are_tinted_by_the_chosen_score(web: TestClient) -> None:
    for score in ("", "similarity", "agreement", "size"):
        page = web.get("/", params={"score": score, "show": "full", "size": "48"}).text
        spans = re.findall(r'<span class="sub (\w+)" title="([^"]*)"><span class="number">(\d)([−+]*)</span>', page)
        expected = []
        for row, name in itertools.product(ROWS[:], CAPTIONERS):
            for item in range(len(row[f"{name}_sub"])):
                if score in ("", "size"):
                    deviations = row[f"{name}_sub_scores"][item]
                elif score == "similarity":
                    similarity = row[f"{name}_sub_similarity"][item]
                    deviations = None if similarity is None else (similarity - 0.5) / 0.25
                else:
                    deviations = -row[f"{name}_sub_agreement"][item] / 2  # lower is better
                if deviations is None:
                    expected.append(("unscored", str(item + 1), ""))
                    continue
                tint = TINTS[sum(deviations > edge for edge in (-1, -0.5, 0.5, 1))]
                expected.append((tint.css, str(item + 1), tint.mark))
        assert [(css, number, mark) for css, _, number, mark in spans] == expected
        assert {css for css, *_ in expected} >= {"t0", "t1", "t2"}
        assert all("combined score" in title and "agreement" in title for _, title, _, _ in spans)
        assert "far worse" in page and "far better" in page


def test_the_page_of_a_sample_has_the_scores_of_its_image_and_of_each_text(web: TestClient) -> None:
    page = web.get("/sample/0/3").text
    cells = [re.findall(r"<t[dh]>(.*?)</t[dh]>", line.replace("<bdi>", "").replace("</bdi>", ""))
             for line in page.split("Scores</h2>")[1].splitlines() if "<tr>" in line]  # fmt: skip
    row = ROWS[3]

    def shown(*values: float | None) -> list[str]:
        return ["–" if value is None else f"{value:.4g}".replace("-", "−") for value in values]

    assert cells[0] == ["", "combined score", "similarity", "agreement", "size"]
    assert cells[1] == ["image", *shown(None, None, None, row["size"])]
    assert cells[2] == ["raw text (web)", *shown(*[dataset_fixture.score_of(3, 7)] * 3, None)]
    assert cells[3] == ["llava", *shown(row["llava_score"], row["llava_similarity"], row["llava_agreement"], None)]
    pieces = zip(row["llava_sub_scores"], row["llava_sub_similarity"], row["llava_sub_agreement"], strict=True)
    assert cells[6:8] == [["llava", str(n), *shown(*values)] for n, values in zip((1, 2), pieces, strict=False)]
    followed = web.get("/sample/0/3?" + urlencode({"list": "score=agreement&sort=score-low"})).text
    assert "by their agreement" in followed and "score=agreement" in followed


def test_a_dataset_without_scores_has_no_word_about_them(tmp_path: Path) -> None:
    web = client(dataset_fixture.make(tmp_path / "run", shards=1))
    for path in ("/", "/sample/0/0", "/?show=short"):
        page = web.get(path).text.replace(str(tmp_path), "")
        assert "score" not in page.casefold() and 'class="sub odd"' in page
    response = web.get("/?sort=score-low")
    assert response.status_code == 400 and "score" not in response.text.partition("choose one of")[2]
    assert "the dataset has no scores" in web.get("/?low=1").text


def test_the_quarantine_says_what_was_left_out_because_of_its_score(run: Run) -> None:
    base = dict.fromkeys(DROPPED.names) | {"key": "000000001", "uid": "u", "url": "http://images.test/1.jpg"}
    dropped = [
        base | {"what": what, "reason": reason, "detail": f"<b>{what}</b>"}
        for what, reason in (
            ("llava_sub", "similarity_too_low"),
            ("llava", "no_sub_caption_left"),
            ("raw", "similarity_too_high"),
            ("sample", "size_too_high"),
        )
    ]
    storage.create(run.quarantine("shard", "00000.parquet"), run_fixture.parquet(dropped, DROPPED))
    web = client(run)
    page = unescape(web.get("/quarantine?kind=shard").text)
    for what in ("sub-caption by llava", "text by llava", "raw text"):
        assert f'<span class="tag">{what}</span>' in page
    assert "Left out because of their scores: sub-captions with similarity below 0.05." in page
    only = web.get("/quarantine?kind=shard&what=llava_sub").text
    assert "similarity_too_low" in only and "1 row shown" in only and "&lt;b&gt;llava_sub&lt;/b&gt;" in only
    assert web.get("/quarantine/uids?kind=shard&what=raw").text == "u\n"
    assert web.get("/quarantine?kind=shard&what=nothing").status_code == 400


def test_a_scorer_of_equal_scores_tints_nothing() -> None:
    standard: dict[str, Any] = {"mean": 1.0, "deviation": 0.0, "weight": 1.0}
    scoring = Scoring({"words": "texts"}, {"words": standard})
    assert scoring.tint("words", 1.0) is None and scoring.tint("score", None) is None
    assert scoring.tinting("unknown") == "score" and Scoring().tinting("words") == ""


def test_without_a_combined_score_the_first_scorer_is_the_default_and_nothing_is_tinted(tmp_path: Path) -> None:
    """Counts have no weight in the combined score, so a dataset may have none."""
    run = dataset_fixture.make(tmp_path / "run", shards=1, scorers={"similarity": "texts"})
    content = json.loads(Path(run.dataset).read_text()) | {"score_limits": {"standards": {"texts": {}}, "limits": []}}
    Path(run.dataset).write_text(json.dumps(content))
    web = client(run)
    page = web.get("/?low=0.5&show=full").text
    assert numbers(page) == [n for n in range(10) if max(ROWS_OF_ONE[n]) >= 0.5]
    assert "combined score" not in page and 'class="sub odd" title="similarity' in page and "unscored" not in page


ROWS_OF_ONE = [[dataset_fixture.score_of(number, place) for place in range(2)] for number in range(10)]


def test_the_scores_of_a_dataset_are_those_of_its_index(run: Run) -> None:
    scoring = open_samples(run).scoring
    assert scoring.names == ["score", "similarity", "agreement", "size"]
    assert scoring.reasons() == {"similarity_too_low": "sub-captions with similarity below 0.05"}


def test_a_dataset_with_scores_of_images_only_is_searched_by_them(tmp_path: Path) -> None:
    web = client(dataset_fixture.make(tmp_path / "run", shards=1, scorers={"size": "images"}))
    page = web.get("/?low=7&show=full").text
    assert numbers(page) == [7, 8, 9] and 'name="level"' not in page and 'class="sub odd"' in page
    assert numbers(web.get("/?sort=score-high&show=full").text) == list(range(9, -1, -1))
    sample = web.get("/sample/0/3").text
    assert "<th>size</th>" in sample and "Scores of each sub-caption" not in sample


def test_without_captioners_the_scores_are_those_of_the_raw_texts(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1, captioners=(), scorers={"similarity": "texts"})
    web = client(run)
    values = [dataset_fixture.score_of(number, 7) for number in range(10)]
    page = web.get("/", params={"low": "0.5", "score": "similarity"}).text
    assert numbers(page) == [number for number, value in enumerate(values) if value >= 0.5]
    order = sorted(range(10), key=lambda number: values[number])
    assert numbers(web.get("/?sort=score-low&score=similarity").text) == order
    assert numbers(web.get("/?low=0&level=sub_captions").text) == []
