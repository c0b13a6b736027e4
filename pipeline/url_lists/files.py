"""Finds the files of a source and opens them: regular files and URLs, decompressed by their content.

A file's first bytes decide whether it is compressed; its name does not. Files of another kind, such as a ZIP archive,
are refused with their kind and what to do. A device or a pipe is never opened, and the size of a body is bounded.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import IO, Any

import pyarrow as pa
from braceexpand import braceexpand

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.storage_http import is_http
from lotlip_data.manifests.storage_retry import StorageError, client_errors
from lotlip_data.pipeline.url_lists.rows import ListError, Remark

SAMPLE_BYTES = 1 << 20
"""Bytes at the beginning of a text file by which its kind, line breaks and delimiter are detected."""
MAX_FILES = 1_000_000
"""Largest number of files that the braces in a name can stand for."""
MAX_BODY_BYTES = 64 << 30
"""Largest body of a URL whose server does not report its size."""

_COMPRESSIONS = (
    (re.compile(rb"\x1f\x8b\x08"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstd"),
    (re.compile(rb"BZh[1-9]1AY&SY"), "bz2"),
)
_NUMBERS = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_COMPRESSED_ENDINGS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_PARQUET = b"PAR1"
_KINDS = (
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; unpack it, or save it as CSV"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\xfd7zXZ\x00", "compressed with xz; decompress it with `unxz`"),
    (b"\x04\x22\x4d\x18", "compressed with lz4; decompress it with `unlz4`"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it"),
    (b"ARROW1", "an Arrow IPC (Feather) file; write it as Parquet"),
    (b"Obj\x01", "an Avro file; write it as Parquet"),
    (b"ORC", "an ORC file; write it as Parquet"),
    (b"\x89HDF", "an HDF5 file; write it as Parquet"),
    (b"SQLite format 3\x00", "an SQLite database; export the table as CSV"),
    (b"\x80\x04\x95", "a Python pickle; write it as Parquet"),
    (b"\x80\x05\x95", "a Python pickle; write it as Parquet"),
    (b"\x93NUMPY", "a NumPy array; write it as Parquet"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook; save it as CSV in UTF-8"),
    (b"version https://git-lfs.github.com", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
)
_MARKUP = re.compile(rb"\s*<(?:!doctype html|html|\?xml)", re.I)
_EXPANSION = 4  # bytes of text per byte of Parquet, gzip or zstd
_UNKNOWN_SIZE_BYTES = 1 << 30


def files_of(source: Source) -> list[str]:
    """The source's files, with patterns expanded; those that match one `*` are sorted.

    Raises:
        ListError: A name or pattern matches nothing, or matches something that is not a regular file.
        StorageError: A server does not answer, or refuses.
    """
    return list(chain.from_iterable(map_ordered(existing_files, names_of(source))))


def names_of(source: Source) -> list[str]:
    """The source's files, with braces expanded as bash does it, in their order. They may contain `*`.

    A name with braces that exists stands for itself. Raises ListError for braces that are not closed, or that stand for
    more than `MAX_FILES` files.
    """
    return list(chain.from_iterable(_expanded(file) for file in source.files))


def _expanded(file: str) -> list[str]:
    if "{" not in file:
        return [file]
    if _is_a_name(file):
        return [file]
    numbers = [range(*sorted((int(first), int(last)))) for first, last in _NUMBERS.findall(file)]
    too_many = f"{file}: its braces stand for more than {MAX_FILES:,} files; use several sources"
    if math.prod(len(each) for each in numbers) > MAX_FILES:
        raise ListError(too_many)
    try:
        names = list(islice(braceexpand(file, escape=False), MAX_FILES + 1))
    except ValueError as error:  # UnbalancedBracesError, which its types do not have
        raise ListError(f"{file}: its braces cannot be expanded: {error}") from None
    if len(names) > MAX_FILES:
        raise ListError(too_many)
    return names


def _is_a_name(file: str) -> bool:
    """Whether a name with braces exists as it is. Servers may refuse to answer for what does not exist."""
    try:
        return not is_http(file) and storage.exists(file)
    except (OSError, StorageError):
        return False


def existing_files(file: str) -> list[str]:
    """The files that a name or a pattern with `*` stands for, sorted. Raises what `files_of` raises."""
    with errors_name(file):
        return _existing(file)


def _existing(file: str) -> list[str]:
    if "*" in file:
        files = storage.list_matching(file)
        if not files:
            raise ListError(f"{file}: no file matches")
        if not storage.is_local(file):
            return files
    else:
        files = [file]
    for name in files:
        kind = storage.kind(name)
        if kind is None:
            raise ListError(f"{name}: there is no such file")
        if kind == "directory":
            raise ListError(f"{name}: is a folder; name the files in it, for example with `*`")
        if kind != "file":
            raise ListError(f"{name}: is not a regular file but a device, a pipe or a socket; save the list as a file")
    return files


def uncompressed_bytes(source: Source) -> int:
    """An estimate of the uncompressed size of the source's files, in bytes. Raises ListError as `files_of` does."""
    total = 0
    for file in files_of(source):
        size = storage.size(file)
        packed = file.lower().endswith(tuple(_COMPRESSED_ENDINGS)) or source.format_of(file) == "parquet"
        total += _UNKNOWN_SIZE_BYTES if size is None else size * (_EXPANSION if packed else 1)
    return total


