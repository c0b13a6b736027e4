"""The two files of a shard, read and written without ever holding its images in memory.

The bytes that are written follow from the samples alone: fixed owner, mode and time, members in the order of the rows.
So a shard that is built again, by another driver or after a crash, is the same shard.

The samples of one input shard into the files of the dataset: by split, and no file larger than asked for.
"""

import hashlib
import io
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.dataset_index import SPLITS, FileRecord, Output
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import shard_name
from lotlip_data.manifests.schema import IMAGE_EXTENSION
from lotlip_data.pipeline.curation.filters import Filters, SampleRow, split_of
from lotlip_data.pipeline.dataset.metadata import Recipe

ROW_GROUP = 1000
_CHUNK = 1 << 22

Row = dict[str, Any]


class DamagedShard(UserError):
    """A tar or a Parquet that cannot be read or does not hold what it should; the message names it."""


class ImageTar:
    """A tar of `{key}.jpg` and `{key}.json` in any order: `metas` in memory, the images where they lie.

    Raises DamagedShard where a member lacks its other half, stands twice, or the tar cannot be read.
    """

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream = stream
        self._images: dict[str, tuple[int, int]] = {}
        self.metas: dict[str, Row] = {}
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    self._index(tar, member, where)
        except (tarfile.TarError, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedShard(f"{where}: cannot be read: {error}") from error
        if alone := sorted(self._images.keys() ^ self.metas.keys()):
            raise DamagedShard(f"{where}: {len(alone)} images or json members lack their other half: {alone[0]}")

    def _index(self, tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> None:
        key, _, ending = member.name.partition(".")
        known = self.metas if ending == "json" else self._images
        if key in known and ending in ("json", IMAGE_EXTENSION):
            raise DamagedShard(f"{where}: {member.name} stands in it twice")
        if ending == "json":
            content = tar.extractfile(member)
            assert content is not None, "a json member is a file"
            self.metas[key] = json.loads(content.read()) | {"key": key}
        elif ending == IMAGE_EXTENSION:
            self._images[key] = (member.offset_data, member.size)

    def image(self, key: str) -> bytes:
        """The stored bytes of one image."""
        offset, size = self._images[key]
        self._stream.seek(offset)
        return self._stream.read(size)


@contextmanager
def open_local(url: str, scratch: Path) -> Iterator[IO[bytes]]:
    """A stream over the object that is cheap to seek in: of a remote one, a copy in the folder `scratch`.

    Raises DamagedShard where the object is missing.
    """
    try:
        source = storage.open_read(url)
    except FileNotFoundError:
        raise DamagedShard(f"{url}: is missing, though a marker names it") from None
    with source:
        if storage.is_local(url):
            yield source
            return
        with (scratch / url.rsplit("/", 1)[-1]).open("w+b") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)
            copy.seek(0)
            yield copy


def members(row: Row, image: bytes, columns: Iterable[str]) -> list[tuple[str, bytes]]:
    """The members of one sample, by their endings: `row` has the `columns`, `image` is a JPEG."""
    return [
        (IMAGE_EXTENSION, image),
        ("json", json.dumps({name: row[name] for name in columns}, ensure_ascii=False).encode()),
        ("txt", row["raw"].encode()),
    ]


def padded(size: int, block: int = tarfile.BLOCKSIZE) -> int:
    """`size` bytes, rounded up to whole blocks."""
    return -(-size // block) * block


class SampleWriter:
    """Writes samples to a WebDataset tar and its Parquet twin, both local files; used as a context."""

    def __init__(self, tar: Path, parquet: Path, schema: pa.Schema) -> None:
        self._schema = schema
        self._tar = tarfile.TarFile(tar, "w", format=tarfile.USTAR_FORMAT)
        self._parquet = pq.ParquetWriter(parquet, schema, compression="zstd")
        self._rows: list[Row] = []
        self.samples = 0

    def bytes_with(self, sample: Iterable[tuple[str, bytes]]) -> int:
        """The size of the finished tar, were this sample its last one."""
        size = sum(tarfile.BLOCKSIZE + padded(len(content)) for _, content in sample)
        return padded(self._tar.offset + size + 2 * tarfile.BLOCKSIZE, tarfile.RECORDSIZE)

    def write(self, row: Row, sample: Iterable[tuple[str, bytes]]) -> None:
        """One sample: `row` has the columns of the schema, `sample` is what `members` made of it."""
        for ending, content in sample:
            member = tarfile.TarInfo(f"{row['key']}.{ending}")  # owner 0, mode 0644, time 0 are TarInfo's own
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))
        self.samples += 1
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._tar.close()
        self._parquet.close()


