"""A table of captions that exist already: which column is whose, and what its captioners are called."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pydantic import ValidationError

from lotlip_data.captioners.base import CaptionerConfig
from lotlip_data.manifests import schema, storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.schema import IMPORTED_KIND
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.url_lists.reader import (
    BadRow,
    Chunk,
    Reject,
    clean,
    clip,
    files_of,
    read_chunks,
    uid_of_listed_url,
)

PRESETS: dict[str, dict[str, str]] = {
    "dreamlip": {
        "dreamlip-instructblip": "longIB_captions",
        "dreamlip-llava": "longLLA_captions",
        "dreamlip-sharegpt4v": "longSV_captions",
    }
}
"""From the name of a release to its captioners and their columns."""
_PRESET_URLS = {"dreamlip": "Image Path"}
_FORMATS = ("csv", "tsv", "jsonl", "parquet")


class ImportProblem(UserError):
    """A table that cannot be imported; the message says why and what to do."""


@dataclass(frozen=True)
class CaptionTable:
    """Files with a column of URLs and a column for each captioner's texts."""

    source: Source
    columns: Mapping[str, str]
    """Captioner to column."""

    @cached_property
    def files(self) -> list[str]:
        return files_of(self.source)

    @cached_property
    def configs(self) -> list[CaptionerConfig]:
        """What the captioners are called: an id covers the column, and the names and sizes of the table's files."""
        seen = sorted((file.rsplit("/", 1)[-1], storage.size(file)) for file in self.files)
        digest = hashlib.sha256(json.dumps([self.source.url, seen]).encode()).hexdigest()[:12]
        return [
            CaptionerConfig.from_dict(
                {
                    "name": name,
                    "kind": IMPORTED_KIND,
                    "model": f"{seen[0][0]}#{column}",
                    "revision": digest,
                    "prompt": "Imported: its prompt is not known.",
                }
            )
            for name, column in self.columns.items()
        ]

    @property
    def schema(self) -> pa.Schema:
        """Columns of `batches`; `order` is the beginning of the uid, `ordinal` the row's place in the whole table."""
        fixed = [("order", pa.uint64()), ("uid", pa.string()), ("ordinal", pa.int64()), ("file", pa.int32())]
        texts = [(f"text {name}", pa.string()) for name in self.columns]
        return pa.schema([*fixed, ("row", pa.int64()), ("url", pa.string()), *texts])

    def batches(self, reject: Reject) -> Iterator[pa.Table]:
        """The rows of all files; those without a usable URL go to `reject`."""
        wanted = list(dict.fromkeys([self.source.url, *self.columns.values()]))
        ordinal = 0
        for number, file in enumerate(self.files):
            for chunk in read_chunks(self.source, file, wanted, reject):
                table = self._table(chunk, number, ordinal, reject)
                ordinal += table.num_rows
                yield table

    def _table(self, chunk: Chunk, file: int, ordinal: int, reject: Reject) -> pa.Table:
        urls = [clean(value) or "" for value in _listed(chunk, self.source.url)]
        uids: list[str] = []
        good: list[int] = []
        for index, url in enumerate(urls):
            try:
                uids.append(uid_of_listed_url(url))
                good.append(index)
            except ValueError as error:
                reject(BadRow(self.source.name, self.files[file], chunk.rows[index], str(error), clip(url)))
        texts = {column: [clean(value) for value in _listed(chunk, column)] for column in set(self.columns.values())}
        columns = [
            pa.array([order_of(uid) for uid in uids], pa.uint64()),
            pa.array(uids, pa.string()),
            pa.array(range(ordinal, ordinal + len(good)), pa.int64()),
            pa.array([file] * len(good), pa.int32()),
            pa.array([chunk.rows[index] for index in good], pa.int64()),
            pa.array([urls[index] for index in good], pa.string()),
            *(pa.array([texts[name][index] for index in good], pa.string()) for name in self.columns.values()),
        ]
        return pa.table(columns, schema=self.schema)


def caption_table(
    table: str, captioners: Iterable[str] = (), url_column: str | None = None, form: str | None = None
) -> CaptionTable:
    """The table in the file or files `table` (a path or URL, `*` allowed).

    captioners: `NAME=COLUMN`, instead of those of a preset. form: `dreamlip`, or the format of the files where
    their ending does not tell. Raises ImportProblem for what does not fit or is not there.
    """
    preset = PRESETS.get(form or "", {})
    if form is not None and not preset and form not in _FORMATS:
        raise ImportProblem(f"--format {form}: use {', '.join([*PRESETS, *_FORMATS])}")
    columns = dict(_named(captioner) for captioner in captioners) or preset
    if not columns:
        raise ImportProblem("name each captioner and its column: --captioner NAME=COLUMN, or --format dreamlip")
    url = url_column or _PRESET_URLS.get(form or "", "url")
    settings = {"name": "import", "files": [storage.normalise(table)], "url": url, "text": next(iter(columns.values()))}
    try:
        source = Source.model_validate(settings | {"format": None if preset else form})
        found = CaptionTable(source, columns)
        schema.dataset(config.name for config in found.configs)  # a name that cannot be a column is refused here
        return found
    except ValidationError as error:
        raise ImportProblem(f"{table}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    except ValueError as error:
        raise ImportProblem(str(error)) from None


def _named(captioner: str) -> tuple[str, str]:
    name, equals, column = captioner.partition("=")
    if not (name and equals and column):
        raise ImportProblem(f"--captioner {captioner}: give NAME=COLUMN, such as --captioner llava=long_caption")
    return name, column


def order_of(uid: str) -> int:
    """The first 64 bits of a uid, which are uniform as they are."""
    return int(uid[:16], 16)


def _listed(chunk: Chunk, column: str) -> list[object]:
    values = chunk.columns[column]
    listed: list[object] = values.to_pylist() if isinstance(values, pa.Array) else values
    return listed
