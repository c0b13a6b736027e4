"""Cuts the files of a source of images into containers, from listings and the metadata of tables alone.

The files of a folder are joined out of core with the rows of its table, and distributed over containers in the order of
a hash, so that folders of one class each do not become shards of one class each.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.formats.image_containers import Container
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.settings.source import Source
from lotlip_data.manifests.storage_http import is_http
from lotlip_data.pipeline.existing_images.folder_containers import folder_containers
from lotlip_data.pipeline.existing_images.side_files import IMAGE_EXTENSIONS
from lotlip_data.pipeline.existing_images.table_files import open_table
from lotlip_data.pipeline.existing_images.tables import check_schema
from lotlip_data.pipeline.url_lists.files import errors_name, existing_files, files_of, names_of
from lotlip_data.pipeline.url_lists.rows import ListError, Reject

logger = logging.getLogger(__name__)

DEFAULT_IMAGE_COLUMN = "image"
_STATE, _SPLITS = "state.json", "dataset_dict.json"
"""Files in a folder that `datasets` has saved: those of a data set, and of a dictionary of data sets."""


def containers_of(
    source: Source, samples_per_shard: int, seed: int = 0, reject: Reject | None = None
) -> Iterator[Container]:
    """The containers of a source of images that exist, in the order of its files.

    A tar is one container. A container of a table has about `samples_per_shard` rows: whole row groups or batches. The
    containers are the same each time, as long as the files are.

    Args:
        source: The source; its images exist.
        samples_per_shard: About the number of rows of a container that is a part of a table or a folder.
        seed: Seed of the order in which the files of a folder are distributed over its containers.
        reject: Receives rows of a folder's table that cannot be used, and files that cannot be named. Default: they
            are counted in a warning.

    Raises:
        ListError: A file or a folder is missing, damaged or of another kind, or lacks a column.
        StorageError: A server does not answer, or refuses.
    """
    form = source.format_of(source.files[0])
    if form == "webdataset":
        extensions = tuple(name.removeprefix(".").lower() for name in source.image or IMAGE_EXTENSIONS)
        yield from (Container("tar", file, image=extensions) for file in _distinct(source, files_of(source)))
    elif form == "image-table":
        files = _distinct(source, chain.from_iterable(map_ordered(_table_files, names_of(source))))
        of_file = partial(_table_containers, source, samples_per_shard)
        yield from chain.from_iterable(map_ordered(of_file, files))
    else:
        folders = list(_distinct(source, map(_folder, names_of(source))))
        if source.table is not None and len(folders) > 1:
            raise ListError(f"{source.name}: has a `table` and {len(folders)} folders; make a source of each folder")
        with _rejecting(source, reject) as counted:
            for folder in folders:
                yield from folder_containers(source, folder, samples_per_shard, seed, counted)


def _distinct(source: Source, files: Iterable[str]) -> Iterator[str]:
    """The files, each once: several patterns can match one file."""
    seen: set[str] = set()
    repeated = 0
    for file in files:
        repeated += file in seen
        if file not in seen:
            seen.add(file)
            yield file
    if repeated:
        logger.warning(f"{source.name}: `files` names {wording.count(repeated, 'file')} twice; each is read once")


@contextmanager
def _rejecting(source: Source, reject: Reject | None) -> Iterator[Reject]:
    """A function that passes rejected rows on, or counts them for a warning at the end."""
    counts: Counter[str] = Counter()
    yield reject or (lambda row: counts.update([row.reason]))
    for reason, count in counts.items():
        logger.warning(f"{source.name}: {count:,} × {reason}")


def _folder(name: str) -> str:
    if is_http(name):
        raise ListError(f"{name}: a web server does not list its files; use a list of their URLs, or tars")
    if "*" in name:
        raise ListError(f"{name}: `*` stands for files; name the folder, whose subfolders are read too")
    with errors_name(name):
        kind = storage.kind(name)
    if kind != "directory":
        raise ListError(f"{name}: {'there is no such folder' if kind is None else 'is not a folder'}")
    return name


def _table_files(name: str) -> Iterable[str]:
    """The tables that a name, a pattern or a folder of `datasets` stands for."""
    with errors_name(name):
        if "*" in name or storage.kind(name) != "directory":
            return existing_files(name)
        return _saved_files(name)


def _saved_files(folder: str) -> list[str]:
    """The Arrow files of a folder that `save_to_disk` of `datasets` has written."""
    if storage.exists(storage.join(folder, _SPLITS)):
        splits = _read_json(storage.join(folder, _SPLITS)).get("splits")
        if not isinstance(splits, list) or len(splits) != 1:
            shown = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
            raise ListError(f"{folder}: has several splits ({shown}); name the folder of one, such as {folder}/train")
        folder = storage.join(folder, _file_name(splits[0], folder))
    if not storage.exists(storage.join(folder, _STATE)):
        raise ListError(
            f"{folder}: is a folder, but not one that `save_to_disk` of `datasets` has written; name the files in it, "
            "for example with `*`"
        )
    state = _read_json(storage.join(folder, _STATE))
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ListError(f"{folder}: has an index of selected rows; save it with `flatten_indices()` before")
    files = state.get("_data_files")
    if not isinstance(files, list) or not files:
        raise ListError(f"{folder}/{_STATE}: names no data files; save the data set again")
    names = [_file_name(file.get("filename") if isinstance(file, dict) else file, folder) for file in files]
    return [file for name in names for file in existing_files(storage.join(folder, name))]


def _read_json(url: str) -> dict[str, object]:
    content = json.loads(storage.read_bytes(url))
    return content if isinstance(content, dict) else {}


def _file_name(name: object, folder: str) -> str:
    """A name in a file of `datasets`, if it names something directly in the folder."""
    if not isinstance(name, str) or not name or "/" in name or "*" in name or name == "..":
        raise ListError(f"{folder}: its {_STATE} names {name!r}, which is no file in it")
    return name


def _table_containers(source: Source, samples_per_shard: int, file: str) -> list[Container]:
    """The containers of one table. A remote Arrow file is one, because it is read from its beginning."""
    image = DEFAULT_IMAGE_COLUMN if source.image is None else source.image[0]
    container = partial(Container, "table", file, (image,), source.key)
    with errors_name(file), open_table(file, only_metadata=True) as table:
        check_schema(table.schema, file, source, image)
        if table.is_sequential and not storage.is_local(file):
            return [container()]
        containers = []
        first = rows = 0
        for length in _cut(table.part_lengths(), samples_per_shard if table.is_sequential else None):
            if rows and rows + length > samples_per_shard:
                containers.append(container(first, rows))
                first, rows = first + rows, 0
            rows += length
        return [*containers, container(first, rows)] if rows else containers


def _cut(lengths: Iterator[int], limit: int | None) -> Iterator[int]:
    """The lengths of parts of at most `limit` rows, if there is a limit."""
    for length in lengths:
        step = limit or max(length, 1)
        yield from (min(step, length - start) for start in range(0, length, step))
