"""Writes the tar of an image shard: `{key}.jpg` and `{key}.json` for each image."""

import io
import json
import pathlib
import tarfile
import time
from collections.abc import Mapping
from typing import Any

from lotlip_data.manifests.formats.schema import IMAGE_EXTENSION

_WHOLE_FILE = 1 << 30
"""Bytes per write to the tar: more than an image has."""


class ImageTarWriter:
    """Writes a local tar. Time stamps in it are whole seconds: fractions would cost a kibibyte per file."""

    def __init__(self, path: pathlib.Path) -> None:
        self._mtime = int(time.time())
        self._tar = tarfile.TarFile(path, "w", format=tarfile.USTAR_FORMAT, copybufsize=_WHOLE_FILE)

    def add(self, key: str, image: bytes, row: Mapping[str, Any]) -> None:
        """Add an image with its row, which becomes its json member."""
        self._add(f"{key}.{IMAGE_EXTENSION}", image)
        self._add(f"{key}.json", json.dumps(row, indent=4).encode())

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mtime, member.mode = len(content), self._mtime, 0o444
        member.uname = member.gname = "bigdata"
        self._tar.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        """Complete the tar."""
        self._tar.close()
