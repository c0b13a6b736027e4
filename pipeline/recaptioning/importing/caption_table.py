"""A table of existing captions: its files, the column of each captioner, and the captioners' configurations.

A table is one or more files. Each has a column of URLs and the texts of one or more captioners. Which column holds what
is given, or found by the names of each file's columns. The tables that a manifest's sources are, are one table.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import IMPORTED_KIND
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.sources.column_names import FIND, FOUND_CAPTIONERS, FoundColumns
from lotlip_data.pipeline.url_lists.cells import GARBLED, clean, is_utf8, kind_of, to_list
from lotlip_data.pipeline.url_lists.files import files_of
from lotlip_data.pipeline.url_lists.headers import check_captions, column_names, found_columns
from lotlip_data.pipeline.url_lists.reader import read_chunks, uid_of_listed_url
from lotlip_data.pipeline.url_lists.rows import BadRow, Chunk, Columns, MissingColumnError, Reject, clip

logger = logging.getLogger(__name__)

PRESETS: dict[str, dict[str, str]] = {
    "dreamlip": {
        "dreamlip-instructblip": "longIB_captions",
        "dreamlip-llava": "longLLA_captions",
        "dreamlip-sharegpt4v": "longSV_captions",
    },
    "recap-long": dict.fromkeys(FOUND_CAPTIONERS, FIND),
}
"""Name of a release → its captioners → their columns."""
_PRESET_URL_COLUMNS = {"dreamlip": "Image Path", "recap-long": FIND}
_FORMATS = ("csv", "tsv", "jsonl", "parquet")
_NO_TEXTS = frozenset(("nan", "none", "null", "n/a", "<na>", "\\n", "undefined"))
"""What other tools write in place of a missing text."""


class CaptionImportError(UserError):
    """The table cannot be imported. The message says why and how to fix it."""


@dataclass(frozen=True)
class CaptionFile:
    """One file of a table."""

    source: Source
    """How it is read."""
    path: str
    columns: FoundColumns
    """What its columns hold."""


@dataclass(frozen=True)
class CaptionTable:
    """Files with a column of URLs and columns of texts by captioners."""

    sources: tuple[Source, ...]
    """The files, the column of their URLs, and as `captions` the columns of the texts."""
    command: tuple[str, ...] | None = None
    """The arguments of `lotlip-data import` that import every captioner of the table, after its files and the run; None
    if they differ by captioner."""
    tables: tuple[str, ...] = ()
    """The files as these arguments name them. Empty: the files of the manifest's sources."""

    @cached_property
    def files(self) -> list[CaptionFile]:
        """The files with texts of a captioner. Patterns are expanded, and columns found, as far as the table says so.

        Raises:
            ListError: A name or pattern matches nothing, or a file cannot be read.
            MissingColumnError: A column is missing, or several can hold the same.
        """
        return [file for source in self.sources for file in _files_of(source, self.command is None, bool(self.tables))]

    @cached_property
    def names(self) -> list[str]:
        """The captioners of the table, in the order of its sources."""
        wanted = dict.fromkeys(name for source in self.sources for name in source.captions)
        return [name for name in wanted if any(name in file.columns.captions for file in self.files)]

    @property
    def label(self) -> str:
        """The files as messages name them: the first, and how many more there are."""
        others = len(self.files) - 1
        return self.files[0].path + (f" and {others} more" if others else "")

    @cached_property
    def configs(self) -> list[CaptionerConfig]:
        """The captioners' configurations. Their ids depend on the columns and on the files' names and sizes."""
        sizes = sorted((_base_name(file.path), storage.size(file.path)) for file in self.files)
        urls = list(dict.fromkeys(file.columns.url for file in self.files))
        content = json.dumps([urls[0] if len(urls) == 1 else urls, sizes])
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return [
            CaptionerConfig.from_dict(
                {
                    "name": name,
                    "kind": IMPORTED_KIND,
                    "model": f"{sizes[0][0]}#{self._columns_of(name)}",
                    "revision": digest,
                    "prompt": "Imported: its prompt is not known.",
                }
            )
            for name in self.names
        ]

    def _columns_of(self, name: str) -> str:
        """The columns of a captioner, usually one."""
        columns = (file.columns.captions.get(name) for file in self.files)
        return "|".join(dict.fromkeys(filter(None, columns)))

    def options(self, name: str) -> list[str]:
        """The arguments of `lotlip-data import` that import one captioner, without the files and the run."""
        if self.command is not None:
            return list(self.command)
        (source,) = self.sources
        options = ["--captioner", f"{name}={source.captions[name]}", "--url-column", source.url_column]
        if source.format:
            options += ["--format", source.format]
        if source.columns:
            options += ["--columns", ",".join(source.columns)]
        return options

    def describe(self) -> list[str]:
        """A table with what is taken from each column, as lines of text. Files with the same columns stand together."""
        alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for file in self.files:
            columns = file.columns
            unused = [(column, "not used") for column in columns.others]
            alike.setdefault((*columns.roles().items(), *unused), []).append(file.path)
        lines = []
        width = max(len(column) for roles in alike for column, _ in roles)
        for roles, paths in alike.items():
            more = f" and {len(paths) - 1} more with the same columns" if len(paths) > 1 else ""
            lines.append(f"{paths[0]}{more}")
            notes = {"raw text": "raw text: not imported, the run's own lists have it"} if self.tables else {}
            lines += [f"  {clip(column, 60):{min(width, 60)}}  {notes.get(role, role)}" for column, role in roles]
        wanted = dict.fromkeys(name for source in self.sources for name in source.captions)
        return lines + [f"no column has captions by {name}" for name in wanted if name not in self.names]

    @property
    def schema(self) -> pa.Schema:
        """The columns of `batches`.

        `order` is `order_of` the uid, `ordinal` counts the rows of all files from 0. A text is null where the file does
        not have the captioner, and empty where the cell is.
        """
        fixed = [("order", pa.uint64()), ("uid", pa.string()), ("ordinal", pa.int64()), ("file", pa.int32())]
        texts = [(f"text {name}", pa.string()) for name in self.names]
        return pa.schema([*fixed, ("row", pa.int64()), ("url", pa.string()), *texts])

    def batches(self, reject: Reject, defects: Counter[str]) -> Iterator[pa.Table]:
        """The rows of all files as tables of `schema`.

        Args:
            reject: Receives rows without a usable URL.
            defects: Receives the number of captions by what is wrong with them. A caption that is no text is missing.

        Raises:
            ListError: A file cannot be read, or lacks a column, or a column holds no texts.
        """
        ordinal = 0
        for number, file in enumerate(self.files):
            columns = Columns((file.columns.url, *file.columns.captions.values()))
            try:
                for chunk in read_chunks(file.source, file.path, columns, reject, logger.info):
                    table = self._to_table(chunk, number, ordinal, reject, defects)
                    ordinal += table.num_rows
                    yield table
            except MissingColumnError as error:
                if not self.tables:
                    raise
                raise _with_options(error, file.columns.url) from None

    def _to_table(
        self, chunk: Chunk, file_number: int, ordinal: int, reject: Reject, defects: Counter[str]
    ) -> pa.Table:
        """Convert a chunk of file number `file_number`, whose first row has the ordinal `ordinal`."""
        file = self.files[file_number]
        urls = [clean(value) or "" for value in to_list(chunk.columns[file.columns.url])]
        uids: list[str] = []
        usable: list[int] = []
        for index, url in enumerate(urls):
            try:
                uids.append(uid_of_listed_url(url))
                usable.append(index)
            except ValueError as error:
                reject(BadRow(file.source.name, clip(file.path), chunk.rows[index], str(error), clip(url)))
        texts: dict[str, Sequence[str | None]] = {name: [None] * len(urls) for name in self.names}
        texts |= {
            name: _texts(to_list(chunk.columns[column]), column, defects)
            for name, column in file.columns.captions.items()
        }
        columns = [
            pa.array([order_of(uid) for uid in uids], pa.uint64()),
            pa.array(uids, pa.string()),
            pa.array(range(ordinal, ordinal + len(usable)), pa.int64()),
            pa.array([file_number] * len(usable), pa.int32()),
            pa.array([chunk.rows[index] for index in usable], pa.int64()),
            pa.array([urls[index] for index in usable], pa.string()),
            *(pa.array([texts[name][index] for index in usable], pa.string()) for name in self.names),
        ]
        return pa.table(columns, schema=self.schema)


