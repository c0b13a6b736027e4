"""Reads images of a folder, with texts from files beside them or from the rows of a table."""

import posixpath
from collections.abc import Iterator
from typing import Any

from lotlip_data.manifests.formats.image_containers import Container, FolderFile
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.pipeline.existing_images.folder_files import Folder
from lotlip_data.pipeline.existing_images.rows import (
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    NO_FILE,
    TEXT_TOO_LONG,
    TOO_LARGE,
    Problem,
    Sample,
    name_problem,
)
from lotlip_data.pipeline.existing_images.side_files import SideFiles

_REMOTE_THREADS = 8
"""Files of an object store that are read at once."""


def folder_samples(container: Container, side_files: SideFiles, images: bool) -> Iterator[Sample]:
    """The files of a container of a folder, in its order.

    Args:
        container: The container.
        side_files: The text files to read, for a folder without a table.
        images: Whether to read images.
    """
    folder = Folder(container.url, container.follow_links)

    def read(numbered: tuple[int, FolderFile]) -> Sample:
        return _sample(folder, *numbered, side_files, images)

    files = enumerate(container.files)
    yield from map(read, files) if folder.is_local else map_ordered(read, files, _REMOTE_THREADS, _REMOTE_THREADS)


def _sample(folder: Folder, row: int, file: FolderFile, side_files: SideFiles, images: bool) -> Sample:
    image: bytes | Problem | None = name_problem(file.name)
    if image is None and images:
        image = folder.read(file.name, MAX_IMAGE_BYTES)
    if isinstance(image, Problem):
        return Sample(row, file.name, None, image)
    cells: dict[str, Any] | Problem
    if file.problem is not None:
        cells = Problem(*file.problem)
    else:
        cells = file.cells if file.cells is not None else _side_cells(folder, file.name, side_files)
    if isinstance(cells, Problem):
        return Sample(row, file.name, image, cell_problem=cells)
    return Sample(row, file.name, image, cells=cells)


def _side_cells(folder: Folder, name: str, side_files: SideFiles) -> dict[str, Any] | Problem:
    stem = posixpath.splitext(name)[0]
    contents: dict[str, bytes] = {}
    for extension in sorted(side_files.extensions):
        content = _read_side_file(folder, stem, extension)
        if isinstance(content, bytes):
            contents[extension] = content
        elif content is not None:
            return content
    return side_files.cells(contents)


def _read_side_file(folder: Folder, stem: str, extension: str) -> bytes | Problem | None:
    """A text file, whose extension can be in upper case, as that of an image can; None if there is none."""
    for name in (f"{stem}.{extension}", f"{stem}.{extension.upper()}"):
        content = folder.read(name, MAX_TEXT_BYTES)
        if isinstance(content, bytes):
            return content
        if content.reason != NO_FILE:
            reason = TEXT_TOO_LONG if content.reason == TOO_LARGE else content.reason
            return Problem(reason, f"the file {name}: {content.detail}".removesuffix(": "))
    return None
