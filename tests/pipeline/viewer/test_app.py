"""The pages show what is in a run, a bounded part at a time, and a query returns exactly the matching samples."""

import hashlib
import itertools
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from typer.testing import CliRunner

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.dataset.tar_images import OPEN_TARS
from lotlip_data.pipeline.downloading.commit import QUARANTINE
from lotlip_data.pipeline.viewer import scans, server
from lotlip_data.pipeline.viewer.app import View, create_app
from lotlip_data.pipeline.viewer.cards import split_spans, unique_words
from lotlip_data.pipeline.viewer.list_options import DEFAULT_SIZE
from lotlip_data.pipeline.viewer.paging import START, Filter, read_page
from lotlip_data.pipeline.viewer.samples import open_samples
from lotlip_data.pipeline.viewer.scans import Matches
from lotlip_data.pipeline.viewer.search_form import Query
from tests.pipeline import run_fixture
from tests.pipeline.viewer import dataset_fixture

HOST = "http://localhost"


def client(run: Run, seconds: float = 60.0) -> TestClient:
    return TestClient(create_app(View(run, seconds=seconds)), base_url=HOST)


def varied(number: int, row: dataset_fixture.Row) -> None:
    """Combine flags, sources, missing texts and lengths in many ways."""
    if number % 4 == 0:
        row["llava_flags"] = "truncated repetition"
    if number % 7 == 0:
        row |= {"sharegpt4v": None, "sharegpt4v_sub": None, "sharegpt4v_flags": "empty" if number % 2 else ""}
    if number % 3 == 0:
        row |= {"sources": ["web", "books"], "raws": [row["raw"], "from a book"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three shards of 10 samples, in row groups of 4."""
    return dataset_fixture.make(tmp_path_factory.mktemp("view") / "a run", change=varied)


ROWS = [dataset_fixture.row_of(number) for number in range(30)]
for _number, _row in enumerate(ROWS):
    varied(_number, _row)


def matches(row: dataset_fixture.Row, query: Query) -> bool:
    """Return whether a query matches a row, in plain Python."""

    def text_matches(name: str, text: str | None) -> bool:
        flags = (row.get(f"{name}_flags") or "").split()
        is_long = name in dataset_fixture.CAPTIONERS
        flag_matches = {
            "": True,
            "missing": is_long and text is None,
            "none": is_long and text is not None and not flags,
            "some": is_long and bool(flags),
        }.get(query.flag, is_long and query.flag in flags)
        if not flag_matches:
            return False
        if any(word.casefold() not in (text or "").casefold() for word in query.q.split()):
            return False
        if query.least is None and query.most is None:
            return True
        return text is not None and (query.least or 0) <= len(text.split()) <= (
            10**9 if query.most is None else query.most
        )

    texts = [query.text] if query.text else ["raw", *dataset_fixture.CAPTIONERS]
    pairs = [(name, text) for name in texts for text in (row["raws"] if name == "raw" else [row[name]])]
    return (not query.source or query.source in row["sources"]) and any(text_matches(*pair) for pair in pairs)


def every_page(run: Run, filter_: Filter, size: int, seconds: float = 60.0) -> list[list[int]]:
    """Return the numbers of the rows on each page, in order."""
    files, pages, at = open_samples(run).parquets, [], START
    while at is not None:
        page = read_page(files, filter_, at, size, seconds)
        pages.append([int(row["uid"], 16) for _, row in page.rows])
        at = page.after
    return pages


@pytest.mark.slow
def test_a_query_matches_the_same_rows_as_a_plain_loop(run: Run) -> None:
    samples = open_samples(run)
    words = ("", "circle", "RED", "number 2", "book", "red book", "from a", ".*")
    texts = ("", "raw", "llava", "sharegpt4v")
    flags = ("", "none", "some", "missing", "truncated", "repetition", "empty")
    lengths = ((None, None), (11, None), (None, 12), (12, 13))
    assert [number for number, row in enumerate(ROWS) if matches(row, Query("book", "raw"))] == list(range(0, 30, 3))
    sizes = set()
    for q, text, flag, source, (least, most) in itertools.product(words, texts, flags, ("", "web", "books"), lengths):
        query = Query(q, text, flag, source, least, most)
        numbers = every_page(run, query.filter(samples), 30)[0]
        assert numbers == [number for number, row in enumerate(ROWS) if matches(row, query)], query
        sizes.add(len(numbers))
    assert {0, 30} < sizes and len(sizes) > 10


def uids_of(page: str) -> list[int]:
    """Return the numbers of the samples on a page of the list."""
    return [10 * int(file) + int(row) for file, row in re.findall(r'<article class="card" id="s(\d+)-(\d+)"', page)]


def test_a_sorted_list_has_the_order_of_a_plain_sort(tmp_path: Path) -> None:
    """With equal keys, and rows without a text, which come last."""

    def change(number: int, row: dataset_fixture.Row) -> None:
        varied(number, row)
        row |= {"original_width": 100 + number % 7, "original_height": 50 + number % 3}

    rows = []
    for number in range(30):
        row = dataset_fixture.row_of(number)
        change(number, row)
        rows.append(row)
    web = client(dataset_fixture.make(tmp_path / "run", change=change))

    def words(number: int, names: tuple[str, ...]) -> int:
        return max((len(rows[number][name].split()) for name in names if rows[number][name] is not None), default=-1)

    def pixels(number: int) -> int:
        return int(rows[number]["original_width"] * rows[number]["original_height"])

    both = ("llava", "sharegpt4v")
    all_numbers = range(30)
    long = sorted(all_numbers, key=lambda n: -words(n, both))
    assert uids_of(web.get("/?sort=longest&size=96").text) == long
    assert uids_of(web.get("/?sort=shortest&size=96").text) == sorted(all_numbers, key=lambda n: words(n, both))
    assert uids_of(web.get("/?sort=largest&size=96").text) == sorted(all_numbers, key=lambda n: -pixels(n))
    assert uids_of(web.get("/?sort=smallest&size=96").text) == sorted(all_numbers, key=pixels)
    missing = [number for number in all_numbers if rows[number]["sharegpt4v"] is None]
    assert missing and uids_of(web.get("/?sort=shortest&text=sharegpt4v&size=96").text)[-len(missing) :] == missing
    query = "/?sort=largest&q=red&size=12"
    red = [number for number in sorted(all_numbers, key=lambda n: -pixels(n)) if number % 3 == 0]
    assert uids_of(web.get(query).text) == red
    pages = [uids_of(web.get(f"/?sort=longest&size=12&rank={rank}").text) for rank in (0, 12, 24)]
    assert [number for page in pages for number in page] == long
    assert "Samples 13–24 of 30" in web.get("/?sort=longest&size=12&rank=12").text
    assert uids_of(web.get("/?sort=longest&rank=9999999").text) == long[-1:]


def test_a_sorted_list_is_bounded_and_grows_from_page_to_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "SORTED_ROWS", 5)
    assert len(uids_of(client(run).get("/?sort=longest").text)) == 5
    monkeypatch.undo()
    web = client(run, seconds=0)
    sizes = [len(uids_of(web.get("/?sort=longest&size=96").text)) for _ in range(10)]
    assert sizes == [4, 8, 10, 14, 18, 20, 24, 28, 30, 30]


def test_a_scan_holds_a_few_row_groups_whatever_the_number_of_shards(tmp_path: Path) -> None:
    text, group = "abc " * 20_000, 800_000  # bytes of the raw texts of ten rows
    run = dataset_fixture.make(tmp_path / "run", 20, 40, lambda number, row: row.update(raw=text), row_group=10)
    allocated: list[int] = []

    def key(table: pa.Table) -> np.ndarray:
        allocated.append(pa.total_allocated_bytes())
        return np.zeros(len(table))

    samples = open_samples(run)
    before = pa.total_allocated_bytes()
    matches = Matches(samples.parquets, Filter(), samples.columns, ["raw", "llava"], key)
    matches.scan.advance(60.0)
    assert matches.scan.complete and matches.count == 800 and len(matches.positions) == 800
    assert group <= max(allocated) - before <= 4 * group


def test_a_list_tells_how_many_samples_match_and_which_are_shown(run: Run) -> None:
    web = client(run)
    assert "Samples 1–24 of 30." in web.get("/").text
    assert "Samples 13–24 of 30." in web.get("/?at=1.2&size=12").text
    page = web.get("/?q=book&text=raw").text
    assert "10 samples shown; 10 samples of 30 match." in page
    assert "at least" in client(run, seconds=0).get("/?q=book&text=raw").text
    for size in (12, 24, 48, 96):
        assert len(uids_of(web.get(f"/?size={size}").text)) == min(size, 30)
    answer = web.get("/?size=1000000")
    assert answer.status_code == 400 and "12, 24, 48, 96" in answer.text


def test_hidden_captioners_are_not_shown_and_many_are_shortened(tmp_path: Path) -> None:
    names = [f"captioner-{number}" for number in range(7)]

    def change(number: int, row: dataset_fixture.Row) -> None:
        for name in names:
            row |= {name: f"Text by {name}. " * 30, f"{name}_sub": [f"Text by {name}."], f"{name}_flags": ""}

    web = client(dataset_fixture.make(tmp_path / "run", shards=1, change=change, captioners=names))
    page = web.get("/").text
    assert page.count('<details class="long"') == 70 and "Click a text" in page
    shown = web.get("/", params={"captioner": names[2:4]}).text
    assert set(re.findall(r'data-captioner="(.*?)"', shown)) == set(names[2:4])
    assert shown.count('<section class="long"') == 20
    assert 'value="captioner-3" checked' in shown and 'value="captioner-4">' in shown
    assert "list=captioner%3Dcaptioner-2%26captioner%3Dcaptioner-3" in shown
    assert web.get("/?show=full").text.count('<section class="long"') == 70
    assert web.get("/?captioner=nobody").status_code == 400


def test_uids_of_a_query_are_those_of_a_plain_loop(run: Run, tmp_path: Path) -> None:
    web = client(run)
    for parameters, query in (
        ("", Query()),
        ("?q=red", Query("red")),
        ("?text=llava&flag=none&size=12&sort=longest", Query("", "llava", "none")),
    ):
        answer = web.get(f"/uids{parameters}")
        assert answer.headers["content-disposition"] == 'attachment; filename="uids.txt"'
        expected = [row["uid"] for row in ROWS if matches(row, query)]
        assert answer.text.splitlines() == expected and expected
    damaged = dataset_fixture.make(tmp_path / "run")
    Path(damaged.shards, "train-00001.parquet").write_bytes(b"no parquet")
    lines = client(damaged).get("/uids").text.splitlines()
    assert len(lines) == 21 and lines[10].startswith("# not complete: ") and "train-00001.parquet" in lines[10]


def neighbours(page: str) -> list[str | None]:
    links = (re.search(rf'<a href="/sample/(\d+/\d+)[^"]*" rel="{rel}"', page) for rel in ("prev", "next"))
    return [match and match[1] for match in links]


def test_a_sample_leads_to_the_previous_and_next_sample_of_the_dataset_or_of_its_list(run: Run) -> None:
    web = client(run)
    assert neighbours(web.get("/sample/0/0").text) == [None, "0/1"]
    assert neighbours(web.get("/sample/1/0").text) == ["0/9", "1/1"]
    assert neighbours(web.get("/sample/2/9").text) == ["2/8", None]
    assert "Sample 11 of 30" in web.get("/sample/1/0").text
    link = re.findall(r'href="(/sample/\d+/\d+\?list=[^"]*)"', web.get("/?q=red&size=12").text)[3]
    page = web.get(link).text
    assert link.startswith("/sample/0/9?") and neighbours(page) == ["0/6", "1/2"]
    assert 'href="/?q=red&amp;size=12&amp;at=0.9"' in page
    following = re.findall(r'<a href="(/sample/1/2[^"]*)" rel="next"', page)[0]
    assert neighbours(web.get(following).text) == ["0/9", "1/5"]
    order = uids_of(web.get("/?sort=longest&size=96").text)
    sorted_page = web.get(f"/sample/{order[3] // 10}/{order[3] % 10}?list=sort%3Dlongest").text
    assert neighbours(sorted_page) == [f"{number // 10}/{number % 10}" for number in (order[2], order[4])]
    assert web.get("/sample/0/0?list=sort%3Dnothing").status_code == 400


def test_a_sample_can_be_downloaded_with_every_column(run: Run) -> None:
    answer = client(run).get("/sample/0/3.json")
    assert answer.headers["content-disposition"].startswith("attachment")
    row = answer.json()
    assert (
        row["uid"] == ROWS[3]["uid"]
        and row["raws"] == ROWS[3]["raws"]
        and set(row) == set(open_samples(run).columns.names)
    )
    page = client(run).get("/sample/0/3").text
    assert '<a href="/image/0/3" download="000000003.jpg"' in page and "Copy all texts" in page and "Keys:" in page


def test_a_list_without_samples_says_what_to_leave_out(run: Run) -> None:
    page = client(run).get("/?q=zebra&text=llava&size=12").text
    assert "No sample meets all conditions" in page and "0 samples of 30 match" in page
    links = re.findall(r'<li><a href="(.*?)"><bdi>(.*?)</bdi>', page)
    assert links == [("/?text=llava&amp;size=12", "the words zebra"), ("/?q=zebra&amp;size=12", "in llava only")]


def test_the_search_page_says_how_to_start_with_the_models_of_the_run(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    assert "This run has no finished training" in client(run).get("/search").text
    for name in ("lit", "lotlip"):
        storage.create(run.training_done(name), b"{}")
    page = client(run).get("/search").text
    assert f"lotlip-data view {run.url} --checkpoint {run.trained_model('lit')} --checkpoint" in page


def test_a_quoted_phrase_matches_as_a_whole_and_uids_and_urls_are_searchable(run: Run) -> None:
    samples = open_samples(run)

    def search(**parameters: str) -> list[int]:
        return every_page(run, Query.parse(parameters, samples).filter(samples), 30)[0]

    assert search(q='"number 2."') == [2] and 20 in search(q="number 2")
    assert search(q=f"{17:032x}", text="uid") == [17] and search(q="/17.jpg", text="url") == [17]


@pytest.mark.parametrize("size", [1, 3, 7, 10, 30, 31])
def test_pages_forwards_and_backwards_show_every_row_once(run: Run, size: int) -> None:
    files, query = open_samples(run).parquets, Query(text="llava", flag="none").filter(open_samples(run))
    for filter_, numbers in ((Filter(), list(range(30))), (query, [n for n in range(30) if n % 4])):
        pages = every_page(run, filter_, size)
        assert [number for page in pages for number in page] == numbers
        assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1) and pages[-1]
        at, back = read_page(files, filter_, START, 10**6, 60.0).rows[-1][0], []
        while at is not None:
            page = read_page(files, filter_, at, size, 60.0, backwards=True)
            back.append([int(row["uid"], 16) for _, row in page.rows])
            assert page.after == at
            at = page.before
        assert [number for page in reversed(back) for number in page] == numbers[:-1]
        assert {len(page) for page in back[:-1]} <= {size} and back[-1]


def test_with_no_time_a_page_ends_after_one_row_group_and_the_next_page_continues(run: Run) -> None:
    query = Query(q="number 29.").filter(open_samples(run))
    pages = every_page(run, query, 5, seconds=0)
    assert len(pages) == 9 and [number for page in pages for number in page] == [29]
    page = read_page(open_samples(run).parquets, query, START, 5, 0)
    assert not page.complete and page.scanned == 4 and page.after == (0, 4)
    assert "stopped at the time limit" in client(run, seconds=0).get("/?q=%2229.%22").text


def test_a_page_opens_only_the_shards_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=60, samples=10)
    opened: list[str] = []
    real = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda url: opened.append(Path(url).name) or real(url))
    web = client(run)
    page = web.get("/")
    assert page.text.count("<article") == DEFAULT_SIZE
    assert opened == [f"train-0000{shard}.parquet" for shard in range(3)]
    opened.clear()
    assert web.get("/?at=41.3").text.count("<article") == DEFAULT_SIZE
    assert opened == [f"train-000{shard}.parquet" for shard in (41, 42, 43)]
    opened.clear()
    for shard in [*range(2 * OPEN_TARS), *range(OPEN_TARS, 2 * OPEN_TARS)]:
        assert web.get(f"/image/{shard}/9").status_code == 200
    assert opened == [f"train-{shard:05d}.tar" for shard in range(2 * OPEN_TARS)]


def test_a_search_holds_a_few_row_groups_whatever_the_number_of_shards(tmp_path: Path) -> None:
    text, group = "abc" * 20_000, 600_000  # bytes of the raw texts of ten rows
    run = dataset_fixture.make(tmp_path / "run", 20, 40, lambda number, row: row.update(raw=text), row_group=10)
    allocated: list[int] = []

    def match(table: pa.Table) -> np.ndarray:
        allocated.append(pa.total_allocated_bytes())
        return np.zeros(len(table), bool)

    before = pa.total_allocated_bytes()
    page = read_page(open_samples(run).parquets, Filter(("raw", "llava"), match), START, 5, 60.0)
    assert page.scanned == 800 and len(allocated) == 80
    assert group <= max(allocated) - before <= 4 * group


def test_each_image_belongs_to_its_row_in_any_request_order(tmp_path: Path) -> None:
    contents = {number: dataset_fixture.jpeg(dataset_fixture.plain(number)) for number in range(6)}
    web = client(dataset_fixture.make(tmp_path / "run", shards=2, samples=3))
    for number in (5, 0, 2, 4, 1, 3, 5):
        answer = web.get(f"/image/{number // 3}/{number % 3}")
        assert answer.content == contents[number] and answer.headers["content-type"] == "image/jpeg"
    assert [web.get(path).status_code for path in ("/image/2/0", "/image/0/3", "/sample/9/9")] == [404] * 3


def test_a_tar_that_ends_within_an_image_is_reported(tmp_path: Path) -> None:
    web = client(run := dataset_fixture.make(tmp_path / "run", shards=1, samples=3))
    path = Path(run.shards, "train-00000.tar")
    with tarfile.open(path) as tar:
        last = [member for member in tar if member.name.endswith(".jpg")][-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size - 1])
    assert [web.get(f"/image/0/{row}").status_code for row in range(3)] == [200, 200, 404]
    message = web.get("/image/0/2").text
    assert "train-00000.tar: ends within member 2" in message and "lotlip-data verify" in message


def test_a_card_marks_sub_captions_and_words_of_one_captioner_only(run: Run) -> None:
    page = client(run).get("/sample/0/1").text
    section = page[page.index('data-captioner="sharegpt4v"') :]
    assert re.findall(r"<mark>(.*?)</mark>", section) == ["disc", "can", "be", "seen"]
    assert re.findall(r'class="number">(\d+)<', section) == ["1", "2"]
    assert "from a book" in client(run).get("/sample/0/3").text  # every raw text appears
    assert '<span class="flag">truncated</span> <span class="flag">repetition</span>' in client(run).get("/").text


@given(st.text(), st.lists(st.text(min_size=1)), st.sets(st.text()))
def test_spans_add_up_to_the_text(text: str, others: list[str], words: set[str]) -> None:
    pieces = [*text.split(), *others]
    spans = split_spans(text, pieces, words | {piece.casefold() for piece in pieces})
    assert "".join(word.text for span in spans for word in span.words) == text


def test_unique_words_are_those_of_one_captioner_only() -> None:
    texts = {"a": "A Red ring's edge", "b": "a red RING", "c": "the ring"}
    assert unique_words(texts) == {"a": {"ring's", "edge"}, "b": set(), "c": {"the"}}
    assert unique_words({"a": "a red ring"}) == {"a": set()}


def test_a_damaged_shard_is_reported_and_skipped(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run")
    Path(run.shards, "train-00001.parquet").write_bytes(b"no parquet")
    page = client(run).get("/").text
    assert page.count("<article") == 20
    assert "train-00001.parquet: cannot be read" in page and "lotlip-data verify" in page
    Path(run.shards, "train-00000.tar").write_bytes(b"no tar")
    answer = client(run).get("/image/0/0")
    assert answer.status_code == 404 and "lotlip-data verify" in answer.text


def problems(page: str) -> list[str]:
    return re.findall(r'<p class="problem">(.*?)</p>', page)


@pytest.mark.parametrize("show", ["", "&show=images"])
def test_a_missing_or_truncated_tar_is_reported_once_on_pages_with_its_images(tmp_path: Path, show: str) -> None:
    run = dataset_fixture.make(tmp_path / "run")
    missing, truncated = (Path(run.shards, f"train-0000{shard}.tar") for shard in (1, 2))
    size = truncated.stat().st_size
    missing.unlink()
    truncated.write_bytes(truncated.read_bytes()[:-10])
    messages = [f"{missing}: is missing", f"{truncated}: has {size - 10:,} bytes instead of {size:,}"]
    web = client(run)
    for path, expected in (
        ("/?at=0.0", messages),
        ("/?before=1.0", []),
        ("/?at=2.0", messages[1:]),
        ("/?at=1.0&q=12", messages[:1]),
    ):
        shown = problems(web.get(path + show).text)
        assert [message.partition(", so ")[0] for message in shown] == expected, path
        assert all("lotlip-data verify" in message for message in shown)
    answer = web.get("/sample/1/0")
    assert answer.status_code == 200 and problems(answer.text)[0].startswith(messages[0])
    assert problems(web.get("/sample/0/0").text) == []


def test_every_image_has_an_alternative_text(run: Run) -> None:
    web = client(run)
    for path, keys in (("/?at=1.3", 17), ("/?at=1.3&show=images", 17), ("/sample/1/3", 1)):
        words = re.findall(r'<img [^>]*alt="([^"]*)"', web.get(path).text)
        assert len(set(words)) == keys and words[0] == "image 000010003"
    assert 'img::after { content: " cannot be shown" }' in web.get("/style.css").text


def test_a_page_makes_one_size_request_for_each_tar_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = client(dataset_fixture.make(tmp_path / "run", shards=60))
    requested: list[str] = []
    real = storage.size
    monkeypatch.setattr(storage, "size", lambda url: requested.append(Path(url).name) or real(url))
    assert web.get("/?at=41.3").text.count("<article") == DEFAULT_SIZE
    assert requested == [f"train-000{shard}.tar" for shard in (41, 42, 43)]


def test_texts_are_shown_when_the_storage_denies_access_to_the_tars(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> int:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(storage, "size", refuse)
    answer = client(run).get("/?at=1.3")
    assert answer.status_code == 200 and answer.text.count("<article") == 17
    assert [line.count("cannot be read ([Errno 13] Access Denied)") for line in problems(answer.text)] == [1, 1]


def without_a_column(table: pa.Table) -> pa.Table:
    return table.drop_columns(["llava"])


def with_integer_keys(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("key"), "key", pa.array(range(len(table))))


@pytest.mark.parametrize("change", [without_a_column, with_integer_keys])
def test_a_shard_with_other_columns_is_reported_and_skipped(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    run = dataset_fixture.make(tmp_path / "run")
    parquet = Path(run.shards, "train-00001.parquet")
    pq.write_table(change(pq.read_table(parquet)), parquet)
    web = client(run)
    for path, cards in (("/", 20), ("/?q=number", 20), ("/?before=2.0", 10)):
        answer = web.get(path)
        assert answer.status_code == 200 and answer.text.count("<article") == cards
        assert "train-00001.parquet: cannot be read (its columns differ from those of the dataset: key" in answer.text
    answer = web.get("/sample/1/0")
    assert answer.status_code == 404 and "columns differ" in answer.text and "lotlip-data verify" in answer.text


def test_a_run_without_a_dataset_opens_on_its_quarantine_and_names_the_next_command(tmp_path: Path) -> None:
    run = run_fixture.make(tmp_path / "run").run
    web = client(run)
    page = web.get("/")
    assert (page.status_code, page.url.path) == (200, "/quarantine") and "The quarantine is empty" in page.text
    assert f"<code>lotlip-data shard {run.url}</code>" in page.text
    answer = web.get("/sample/0/0")
    assert answer.status_code == 404 and f"Run `lotlip-data shard {run.url}`" in answer.text
    dataset_fixture.make(tmp_path / "run")
    assert web.get("/").text.count("<article") == DEFAULT_SIZE  # without a restart
    assert "lotlip-data shard" not in web.get("/quarantine").text


def test_a_rewritten_dataset_is_shown_without_a_restart(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1, samples=5)
    web = client(run)
    assert web.get("/").text.count("<article") == 5
    other = dataset_fixture.make(tmp_path / "other", shards=2, samples=7)
    for path in sorted(Path(other.shards).iterdir(), key=lambda path: path.name == "dataset.json"):
        path.replace(Path(run.shards, path.name))
    assert web.get("/").text.count("<article") == 14


def test_a_run_on_another_storage_has_the_same_pages(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run")
    remote_run = Run.at(f"memory://{tmp_path.name}/run")
    for name in storage.list_below(run.url):
        storage.create(storage.join(remote_run.url, name), Path(run.url, name).read_bytes())
    local, remote = client(run), client(remote_run)
    assert local.get("/?q=number&at=1.3").text.count("<article") == 17
    for path in ("/?q=number&at=1.3", "/sample/2/4"):
        assert remote.get(path).text == local.get(path).text.replace(run.url, remote_run.url)
    assert remote.get("/image/1/9").content == local.get("/image/1/9").content


def test_the_quarantine_shows_every_stage_with_its_reasons(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    for shard in range(3):
        rows = [
            {"key": f"{shard}{row}", "uid": "u", "url": "http://x/", "reason": reason, "detail": "Not Found"}
            for row, reason in enumerate(["http 404", "timeout"] * 40)
        ]
        storage.create(run.quarantine("images", f"0000{shard}.parquet"), run_fixture.parquet(rows, QUARANTINE))
    dropped = {"key": "1", "uid": "u", "what": "llava", "reason": "repetition", "detail": "the the the", "url": "x"}
    storage.create(run.quarantine("shard", "00000-a.parquet"), run_fixture.parquet([dropped], schema.DROPPED))
    captions = [{"key": "2", "uid": "u", "error": "cannot be decoded"}]
    storage.create(run.quarantine("captions", "llava", "00000.parquet"), run_fixture.parquet(captions, schema.CAPTIONS))
    web = client(run)
    page = web.get("/quarantine").text
    assert re.findall(r"kind=([\w%]+)", page.split("</nav>")[1]) == ["images", "captions%2Fllava", "shard"]
    assert page.count("<tr>") == 49 and page.count("<bdi>http 404") == 24
    assert "48 rows shown; 240 rows in 3 files" in page
    assert web.get("/quarantine?kind=images&reason=TIMEOUT&at=1.0&size=96").text.count("<bdi>timeout") == 80
    assert "the the the" in web.get("/quarantine?kind=shard").text
    assert "cannot be decoded" in web.get("/quarantine?kind=captions/llava&reason=decoded").text


def options(page: str, name: str) -> list[str]:
    """Return the labels of a menu."""
    menu = re.findall(rf'<select name="{name}".*?</select>', page, re.DOTALL)[0]
    return re.findall(r"<option[^>]*>(.*?)</option>", menu)


def test_the_menu_of_reasons_counts_all_rows_and_each_entry_selects_its_rows(tmp_path: Path) -> None:
    """One reason has invisible characters, and two differ only beyond the characters of a menu."""
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    long = "cannot be read: " + "x" * 300
    reasons = ["timeout"] * 30 + ["soft\u00adhyphen"] * 20 + [long + "1", long + "2"] + [None]
    for shard in range(2):
        rows = [{"key": str(row), "uid": f"{shard}-{row}", "reason": reason} for row, reason in enumerate(reasons)]
        storage.create(run.quarantine("images", f"0000{shard}.parquet"), run_fixture.parquet(rows, QUARANTINE))
    web = client(run)
    page = web.get("/quarantine").text
    labels = [label.partition("x")[0] for label in options(page, "is")]
    assert labels == ["all reasons", "timeout (60)", "soft‹U+00AD›hyphen (40)", "cannot be read: "]
    assert "(4)" in options(page, "is")[3]
    menu = re.findall(r'<select name="is".*?</select>', page, re.DOTALL)[0]
    for value, count in zip(re.findall(r'<option value="([^"]+)"', menu), (60, 40, 4), strict=True):
        shown = web.get("/quarantine", params={"is": value, "size": "96"}).text
        assert shown.count("<tr>") == count + 1
        uids = web.get("/quarantine/uids", params={"is": value}).text.split()
        assert len(set(uids)) == count
    assert len(web.get("/quarantine/uids?reason=HYPHEN").text.split()) == 40
    assert len(web.get("/quarantine/uids?reason=TIME").text.split()) == 60
    assert len(web.get("/quarantine/uids").text.split()) == 106


def test_with_no_time_the_reasons_are_counted_over_several_pages(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    for shard in range(3):
        rows = [{"key": str(row), "uid": "u", "reason": "timeout"} for row in range(5)]
        storage.create(run.quarantine("images", f"0000{shard}.parquet"), run_fixture.parquet(rows, QUARANTINE))
    web = client(run, seconds=0)
    counts = [options(web.get("/quarantine").text, "is")[1] for _ in range(4)]
    assert counts == ["timeout (5 so far)", "timeout (10 so far)", "timeout (15 so far)", "timeout (15)"]
    storage.create(run.quarantine("images", "00003.parquet"), run_fixture.parquet(rows, QUARANTINE))
    assert options(client(run).get("/quarantine").text, "is")[1] == "timeout (20)"


def test_the_quarantine_shows_pictures_and_duplicates_beside_the_image_that_they_are_like(tmp_path: Path) -> None:
    """The tar of the fixture is not in the order of the keys."""
    made = run_fixture.make(tmp_path / "run", shards=2, images=4, writers=["llava"])
    web = client(made.run)
    rows = {shard: run_fixture.fetched_rows(made.run, shard) for shard in range(2)}
    late, first = rows[1][2], rows[0][3]
    dropped = [
        {**late, "what": "sample", "reason": "near_duplicate", "detail": first["key"], "distance": 3},
        {**rows[1][0], "what": "sample", "reason": "evaluation_image", "detail": "coco/1.jpg", "distance": 0},
        {**rows[1][1], "what": "llava", "reason": "repetition", "detail": "the " * 200},
    ]
    cells = [{name: row.get(name) for name in schema.DROPPED.names} for row in dropped]
    storage.create(made.run.quarantine("shard", "00001-abc.parquet"), run_fixture.parquet(cells, schema.DROPPED))
    page = web.get("/quarantine?kind=shard").text
    entries = page.split("<article")[1:]
    pictures = [re.findall(r'<img src="(.*?)"', entry) for entry in entries]
    keys = [row["key"] for row in (late, first, rows[1][0], rows[1][1])]
    assert pictures == [
        [f"/picture/1/{keys[0]}", f"/picture/0/{keys[1]}"],
        [f"/picture/1/{keys[2]}"],
        [f"/picture/1/{keys[3]}"],
    ]
    assert "distance 3 of 64 bits" in entries[0] and entries[0].count("32 × 32") == 2
    assert "coco/1.jpg" in entries[1] and "text by llava" in entries[2]
    assert re.search(r"<summary><bdi>(the ){35}…</bdi></summary><bdi>(the )+</bdi>", entries[2])
    for row, shard in ((late, 1), (first, 0), (rows[1][0], 1)):
        answer = web.get(f"/picture/{shard}/{row['key']}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert hashlib.sha256(answer.content).hexdigest() == row["sha256"]
    missing = web.get("/picture/1/999999999")
    assert missing.status_code == 404 and "has no image 999999999" in missing.text
    assert web.get("/picture/7/000070000").status_code == 404


def test_a_list_of_an_earlier_release_without_distances_still_shows_pairs(tmp_path: Path) -> None:
    made = run_fixture.make(tmp_path / "run", shards=1, images=4, writers=["llava"])
    first, late = run_fixture.fetched_rows(made.run, 0)[:2]
    names = [name for name in schema.DROPPED.names if name != "distance"]
    dropped = {**late, "what": "sample", "reason": "near_duplicate", "detail": first["key"]}
    table = run_fixture.parquet(
        [{name: dropped[name] for name in names}], pa.schema([schema.DROPPED.field(name) for name in names])
    )
    storage.create(made.run.quarantine("shard", "00000-abc.parquet"), table)
    page = client(made.run).get("/quarantine?kind=shard").text
    assert page.count("<img") == 2 and "distance" not in page


def test_a_damaged_image_shard_costs_only_its_pictures(tmp_path: Path) -> None:
    made = run_fixture.make(tmp_path / "run", shards=1, images=4, writers=["llava"])
    row = run_fixture.fetched_rows(made.run, 0)[0]
    dropped = {name: row.get(name) for name in schema.DROPPED.names}
    dropped |= {"what": "sample", "reason": "near_duplicate", "detail": "000000001"}
    storage.create(made.run.quarantine("shard", "00000-abc.parquet"), run_fixture.parquet([dropped], schema.DROPPED))
    for name in ("00000-attempt.tar", "00000-attempt.parquet"):
        Path(made.run.images, name).write_bytes(b"torn")
    web = client(made.run)
    page = web.get("/quarantine?kind=shard")
    assert page.status_code == 200 and page.text.count("<img") == 2
    answer = web.get(f"/picture/0/{row['key']}")
    assert answer.status_code == 404 and "lotlip-data download" in answer.text
    Path(made.run.images, "00000-attempt.tar").unlink()
    answer = web.get(f"/picture/0/{row['key']}")
    assert answer.status_code == 404 and "00000-attempt.tar: cannot be read" in answer.text
    Path(made.run.image_stats(0)).write_bytes(b"{")
    assert web.get("/quarantine?kind=shard").status_code == 200
    assert web.get(f"/picture/0/{row['key']}").status_code in (400, 404)


def test_the_report_is_served_with_its_own_policy(tmp_path: Path) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    missing = client(run).get("/report")
    assert missing.status_code == 400 and f"lotlip-data report {run.url}" in missing.text
    storage.replace(storage.join(run.url, "report.html"), b"<p>figures")
    answer = client(run).get("/report")
    assert answer.text == "<p>figures" and "sandbox" in answer.headers["content-security-policy"]
    assert "script" not in answer.headers["content-security-policy"]


def test_invalid_parameters_are_reported(run: Run, tmp_path: Path) -> None:
    web = client(run)
    for parameters, message in (
        ("flag=green", "truncated"),
        ("text=gpt", "sharegpt4v"),
        ("least=many", "number of words"),
    ):
        answer = web.get(f"/?{parameters}")
        assert answer.status_code == 400 and message in answer.text
    assert "--checkpoint" in web.get("/search?text=x").text
    for position in ("77.7", "x", "-1.0", "9" * 5000 + ".1", "1.", "٣.٤"):
        assert web.get("/", params={"at": position}).status_code == 200
        assert web.get("/", params={"before": position}).status_code == 200
    result = CliRunner().invoke(app, ["view", str(tmp_path / "nothing")])
    assert result.exit_code == 2 and "there is no run" in result.output


def test_it_listens_on_loopback_and_reports_a_port_in_use() -> None:
    with server.listen(0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match="--port 0"):
            server.listen(port)


def test_a_port_in_use_is_reported_before_models_are_loaded(run: Run) -> None:
    with server.listen(0) as listening:
        port = str(listening.getsockname()[1])
        result = CliRunner().invoke(app, ["view", run.url, "--port", port, "--checkpoint", "/nowhere"])
    assert result.exit_code == 2 and f"port {port}: not available" in result.output and "nowhere" not in result.output


@pytest.mark.parametrize(
    ("field", "message"),
    [("manifest", "the field `manifest` is missing"), ("sub_captions", "the field `sub_captions` is missing")],
)
def test_a_dataset_json_without_a_field_is_rejected(tmp_path: Path, field: str, message: str) -> None:
    run = dataset_fixture.make(tmp_path / "run", shards=1)
    content = json.loads(Path(run.dataset).read_text())
    Path(run.dataset).write_text(json.dumps({name: content[name] for name in content if name != field}))
    assert message in client(run).get("/").text


def test_the_texts_of_one_captioner_stand_together_under_its_name(tmp_path: Path) -> None:
    names = ("llava", "qwen_a", "sharegpt4v", "qwen_b")

    def change(number: int, row: dataset_fixture.Row) -> None:
        for name in ("qwen_a", "qwen_b"):
            row |= {name: f"{name} says {number}.", f"{name}_sub": [f"{name} says {number}."], f"{name}_flags": ""}

    run = dataset_fixture.make(tmp_path / "run", shards=1, samples=2, change=change, captioners=names)
    content = json.loads(storage.read_bytes(run.dataset))
    content["manifest"]["captioners"] = ["llava", {"preset": "llava", "name": "qwen", "prompts": {"a": "A", "b": "B"}}]
    storage.replace(run.dataset, json.dumps(content).encode())
    for page in (client(run).get("/").text, client(run).get("/?show=short").text, client(run).get("/sample/0/0").text):
        card = page.split("<article")[1]
        assert card.count("<b>qwen</b>, 2 texts") == 1
        order = re.findall(r'data-captioner="(\w+)"', card)
        assert order == ["llava", "qwen_a", "qwen_b", "sharegpt4v"]
        assert card.split("<b>qwen</b>")[1].index('data-captioner="qwen_b"') < card.split("<b>qwen</b>")[1].index(
            'data-captioner="sharegpt4v"'
        )
        assert card.count("<div") == card.count("</div")
