"""The page shows what is in a run, a bounded part at a time, and finds exactly what is asked for."""

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

from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.cli.main import app
from lotlip_data.pipeline.downloading.commit import QUARANTINE
from lotlip_data.pipeline.viewer import server
from lotlip_data.pipeline.viewer.app import SIZE, View, create_app
from lotlip_data.pipeline.viewer.cards import alone, marked
from lotlip_data.pipeline.viewer.paging import START, Filter, page_at
from lotlip_data.pipeline.viewer.samples import open_samples
from lotlip_data.pipeline.viewer.search_form import Query
from lotlip_data.pipeline.viewer.tar_images import OPEN
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.viewer import dataset_fixture as view_run

HOST = "http://localhost"


def client(run: Run, seconds: float = 60.0) -> TestClient:
    return TestClient(create_app(View(run, seconds=seconds)), base_url=HOST)


def varied(number: int, row: view_run.Row) -> None:
    """Flags, sources, missing texts and lengths in many combinations."""
    if number % 4 == 0:
        row["llava_flags"] = "truncated repetition"
    if number % 7 == 0:
        row |= {"sharegpt4v": None, "sharegpt4v_sub": None, "sharegpt4v_flags": "empty" if number % 2 else ""}
    if number % 3 == 0:
        row |= {"sources": ["web", "books"], "raws": [row["raw"], "from a book"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three shards of 10, in row groups of 4."""
    return view_run.make(tmp_path_factory.mktemp("view") / "a run", change=varied)


ROWS = [view_run.row_of(number) for number in range(30)]
for index, one in enumerate(ROWS):
    varied(index, one)


def wanted(row: view_run.Row, query: Query) -> bool:
    """The plain meaning of a query."""

    def meets(name: str, text: str | None) -> bool:
        flags = (row.get(f"{name}_flags") or "").split()
        long = name in view_run.CAPTIONERS
        of_flag = {
            "": True,
            "missing": long and text is None,
            "none": long and text is not None and not flags,
            "some": long and bool(flags),
        }.get(query.flag, long and query.flag in flags)
        if not of_flag:
            return False
        if any(word.casefold() not in (text or "").casefold() for word in query.q.split()):
            return False
        if query.least is None and query.most is None:
            return True
        return text is not None and (query.least or 0) <= len(text.split()) <= (
            10**9 if query.most is None else query.most
        )

    texts = [query.text] if query.text else ["raw", *view_run.CAPTIONERS]
    pairs = [(name, text) for name in texts for text in (row["raws"] if name == "raw" else [row[name]])]
    return (not query.source or query.source in row["sources"]) and any(meets(*pair) for pair in pairs)


def every_page(run: Run, filter_: Filter, size: int, seconds: float = 60.0) -> list[list[int]]:
    """The numbers of the rows on each page, in order."""
    files, pages, at = open_samples(run).parquets, [], START
    while at is not None:
        page = page_at(files, filter_, at, size, seconds)
        pages.append([int(row["uid"], 16) for _, row in page.rows])
        at = page.after
    return pages


def test_a_query_finds_exactly_what_a_plain_loop_over_the_rows_finds(run: Run) -> None:
    samples = open_samples(run)
    words = ("", "circle", "RED", "number 2", "book", "red book", "from a", ".*")
    texts = ("", "raw", "llava", "sharegpt4v")
    flags = ("", "none", "some", "missing", "truncated", "repetition", "empty")
    lengths = ((None, None), (11, None), (None, 12), (12, 13))
    assert [number for number, row in enumerate(ROWS) if wanted(row, Query("book", "raw"))] == list(range(0, 30, 3))
    sizes = set()
    for q, text, flag, source, (least, most) in itertools.product(words, texts, flags, ("", "web", "books"), lengths):
        query = Query(q, text, flag, source, least, most)
        found = every_page(run, query.filter(samples), 30)[0]
        assert found == [number for number, row in enumerate(ROWS) if wanted(row, query)], query
        sizes.add(len(found))
    assert {0, 30} < sizes and len(sizes) > 10


def test_a_phrase_in_quotes_is_one_word_and_uids_and_urls_are_found(run: Run) -> None:
    samples = open_samples(run)

    def found(**asked: str) -> list[int]:
        return every_page(run, Query.of(asked, samples).filter(samples), 30)[0]

    assert found(q='"number 2."') == [2] and 20 in found(q="number 2")
    assert found(q=f"{17:032x}", text="uid") == [17] and found(q="/17.jpg", text="url") == [17]


@pytest.mark.parametrize("size", [1, 3, 7, 10, 30, 31])
def test_pages_show_every_row_once_and_lead_back_the_same_way(run: Run, size: int) -> None:
    files, query = open_samples(run).parquets, Query(text="llava", flag="none").filter(open_samples(run))
    for filter_, numbers in ((Filter(), list(range(30))), (query, [n for n in range(30) if n % 4])):
        pages = every_page(run, filter_, size)
        assert [number for page in pages for number in page] == numbers
        assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1) and pages[-1]
        at, back = page_at(files, filter_, START, 10**6, 60.0).rows[-1][0], []
        while at is not None:
            page = page_at(files, filter_, at, size, 60.0, backwards=True)
            back.append([int(row["uid"], 16) for _, row in page.rows])
            assert page.after == at
            at = page.before
        assert [number for page in reversed(back) for number in page] == numbers[:-1]
        assert {len(page) for page in back[:-1]} <= {size} and back[-1]


def test_without_time_a_page_ends_after_a_row_group_and_the_next_goes_on(run: Run) -> None:
    query = Query(q="number 29.").filter(open_samples(run))
    pages = every_page(run, query, 5, seconds=0)
    assert len(pages) == 9 and [number for page in pages for number in page] == [29]
    page = page_at(open_samples(run).parquets, query, START, 5, 0)
    assert not page.in_time and page.looked_at == 4 and page.after == (0, 4)
    assert "the time for one page was up" in client(run, seconds=0).get("/?q=%2229.%22").text


def test_a_page_opens_the_shards_that_it_shows_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = view_run.make(tmp_path / "run", shards=60, samples=10)
    opened: list[str] = []
    real = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda url: opened.append(Path(url).name) or real(url))
    web = client(made)
    page = web.get("/")
    assert page.text.count("<article") == SIZE
    assert opened == [f"train-0000{shard}.parquet" for shard in range(3)]
    opened.clear()
    assert web.get("/?at=41.3").text.count("<article") == SIZE
    assert opened == [f"train-000{shard}.parquet" for shard in (41, 42, 43)]
    opened.clear()
    for shard in [*range(2 * OPEN), *range(OPEN, 2 * OPEN)]:
        assert web.get(f"/image/{shard}/9").status_code == 200
    assert opened == [f"train-{shard:05d}.tar" for shard in range(2 * OPEN)]


def test_a_search_holds_a_few_row_groups_however_many_shards_there_are(tmp_path: Path) -> None:
    text, group = "abc" * 20_000, 600_000  # bytes of the raw texts of ten rows
    made = view_run.make(tmp_path / "run", 20, 40, lambda number, row: row.update(raw=text), row_group=10)
    held: list[int] = []

    def match(table: pa.Table) -> np.ndarray:
        held.append(pa.total_allocated_bytes())
        return np.zeros(len(table), bool)

    before = pa.total_allocated_bytes()
    page = page_at(open_samples(made).parquets, Filter(("raw", "llava"), match), START, 5, 60.0)
    assert page.looked_at == 800 and len(held) == 80
    assert group <= max(held) - before <= 4 * group


def test_images_are_those_of_their_rows_in_any_order(tmp_path: Path) -> None:
    contents = {number: view_run.jpeg(view_run.plain(number)) for number in range(6)}
    web = client(view_run.make(tmp_path / "run", shards=2, samples=3))
    for number in (5, 0, 2, 4, 1, 3, 5):
        answer = web.get(f"/image/{number // 3}/{number % 3}")
        assert answer.content == contents[number] and answer.headers["content-type"] == "image/jpeg"
    assert [web.get(path).status_code for path in ("/image/2/0", "/image/0/3", "/sample/9/9")] == [404] * 3


def test_a_tar_that_ends_within_an_image_is_told(tmp_path: Path) -> None:
    web = client(made := view_run.make(tmp_path / "run", shards=1, samples=3))
    path = Path(made.shards, "train-00000.tar")
    with tarfile.open(path) as tar:
        last = [member for member in tar if member.name.endswith(".jpg")][-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + last.size - 1])
    assert [web.get(f"/image/0/{row}").status_code for row in range(3)] == [200, 200, 404]
    told = web.get("/image/0/2").text
    assert "train-00000.tar: ends within image 2" in told and "lotlip-data verify" in told


def test_a_card_marks_sub_captions_and_words_that_one_captioner_uses(run: Run) -> None:
    page = client(run).get("/sample/0/1").text
    section = page[page.index('data-captioner="sharegpt4v"') :]
    assert re.findall(r"<mark>(.*?)</mark>", section) == ["disc", "can", "be", "seen"]
    assert re.findall(r'class="number">(\d+)<', section) == ["1", "2"]
    assert "from a book" in client(run).get("/sample/0/3").text  # every raw text, with its source
    assert '<span class="flag">truncated</span> <span class="flag">repetition</span>' in client(run).get("/").text


@given(st.text(), st.lists(st.text(min_size=1)), st.sets(st.text()))
def test_spans_are_the_text_whatever_it_is(text: str, others: list[str], words: set[str]) -> None:
    pieces = [*text.split(), *others]
    spans = marked(text, pieces, words | {piece.casefold() for piece in pieces})
    assert "".join(word.text for span in spans for word in span.words) == text


def test_words_of_one_captioner_alone() -> None:
    texts = {"a": "A Red ring's edge", "b": "a red RING", "c": "the ring"}
    assert alone(texts) == {"a": {"ring's", "edge"}, "b": set(), "c": {"the"}}
    assert alone({"a": "a red ring"}) == {"a": set()}


def test_a_damaged_shard_is_told_and_passed_over(tmp_path: Path) -> None:
    made = view_run.make(tmp_path / "run")
    Path(made.shards, "train-00001.parquet").write_bytes(b"no parquet")
    page = client(made).get("/").text
    assert page.count("<article") == 20
    assert "train-00001.parquet: cannot be read" in page and "lotlip-data verify" in page
    Path(made.shards, "train-00000.tar").write_bytes(b"no tar")
    answer = client(made).get("/image/0/0")
    assert answer.status_code == 404 and "lotlip-data verify" in answer.text


def problems(page: str) -> list[str]:
    return re.findall(r'<p class="problem">(.*?)</p>', page)


@pytest.mark.parametrize("show", ["", "&show=images"])
def test_a_tar_that_is_lost_or_cut_is_told_once_by_the_pages_of_its_images(tmp_path: Path, show: str) -> None:
    made = view_run.make(tmp_path / "run")
    lost, cut = (Path(made.shards, f"train-0000{shard}.tar") for shard in (1, 2))
    whole = cut.stat().st_size
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-10])
    told = [f"{lost}: is missing", f"{cut}: has {whole - 10:,} bytes in place of {whole:,}"]
    web = client(made)
    for asked, wanted in (
        ("/?at=0.0", told),
        ("/?before=1.0", []),
        ("/?at=2.0", told[1:]),
        ("/?at=1.0&q=12", told[:1]),
    ):
        found = problems(web.get(asked + show).text)
        assert [one.partition(", so ")[0] for one in found] == wanted, asked
        assert all("lotlip-data verify" in one for one in found)
    answer = web.get("/sample/1/0")
    assert answer.status_code == 200 and problems(answer.text)[0].startswith(told[0])
    assert problems(web.get("/sample/0/0").text) == []


def test_every_image_has_words_in_its_place(run: Run) -> None:
    web = client(run)
    for path, keys in (("/?at=1.3", 17), ("/?at=1.3&show=images", 17), ("/sample/1/3", 1)):
        words = re.findall(r'<img [^>]*alt="([^"]*)"', web.get(path).text)
        assert len(set(words)) == keys and words[0] == "image 000010003"
    assert 'img::after { content: " cannot be shown" }' in web.get("/style.css").text


def test_a_page_asks_once_for_each_tar_that_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    web = client(view_run.make(tmp_path / "run", shards=60))
    asked: list[str] = []
    real = storage.size
    monkeypatch.setattr(storage, "size", lambda url: asked.append(Path(url).name) or real(url))
    assert web.get("/?at=41.3").text.count("<article") == SIZE
    assert asked == [f"train-000{shard}.tar" for shard in (41, 42, 43)]


def test_a_storage_that_does_not_answer_for_a_tar_costs_no_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str) -> int:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(storage, "size", refuse)
    answer = client(run).get("/?at=1.3")
    assert answer.status_code == 200 and answer.text.count("<article") == 17
    assert [one.count("cannot be read ([Errno 13] Access Denied)") for one in problems(answer.text)] == [1, 1]


def without_a_column(table: pa.Table) -> pa.Table:
    return table.drop_columns(["llava"])


def with_keys_of_numbers(table: pa.Table) -> pa.Table:
    return table.set_column(table.column_names.index("key"), "key", pa.array(range(len(table))))


@pytest.mark.parametrize("change", [without_a_column, with_keys_of_numbers])
def test_a_shard_of_other_columns_is_told_and_passed_over(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table]
) -> None:
    made = view_run.make(tmp_path / "run")
    path = Path(made.shards, "train-00001.parquet")
    pq.write_table(change(pq.read_table(path)), path)
    web = client(made)
    for asked, cards in (("/", 20), ("/?q=number", 20), ("/?before=2.0", 10)):
        answer = web.get(asked)
        assert answer.status_code == 200 and answer.text.count("<article") == cards
        assert "train-00001.parquet: cannot be read (it has other columns than the dataset: key" in answer.text
    answer = web.get("/sample/1/0")
    assert answer.status_code == 404 and "other columns" in answer.text and "lotlip-data verify" in answer.text


def test_a_run_that_is_not_sharded_yet_opens_on_its_quarantine_and_says_what_to_do(tmp_path: Path) -> None:
    made = fake_run.make(tmp_path / "run").run
    web = client(made)
    page = web.get("/")
    assert (page.status_code, page.url.path) == (200, "/quarantine") and "Nothing is in quarantine" in page.text
    assert f"<code>lotlip-data shard {made.url}</code>" in page.text
    answer = web.get("/sample/0/0")
    assert answer.status_code == 404 and f"Run `lotlip-data shard {made.url}`" in answer.text
    view_run.make(tmp_path / "run")
    assert web.get("/").text.count("<article") == SIZE  # without a new start
    assert "lotlip-data shard" not in web.get("/quarantine").text


def test_a_dataset_that_is_written_anew_is_shown_anew(tmp_path: Path) -> None:
    made = view_run.make(tmp_path / "run", shards=1, samples=5)
    web = client(made)
    assert web.get("/").text.count("<article") == 5
    other = view_run.make(tmp_path / "other", shards=2, samples=7)
    for path in sorted(Path(other.shards).iterdir(), key=lambda path: path.name == "dataset.json"):
        path.replace(Path(made.shards, path.name))
    assert web.get("/").text.count("<article") == 14


def test_a_run_on_another_storage_has_the_same_page(tmp_path: Path) -> None:
    made = view_run.make(tmp_path / "run")
    there = Run.at(f"memory://{tmp_path.name}/run")
    for name in storage.list_below(made.url):
        storage.create(storage.join(there.url, name), Path(made.url, name).read_bytes())
    here, far = client(made), client(there)
    assert here.get("/?q=number&at=1.3").text.count("<article") == 17
    for path in ("/?q=number&at=1.3", "/sample/2/4"):
        assert far.get(path).text == here.get(path).text.replace(made.url, there.url)
    assert far.get("/image/1/9").content == here.get("/image/1/9").content


def test_the_quarantine_has_every_stage_with_its_reasons(tmp_path: Path) -> None:
    made = view_run.make(tmp_path / "run", shards=1)
    for shard in range(3):
        rows = [
            {"key": f"{shard}{row}", "uid": "u", "url": "http://x/", "reason": reason, "detail": "Not Found"}
            for row, reason in enumerate(["http 404", "timeout"] * 40)
        ]
        storage.create(made.quarantine("images", f"0000{shard}.parquet"), fake_run.parquet(rows, QUARANTINE))
    dropped = {"key": "1", "uid": "u", "what": "llava", "reason": "repetition", "detail": "the the the", "url": "x"}
    storage.create(made.quarantine("shard", "00000-a.parquet"), fake_run.parquet([dropped], schema.DROPPED))
    captions = [{"key": "2", "uid": "u", "error": "cannot be decoded"}]
    storage.create(made.quarantine("captions", "llava", "00000.parquet"), fake_run.parquet(captions, schema.CAPTIONS))
    web = client(made)
    page = web.get("/quarantine").text
    assert re.findall(r"kind=([\w%]+)", page.split("</nav>")[1]) == ["images", "captions%2Fllava", "shard"]
    assert page.count("<tr>") == 101 and page.count("http 404") == 50
    assert web.get("/quarantine?kind=images&reason=TIMEOUT&at=1.0").text.count("<bdi>timeout") == 80
    assert "the the the" in web.get("/quarantine?kind=shard").text
    assert "cannot be decoded" in web.get("/quarantine?kind=captions/llava&reason=decoded").text


def test_the_report_is_served_with_a_policy_of_its_own(tmp_path: Path) -> None:
    made = view_run.make(tmp_path / "run", shards=1)
    missing = client(made).get("/report")
    assert missing.status_code == 400 and f"lotlip-data report {made.url}" in missing.text
    storage.replace(storage.join(made.url, "report.html"), b"<p>figures")
    found = client(made).get("/report")
    assert found.text == "<p>figures" and "sandbox" in found.headers["content-security-policy"]
    assert "script" not in found.headers["content-security-policy"]


def test_what_is_asked_wrongly_is_told(run: Run, tmp_path: Path) -> None:
    web = client(run)
    for asked, told in (("flag=green", "truncated"), ("text=gpt", "sharegpt4v"), ("least=many", "number of words")):
        answer = web.get(f"/?{asked}")
        assert answer.status_code == 400 and told in answer.text
    assert "--checkpoint" in web.get("/search?text=x").text
    for place in ("77.7", "x", "-1.0", "9" * 5000 + ".1", "1.", "٣.٤"):
        assert web.get("/", params={"at": place}).status_code == 200
        assert web.get("/", params={"before": place}).status_code == 200
    ended = CliRunner().invoke(app, ["view", str(tmp_path / "nothing")])
    assert ended.exit_code == 2 and "there is no run" in ended.output


def test_it_listens_on_loopback_and_says_when_a_port_is_taken() -> None:
    with server.listen(0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UserError, match="--port 0"):
            server.listen(port)


def test_a_taken_port_is_told_before_models_are_loaded(run: Run) -> None:
    with server.listen(0) as listening:
        port = str(listening.getsockname()[1])
        ended = CliRunner().invoke(app, ["view", run.url, "--port", port, "--checkpoint", "/nowhere"])
    assert ended.exit_code == 2 and f"port {port}: cannot be had" in ended.output and "nowhere" not in ended.output


@pytest.mark.parametrize(("lacks", "says"), [("manifest", "no object"), ("sub_captions", "lacks what it should say")])
def test_a_dataset_of_another_kind_is_refused(tmp_path: Path, lacks: str, says: str) -> None:
    made = view_run.make(tmp_path / "run", shards=1)
    content = json.loads(Path(made.dataset).read_text())
    Path(made.dataset).write_text(json.dumps({name: content[name] for name in content if name != lacks}))
    assert says in client(made).get("/").text