def stamp_of(source: Source) -> str | None:
    """A digest of the names, sizes and times of the source's files, to notice changes.

    Returns None if a file is missing or out of reach.
    """
    digest = hashlib.sha256()
    try:
        for stamps in map_ordered(storage.stamps_matching, names_of(source)):
            if not stamps:
                return None
            digest.update(json.dumps(stamps).encode())
    except (OSError, StorageError, ListError):
        return None
    return digest.hexdigest()


@contextmanager
def errors_name(file: str) -> Iterator[None]:
    """Turn read errors into ListErrors that name the file."""
    try:
        yield
    except UserError:  # also a ValueError
        raise
    except (OSError, ValueError, pa.ArrowException, *client_errors()) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ListError(f"{file}: cannot be read: {reason.removeprefix(f'{file}: ')}") from error


def open_text(stream: IO[bytes], file: str, remark: Remark) -> tuple[bytes, IO[bytes]]:
    """Open a text file.

    Args:
        stream: The bytes of the file.
        file: Its name, for messages.
        remark: Receives a sentence if the name says another compression than the content.

    Returns:
        The first `SAMPLE_BYTES` of the decompressed content, and a stream of the whole of it.

    Raises:
        ListError: The file is of another kind.
    """
    limit = MAX_BODY_BYTES if getattr(stream, "size", 0) is None else None
    head, rejoined = _peek(stream, file, 64, limit)
    compression = next((name for start, name in _COMPRESSIONS if start.match(head)), None)
    named = next((name for ending, name in _COMPRESSED_ENDINGS.items() if file.lower().endswith(ending)), None)
    if head and compression != named:
        remark(f"{file}: is {f'compressed with {compression}' if compression else 'not compressed'}, unlike its name")
    # Arrow reads only what it needs, so that the position in the file tells how much of it was used.
    plain = pa.CompressedInputStream(rejoined, compression) if compression else rejoined
    sample, content = _peek(plain, file, SAMPLE_BYTES)
    _check_kind(sample, file)
    return sample, io.BufferedReader(content, SAMPLE_BYTES)


def check_parquet(stream: IO[bytes], file: str) -> None:
    """Raise ListError if the file is known to be of another kind than Parquet. The stream is rewound."""
    head = stream.read(64)
    try:
        stream.seek(0)
    except ValueError:
        raise ListError(f"{file}: its server sends only whole files; download it to read it as Parquet") from None
    if compression := next((name for start, name in _COMPRESSIONS if start.match(head)), None):
        raise ListError(f"{file}: is compressed with {compression}; Parquet is read only decompressed")
    if not head.startswith(_PARQUET):
        _check_kind(head, file)


def _check_kind(head: bytes, file: str) -> None:
    """Raise ListError if the first bytes of the file are not those of a text."""
    if head.startswith(_PARQUET):
        raise ListError(f"{file}: is a Parquet file; set `format: parquet`")
    if kind := next((kind for start, kind in _KINDS if head.startswith(start)), None):
        raise ListError(f"{file}: is {kind}")
    if any(start.match(head) for start, _ in _COMPRESSIONS):
        raise ListError(f"{file}: is compressed twice; decompress it once")
    if _MARKUP.match(head):
        raise ListError(f"{file}: is an HTML or XML page, not a list; does its URL need a login?")


def _peek(stream: Any, file: str, length: int, limit: int | None = None) -> tuple[bytes, "_Rejoined"]:
    """The first `length` bytes of a stream, and a stream of all bytes, of which at most `limit` are read."""
    head = b""
    while len(head) < length and (block := stream.read(length - len(head))):
        head += block
    return head, _Rejoined(head, stream, file, limit)


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read before. Raises ListError after `limit` bytes."""

    def __init__(self, head: bytes, rest: Any, file: str, limit: int | None) -> None:
        self._head, self._rest, self._file, self._limit = io.BytesIO(head), rest, file, limit
        self._bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head.read(len(buffer)) or self._rest.read(len(buffer))
        self._bytes += len(data)
        if self._limit is not None and self._bytes > self._limit:
            raise ListError(
                f"{self._file}: the server reports no size and sends more than {self._limit >> 30} GiB; download the "
                "file first"
            )
        buffer[: len(data)] = data
        return len(data)
