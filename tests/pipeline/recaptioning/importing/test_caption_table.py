"""A table of captions in one file or several, in any order and layout, gives each image the captions of its URL."""

import csv
import io
import logging
import pathlib
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import import_captions
from lotlip_data.pipeline.core import external_buckets
from lotlip_data.pipeline.recaptioning.importing.caption_table import CaptionImportError, open_caption_table
from lotlip_data.pipeline.recaptioning.importing.claims import import_command
from lotlip_data.pipeline.recaptioning.importing.stage import ImportSummary
from lotlip_data.pipeline.recaptioning.importing.stage import import_captions as import_table
from lotlip_data.pipeline.url_lists.rows import ListError
from tests.pipeline.run_fixture import FakeRun, fetched_rows, make

NAMES = {"instructblip": "IB", "llava": "LLA", "sharegpt4v": "SV"}


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> FakeRun:
    return make(tmp_path / "run", shards=3, images=8, writers=())


def urls_of(run: Run) -> list[str]:
    return [row["url"] for shard in range(3) for row in fetched_rows(run, shard)]


def text_of(captioner: str, url: str) -> str:
    return f'The "{NAMES[captioner]}" text, of\n{url}. It has two sentences.'


def write_csv(path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[str]], mark: str = "") -> str:
    content = io.StringIO(newline="")
    csv.writer(content).writerows([header, *rows])
    path.parent.mkdir(exist_ok=True)
    path.write_text(mark + content.getvalue(), encoding="utf-8", newline="")
    return str(path)


def texts(run: Run, name: str) -> dict[str, tuple[str | None, str | None]]:
    """By URL, the committed text of a captioner, or the reason why there is none."""
    urls = {row["uid"]: row["url"] for shard in range(3) for row in fetched_rows(run, shard)}
    rows = [row for shard in range(3) for row in pq.read_table(run.caption_shard(name, shard)).to_pylist()]
    return {urls[row["uid"]]: (row["text"], row["error"]) for row in rows}


def import_found(run: Run, tables: str | Sequence[str], **options: Any) -> ImportSummary:
    return import_table(run, open_caption_table(tables, table_format="recap-long", **options))


