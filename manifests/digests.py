"""Size and sha256 of files, so that a reader notices any bit that has changed since a file was written.

The digest of a file is recorded in one of two places:

- In the marker that commits the file, as a `Digest`: image tars, files of the dataset, files of a model.
- In the file itself, if no other object names it: JSON objects (`embed_in_json`) and Parquet files
  (`embed_in_parquet`). Any tool can read them, with or without the digest.

Files without a digest, of earlier releases or of other tools, are read as they are.
"""

import hashlib
import re
from pathlib import Path
from typing import IO

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lotlip_data.manifests import storage

JSON_KEY = "content_sha256"
"""The last field of a JSON object: the sha256 of the bytes before the comma in front of it."""
MISMATCH = "its content does not match its recorded sha256"

_CHUNK_BYTES = 1 << 22
_JSON_END = re.compile(rb',?\s*"' + JSON_KEY.encode() + rb'": "([0-9a-f]{64})"\s*\}\s*\Z')
_JSON_END_BYTES = 256
_PARQUET_MARK = b"\xffLOTLIP-SHA256\xff\xfe"
"""Comes before the digest in a Parquet file. It is not UTF-8, so no text in the file contains it."""
_PARQUET_END_BYTES = 8  # the length of the footer, and the magic bytes of the format


class DigestMismatch(ValueError):
    """The content of a file is not that of its recorded digest."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Digest:
    """Size in bytes and sha256 of a file."""

    bytes: int
    sha256: str

    def check(self, actual: "Digest") -> None:
        """Raise DigestMismatch unless `actual` is the same digest."""
        if actual.bytes != self.bytes:
            raise DigestMismatch(f"it has {actual.bytes:,} bytes instead of {self.bytes:,}")
        if actual.sha256 != self.sha256:
            raise DigestMismatch(MISMATCH)


class HashingReader:
    """A stream that computes the digest of what is read from it. It reads forward only."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._sha256, self._bytes = stream, hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._sha256.update(content)
        self._bytes += len(content)
        return content

    def read_to_end(self) -> Digest:
        """Read the rest of the stream. Returns the digest of the whole stream."""
        while self.read(_CHUNK_BYTES):
            pass
        return Digest(self._bytes, self._sha256.hexdigest())


def digest_of_bytes(content: bytes) -> Digest:
    return Digest(len(content), hashlib.sha256(content).hexdigest())


def digest_of_file(file: Path) -> Digest:
    """The digest of a local file."""
    with file.open("rb") as stream:
        return HashingReader(stream).read_to_end()


def digest_of(url: str) -> Digest:
    """The digest of an object. Raises FileNotFoundError if there is none."""
    with storage.open_read(url) as stream:
        return HashingReader(stream).read_to_end()


def embed_in_json(content: bytes) -> bytes:
    """Add the sha256 of a JSON object to the object, as its last field."""
    head = content.rstrip().removesuffix(b"}").rstrip()
    return head + json_end(hashlib.sha256(head).hexdigest(), is_empty=head == b"{")


def json_end(sha256: str, is_empty: bool = False) -> bytes:
    """The end of a JSON object: the field with the sha256 of everything before it, and the closing bracket."""
    return f'{"" if is_empty else ","}\n "{JSON_KEY}": "{sha256}"\n}}\n'.encode()


def check_json(content: bytes, before: "hashlib._Hash | None" = None) -> bool:
    """Compare a JSON object with the sha256 in it.

    Args:
        content: The object, or the end of it.
        before: The sha256 of what comes before `content`.

    Returns:
        Whether the object ends with a sha256. False: it has none, or its last field is damaged.

    Raises:
        DigestMismatch: The content is another one.
    """
    match = _JSON_END.search(content, max(0, len(content) - _JSON_END_BYTES))
    if match is None:
        return False
    sha256 = before or hashlib.sha256()
    sha256.update(memoryview(content)[: match.start()])
    if sha256.hexdigest().encode() != match[1]:
        raise DigestMismatch(MISMATCH)
    return True


def is_nearly_json_key(name: str) -> bool:
    """Whether a field is that of the sha256, or has a name that differs from it by one character."""
    return len(name) == len(JSON_KEY) and sum(map(str.__ne__, name, JSON_KEY)) <= 1


def embed_in_parquet(content: bytes) -> bytes:
    """Add the sha256 of a Parquet file to the file, between its pages and its footer, where no reader looks."""
    footer = _footer_start(content)
    head, tail = content[:footer] + _PARQUET_MARK, content[footer:]
    return head + _hash_parts(head, tail) + tail


def check_parquet(content: bytes) -> bool:
    """Compare a Parquet file with the sha256 in it.

    Returns:
        Whether the file has a sha256.

    Raises:
        DigestMismatch: The content is another one.
    """
    mark = content.rfind(_PARQUET_MARK)
    if mark < 0:
        return False
    start = mark + len(_PARQUET_MARK)
    end = start + hashlib.sha256().digest_size
    view = memoryview(content)
    if end != _footer_start(content) or _hash_parts(view[:start], view[end:]) != content[start:end]:
        raise DigestMismatch(MISMATCH)
    return True


def _footer_start(content: bytes) -> int:
    return len(content) - _PARQUET_END_BYTES - int.from_bytes(content[-8:-4], "little")


def _hash_parts(*parts: bytes | memoryview) -> bytes:
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part)
    return sha256.digest()
