"""A folder of published files: what is there, and what is said when something is not, or is not what it should be."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError

CHUNK = 2**20


class TaskDataError(UserError):
    """A file of an evaluation set that is missing, or is not as published; the message says where to get it."""


class Folder:
    """The files of one task; paths are relative to the folder."""

    def __init__(self, url: str, title: str, where: str) -> None:
        self.url = url
        self._title = title
        self._where = where
        self._names: dict[str, frozenset[str]] = {}

    def at(self, path: str) -> str:
        return storage.join(self.url, *path.split("/"))

    def names(self, folder: str = "") -> frozenset[str]:
        """What lies directly in a folder; nothing where it does not exist. Each folder is listed once."""
        if folder not in self._names:
            self._names[folder] = frozenset(self.listed(folder))
        return self._names[folder]

    def listed(self, folder: str) -> list[str]:
        """As `names`, without keeping them."""
        return storage.list_names(self.at(folder) if folder else self.url)

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
            return storage.read_bytes(self.at(self.first(path))).decode()
        except UnicodeDecodeError as error:
            raise self.broken(path, f"is not UTF-8 ({error})") from error

    def json(self, path: str) -> Any:
        try:
            return json.loads(self.text(path))
        except ValueError as error:
            raise self.broken(path, f"is not JSON ({error})") from error

    def json_lines(self, path: str) -> Iterator[dict[str, Any]]:
        """One object a line; blank lines are none. Texts may hold line breaks of Unicode's, which end no line here."""
        for number, line in enumerate(self.text(path).split("\n"), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise self.broken(path, f"line {number} is not JSON ({error})") from error

    def json_array(self, path: str) -> Iterator[dict[str, Any]]:
        """The objects of a JSON array one by one, so that a file of gigabytes is read as far as it is needed."""
        decoder, text, done = json.JSONDecoder(), "", False
        with storage.open_read(self.at(self.first(path))) as stream:
            held = b""
            while not done:
                chunk = stream.read(CHUNK)
                done = not chunk
                held += chunk
                whole = held if done else held[: _whole_characters(held)]
                held = held[len(whole) :]
                try:
                    text += whole.decode()
                except UnicodeDecodeError as error:
                    raise self.broken(path, f"is not UTF-8 ({error})") from error
                text = text.lstrip("[, \r\n\t")
                while text and text[0] == "{":
                    try:
                        value, end = decoder.raw_decode(text)
                    except ValueError:
                        break  # the object goes on in the next chunk
                    yield value
                    text = text[end:].lstrip(", \r\n\t")
        if text.strip() != "]":
            raise self.broken(path, "is no whole JSON array of objects; fetch it again")

    def sha256(self, path: str) -> str:
        return hashlib.sha256(storage.read_bytes(self.at(path))).hexdigest()

    def field(self, record: dict[str, Any], path: str, *names: str) -> str:
        """The record's first field of these names, which is text. Raises TaskDataError where it is not."""
        for name in names:
            if isinstance(value := record.get(name), str):
                return value
        raise self.broken(path, f"a record has no text `{names[0]}`; its fields are {', '.join(map(str, record))}")

    def broken(self, path: str, why: str) -> TaskDataError:
        return TaskDataError(f"{self._title}: {self.at(path)} {why}\n{self._where}")


def _whole_characters(data: bytes) -> int:
    """How many bytes of UTF-8 end with a whole character."""
    end = len(data)
    while end > max(0, len(data) - 4) and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if end and data[end - 1] >= 0xC0 else len(data)
