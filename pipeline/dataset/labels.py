"""Labels of a user: which images, texts or sub-captions of a dataset are correct.

A CSV or Parquet file with the columns `uid` and `correct` (0 or 1), and where they exist `captioner` and `sub_caption`.
A row without a captioner is about the image, one with a captioner about its long text, and one with a number in
`sub_caption` about that sub-caption, counted from 0. The captioner `raw` stands for the raw texts, counted likewise.
With a column `text`, a label applies only if the dataset has this text there, so that labels of an earlier version of
the dataset do not meet other texts.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

REQUIRED = ("uid", "correct")
COLUMNS = (*REQUIRED, "captioner", "sub_caption", "text")
_PARQUET_MAGIC = b"PAR1"
_CORRECT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class Label:
    """Whether something is correct."""

    correct: bool
    captioner: str = ""
    """A captioner or RAW; empty for the image."""
    item: int | None = None
    """The place of the sub-caption, or of the raw text; None for the whole text, or the first raw text."""
    text: str | None = None
    """The text that the label is about, if the file has it."""


@dataclass
class Labels:
    """The labels of a file. They are held in memory."""

    by_uid: dict[str, list[Label]] = field(default_factory=dict)
    count: int = 0


def read_labels(url: str) -> Labels:
    """The labels of a file. Raises UserError, with the row, if it cannot be used."""
    try:
        content = storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"labels {url}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"labels {url}: is a folder; name a CSV or Parquet file") from None
    rows = _parquet_rows(url, content) if content.startswith(_PARQUET_MAGIC) else _csv_rows(url, content)
    labels = Labels()
    for where, row in rows:
        uid = _text(row["uid"])
        if not uid:
            raise UserError(f"{where}: has no uid")
        labels.by_uid.setdefault(uid, []).append(_label(where, row))
        labels.count += 1
    if not labels.count:
        raise UserError(f"labels {url}: has no rows")
    return labels


def _parquet_rows(url: str, content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"labels {url}: cannot be read as Parquet ({error})") from None
    _check_columns(url, table.column_names)
    rows = table.select([name for name in COLUMNS if name in table.column_names]).to_pylist()
    yield from ((f"labels {url}, row {number}", row) for number, row in enumerate(rows, 1))


def _csv_rows(url: str, content: bytes) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = content.decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if url.endswith(".tsv") else ",")
        _check_columns(url, reader.fieldnames or [])
        for row in reader:
            where = f"labels {url}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{where}: does not have as many values as the first line has names")
            yield where, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"labels {url}: is neither Parquet nor CSV in UTF-8 ({error})") from None


def _check_columns(url: str, names: Any) -> None:
    if missing := [name for name in REQUIRED if name not in names]:
        wanted = "it needs `uid` and `correct`, and may have `captioner`, `sub_caption` and `text`"
        raise UserError(f"labels {url}: has no column `{missing[0]}`; {wanted}")


def _label(where: str, row: Mapping[str, Any]) -> Label:
    correct = _CORRECT.get(_text(row["correct"]).casefold())
    if correct is None:
        raise UserError(f"{where}: `correct` is {_text(row['correct'])[:40]!r}; write 0 or 1")
    captioner, item = _text(row.get("captioner")), _text(row.get("sub_caption"))
    if item and not captioner:
        raise UserError(f"{where}: has a `sub_caption` but no `captioner`")
    return Label(correct, captioner, _number(where, item), _text(row.get("text")) or None)


def _number(where: str, value: str) -> int | None:
    if not value:
        return None
    digits = value.removesuffix(".0")  # tools that know no missing integers write floats
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise UserError(f"{where}: `sub_caption` is {value[:40]!r}; write its place, counted from 0")
    return int(digits)


def _text(value: Any) -> str:
    """A cell as text; empty for a missing value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()
