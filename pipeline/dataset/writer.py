"""Writes the files of a shard, and reads the images of its input shard, without ever holding the images in memory.

The bytes that are written depend on the samples alone: owner, mode and time of the tar members are fixed, and members
are in the order of the rows. So a shard that is built again, by another driver or after a crash, is the same shard.

The samples of one input shard go into files by split, and into several files if the manifest limits their size.
"""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO

import pyarrow as pa
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lotlip_data.manifests import artifacts, storage
from lotlip_data.manifests.digests import digest_of, digest_of_file
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import tar_reader
from lotlip_data.manifests.formats.dataset_index import SPLITS, FileRecord, ShardFile
from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION
from lotlip_data.manifests.formats.tar_reader import TarMember
from lotlip_data.manifests.run_layout import shard_name
from lotlip_data.pipeline.curation.filters import Filters, SampleRow, split_of
from lotlip_data.pipeline.dataset.metadata import Recipe

ROW_GROUP = 1000
"""Rows of a row group in the Parquet files."""


class DamagedShard(UserError):
    """A tar or a Parquet file that cannot be read or lacks content; the message names it."""


@with_config(ConfigDict(extra="allow"))
class ImageRow(TypedDict):
    """The json member of an image: what the dataset takes from it."""

    uid: str
    url: str | None
    sha256: str | None
    texts: list[str]
    sources: list[str]
    width: int | None
    height: int | None
    original_width: int | None
    original_height: int | None


class ImageTar:
    """The images of a downloaded shard: a tar of `{key}.jpg` and `{key}.json`, in any order."""

    def __init__(self, stream: IO[bytes], url: str, remedy: str) -> None:
        """Read the headers and the json members; the images stay where they are.

        Args:
            stream: A seekable stream over the tar, which stays open as long as images are read.
            url: The name of the tar in errors.
            remedy: What to do if the tar is damaged; the end of the error message.

        Raises:
            DamagedShard: The tar cannot be read, has a member twice, or a member lacks its other half.
        """
        self._stream, self._url, self._remedy = stream, url, remedy
        self._images: dict[str, TarMember] = {}
        self.metas: dict[str, SampleRow] = {}
        """The content of the json members by key."""
        for member in tar_reader.scan_members(stream, url, remedy, DamagedShard):
            self._add(member)
        if alone := sorted(self._images.keys() ^ self.metas.keys()):
            raise self._damaged(f"{len(alone)} images or json members lack their other half: {alone[0]}")

    def _add(self, member: TarMember) -> None:
        key, extension = tar_reader.split_name(member.name)
        if extension not in (IMAGE_EXTENSION, "json"):
            return
        if key in (self._images if extension == IMAGE_EXTENSION else self.metas):
            raise self._damaged(f"contains {member.name} twice")
        if extension == IMAGE_EXTENSION:
            self._images[key] = member
            return
        try:
            row = artifacts.parse_json(self._read(member), member.name, "", ImageRow)
        except UserError as error:
            raise self._damaged(str(error)) from None
        self.metas[key] = dict(row) | {"key": key}

    def image(self, key: str) -> bytes:
        """The stored bytes of one image."""
        return self._read(self._images[key])

    def _read(self, member: TarMember) -> bytes:
        return tar_reader.read_member(self._stream, member, self._url, self._remedy, DamagedShard)

    def _damaged(self, problem: str) -> DamagedShard:
        return DamagedShard(f"{self._url}: {problem}. {self._remedy}")


class SpooledImages:
    """The images of a shard that can only be read in their order, copied to a local file.

    Args:
        stream: An empty file, which stays open as long as images are read.
        images: The row of each image, as in `ImageTar.metas`, and its bytes.
    """

    def __init__(self, stream: IO[bytes], images: Iterable[tuple[SampleRow, bytes]]) -> None:
        self._stream = stream
        self._spans: dict[str, tuple[int, int]] = {}
        self.metas: dict[str, SampleRow] = {}
        """The rows by key."""
        for row, content in images:
            self.metas[row["key"]] = row
            self._spans[row["key"]] = stream.tell(), len(content)
            stream.write(content)

    def image(self, key: str) -> bytes:
        """The bytes of one image."""
        start, size = self._spans[key]
        self._stream.seek(start)
        return self._stream.read(size)


def members(row: SampleRow, image: bytes, columns: Iterable[str]) -> list[tuple[str, bytes]]:
    """The tar members of a sample, as pairs of extension and content.

    Args:
        row: The sample, with all `columns`.
        image: The JPEG.
        columns: The keys of the json member.
    """
    return [
        (IMAGE_EXTENSION, image),
        ("json", json.dumps({name: row[name] for name in columns}, ensure_ascii=False).encode()),
        ("txt", row["raw"].encode()),
    ]


