"""`plan` counts the containers and rows of images that exist, and reads no more of large ones than it was told to."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.manifest import Manifest
from lotlip_data.pipeline.planning import existing
from lotlip_data.pipeline.planning.lists import ListsPlan, plan_lists
from lotlip_data.pipeline.planning.lists_text import format_text
from tests.pipeline.existing_images.read_containers import write_tar


def plan(*sources: dict[str, object], rows: int = 20_000, **settings: object) -> ListsPlan:
    return plan_lists(
        Manifest.parse({"name": "x", "sources": [{"name": "mine"} | each for each in sources]} | settings), rows
    )


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    for tar in range(8):
        members = [
            (f"{tar}{row:04}.{ending}", content)
            for row in range(100)
            for ending, content in (("jpg", bytes(2000)), ("txt", b"text"))
            if not (row == 5 and ending == "jpg")
        ]
        write_tar(tmp_path / f"{tar}.tar", members)
    return tmp_path


def test_small_sources_are_counted_exactly(tars: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"] * 30}), tars / "t.parquet", row_group_size=10)
    (tars / "f").mkdir()
    for number in range(5):
        (tars / "f" / f"{number}.jpg").write_bytes(b"x")
    lists = plan(
        {"files": f"{tars}/{{0..2}}.tar"},
        {"name": "table", "files": f"{tars}/t.parquet", "format": "image-table", "text": None, "images": "copy"},
        {"name": "folder", "files": f"{tars}/f", "format": "image-folder", "text": None},
        samples_per_shard=20,
    )
    assert [(each.files, each.containers, each.rows, each.rows_exact, each.images) for each in lists.sources] == [
        (3, 3, 300, True, 297),
        (1, 2, 30, True, 30),
        (1, 1, 5, True, 5),
    ]
    assert lists.sources[0].invalid == {"no image": 3}
    assert (lists.images, lists.shards, lists.problems) == (332, 6, [])
    text = "\n".join(format_text(lists))
    assert "mine         3 files, 300 rows, 300 rows read\n" in text and "99.0% usable and kept, 3 containers" in text
    assert "if every image is usable" in text and "nothing: the images are checked where they lie" in text


def test_large_tars_are_estimated_from_the_beginnings_of_some(tars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = plan({"files": f"{tars}/*.tar"}, rows=80).sources
    assert source.seen <= 80 and not source.rows_exact
    assert source.rows is not None and 760 < source.rows < 840
    monkeypatch.setattr(existing.storage, "is_local", lambda url: False)
    monkeypatch.setattr(existing, "REMOTE_TAR_ROWS", 7)
    (source,) = plan({"files": f"{tars}/*.tar"}).sources
    assert source.seen == 28, "of a remote tar, only the first rows are transferred"
    assert source.rows is not None and 700 < source.rows < 950


def test_filter_sample_and_texts_count(tars: Path) -> None:
    lists = plan({"files": f"{tars}/0.tar", "filter": 'txt == "text"', "sample": 50, "text": "caption.txt"})
    assert lists.images == 50
    assert lists.problems == [
        "mine: all texts are blank: name another column than 'caption.txt' in `text`, or set `text: null` if there are "
        "none"
    ]


def test_a_column_of_urls_that_no_row_has_is_noted(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.txt", b"t"), ("0.json", b'{"url": "http://a.example/0"}')])
    for key, noted in (("json.url", False), ("json.urls", True)):
        notes = plan({"files": f"{tmp_path}/a.tar", "url": key}).notes
        assert any(f"no row read has a URL in '{key}'" in note for note in notes) is noted


def test_a_damaged_or_missing_container_is_a_problem(tars: Path) -> None:
    (tars / "1.tar").write_bytes((tars / "1.tar").read_bytes()[:5000])
    for files, message in (("1.tar", "1.tar: cannot be read ("), ("9.tar", "9.tar: there is no such file")):
        lists = plan({"files": f"{tars}/{files}"})
        assert lists.images is None
        (problem,) = lists.problems
        assert message in problem
