"""Joins the files of a folder with the rows of its table, and cuts them into containers. Works out of core."""

import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.image_containers import Container, FolderFile
from lotlip_data.manifests.iteration import batched
from lotlip_data.manifests.settings.source import Source
from lotlip_data.pipeline.core.external_buckets import ExternalBuckets
from lotlip_data.pipeline.core.scratch import scratch_folder
from lotlip_data.pipeline.existing_images.folder_files import Folder
from lotlip_data.pipeline.existing_images.rows import NO_NAME, TEXT_GARBLED, UNSAFE_NAME, columns_of
from lotlip_data.pipeline.existing_images.side_files import IMAGE_EXTENSIONS
from lotlip_data.pipeline.url_lists.cells import clean, is_utf8, to_list
from lotlip_data.pipeline.url_lists.partition import hashes
from lotlip_data.pipeline.url_lists.reader import read_chunks
from lotlip_data.pipeline.url_lists.rows import BATCH_ROWS, SURROGATES, BadRow, Columns, Reject, clip

logger = logging.getLogger(__name__)

_SCHEMA = pa.schema([("order", pa.uint64()), ("name", pa.string()), ("row", pa.string())])
_BUCKETS, _BUFFER_BYTES = 256, 32 << 20
_SHOWN_LINKS = 10


def folder_containers(
    source: Source, folder: str, samples_per_shard: int, seed: int, reject: Reject
) -> Iterator[Container]:
    """The containers of a folder: its images, and the files that the source's table names.

    Args:
        source: The source.
        folder: The folder, as a path or URL.
        samples_per_shard: Number of files of a container.
        seed: Seed of the order in which files are distributed.
        reject: Receives rows of the table that cannot be used, and files that cannot be named.
    """
    key = f"folder {seed}"
    with scratch_folder("folder") as scratch:
        buckets = ExternalBuckets(scratch, _BUCKETS, _SCHEMA, _BUFFER_BYTES)
        for files in batched(_files(source, folder, reject), BATCH_ROWS):
            names = pa.array([file.name for file in files], pa.string())
            rows = pa.array([json.dumps([file.cells, file.problem]) for file in files], pa.string())
            buckets.add(pa.table([pa.array(hashes(names, key)), names, rows], schema=_SCHEMA))
        buckets.flush()
        for files in batched(_joined(source, buckets), samples_per_shard):
            files.sort(key=lambda file: file.name)
            yield Container("folder", folder, rows=len(files), files=tuple(files), follow_links=source.follow_links)


def _files(source: Source, folder: str, reject: Reject) -> Iterator[FolderFile]:
    """The files of the folder, without cells, and those of the rows of the table."""
    yield from map(FolderFile, _image_names(source, folder, reject))
    if source.table is not None:
        yield from _table_rows(source, source.table, folder, reject)


def _image_names(source: Source, folder: str, reject: Reject) -> Iterator[str]:
    extensions = tuple("." + name.removeprefix(".").lower() for name in source.image or IMAGE_EXTENSIONS)
    links: list[str] = []
    for name in Folder(folder, source.follow_links).names(links.append):
        if name.lower().endswith(extensions):
            if SURROGATES.search(name):
                reject(BadRow(source.name, clip(folder), 0, UNSAFE_NAME, clip(name)))
            else:
                yield name
    for link in sorted(links)[:_SHOWN_LINKS]:
        logger.warning(f"{source.name}: {link}")
    if len(links) > _SHOWN_LINKS:
        logger.warning(f"{source.name}: {len(links) - _SHOWN_LINKS:,} further links lead out of {folder}")


def _table_rows(source: Source, table: str, folder: str, reject: Reject) -> Iterator[FolderFile]:
    texts = source.text_columns
    others = tuple(name for name in columns_of(source) if name not in texts)
    columns = Columns(values=(source.file_name,), texts=texts, others=others)
    for chunk in read_chunks(source.table_list, table, columns, reject):
        cells = {name: to_list(values) for name, values in chunk.columns.items()}
        for index, number in enumerate(chunk.rows):
            name = _normalised(clean(cells[source.file_name][index]) or "", folder)
            if not name:
                reject(BadRow(source.name, clip(table), number, NO_NAME, ""))
                continue
            garbled = [column for column in texts if not all(map(is_utf8, _as_list(cells[column][index])))]
            problem = (TEXT_GARBLED, f"row {number} of {table}: {garbled[0]}") if garbled else None
            yield FolderFile(name, {name: _plain(cells[name][index]) for name in (*texts, *others)}, problem)


def _normalised(name: str, folder: str) -> str:
    """A path as the listing has it: some tables begin paths with the folder or `./`, or were made on Windows."""
    path = name.replace("\\", "/").removeprefix(folder.rstrip("/") + "/").removeprefix("./")
    if "://" in path or not storage.is_local(folder):  # in an object store, `a//b` is another name than `a/b`
        return path
    first, *others = path.split("/")
    return "/".join([first, *(part for part in others if part not in ("", "."))])


def _plain(value: Any) -> Any:
    """A cell as JSON can hold it: an object stays one, so that it counts as no text."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | None) else clean(value) or str(value)


def _joined(source: Source, buckets: ExternalBuckets) -> Iterator[FolderFile]:
    """Every file once, with the cells of all its rows, in the order of the buckets."""
    for bucket in buckets:
        files: dict[str, FolderFile] = {}
        bucket = bucket.sort_by([("order", "ascending"), ("name", "ascending")])  # stable: rows stay in their order
        for name, row in zip(bucket["name"].to_pylist(), bucket["row"].to_pylist(), strict=True):
            cells, problem = json.loads(row)
            file = FolderFile(name, cells, None if problem is None else tuple(problem))
            files[name] = _merged(source, files[name], file) if name in files else file
        missing: dict[str, Any] | None = None if source.table is None else {}  # texts are then in the table alone
        yield from (file if file.cells is not None else FolderFile(file.name, missing) for file in files.values())


def _merged(source: Source, earlier: FolderFile, later: FolderFile) -> FolderFile:
    """One file of two: the texts of both, and other cells of the first row."""
    if earlier.cells is None or later.cells is None:
        return later if earlier.cells is None else earlier
    texts = {
        column: [*_as_list(earlier.cells[column]), *_as_list(later.cells[column])] for column in source.text_columns
    }
    return FolderFile(earlier.name, earlier.cells | texts, earlier.problem or later.problem)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