def _padded(size: int, block: int = tarfile.BLOCKSIZE) -> int:
    """`size` bytes, rounded up to whole blocks."""
    return -(-size // block) * block


def _member_bytes(sample: Iterable[tuple[str, bytes]]) -> int:
    """What the members take in a USTAR archive: a header of one block each, and the content in whole blocks."""
    return sum(tarfile.BLOCKSIZE + _padded(len(content)) for _, content in sample)


class SampleWriter:
    """Writes samples to a local WebDataset tar and its Parquet file. A context manager."""

    def __init__(self, tar: Path, parquet: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._tar = tarfile.TarFile(tar, "w", format=tarfile.USTAR_FORMAT)
        self._parquet = artifacts.parquet_writer(parquet, schema)
        self._rows: list[SampleRow] = []
        self._tar_bytes = 0
        self.samples = 0
        """The number of samples written so far."""

    def bytes_with(self, sample: Collection[tuple[str, bytes]]) -> int:
        """The size of the finished tar if this sample is its last one."""
        return _padded(self._tar_bytes + _member_bytes(sample) + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    def write(self, row: SampleRow, sample: Collection[tuple[str, bytes]]) -> None:
        """Write one sample.

        Args:
            row: The sample, with the columns of the schema.
            sample: The result of `members` for the row.
        """
        for extension, content in sample:
            member = tarfile.TarInfo(f"{row['key']}.{extension}")  # TarInfo's defaults: owner 0, mode 0644, time 0
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self._tar_bytes += _member_bytes(sample)
        self.samples += 1
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._write_row_group()

    def _write_row_group(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write_row_group()
        self._tar.close()
        self._parquet.close()


def record_of(local: Path, name: str) -> FileRecord:
    """The record of a local file that is to be committed as `name`."""
    digest = digest_of_file(local)
    return FileRecord(name, digest.bytes, digest.sha256)


def is_there(folder: str, file: FileRecord) -> bool | None:
    """Whether the object of this name has this content; None if there is none. It is read only if its size fits."""
    url = storage.join(folder, file.name)
    size = storage.size(url)
    if size is None:
        return None
    return size == file.bytes and digest_of(url) == file.digest


def commit_files(folder: str, stems: Sequence[str], paths: Sequence[Path]) -> list[FileRecord]:
    """Commit local files of one stem under the first stem that is free or already has the same content.

    An interrupted attempt leaves the same bytes, because the bytes of a shard depend on its samples alone. Other
    content under a stem may be in use by a reader, so it stays. If no stem is left, the digest of the content is
    appended to the first one; other content under that name is damaged and is removed.

    Args:
        folder: The folder, as a path or URL.
        stems: Names without extension, in the order of preference.
        paths: The local files. Their extensions are kept.

    Raises:
        DamagedShard: Another process keeps writing other content under the last name.
    """
    contents = [record_of(path, path.suffix) for path in paths]
    last = f"{stems[0]}-{hashlib.sha256(''.join(file.sha256 for file in contents).encode()).hexdigest()[:12]}"
    for stem in (*stems, last):
        files = [replace(file, name=stem + file.name) for file in contents]
        states = [is_there(folder, file) for file in files]
        if stem != last and False in states:
            continue
        for file, is_same in zip(files, states, strict=True):
            if is_same is False:
                storage.remove(storage.join(folder, file.name))
        urls = [storage.join(folder, file.name) for file in files]
        created = [storage.create_from_file(url, str(path)) for url, path in zip(urls, paths, strict=True)]
        if all(is_new or is_there(folder, file) for is_new, file in zip(created, files, strict=True)):
            return files
    raise DamagedShard(f"{folder}/{last}: cannot be written: another process keeps writing other content there")


def write_shard(
    folder: str,
    shard: int,
    recipe: Recipe,
    rows: list[SampleRow],
    image: Callable[[str], bytes],
    columns: pa.Schema,
    scratch: Path,
) -> list[ShardFile]:
    """Write and commit the tars and Parquet files of a shard.

    Args:
        folder: The folder of the dataset, as a path or URL.
        shard: The number of the input shard.
        recipe: The recipe of the dataset.
        rows: The samples in the order in which they are written.
        image: Returns the JPEG of a key.
        columns: The schema of the Parquet files.
        scratch: A local folder for unfinished files.
    """
    outputs = []
    for split in SPLITS:
        rows_of_split = [row for row in rows if split_of(row["uid"], recipe.rules.validation) == split]
        for index, piece in enumerate(_write_pieces(rows_of_split, image, columns, recipe.rules, scratch)):
            stem = f"{split}-{shard_name(shard)}" + (f"-{index:02d}" if recipe.rules.limits_files else "")
            outputs.append(_commit(folder, stem, split, recipe, piece))
    return outputs


class _Piece:
    """One local tar with its Parquet file, and their counts."""

    def __init__(self, scratch: Path, columns: pa.Schema) -> None:
        self.files = scratch / "samples.tar", scratch / "samples.parquet"
        self.writer = SampleWriter(*self.files, columns)
        self.filled: Counter[str] = Counter()
        """Samples by column that is not null."""

    def is_full(self, sample: Collection[tuple[str, bytes]], rules: Filters) -> bool:
        """Whether another sample would exceed the limits of a file."""
        if self.writer.samples == rules.max_samples:
            return True
        return rules.max_bytes is not None and self.writer.bytes_with(sample) > rules.max_bytes

    def write(self, row: SampleRow, sample: Collection[tuple[str, bytes]]) -> None:
        self.writer.write(row, sample)
        self.filled.update(name for name, value in row.items() if value is not None)


def _write_pieces(
    rows: Iterable[SampleRow], image: Callable[[str], bytes], columns: pa.Schema, rules: Filters, scratch: Path
) -> Iterator[_Piece]:
    """The samples in files within the limits, one pair of files at a time: the next pair overwrites it."""
    with ExitStack() as open_files:
        piece = None
        for row in rows:
            sample = members(row, image(row["key"]), columns.names)
            if piece is not None and piece.is_full(sample, rules):
                open_files.pop_all().close()
                yield piece
                piece = None
            if piece is None:
                piece = _Piece(scratch, columns)
                open_files.enter_context(piece.writer)
            piece.write(row, sample)
        open_files.close()
        if piece is not None:
            yield piece


def _commit(folder: str, stem: str, split: str, recipe: Recipe, piece: _Piece) -> ShardFile:
    """Commit a piece under its plain name, or, if that is taken, with digits of the recipe: the tars stay numbered."""
    tar, parquet = commit_files(folder, (stem, f"{stem}-{recipe.id[:6]}"), piece.files)
    long_texts = {name: piece.filled[name] for name in recipe.captioners}
    return ShardFile(split, piece.writer.samples, long_texts, tar, parquet, folder)
