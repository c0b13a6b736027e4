"""The features of images in one SQLite file, with what tells whether an image has changed.

SQLite commits a batch of features as a whole or not at all, whenever the process is killed, and changes single rows. A
search reads all features, in the order of the file, and computes exact similarities: it takes as long as reading the
file (3.3 GB for a million images of 768 numbers), and memory for one part of it.

Shapes: N images, D width of a feature.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from lotlip_data.manifests.errors import UserError

PART = 4096
"""Features that are compared at once."""
_WAIT_SECONDS = 60.0
_PAGE_BYTES = 32_768
"""Size of a page of a new file. A page of the default size, 4,096 bytes, holds one feature and is a quarter empty."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (name TEXT PRIMARY KEY, stamp TEXT NOT NULL, feature BLOB, reason TEXT)
"""
"""An image has a feature, float32 [D], or the reason for which it could not be read."""


class ImageIndex:
    """The index in a file, which is created if it is missing. It is a context manager.

    Raises:
        UserError: The file is damaged, or no index, or cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        with self._errors_explained():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(file, timeout=_WAIT_SECONDS)
            self._database.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            self._database.execute(_SCHEMA)
            self._database.commit()

    def __enter__(self) -> "ImageIndex":
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def compare(self, stamps: Iterable[tuple[str, str]]) -> int:
        """Forget images that are gone or have changed, and note which ones are new.

        Args:
            stamps: Name and stamp of every image that there is.

        Returns:
            The number of images without a feature, which `pending` names.
        """
        with self._errors_explained(), self._database as database:
            database.execute("CREATE TEMP TABLE found (name TEXT PRIMARY KEY, stamp TEXT NOT NULL)")
            database.executemany("INSERT OR REPLACE INTO found VALUES (?, ?)", stamps)
            database.execute(
                "DELETE FROM images WHERE NOT EXISTS "
                "(SELECT 1 FROM found WHERE found.name = images.name AND found.stamp = images.stamp)"
            )
            database.execute("DELETE FROM found WHERE name IN (SELECT name FROM images)")
            (pending,) = database.execute("SELECT count(*) FROM found").fetchone()
        return int(pending)

    def pending(self) -> Iterator[str]:
        """The names of the images that `compare` found to have no feature, in order."""
        last = ""
        while rows := self._rows("SELECT name FROM found WHERE name > ? ORDER BY name LIMIT ?", last, PART):
            yield from (name for (name,) in rows)
            (last,) = rows[-1]

    def add(self, names: list[str], features: np.ndarray, unreadable: list[tuple[str, str]]) -> None:
        """Commit images that `pending` named, all or none.

        Args:
            names: Those with a feature.
            features: Unit float32 [N, D].
            unreadable: Names and reasons of the others.
        """
        rows: list[tuple[bytes | None, str | None, str]] = [
            (feature.astype(np.float32).tobytes(), None, name) for name, feature in zip(names, features, strict=True)
        ]
        rows += [(None, reason, name) for name, reason in unreadable]
        with self._errors_explained(), self._database as database:
            database.executemany(
                "INSERT OR REPLACE INTO images SELECT name, stamp, ?, ? FROM found WHERE name = ?", rows
            )

    def nearest(self, query: np.ndarray, count: int) -> list[tuple[str, float]]:
        """The names of the images most similar to a unit feature [D], with their similarities, best first."""
        best: list[tuple[float, str]] = []
        cursor = self._database.execute("SELECT name, feature FROM images WHERE feature IS NOT NULL")
        with self._errors_explained(), contextlib.closing(cursor):
            while rows := cursor.fetchmany(PART):
                names, blobs = zip(*rows, strict=True)
                if any(len(blob) != query.nbytes for blob in blobs):
                    raise sqlite3.DatabaseError("a feature has another width than the model's")
                features = np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), -1)
                similarities = features @ query
                top = np.argpartition(-similarities, min(count, len(names)) - 1)[:count]
                best = sorted([*best, *((-float(similarities[row]), names[row]) for row in top)])[:count]
        return [(name, -negative) for negative, name in best]

    def unreadable(self, count: int) -> tuple[int, list[tuple[str, str]]]:
        """The number of images that cannot be read, and the names and reasons of the first `count` of them."""
        ((number,),) = self._rows("SELECT count(*) FROM images WHERE feature IS NULL")
        return int(number), self._rows(
            "SELECT name, reason FROM images WHERE feature IS NULL ORDER BY name LIMIT ?", count
        )

    def __len__(self) -> int:
        """The number of images with a feature."""
        ((number,),) = self._rows("SELECT count(*) FROM images WHERE feature IS NOT NULL")
        return int(number)

    def _rows(self, query: str, *values: str | int) -> list[tuple]:
        with self._errors_explained():
            return self._database.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _errors_explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, read-only, no space
            raise UserError(
                f"{self._file}: cannot be used ({error}); make room there, wait for another search, or choose another "
                "place with --index"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._file}: is damaged ({error}); delete it, and it is made again") from error
