"""Labels meet the scores that they are about, and the figures are those of their definitions."""

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import inspection
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.dataset.calibration import calibrate, calibration_table, compare, table
from lotlip_data.pipeline.dataset.labels import read_labels
from tests.pipeline.viewer import dataset_fixture
from tests.pipeline.viewer.dataset_fixture import SCORERS, Row

ROWS = [dataset_fixture.row_of(number) for number in range(20)]
for _number, _row in enumerate(ROWS):
    dataset_fixture.add_scores(_number, _row)


def no_size(number: int, row: Row) -> None:
    if number == 3:
        row["size"] = None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("labels") / "run"
    return dataset_fixture.make(folder, shards=2, change=no_size, scorers=SCORERS)


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    with open(file, "w", newline="") as out:
        writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return str(file)


def uid(number: int) -> str:
    return ROWS[number]["uid"]


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_the_auc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, bool]]) -> None:
    scores, correct = np.array([float(score) for score, _ in pairs]), np.array([right for _, right in pairs])
    higher, lower = (compare(scores, correct, better) for better in ("higher", "lower"))  # type: ignore[arg-type]
    orders = [(right > wrong) + (right == wrong) / 2 for right in scores[correct] for wrong in scores[~correct]]
    if not orders:
        assert higher["auc"] is None and higher["roc"] == []
        return
    assert higher["auc"] == pytest.approx(np.mean(orders)) and lower["auc"] == pytest.approx(1 - higher["auc"])
    wrong, right = np.array(higher["roc"]).T
    assert np.trapezoid(right, wrong) == pytest.approx(higher["auc"])
    assert (wrong[-1], right[-1]) == (1, 1)
    rows = higher["table"]
    assert sum(row["labels"] for row in rows) == len(scores)
    assert sum(row["labels"] * row["share"] for row in rows) == pytest.approx(correct.sum())
    assert all(row["highest"] < after["lowest"] for row, after in itertools.pairwise(rows))
    assert all(0 <= row["low"] <= row["share"] <= row["high"] <= 1 for row in rows)


def test_the_interval_is_wilsons() -> None:
    """Newcombe (1998), Table I, method 3: 81 of 263 have 0.2553 to 0.3662."""
    (row,) = calibration_table(np.zeros(263), np.arange(263) < 81)
    assert (round(row["low"], 4), round(row["high"], 4)) == (0.2553, 0.3662)


def test_each_label_meets_the_score_of_what_it_is_about(run: Run, tmp_path: Path) -> None:
    labels = [
        {"uid": uid(0), "captioner": "llava", "sub_caption": 1, "correct": 1},
        {"uid": uid(1), "captioner": "llava", "sub_caption": "0", "correct": 0},
        {"uid": uid(11), "captioner": "sharegpt4v", "sub_caption": 0, "correct": "true"},
        {"uid": uid(2), "captioner": "llava", "correct": 1},
        {"uid": uid(2), "captioner": "raw", "correct": 0},
        {"uid": uid(4), "correct": 1},
        {"uid": uid(5), "correct": 0},
    ]  # fmt: skip
    result = calibrate(run, write(tmp_path / "labels.csv", labels))
    assert result["labels"] == 7 and result["unmatched"] == {}
    assert {name: list(levels) for name, levels in result["scorers"].items()} == {
        "score": ["sub_captions", "texts", "raw"],
        "similarity": ["sub_captions", "texts", "raw"],
        "agreement": ["sub_captions", "texts", "raw"],
        "size": ["samples"],
    }
    pieces = [
        ROWS[0]["llava_sub_agreement"][1],
        ROWS[1]["llava_sub_agreement"][0],
        ROWS[11]["sharegpt4v_sub_agreement"][0],
    ]
    of_pieces = result["scorers"]["agreement"]["sub_captions"]
    assert of_pieces == compare(np.array(pieces), np.array([True, False, True]), "lower")
    assert of_pieces["better"] == "lower"  # the combined score counts it with a minus
    assert result["scorers"]["similarity"]["texts"]["table"][0]["mean"] == ROWS[2]["llava_similarity"]
    assert result["scorers"]["size"]["samples"]["auc"] == 0  # 4 is correct, 5 is not
    lines = table(result)
    assert lines[1] == "7 labels, 0 of them without a score"
    (line,) = (line for line in lines if line.startswith("agreement of sub-captions: "))
    assert "lower scores are better (3 labels, 66.7% correct)" in line