def digest(stream: Iterable[bytes]) -> tuple[int, str]:
    """Bytes and sha256 of what comes in pieces."""
    size, found = 0, hashlib.sha256()
    for piece in stream:
        size += len(piece)
        found.update(piece)
    return size, found.hexdigest()


def digest_of(url: str) -> tuple[int, str]:
    """Bytes and sha256 of an object, read in pieces. Raises FileNotFoundError where there is none."""
    with storage.open_read(url) as stream:
        return digest(iter(lambda: stream.read(_CHUNK), b""))


def record_of(local: Path, name: str) -> FileRecord:
    """What the local file will be once it is committed as `name`."""
    with local.open("rb") as stream:
        return FileRecord(name, *digest(iter(lambda: stream.read(_CHUNK), b"")))


def is_there(folder: str, file: FileRecord) -> bool | None:
    """Whether the object of this name holds these bytes; None where there is none. Read only where the size fits."""
    url = storage.join(folder, file.name)
    size = storage.size(url)
    if size is None:
        return None
    return size == file.bytes and digest_of(url) == (file.bytes, file.sha256)


def commit_files(folder: str, stems: Sequence[str], locals_: Sequence[Path]) -> list[FileRecord]:
    """Commit the files of one output under the first of `stems` that is free, or holds these very bytes already.

    What an interrupted attempt left under a name is the same bytes, because a shard's bytes follow from its samples.
    Anything else under that name may be what a reader is reading, and stays. Where no stem is left, the first one gets
    the content's digest: what is there under that name and differs is damaged, and makes room.
    """
    contents = [record_of(path, path.suffix) for path in locals_]
    last = f"{stems[0]}-{hashlib.sha256(''.join(file.sha256 for file in contents).encode()).hexdigest()[:12]}"
    for stem in (*stems, last):
        files = [replace(file, name=stem + file.name) for file in contents]
        there = [is_there(folder, file) for file in files]
        if stem != last and False in there:
            continue
        for file, same in zip(files, there, strict=True):
            if same is False:
                storage.remove(storage.join(folder, file.name))
        urls = [storage.join(folder, file.name) for file in files]
        made = [storage.create_from_file(url, str(path)) for url, path in zip(urls, locals_, strict=True)]
        if all(new or is_there(folder, file) for new, file in zip(made, files, strict=True)):
            return files
    raise DamagedShard(f"{folder}/{last}: cannot be written, something else is written there all the while")


def write(
    folder: str,
    number: int,
    recipe: Recipe,
    rows: list[SampleRow],
    image: Callable[[str], bytes],
    columns: pa.Schema,
    scratch: Path,
) -> list[Output]:
    """Write and commit the tars and Parquets of a shard into `folder`; `image` gives the stored bytes by key."""
    outputs = []
    for split in SPLITS:
        few = [row for row in rows if split_of(row["uid"], recipe.rules.validation) == split]
        for index, piece in enumerate(_pieces(few, image, columns, recipe.rules, scratch)):
            stem = f"{split}-{shard_name(number)}" + (f"-{index:02d}" if recipe.rules.limits_files else "")
            outputs.append(_commit(folder, stem, split, recipe, piece))
    return outputs


class _Piece:
    """One tar and its twin while they are written, and their counts."""

    def __init__(self, scratch: Path, columns: pa.Schema) -> None:
        self.files = scratch / "samples.tar", scratch / "samples.parquet"
        self.writer = SampleWriter(*self.files, columns)
        self.filled: Counter[str] = Counter()
        """Samples by column that holds something."""


def _pieces(
    rows: Iterable[SampleRow], image: Callable[[str], bytes], columns: pa.Schema, rules: Filters, scratch: Path
) -> Iterable[_Piece]:
    """The samples in files within the limits, one pair of files at a time: each is gone when the next is asked for."""
    with ExitStack() as open_files:
        piece = None
        for row in rows:
            sample = members(row, image(row["key"]), columns.names)
            if piece is not None and (
                piece.writer.samples == rules.max_samples
                or (rules.max_bytes is not None and piece.writer.bytes_with(sample) > rules.max_bytes)
            ):
                open_files.pop_all().close()
                yield piece
                piece = None
            if piece is None:
                piece = _Piece(scratch, columns)
                open_files.enter_context(piece.writer)
            piece.writer.write(row, sample)
            piece.filled.update(name for name, value in row.items() if value is not None)
        open_files.close()
        if piece is not None:
            yield piece


def _commit(folder: str, stem: str, split: str, recipe: Recipe, piece: _Piece) -> Output:
    """Plain names as long as they are free, then names with the recipe, so that a rewritten dataset is numbered too."""
    tar, parquet = commit_files(folder, (stem, f"{stem}-{recipe.id[:6]}"), piece.files)
    long_texts = {name: piece.filled[name] for name in recipe.captioners}
    return Output(split, piece.writer.samples, long_texts, tar, parquet)
