"""Reads the published files of an evaluation set: texts, JSON and images of one folder.

Every error names the file, the position in it, and where to download the files of the set.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

CHUNK_BYTES = 2**20
ENCODING = "utf-8-sig"
"""Removes the byte-order mark that editors on Windows write; it is not part of a text."""
DAMAGED_IMAGE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # of broken PNGs
    RuntimeError,  # of broken AVIFs
    TypeError,  # of some TIFFs
    Image.DecompressionBombError,
)
"""What Pillow raises for bytes that are not an image."""


class TaskDataError(UserError):
    """A file of an evaluation set is missing or is not as published; the message says where to get it."""


class Folder:
    """The files of one evaluation set. Paths are relative to the folder.

    Args:
        url: The folder: a path or an fsspec URL.
        title: The title of the set; the beginning of error messages.
        where: Where to get the files; the last line of error messages.
    """

    def __init__(self, url: str, title: str, where: str) -> None:
        self.url = url
        self._title = title
        self._where = where
        self._names: dict[str, frozenset[str]] = {}

    def url_of(self, path: str) -> str:
        """The path or URL of a file of the folder."""
        return storage.join(self.url, *filter(None, path.split("/")))

    def names(self, path: str = "") -> frozenset[str]:
        """The names directly in a subfolder; empty if it does not exist. Each subfolder is listed once."""
        if path not in self._names:
            self._names[path] = frozenset(self.list_names(path))
        return self._names[path]

    def list_names(self, path: str) -> list[str]:
        """Like `names`, but not cached. Leaves out the files `._NAME` in which macOS keeps metadata."""
        return [name for name in storage.list_names(self.url_of(path)) if not name.startswith("._")]

    def has(self, path: str) -> bool:
        """Whether a file or subfolder exists."""
        parent, _, name = path.rpartition("/")
        return name in self.names(parent)

    def first_existing(self, *paths: str) -> str:
        """The first of the paths that exists. Raises TaskDataError if none does."""
        for path in paths:
            if self.has(path):
                return path
        raise TaskDataError(f"{self._title}: there is no {self.url_of(paths[0])}\n{self._where}")

    def read_text(self, path: str) -> str:
        """The text of a UTF-8 file. Raises TaskDataError if it is missing or is not UTF-8."""
        try:
            return storage.read_bytes(self.url_of(self.first_existing(path))).decode(ENCODING)
        except UnicodeDecodeError as error:
            raise self.error(path, f"is not UTF-8 ({error})") from error

    def read_json(self, path: str) -> Entry:
        """The value of a JSON file."""
        return self._parse(self.read_text(path), path)

    def read_json_lines(self, path: str) -> Iterator[Entry]:
        """One value per line; blank lines are skipped.

        Only "\\n" ends a line: texts may contain Unicode's other line breaks.
        """
        for number, line in enumerate(self.read_text(path).split("\n"), 1):
            if line.strip():
                yield self._parse(line, f"{path}, line {number}")

    def read_json_array(self, path: str) -> Iterator[Entry]:
        """The objects of a JSON array, one at a time.

        A file of gigabytes is read only as far as the caller iterates.
        """
        decode, parse = codecs.getincrementaldecoder(ENCODING)().decode, json.JSONDecoder().raw_decode
        text, count, at_end = "", 0, False
        with storage.open_read(self.url_of(self.first_existing(path))) as stream:
            while not at_end:
                chunk = stream.read(CHUNK_BYTES)
                at_end = not chunk
                try:
                    text = (text + decode(chunk, at_end)).lstrip("[, \r\n\t")
                    while text.startswith("{"):
                        value, end = parse(text)
                        yield Entry(value, f"{path}, record {count + 1}", self)
                        text, count = text[end:].lstrip(", \r\n\t"), count + 1
                except UnicodeDecodeError as error:
                    raise self.error(path, f"is not UTF-8 ({error})") from error
                except json.JSONDecodeError:
                    continue  # the object continues in the next chunk
                except (ValueError, RecursionError) as error:
                    raise self.error(f"{path}, record {count + 1}", f"cannot be parsed as JSON ({error})") from error
                if text and not text.startswith("]"):
                    break
        if text.strip() != "]":
            raise self.error(
                path, f"is not a complete JSON array of objects: it ends after {count:,} of them; download it again"
            )

    def changed_files(self, checksums: Mapping[str, str]) -> tuple[str, ...]:
        """The files whose checksums differ from the given ones.

        A file may also be beside the folder on a local disk, where archives are often left. A file that does not exist
        is not reported.

        Args:
            checksums: "sha256:…", "md5:…" or "git:…" by path; the last is the id of the file in a git repository.
        """
        parents = [storage.join(storage.normalise(self.url), "..")] if storage.is_local(self.url) else []
        changed = []
        for name, expected in checksums.items():
            urls = [storage.join(base, name) for base in (self.url, *parents)]
            url = next((url for url in urls if storage.exists(url)), None)
            if url is not None and _checksum(url, expected.partition(":")[0]) != expected:
                changed.append(name)
        return tuple(changed)

    def error(self, location: str, problem: str) -> TaskDataError:
        """An error that names the file and where to get it.

        Args:
            location: The file's path in the folder, and the position in it.
            problem: The rest of the sentence that begins with the location.
        """
        return TaskDataError(f"{self._title}: {self.url_of(location)} {problem}\n{self._where}")

    def _parse(self, text: str, location: str) -> Entry:
        try:
            return Entry(json.loads(text), location, self)
        except (ValueError, RecursionError) as error:
            raise self.error(location, f"cannot be parsed as JSON ({error})") from error


@dataclass(frozen=True)
class Entry:
    """A JSON value of a published file, with its location. All methods raise TaskDataError for the wrong type."""

    value: Any
    location: str
    """The file's path in the folder, and the position in it."""
    folder: Folder

    def field(self, *names: str) -> Entry:
        """The first of the named fields that the object has."""
        if not isinstance(self.value, dict):
            raise self._type_error("an object")
        for name in names:
            if name in self.value:
                return Entry(self.value[name], f"{self.location}, {name}", self.folder)
        raise self.folder.error(self.location, f"has no `{names[0]}`; its fields are {', '.join(map(str, self.value))}")

    def find(self, name: str) -> Entry | None:
        """The field of the object; None if there is no such field, or it is null."""
        return self.field(name) if name in self.names() and self.value[name] is not None else None

    def names(self) -> list[str]:
        """The names of all fields of the object."""
        if not isinstance(self.value, dict):
            raise self._type_error("an object")
        return list(self.value)

    def fields(self) -> list[Entry]:
        """All fields of the object."""
        return [self.field(name) for name in self.names()]

    def items(self) -> list[Entry]:
        """The items of the list."""
        if not isinstance(self.value, list):
            raise self._type_error("a list")
        return [Entry(item, f"{self.location}[{index}]", self.folder) for index, item in enumerate(self.value)]

    def text(self) -> str:
        """The string. Raises TaskDataError for lone surrogates too, which no tokenizer accepts."""
        if not isinstance(self.value, str):
            raise self._type_error("a text")
        if not self.value.isascii() and any("\ud800" <= character <= "\udfff" for character in self.value):
            raise self.folder.error(self.location, "contains half a character (a lone surrogate); download it again")
        return self.value

    def integer(self) -> int:
        """The whole number."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self._type_error("a whole number")
        return self.value

    def number(self) -> float:
        """The finite number."""
        try:
            number = math.nan if isinstance(self.value, bool | str) else float(self.value)
        except (TypeError, OverflowError):  # a whole number may be larger than any float
            number = math.nan
        if not math.isfinite(number):
            raise self._type_error("a number")
        return number

    def _type_error(self, expected: str) -> TaskDataError:
        return self.folder.error(self.location, f"is not {expected} but {reprlib.repr(self.value)}; download it again")


def read_image(path: str) -> Image.Image | None:
    """Read an image as RGB.

    Orientation tags are not followed, as in published results. Errors of the storage are raised as they are: an outage
    must not look like damaged images.

    Returns:
        The image; None if its bytes are not an image.

    Raises:
        TaskDataError: If the file does not exist, or not any more.
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TaskDataError(f"{path} cannot be read as a file ({error}); download it again") from error
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except DAMAGED_IMAGE_ERRORS:
        return None


def _checksum(url: str, algorithm: str) -> str:
    """The checksum as "ALGORITHM:…". The file is read in pieces, because archives are larger than memory."""
    with storage.open_read(url) as stream:
        if algorithm == "git":
            content = stream.read()
            head = f"blob {len(content)}\0".encode()
            return f"git:{hashlib.sha1(head + content).hexdigest()}"
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"  # type: ignore[arg-type]