def test_files_of_one_captioner_each_are_joined_by_url_in_any_order(
    fake: FakeRun, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files have other orders, other names of columns, a byte order mark, and each lacks another row."""
    monkeypatch.setattr(external_buckets, "BUCKET_BYTES", 500)  # many buckets
    urls = urls_of(fake.run)
    missing = {"instructblip": urls[3], "llava": urls[9], "sharegpt4v": urls[20]}
    headers = {
        "instructblip": ("url", "raw", "longIB_captions"),
        "llava": ("Image Path", "caption", "LLaVA"),
        "sharegpt4v": ("image_url", "alt text", "sv_text"),
    }
    for number, (name, header) in enumerate(headers.items()):
        rows = [(url, "raw", text_of(name, url)) for url in urls if url != missing[name]]
        random.Random(number).shuffle(rows)
        write_csv(tmp_path / "t" / f"{number}.csv", header, rows, "\ufeff" if number else "")
    write_csv(tmp_path / "t" / "raw.csv", ("url", "raw"), [(url, "raw") for url in urls])
    summary = import_found(fake.run, str(tmp_path / "t" / "*.csv"))
    assert (summary.rows, summary.matched, summary.unmatched) == (69, 69, {})
    for name in NAMES:
        expected: dict[str, tuple[str | None, str | None]] = {url: (text_of(name, url), None) for url in urls}
        expected[missing[name]] = (None, "not in the imported table")
        assert texts(fake.run, name) == expected
    assert summary.without == dict.fromkeys(NAMES, 1)


def test_a_repeated_url_has_its_first_caption_and_the_others_are_counted(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = urls_of(fake.run)
    blank, other, same, later = urls[:4]
    rows = [(url, text_of("llava", url)) for url in urls]
    rows[0] = (blank, " ")
    rows += [(blank, "Not blank."), (other, "Another text."), (same, text_of("llava", same))]
    file = write_csv(tmp_path / "a.csv", ("url", "llava"), rows)
    second = write_csv(tmp_path / "b.csv", ("url", "IB", "llava"), [(later, "Of IB.", "A third text.")])
    summary = import_found(fake.run, [file, second])
    by_url = texts(fake.run, "llava")
    assert by_url[blank] == ("Not blank.", None)
    assert all(by_url[url] == (text_of("llava", url), None) for url in urls[1:])
    assert texts(fake.run, "instructblip")[later] == ("Of IB.", None)
    assert summary.differing == {"llava": 2}
    assert (summary.matched, summary.unmatched) == (len(urls) + 2, {"an earlier row has this URL": 2})


def test_words_for_a_missing_text_are_no_captions_and_are_counted(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = urls_of(fake.run)
    words = ["nan", "NaN", " None ", "null", "N/A", "", "<NA>"]
    rows = [(url, word) for url, word in zip(urls, [*words, *["A nan bread."] * (len(urls) - len(words))], strict=True)]
    summary = import_found(fake.run, write_csv(tmp_path / "a.csv", ("url", "SV"), rows))
    by_url = texts(fake.run, "sharegpt4v")
    assert [by_url[url] for url in urls[: len(words)]] == [(None, "empty in the imported table")] * len(words)
    assert {by_url[url] for url in urls[len(words) :]} == {("A nan bread.", None)}
    assert sum(summary.defects.values()) == len(words) - 1 and "SV: 'nan', which stands for" in str(summary.defects)


def test_what_is_taken_from_each_column_is_shown_before_anything_is_joined(
    fake: FakeRun, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = ("id", "url", "raw_caption", "shortIB", "longIB", "lla")
    row = ("1", "http://elsewhere.test/1", "raw", "short", "long", "llava")
    files = [write_csv(tmp_path / f"{name}.csv", header, [row]) for name in "ab"]
    expected = [
        f"{files[0]} and 1 more with the same columns",
        "  url          URL",
        "  raw_caption  raw text: not imported, the run's own lists have it",
        "  longIB       captions by instructblip",
        "  lla          captions by llava",
        "  id           not used",
        "  shortIB      not used",
        "no column has captions by sharegpt4v",
    ]
    outcome = import_captions(fake.run, files, table_format="recap-long", dry_run=True)
    assert outcome.lines == expected
    assert not pathlib.Path(fake.run.captions).exists()
    with caplog.at_level(logging.INFO), pytest.raises(CaptionImportError, match=r"none of its 2 rows"):
        import_captions(fake.run, files, table_format="recap-long")
    shown = [record.getMessage() for record in caplog.records]
    assert shown[: len(expected)] == expected


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (("id", "text"), {}, r"a\.csv: no column's name says that it holds the URLs; .*--url-column"),
        (
            ("url", "image_url", "IB"),
            {},
            r"a\.csv: several columns can hold .* 'url', 'image_url'.*--url-column",
        ),
        (("url", "IB_a", "IB_b"), {}, r"a\.csv: several columns can hold .* 'IB_a', 'IB_b'.*--captioner NAME=COLUMN"),
        (
            ("url", "text"),
            {},
            r"a\.csv: no column's name names a captioner; .* are 'url', 'text'. .*--captioner",
        ),
        (
            ("url", "IB"),
            {"captioners": ["mine=SV"]},
            r"a\.csv: has no column 'SV'; .* are 'url', 'IB'. .*--captioner",
        ),
        ((), {}, r"a\.csv: no column's name says that it holds the URLs; its columns are none"),
    ],
)
def test_a_column_that_cannot_be_found_is_an_error_that_lists_the_candidates(
    fake: FakeRun, tmp_path: pathlib.Path, header: tuple[str, ...], options: Mapping[str, Any], message: str
) -> None:
    file = write_csv(tmp_path / "a.csv", header, [["http://a.test/1"] * len(header)])
    with pytest.raises(ListError, match=message):
        import_found(fake.run, file, **options)


def test_named_columns_are_taken_and_the_others_found(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    header = ("url", "link", "raw_a", "raw_b", "IB_a", "IB_b", "LLA")
    rows = [("x", url, "", "", "a", "Text b.", "c") for url in urls_of(fake.run)]
    file = write_csv(tmp_path / "a b.csv", header, rows)
    import_found(fake.run, file, captioners=["instructblip=IB_b"], url_column="link")
    assert {text for text, _ in texts(fake.run, "instructblip").values()} == {"Text b."}
    assert import_command(fake.run, "llava") == (
        f"`lotlip-data import '{file}' {fake.run.url} --captioner instructblip=IB_b --url-column link "
        "--format recap-long`"
    )


def test_the_command_that_imports_several_files_again_names_them_all(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = urls_of(fake.run)
    files = [write_csv(tmp_path / f"{name}.csv", ("url", "t"), [(url, "A text.") for url in urls]) for name in "ab"]
    import_table(fake.run, open_caption_table(files, ["mine=t"]))
    assert import_command(fake.run, "mine").startswith(f"`lotlip-data import {files[0]} {files[1]} {fake.run.url} ")


@pytest.mark.parametrize("delimiter", ["\t", ";", "|"])
def test_the_columns_are_found_whatever_separates_them(fake: FakeRun, tmp_path: pathlib.Path, delimiter: str) -> None:
    file = tmp_path / "a.csv"
    lines = [f"url{delimiter}raw{delimiter}IB", *(f"{url}{delimiter}r{delimiter}A text." for url in urls_of(fake.run))]
    file.write_text("\n".join(lines))
    assert import_found(fake.run, str(file)).captions == {"instructblip": 24}


def test_rows_with_quotes_and_line_breaks_cost_no_neighbour(fake: FakeRun, tmp_path: pathlib.Path) -> None:
    urls = urls_of(fake.run)
    rows = [f'{url},"He said ""yes"",\nthen left."' for url in urls]
    rows[4] = f'{urls[4]},"A quote that is never closed'
    (tmp_path / "a.csv").write_text("\n".join(["url,LLA", *rows]) + "\n")
    summary = import_found(fake.run, str(tmp_path / "a.csv"))
    by_url = texts(fake.run, "llava")
    assert by_url.pop(urls[4]) == (None, "not in the imported table")
    assert set(by_url.values()) == {('He said "yes",\nthen left.', None)}
    assert any(re.match("not CSV", reason) for reason in summary.unmatched)
