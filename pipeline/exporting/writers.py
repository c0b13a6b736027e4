"""Writes the rows of one shard to a local file: Parquet, JSON lines, CSV, or a tar with the images.

The bytes depend on the rows and images alone, so a shard that is exported again is the same file.
"""

import io
import json
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import pyarrow as pa
from pyarrow import csv

from lotlip_data.manifests import artifacts
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.pipeline.exporting.rows import Row

ROW_GROUP = 1000
"""Rows that are encoded at a time."""

_LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
"""Characters that JSON allows in texts and some readers take for the end of a line."""


class Writer(Protocol):
    """Writes rows to one file. A context manager; the file is complete at its end."""

    def write(self, row: Row, image: bytes | None, is_complete: bool) -> None:
        """Write one row.

        Args:
            row: The columns of the schema.
            image: The JPEG, for a format with images.
            is_complete: Whether the row has a text by every captioner.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Batched:
    """Collects rows, and hands ROW_GROUP of them at a time to `_encode`."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._rows: list[Row] = []

    def write(self, row: Row, image: bytes | None, is_complete: bool) -> None:
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._encode(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def _encode(self, rows: pa.Table) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._close()


class ParquetWriter(_Batched):
    """A Parquet file with checksums of its pages."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._file = artifacts.parquet_writer(file, schema)

    def _encode(self, rows: pa.Table) -> None:
        self._file.write_table(rows)

    def _close(self) -> None:
        self._file.close()


class CsvWriter(_Batched):
    """CSV in UTF-8 with a header. As RFC 4180 has it, texts are in quotes, and quotes in them are doubled.

    An empty text is `""`, and a null is nothing. A list is a JSON array.
    """

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._lists = {field.name for field in schema if pa.types.is_list(field.type)}
        flat = pa.schema([(field.name, pa.string() if field.name in self._lists else field.type) for field in schema])
        super().__init__(flat)
        self._file = csv.CSVWriter(file, flat, write_options=csv.WriteOptions(quoting_style="needed"))

    def write(self, row: Row, image: bytes | None, is_complete: bool) -> None:
        lists = {name: json.dumps(row[name], ensure_ascii=False) for name in self._lists}
        super().write(row | lists, image, is_complete)

    def _encode(self, rows: pa.Table) -> None:
        self._file.write_table(rows)

    def _close(self) -> None:
        self._file.close()


class JsonLinesWriter:
    """One JSON object per line, in UTF-8."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._names = schema.names
        self._file = file.open("w", encoding="utf-8", newline="\n")

    def write(self, row: Row, image: bytes | None, is_complete: bool) -> None:
        self._file.write(_json(row, self._names).translate(_LINE_ENDS) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


class TarWriter:
    """A WebDataset tar of `{key}.jpg`, `{key}.json` and `{key}.txt`, the raw text if the image has one.

    Hugging Face `datasets` infers members and types of a tar from its first samples, so samples with all texts come
    first. The others wait in files beside it.
    """

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self._file, self._names = file, schema.names
        self._tar = self._create(file)
        self._later: dict[int, tarfile.TarFile] = {}
        """By rank, samples that come after those of a lower rank."""

    def write(self, row: Row, image: bytes | None, is_complete: bool) -> None:
        assert image is not None
        members = {IMAGE_EXTENSION: image, "json": _json(row, self._names).encode()}
        if row["raw"] is not None:
            members["txt"] = row["raw"].encode()
        tar = self._tar_of(2 * (not is_complete) + (row["raw"] is None))
        for extension, content in members.items():
            header = tarfile.TarInfo(f"{row['key']}.{extension}")  # TarInfo's defaults: owner 0, mode 0644, time 0
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))

    def _tar_of(self, rank: int) -> tarfile.TarFile:
        if rank and rank not in self._later:
            self._later[rank] = self._create(self._file_of(rank))
        return self._later[rank] if rank else self._tar

    def _file_of(self, rank: int) -> Path:
        return self._file.with_name(f"{self._file.name}.{rank}")

    @staticmethod
    def _create(file: Path) -> tarfile.TarFile:
        return tarfile.TarFile(file, "w", format=tarfile.PAX_FORMAT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for rank, later in sorted(self._later.items()):
            later.close()
            if error is None:
                with tarfile.open(self._file_of(rank), "r:") as samples:
                    for member in samples:
                        self._tar.addfile(member, samples.extractfile(member))
        self._tar.close()


def _json(row: Row, names: list[str]) -> str:
    return json.dumps({name: row[name] for name in names}, ensure_ascii=False)


WriterOf = type[ParquetWriter] | type[CsvWriter] | type[JsonLinesWriter] | type[TarWriter]
