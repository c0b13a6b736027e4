"""A folder of published files: what is there, and what is said when something is not, or is not what it should be.

Images read and decoded ahead by threads.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

CHUNK = 2**20
ENCODING = "utf-8-sig"
"""A byte-order mark, which editors on Windows write, is no part of a text."""


class TaskDataError(UserError):
    """A file of an evaluation set that is missing, or is not as published; the message says where to get it."""


@dataclass(frozen=True)
class Entry:
    """A value of a published file and its place: the file's path and where in it. Each raises TaskDataError of it."""

    value: Any
    place: str
    folder: Folder

    def field(self, *names: str) -> Entry:
        """That field of an object; the first of these names that it has."""
        if not isinstance(self.value, dict):
            raise self._is_no("object")
        for name in names:
            if name in self.value:
                return Entry(self.value[name], f"{self.place}, {name}", self.folder)
        raise self.folder.broken(self.place, f"has no `{names[0]}`; its fields are {', '.join(map(str, self.value))}")

    def fields(self) -> list[Entry]:
        """All fields of an object."""
        if not isinstance(self.value, dict):
            raise self._is_no("object")
        return [self.field(name) for name in self.value]

    def items(self) -> list[Entry]:
        """The items of a list."""
        if not isinstance(self.value, list):
            raise self._is_no("list")
        return [Entry(item, f"{self.place}[{number}]", self.folder) for number, item in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self._is_no("text")
        if not self.value.isascii() and any("\ud800" <= character <= "\udfff" for character in self.value):
            raise self.folder.broken(self.place, "has half a character (a lone surrogate); fetch it again")
        return self.value

    def _is_no(self, kind: str) -> TaskDataError:
        return self.folder.broken(self.place, f"is no {kind}, but {reprlib.repr(self.value)}; fetch it again")


class Folder:
    """The files of one task; paths are relative to the folder."""

    def __init__(self, url: str, title: str, where: str) -> None:
        self.url = url
        self._title = title
        self._where = where
        self._names: dict[str, frozenset[str]] = {}

    def at(self, path: str) -> str:
        return storage.join(self.url, *filter(None, path.split("/")))

    def names(self, folder: str = "") -> frozenset[str]:
        """What lies directly in a folder; nothing where it does not exist. Each folder is listed once."""
        if folder not in self._names:
            self._names[folder] = frozenset(self.listed(folder))
        return self._names[folder]

    def listed(self, folder: str) -> list[str]:
        """As `names`, without keeping them. What macOS keeps beside files, in names that begin with "._", is none."""
        names = storage.list_names(self.at(folder))
        return [name for name in names if not name.startswith("._")]

    def has(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in self.names(folder)

    def first(self, *paths: str) -> str:
        """The first of the paths that exists. Raises TaskDataError where none does."""
        for path in paths:
            if self.has(path):
                return path
        raise TaskDataError(f"{self._title}: there is no {self.at(paths[0])}\n{self._where}")

    def text(self, path: str) -> str:
        try:
            return storage.read_bytes(self.at(self.first(path))).decode(ENCODING)
        except UnicodeDecodeError as error:
            raise self.broken(path, f"is not UTF-8 ({error})") from error

    def json(self, path: str) -> Entry:
        return self._parsed(self.text(path), path)

    def json_lines(self, path: str) -> Iterator[Entry]:
        """A value a line; blank lines are none. Texts may hold line breaks of Unicode's, which end no line here."""
        for number, line in enumerate(self.text(path).split("\n"), 1):
            if line.strip():
                yield self._parsed(line, f"{path}, line {number}")

    def json_array(self, path: str) -> Iterator[Entry]:
        """The objects of a JSON array one by one, so that a file of gigabytes is read as far as it is needed."""
        decode, parse = codecs.getincrementaldecoder(ENCODING)().decode, json.JSONDecoder().raw_decode
        text, number, done = "", 0, False
        with storage.open_read(self.at(self.first(path))) as stream:
            while not done:
                chunk = stream.read(CHUNK)
                done = not chunk
                try:
                    text = (text + decode(chunk, done)).lstrip("[, \r\n\t")
                    while text.startswith("{"):
                        value, end = parse(text)
                        yield Entry(value, f"{path}, record {number + 1}", self)
                        text, number = text[end:].lstrip(", \r\n\t"), number + 1
                except UnicodeDecodeError as error:
                    raise self.broken(path, f"is not UTF-8 ({error})") from error
                except json.JSONDecodeError:
                    continue  # the object goes on in the next chunk
                except (ValueError, RecursionError) as error:
                    raise self.broken(
                        f"{path}, record {number + 1}", f"is not JSON that can be read ({error})"
                    ) from error
                if text and not text.startswith("]"):
                    break
        if text.strip() != "]":
            raise self.broken(path, f"is no whole JSON array of objects, only {number:,} of them; fetch it again")

    def _parsed(self, text: str, place: str) -> Entry:
        try:
            return Entry(json.loads(text), place, self)
        except (ValueError, RecursionError) as error:
            raise self.broken(place, f"is not JSON that can be read ({error})") from error

    def changed(self, checksums: Mapping[str, str]) -> tuple[str, ...]:
        """The files with other checksums than these, "sha256:…" or "md5:…".

        Files may also lie beside the folder, on a local disk, where archives are often left; those not there are none.
        """
        above = [storage.join(storage.normalise(self.url), "..")] if storage.is_local(self.url) else []
        changed = []
        for name, known in checksums.items():
            urls = [storage.join(base, name) for base in (self.url, *above)]
            url = next((url for url in urls if storage.exists(url)), None)
            if url is not None and _checksum(url, known.partition(":")[0]) != known:
                changed.append(name)
        return tuple(changed)

    def broken(self, place: str, why: str) -> TaskDataError:
        return TaskDataError(f"{self._title}: {self.at(place)} {why}\n{self._where}")


def _checksum(url: str, algorithm: str) -> str:
    """As "ALGORITHM:…", read in pieces: archives are larger than memory."""
    with storage.open_read(url) as stream:
        return f"{algorithm}:{hashlib.file_digest(stream, algorithm).hexdigest()}"  # type: ignore[arg-type]


DAMAGED = (
    OSError,
    ValueError,
    SyntaxError,  # of broken PNGs
    RuntimeError,  # of broken AVIFs
    TypeError,  # of some TIFFs
    Image.DecompressionBombError,
)
"""What Pillow raises of bytes that are no image."""


def read_image(path: str) -> Image.Image | None:
    """The image as RGB; None where its bytes are no image. Orientation tags are not followed, as in published results.

    Errors of the storage come as they are: that it does not answer must not look as if images were damaged. Raises
    TaskDataError where there is no file (any more).
    """
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise TaskDataError(f"{path} is no file that can be read ({error}); fetch it again") from error
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except DAMAGED:
        return None