def test_labels_without_a_score_are_counted_by_reason(run: Run, tmp_path: Path) -> None:
    labels = [
        {"uid": "f" * 32, "correct": 1},
        {"uid": "e" * 32, "captioner": "llava", "correct": 1},
        {"uid": uid(0), "captioner": "gpt", "correct": 1},
        {"uid": uid(0), "captioner": "llava", "sub_caption": 99, "correct": 1},
        {"uid": uid(3), "correct": 1},
        {"uid": uid(4), "captioner": "llava", "sub_caption": 0, "correct": 1, "text": "Other words."},
        {"uid": uid(4), "captioner": "llava", "sub_caption": 0, "correct": 1, "text": ROWS[4]["llava_sub"][0]},
    ]
    result = calibrate(run, write(tmp_path / "labels.csv", labels))
    assert result["unmatched"] == {
        "no sample has this uid": 2,
        "the dataset has no such captioner": 1,
        "the sample has no such text or sub-caption": 1,
        "it has no score": 1,
        "the dataset has another text there": 1,
    }
    assert result["scorers"]["score"]["sub_captions"]["labels"] == 1
    assert "no AUC, because all labels are alike" in "\n".join(table(result))


def test_parquet_labels_of_pandas_are_those_of_a_csv_file(tmp_path: Path) -> None:
    rows = [
        {"uid": "a", "captioner": "llava", "sub_caption": 2.0, "correct": 1},
        {"uid": "b", "captioner": None, "sub_caption": float("nan"), "correct": 0},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "labels.parquet")
    Path(tmp_path, "labels.csv").write_text("\ufeffuid,captioner,sub_caption,correct,note\na,llava,2,1,x\nb,,,0,y\n")
    Path(tmp_path, "labels.tsv").write_text("uid\tcaptioner\tsub_caption\tcorrect\na\tllava\t2.0\tTrue\nb\t\t\t0.0\n")
    found = [read_labels(str(tmp_path / f"labels.{ending}")) for ending in ("parquet", "csv", "tsv")]
    assert found[0] == found[1] == found[2] and found[0].count == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"uid,right\na,1\n", "has no column `correct`; it needs `uid` and `correct`"),
        (b"uid,correct\na,2\n", r"line 2: `correct` is '2'; write 0 or 1"),
        (b"uid,correct\n ,1\n", "line 2: has no uid"),
        (
            b"uid,captioner,sub_caption,correct\na,llava,-1,1\n",
            "`sub_caption` is '-1'; write its place, counted from 0",
        ),
        (b"uid,captioner,sub_caption,correct\na,,1,1\n", "has a `sub_caption` but no `captioner`"),
        (b"uid,correct\na,1,2\n", "line 2: does not have as many values as the first line has names"),
        (b"uid,correct\n", "has no rows"),
        (b"", "has no column `uid`"),
        (b"\xff\xfe\x00", "is neither Parquet nor CSV in UTF-8"),
        (b"PAR1 but torn", "cannot be read as Parquet"),
    ],
)
def test_a_bad_file_is_one_error_that_names_it(run: Run, tmp_path: Path, content: bytes, problem: str) -> None:
    Path(tmp_path, "labels.csv").write_bytes(content)
    with pytest.raises(UserError, match=problem) as raised:
        calibrate(run, str(tmp_path / "labels.csv"))
    assert str(tmp_path / "labels.csv") in str(raised.value)


def test_missing_files_and_datasets_without_scores_are_errors(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        calibrate(run, str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="is a folder"):
        calibrate(run, str(tmp_path))
    plain = dataset_fixture.make(tmp_path / "plain", shards=1)
    with pytest.raises(UserError, match="the dataset has no scores"):
        calibrate(plain, write(tmp_path / "labels.csv", [{"uid": "a", "correct": 1}]))


def test_the_command_prints_the_figures(run: Run, tmp_path: Path) -> None:
    rows = [{"uid": uid(n), "captioner": "llava", "correct": int(n % 3 > 0)} for n in range(20)]
    labels = write(tmp_path / "labels.csv", rows)
    result = CliRunner().invoke(app, ["stats", run.url, "--labels", labels])
    assert result.exit_code == 0 and "similarity of long texts: AUC 0." in result.stdout
    figures = json.loads(CliRunner().invoke(app, ["stats", run.url, "--labels", labels, "--json"]).stdout)
    assert (
        figures["calibration"]
        == calibrate(run, labels)
        == inspection.stats(run.url, labels=labels).figures["calibration"]
    )
    assert CliRunner().invoke(app, ["stats", run.url, "--labels", str(tmp_path / "none.csv")]).exit_code != 0
