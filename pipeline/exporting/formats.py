"""The formats of an export: the ending of its files, its columns, and what writes them.

A further format is a line in `FORMATS`, with a writer in `writers.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.settings.messages import unknown_name
from lotlip_data.pipeline.exporting import rows
from lotlip_data.pipeline.exporting.rows import HAS_NUL, NUL, REASON_SUFFIX, Row
from lotlip_data.pipeline.exporting.writers import CsvWriter, JsonLinesWriter, ParquetWriter, TarWriter, WriterOf
from lotlip_data.pipeline.recaptioning.importing.caption_table import PRESETS

Columns = Mapping[str, str]
"""The column of each captioner's texts, by name of the captioner, in their order."""

URL, RAW = "Image Path", "raw_caption"
DREAMLIP_TEXTS = tuple(f"{length}{model}_captions" for model in ("IB", "SV", "LLA") for length in ("short", "long"))
"""The columns of texts in DreamLIP's files."""
_DREAMLIP_KINDS = {
    "instructblip": "longIB_captions",
    "sharegpt4v": "longSV_captions",
    "llava": "longLLA_captions",
    **PRESETS["dreamlip"],
}
"""The column of a captioner by its kind, or by its name."""


def _own_columns(names: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {name: name for name in names}


def _dreamlip_columns(names: Iterable[str], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """DreamLIP's column of each captioner, by its name or kind. Raises UserError for one without."""
    columns = {}
    for name in names:
        column = _DREAMLIP_KINDS.get(name) or _DREAMLIP_KINDS.get(str(settings[name].get("kind")))
        if column is None:
            raise UserError(
                f"captioner {name!r}: DreamLIP's files have no column for it. Name one with --captioners {name}=COLUMN "
                f"({', '.join(DREAMLIP_TEXTS)}), or name the other captioners alone."
            )
        columns[name] = column
    return columns


def _dreamlip_schema(columns: Columns) -> pa.Schema:
    if unknown := [column for column in columns.values() if column not in DREAMLIP_TEXTS]:
        raise UserError(f"DreamLIP's files have no column {unknown[0]!r}; use {', '.join(DREAMLIP_TEXTS)}")
    return pa.schema([(name, pa.string()) for name in (URL, RAW, *DREAMLIP_TEXTS)])


def _dreamlip_row(row: Row) -> Row:
    return {URL: row["url"] or row["member"] or row["key"], RAW: row["raw"]} | {
        column: row.get(column) for column in DREAMLIP_TEXTS
    }


def _same(row: Row) -> Row:
    return row


def _without_nul(row: Row) -> Row:
    """The row with nulls in place of texts that CSV cannot hold, and with the reason."""
    lost = [name for name, value in row.items() if isinstance(value, str) and NUL in value]
    reasons = {name + REASON_SUFFIX: HAS_NUL for name in lost if name + REASON_SUFFIX in row}
    return row | dict.fromkeys(lost) | reasons if lost else row


@dataclass(frozen=True)
class Format:
    """A format of exported files."""

    ending: str
    """The ending of its files, without a dot."""
    writer: WriterOf
    has_images: bool = False
    fit: Callable[[Row], Row] = _same
    """The row with only what the format can hold."""
    default_columns: Callable[[Iterable[str], Mapping[str, Mapping[str, Any]]], dict[str, str]] = _own_columns
    """The column of each captioner's texts, from the captioners' names and recorded settings."""
    schema: Callable[[Columns], pa.Schema] = rows.schema_of
    row: Callable[[Row], Row] = _same
    """From a row of `rows.schema_of` to one of `schema`."""


FORMATS: dict[str, Format] = {
    "parquet": Format("parquet", ParquetWriter),
    "jsonl": Format("jsonl", JsonLinesWriter),
    "csv": Format("csv", CsvWriter, fit=_without_nul),
    "dreamlip": Format(
        "csv",
        CsvWriter,
        fit=_without_nul,
        default_columns=_dreamlip_columns,
        schema=_dreamlip_schema,
        row=_dreamlip_row,
    ),
    "webdataset": Format("tar", TarWriter, has_images=True),
}


def format_of(name: str) -> Format:
    """The format of this name. Raises UserError, which lists the formats, for any other."""
    if name not in FORMATS:
        raise UserError(f"--format {unknown_name(name, sorted(FORMATS))}")
    return FORMATS[name]
