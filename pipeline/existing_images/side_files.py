"""The text files beside an image, in a tar or a folder, and the columns that they are.

A column is the extension of a file (`txt`), whose whole content is the text, or a key in a JSON file (`json.caption`,
`meta.json.size.width`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lotlip_data.pipeline.existing_images.rows import TEXT_GARBLED, Problem
from lotlip_data.pipeline.url_lists.json_rows import object_of

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif"),
    *("jp2", "j2k", "jpx"),
)
"""Extensions of images of all formats that can be decoded. What an image is, is decided by its content."""

META = re.compile(r"__[^/]*__(?:$|/)")
"""Matches the names of members of a tar that the webdataset library ignores."""

_JSON_KEY = re.compile(r"((?:[^/]*\.)?json)\.(.+)", re.IGNORECASE)
_NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def split_name(name: str) -> tuple[str, str] | None:
    """The key and the extension of a file, as the webdataset library splits names; None if it has no extension."""
    match = _NAME.fullmatch(name)
    return None if match is None else (match[1], match[2].lower())


class SideFiles:
    """The files beside an image that some columns need."""

    def __init__(self, columns: Iterable[str]) -> None:
        self._places: dict[str, tuple[str, str | None]] = {}
        """Column → the extension of its file, and its key if it is in a JSON object."""
        keys: dict[str, list[str]] = {}
        for column in columns:
            match = _JSON_KEY.fullmatch(column)
            extension, key = (column, None) if match is None else (match[1], match[2])
            self._places[column] = extension.lower(), key
            if key is not None:
                keys.setdefault(extension.lower(), []).extend((key, key.partition(".")[0]))
        self._keys = {extension: tuple(dict.fromkeys(names)) for extension, names in keys.items()}
        self.extensions = frozenset(extension for extension, _ in self._places.values())
        """The extensions of the files."""

    def cells(self, files: Mapping[str, bytes]) -> dict[str, Any] | Problem:
        """The cells of the columns whose files exist, or what is wrong with a file.

        Args:
            files: Extension → content.
        """
        objects: dict[str, dict[str, Any]] = {}
        for extension, keys in self._keys.items():
            if (content := files.get(extension)) is not None:
                parsed = _parse(content, extension, keys)
                if isinstance(parsed, Problem):
                    return parsed
                objects[extension] = parsed
        cells: dict[str, Any] = {}
        for column, (extension, key) in self._places.items():
            if key is not None:
                cells[column] = _value_at(objects.get(extension), key)
            elif (content := files.get(extension)) is not None:
                cells[column] = content.removeprefix(_BYTE_ORDER_MARK)
        return cells


def _parse(content: bytes, extension: str, keys: tuple[str, ...]) -> dict[str, Any] | Problem:
    try:
        parsed = object_of(content.decode("utf-8-sig"), keys)
    except UnicodeDecodeError:
        return Problem(TEXT_GARBLED, f"the file {extension}")
    return parsed if isinstance(parsed, dict) else Problem(parsed, f"the file {extension}")


def _value_at(content: Any, key: str) -> Any:
    """The value of a key, or of a path of keys with dots between them; None if there is none."""
    if not isinstance(content, dict):
        return None
    if key in content:
        return content[key]
    heads = (key[:place] for place, character in enumerate(key) if character == ".")
    values = (_value_at(content[head], key[len(head) + 1 :]) for head in heads if head in content)
    return next((value for value in values if value is not None), None)
