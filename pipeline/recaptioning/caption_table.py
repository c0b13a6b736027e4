"""A table of existing captions: its files, the column of each captioner, and the captioners' configurations."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import IMPORTED_KIND
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.url_lists.cells import GARBLED, clean, is_utf8, kind_of, to_list
from lotlip_data.pipeline.url_lists.files import files_of
from lotlip_data.pipeline.url_lists.reader import read_chunks, uid_of_listed_url
from lotlip_data.pipeline.url_lists.rows import BadRow, Chunk, Columns, MissingColumnError, Reject, clip

logger = logging.getLogger(__name__)

PRESETS: dict[str, dict[str, str]] = {
    "dreamlip": {
        "dreamlip-instructblip": "longIB_captions",
        "dreamlip-llava": "longLLA_captions",
        "dreamlip-sharegpt4v": "longSV_captions",
    }
}
"""Name of a release → its captioners → their columns."""
_PRESET_URL_COLUMNS = {"dreamlip": "Image Path"}
_FORMATS = ("csv", "tsv", "jsonl", "parquet")


class CaptionImportError(UserError):
    """The table cannot be imported. The message says why and how to fix it."""


@dataclass(frozen=True)
class CaptionTable:
    """Files with one column of URLs and one column of texts per captioner."""

    source: Source
    """The files, and the column of their URLs."""
    columns: Mapping[str, str]
    """Name of the captioner → its column."""

    @cached_property
    def files(self) -> list[str]:
        """The files, with patterns expanded. Raises ListError if a name or pattern matches nothing."""
        return files_of(self.source)

    @cached_property
    def configs(self) -> list[CaptionerConfig]:
        """The captioners' configurations. Their ids depend on the columns and on the files' names and sizes."""
        sizes = sorted((file.rsplit("/", 1)[-1], storage.size(file)) for file in self.files)
        digest = hashlib.sha256(json.dumps([self.source.url_column, sizes]).encode()).hexdigest()[:12]
        return [
            CaptionerConfig.from_dict(
                {
                    "name": name,
                    "kind": IMPORTED_KIND,
                    "model": f"{sizes[0][0]}#{column}",
                    "revision": digest,
                    "prompt": "Imported: its prompt is not known.",
                }
            )
            for name, column in self.columns.items()
        ]

    def options(self, name: str) -> list[str]:
        """The arguments of `lotlip-data import` that import one captioner, without the run."""
        options = [
            self.source.files[0],
            "--captioner",
            f"{name}={self.columns[name]}",
            "--url-column",
            self.source.url_column,
        ]
        if self.source.format:
            options += ["--format", self.source.format]
        if self.source.columns:
            options += ["--columns", ",".join(self.source.columns)]
        return options

    @property
    def schema(self) -> pa.Schema:
        """The columns of `batches`. `order` is `order_of` the uid, `ordinal` counts the rows of all files from 0."""
        fixed = [("order", pa.uint64()), ("uid", pa.string()), ("ordinal", pa.int64()), ("file", pa.int32())]
        texts = [(f"text {name}", pa.string()) for name in self.columns]
        return pa.schema([*fixed, ("row", pa.int64()), ("url", pa.string()), *texts])

    def batches(self, reject: Reject, defects: Counter[str]) -> Iterator[pa.Table]:
        """The rows of all files as tables of `schema`.

        Args:
            reject: Receives rows without a usable URL.
            defects: Receives the number of captions by what is wrong with them. A caption that is no text is missing.

        Raises:
            ListError: A file cannot be read, or lacks a column, or a column holds no texts.
        """
        columns = Columns((self.source.url_column, *self.columns.values()))
        ordinal = 0
        for file_number, file in enumerate(self.files):
            try:
                for chunk in read_chunks(self.source, file, columns, reject, logger.info):
                    table = self._to_table(chunk, file_number, ordinal, reject, defects)
                    ordinal += table.num_rows
                    yield table
            except MissingColumnError as error:
                raise MissingColumnError(error.finding, self._hint(error.column), error.column) from None

    def _hint(self, column: str) -> str:
        """The options of `import` that name a column that the table lacks."""
        option = "the column of each captioner's texts with --captioner NAME=COLUMN"
        if column == self.source.url_column:
            option = "the column of the URLs with --url-column"
        return f". Name {option}. If the table has no header, name all columns with --columns"

    def _to_table(
        self, chunk: Chunk, file_number: int, ordinal: int, reject: Reject, defects: Counter[str]
    ) -> pa.Table:
        """Convert a chunk of file number `file_number`, whose first row has the ordinal `ordinal`."""
        urls = [clean(value) or "" for value in to_list(chunk.columns[self.source.url_column])]
        uids: list[str] = []
        usable: list[int] = []
        for index, url in enumerate(urls):
            try:
                uids.append(uid_of_listed_url(url))
                usable.append(index)
            except ValueError as error:
                file = clip(self.files[file_number])
                reject(BadRow(self.source.name, file, chunk.rows[index], str(error), clip(url)))
        texts = {
            column: _texts(to_list(chunk.columns[column]), column, defects) for column in set(self.columns.values())
        }
        columns = [
            pa.array([order_of(uid) for uid in uids], pa.uint64()),
            pa.array(uids, pa.string()),
            pa.array(range(ordinal, ordinal + len(usable)), pa.int64()),
            pa.array([file_number] * len(usable), pa.int32()),
            pa.array([chunk.rows[index] for index in usable], pa.int64()),
            pa.array([urls[index] for index in usable], pa.string()),
            *(pa.array([texts[name][index] for index in usable], pa.string()) for name in self.columns.values()),
        ]
        return pa.table(columns, schema=self.schema)


def _texts(cells: list[Any], column: str, defects: Counter[str]) -> list[str | None]:
    """The captions in a column. Those that are garbled or no text are counted."""
    texts = []
    for cell in cells:
        text = clean(cell)
        if (kind := kind_of(cell)) is not None:
            defects[f"{column}: {kind}, not a text"] += 1
        elif text and "\ufffd" in text and not is_utf8(cell):
            defects[f"{column}: {GARBLED}"] += 1
        texts.append(text)
    return texts


def open_caption_table(
    table: str,
    captioners: Iterable[str] = (),
    url_column: str | None = None,
    table_format: str | None = None,
    column_names: Sequence[str] = (),
) -> CaptionTable:
    """Describe a table of captions. The files are listed but not read.

    Args:
        table: Path or URL of the table; `*` in the name stands for many files.
        captioners: `NAME=COLUMN` per captioner. Not needed for a preset.
        url_column: Column of the URLs. Default: the preset's, or `url`.
        table_format: Name of a preset, or the format of files whose ending does not say it.
        column_names: Names of all columns, for CSV and TSV without a header.

    Raises:
        CaptionImportError: A file is missing, or the arguments do not fit together.
    """
    preset = PRESETS.get(table_format or "", {})
    if table_format is not None and not preset and table_format not in _FORMATS:
        raise CaptionImportError(f"--format {table_format}: use {', '.join([*PRESETS, *_FORMATS])}")
    columns = dict(_parse_captioner(captioner) for captioner in captioners) or preset
    if not columns:
        raise CaptionImportError("name each captioner and its column: --captioner NAME=COLUMN, or --format dreamlip")
    url = url_column or _PRESET_URL_COLUMNS.get(table_format or "", "url")
    settings: dict[str, Any] = {
        "name": "import",
        "files": [storage.normalise(table)],
        "url": url,
        "text": next(iter(columns.values())),
    }
    settings |= {"format": None if preset else table_format, "columns": tuple(column_names) or None}
    try:
        source = Source.model_validate(settings)
        caption_table = CaptionTable(source, columns)
        schema.dataset(config.name for config in caption_table.configs)  # raises if a name cannot be a column
        return caption_table
    except ValidationError as error:
        raise CaptionImportError(f"{table}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise CaptionImportError(str(error)) from None


def _parse_captioner(captioner: str) -> tuple[str, str]:
    name, equals, column = captioner.partition("=")
    if not (name and equals and column):
        raise CaptionImportError(f"--captioner {captioner}: give NAME=COLUMN, such as --captioner llava=long_caption")
    return name, column


def order_of(uid: str) -> int:
    """The first 64 bits of a uid. They are uniformly distributed, so buckets of them have about the same size."""
    return int(uid[:16], 16)
