"""Containers of images that exist: what a run refers to in place of a tar that it has downloaded.

A container is one tar, consecutive rows of one table, or files of one folder. It is one image shard of a run. Its
images are named, and no name stands in it twice. `pipeline.existing_images` finds and reads containers.
"""

from dataclasses import field
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from lotlip_data.manifests import wording

ContainerKind = Literal["tar", "table", "folder"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class FolderFile:
    """One image file of a folder."""

    name: str
    """Its path relative to the folder."""
    cells: dict[str, Any] | None = None
    """Its row in the table of texts: column → value. None: the table has no row about it."""
    problem: tuple[str, str] | None = None
    """Why that row cannot be used: a reason and its detail."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class Container:
    """Where images lie. It can be written as JSON (`dataclasses.asdict`) and read back (`artifacts.read_json`)."""

    kind: ContainerKind
    url: str
    """The tar, the table or the folder: a path or URL."""
    image: tuple[str, ...] = ()
    """The extensions of a tar's images, without the leading dot and in lower case; the column of a table's images."""
    key: str | None = None
    """The column with the names of a table's rows. None: a row is named by its number in the file, from 0."""
    first: int = 0
    """The first row of the table that belongs to the container, counted from 0."""
    rows: int | None = None
    """The number of rows or files, if it is known without reading the container."""
    files: tuple[FolderFile, ...] = field(default=())
    """The files of a folder, sorted by name."""
    follow_links: bool = False
    """Whether links that lead out of the folder are followed."""

    def __str__(self) -> str:
        if self.kind == "table" and self.rows is not None:
            return f"{self.url} (rows {self.first:,} to {self.first + self.rows - 1:,})"
        if self.kind == "folder" and self.files:
            return f"{self.url} ({wording.count(len(self.files), 'file')} from {self.files[0].name} on)"
        return self.url