def _files_of(source: Source, is_given: bool, ignores_raw: bool) -> list[CaptionFile]:
    """The files of a source that have texts of a captioner.

    Args:
        source: The source.
        is_given: Whether every file has each column, as the source names it.
        ignores_raw: Whether it does not matter which of several columns holds the raw texts.
    """
    if is_given:
        columns = FoundColumns(source.url_column, None, source.captions, ())
        return [CaptionFile(source, path, columns) for path in files_of(source)]
    files = []
    for path in files_of(source):
        try:
            columns = found_columns(source, path)
        except MissingColumnError as error:
            if error.column != "text" or not ignores_raw:
                raise
            columns = found_columns(source.model_copy(update={"text": None}), path)
        if columns.captions:
            files.append(CaptionFile(source, path, columns))
    return files


def _base_name(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _texts(cells: list[Any], column: str, defects: Counter[str]) -> list[str]:
    """The captions in a column, empty where there is none. Those that are garbled or no text are counted."""
    texts = []
    for cell in cells:
        text = clean(cell) or ""
        if (kind := kind_of(cell)) is not None:
            defects[f"{column}: {kind}, not a text"] += 1
        elif len(text) < 10 and text.lower() in _NO_TEXTS:
            defects[f"{column}: {text!r}, which stands for a missing text"] += 1
            text = ""
        elif "\ufffd" in text and not is_utf8(cell):
            defects[f"{column}: {GARBLED}"] += 1
        texts.append(text)
    return texts


def open_caption_table(
    tables: str | Sequence[str],
    captioners: Iterable[str] = (),
    url_column: str | None = None,
    table_format: str | None = None,
    column_names: Sequence[str] = (),
) -> CaptionTable:
    """Describe a table of captions. Of its files, at most the columns' names are read.

    Args:
        tables: Paths or URLs of the table's files; `*` in the name stands for many files.
        captioners: `NAME=COLUMN` per captioner. Not needed for a preset. For `recap-long`, the columns of other
            captioners are found by their names all the same.
        url_column: Column of the URLs. Default: the preset's, or `url`.
        table_format: Name of a preset, or the format of files whose ending does not say it.
        column_names: Names of all columns, for CSV and TSV without a header.

    Raises:
        CaptionImportError: A file is missing, or the arguments do not fit together.
        MissingColumnError: A column cannot be found by its name.
    """
    paths = [tables] if isinstance(tables, str) else list(tables)
    preset = PRESETS.get(table_format or "", {})
    if table_format is not None and not preset and table_format not in _FORMATS:
        raise CaptionImportError(f"--format {table_format}: use {', '.join([*PRESETS, *_FORMATS])}")
    named = dict(_parse_captioner(captioner) for captioner in captioners)
    is_found = FIND in preset.values()
    columns = preset | named if is_found else named or preset
    if not columns:
        raise CaptionImportError(
            "name each captioner and its column: --captioner NAME=COLUMN, or --format dreamlip or recap-long"
        )
    settings: dict[str, Any] = {
        "name": "import",
        "files": list(map(storage.normalise, paths)),
        "url": url_column or _PRESET_URL_COLUMNS.get(table_format or "", "url"),
        "text": FIND if is_found else None,
        "captions": columns,
        "format": None if preset else table_format,
        "columns": tuple(column_names) or None,
    }
    source = _parse_source(settings, paths[0])
    command = _found_command(named, url_column, table_format, column_names) if is_found else None
    table = CaptionTable((source,), command, source.files)
    try:
        _check_found(table, named)
        schema.dataset(config.name for config in table.configs)  # raises if a name cannot be a column
    except MissingColumnError as error:
        raise _with_options(error, FIND if error.column == "url" else "") from None
    except ValueError as error:
        raise CaptionImportError(str(error)) from None
    return table


def open_source_captions(manifest: Manifest) -> CaptionTable:
    """The captions that the manifest's sources carry, as one table. Their columns' names are read.

    Raises:
        ListError: A file is missing or cannot be read.
        MissingColumnError: A captioner has no column in the files of a source.
    """
    sources = tuple(source for source in manifest.sources if source.captions)
    for source in sources:
        check_captions(source)
    return CaptionTable(sources, ())


def _parse_source(settings: dict[str, Any], table: str) -> Source:
    try:
        return Source.parse(settings, table)
    except UserError as error:
        raise CaptionImportError(str(error)) from None


def _found_command(
    named: Mapping[str, str], url_column: str | None, table_format: str | None, column_names: Sequence[str]
) -> tuple[str, ...]:
    """The arguments that describe the table again."""
    options = [part for name, column in named.items() for part in ("--captioner", f"{name}={column}")]
    options += ["--url-column", url_column] if url_column else []
    options += ["--format", table_format] if table_format else []
    return (*options, *(["--columns", ",".join(column_names)] if column_names else []))


def _check_found(table: CaptionTable, named: Mapping[str, str]) -> None:
    """Check that files whose columns are found have texts, and each column that is named."""
    (source,) = table.sources
    if table.command is None:
        return
    missing = [name for name in named if name not in table.names]
    if table.names and not missing:
        return
    path = files_of(source)[0]
    names = ", ".join(map(repr, column_names(source, path)))
    what = f"has no column {named[missing[0]]!r}" if missing else "no column's name names a captioner"
    raise MissingColumnError(f"{path}: {what}; its columns are {names}", "", "captioner")


def _with_options(error: MissingColumnError, url: str) -> MissingColumnError:
    """The error with the options of `import` that name a column.

    Args:
        error: About a column that a file lacks, or several that can be meant.
        url: The column of the URLs.
    """
    option = "the column of each captioner's texts with --captioner NAME=COLUMN"
    if error.column in (url, "url"):
        option = "the column of the URLs with --url-column"
    hint = f". Name {option}. If the table has no header, name all columns with --columns"
    return MissingColumnError(error.finding, hint, error.column)


def _parse_captioner(captioner: str) -> tuple[str, str]:
    name, equals, column = captioner.partition("=")
    if not (name and equals and column):
        raise CaptionImportError(f"--captioner {captioner}: give NAME=COLUMN, such as --captioner llava=long_caption")
    return name, column


def order_of(uid: str) -> int:
    """The first 64 bits of a uid. They are uniformly distributed, so buckets of them have about the same size."""
    return int(uid[:16], 16)
