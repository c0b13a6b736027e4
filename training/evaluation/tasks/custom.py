"""A set of one's own: images with texts, as a folder of files or as a table.

FOLDER/a.jpg  FOLDER/a.txt  …                a text file of the same name beside each image; subfolders are included
FOLDER/metadata.csv                          or one table in the folder: CSV, TSV, JSON lines or Parquet
TABLE                                        or the table itself

A table has a column with the path of the image, relative to the table's folder or absolute, and one with a text. An
image with several texts has several rows.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.training.evaluation.tasks.base import Record, Task
from lotlip_data.training.evaluation.tasks.files import Folder, TaskDataError

NAME = "custom"
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".parquet")
IMAGE_COLUMNS = ("image", "file_name", "filepath", "image_path", "path", "filename")
"""Names of the column of the images, the first of which that exists counts: also those of Hugging Face's image folders
and of open_clip's tables."""
TEXT_COLUMNS = ("text", "caption", "title")
WHERE = (
    "A set of your own is a folder of images with a text file of the same name beside each (a.jpg, a.txt), or a table "
    f"({', '.join(TABLE_EXTENSIONS)}) with a column `image` (paths relative to the table's folder) and a column `text`."
)
_TITLE = "custom"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_MAX_FIELD_CHARACTERS = 1 << 24

Row = tuple[str, str | None, str]
"""Path of an image, a text, and where both come from."""


def custom_task(path: str, name: str = "") -> tuple[Task, str]:
    """The task of a set of one's own, and the folder to which its paths are relative.

    Args:
        path: A folder or a table: a path or an fsspec URL.
        name: What tells the set from others in results; may be empty.

    Raises:
        UserError: There is no such set, the table lacks a column, or a row is malformed.
    """
    if name and not _NAME.fullmatch(name):
        raise UserError(f"task {NAME}:{name}: a name has lowercase letters, digits, - and _ only")
    folder, records = _read(storage.normalise(path))
    is_long = any(len(subcaptions.split(text, "authors")) > 1 for record in records for text in record.texts)
    task = Task(
        name=f"{NAME}-{name}" if name else NAME,
        title=name or _TITLE,
        kind="long" if is_long else "short",
        images=len(records),
        texts_per_image=1,
        where=WHERE,
        read_records=lambda _: iter(records),
        is_published=False,
    )
    return task, folder


def _read(path: str) -> tuple[str, list[Record]]:
    """The folder and the records of a set."""
    if path.lower().endswith(TABLE_EXTENSIONS) and not storage.is_folder(path):
        parent, _, table = path.rpartition("/")
        return _read_table(parent or ".", table)
    folder = Folder(path, _TITLE, WHERE)
    names = [name for name in folder.list_names("") if name.lower().endswith(TABLE_EXTENSIONS)]
    if len(names) > 1:
        raise UserError(f"{path}: has {len(names)} tables ({', '.join(sorted(names))}); name one of them instead")
    if names:
        return _read_table(path, names[0])
    return path, _read_files(folder)


def _read_files(folder: Folder) -> list[Record]:
    """The records of images and text files of the same names."""
    paths = [path for path in storage.list_below(folder.url) if not path.rpartition("/")[2].startswith(".")]
    images = {path.rpartition(".")[0]: path for path in paths if path.lower().endswith(IMAGE_EXTENSIONS)}
    texts = {path.rpartition(".")[0] for path in paths if path.lower().endswith(".txt")}
    if not images or not texts:
        missing = "has no images" if not images else "has neither text files nor a table"
        finding = missing if paths or storage.is_folder(folder.url) else "there is no such folder"
        raise TaskDataError(f"{folder.url}: {finding}\n{WHERE}")
    records = []
    for stem in sorted(images.keys() | texts):
        candidates = (images[stem],) if stem in images else tuple(stem + ending for ending in IMAGE_EXTENSIONS)
        text = folder.read_text(f"{stem}.txt").strip() if stem in texts else ""
        records.append(Record(image_paths=candidates, source=f"{stem}.txt", texts=(text,) if text else ()))
    return records


def _read_table(parent: str, name: str) -> tuple[str, list[Record]]:
    folder = Folder(parent, _TITLE, WHERE)
    if not folder.has(name):
        raise TaskDataError(f"{folder.url_of(name)}: there is no such file\n{WHERE}")
    texts: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    for path, text, source in _READERS[name.lower().rpartition(".")[2]](folder, name):
        if not path:
            raise folder.error(source, "names no image; fill it in, or remove the row")
        texts.setdefault(path, [])
        sources.setdefault(path, source)
        if text and text.strip():
            texts[path].append(text.strip())
    if not texts:
        raise folder.error(name, "has no rows")
    root, paths = _common_root(folder, list(texts))
    return root, [
        Record(image_paths=(relative,), source=sources[path], texts=tuple(texts[path]))
        for path, relative in zip(texts, paths, strict=True)
    ]


def _common_root(folder: Folder, paths: Sequence[str]) -> tuple[str, list[str]]:
    """A folder, and the paths of a table relative to it: the table's folder, or the root if a path is absolute."""
    if not any(path.startswith("/") or "://" in path for path in paths):
        return folder.url, [path.removeprefix("./") for path in paths]
    if any("://" in path for path in paths) or not storage.is_local(folder.url):
        raise UserError(f"{folder.url}: paths of images are URLs; write them relative to the table's folder")
    absolute = [path if path.startswith("/") else folder.url_of(path) for path in paths]
    return "/", [path.removeprefix("/") for path in absolute]


def _columns(folder: Folder, name: str, columns: Sequence[str]) -> tuple[str, str]:
    """The columns of images and of texts. Raises TaskDataError if one is missing or is there twice."""
    chosen = []
    for kind, known in (("image", IMAGE_COLUMNS), ("text", TEXT_COLUMNS)):
        column = next((column for column in known if column in columns), None)
        if column is None:
            raise folder.error(
                name, f"has no column of {kind}s: its columns are {', '.join(columns)}; name one {' or '.join(known)}"
            )
        if list(columns).count(column) > 1:
            raise folder.error(name, f"has the column `{column}` twice; rename one of them")
        chosen.append(column)
    return chosen[0], chosen[1]


def _read_csv(folder: Folder, name: str) -> Iterator[Row]:
    delimiter = "\t" if name.lower().endswith(".tsv") else ","
    limit = csv.field_size_limit(_MAX_FIELD_CHARACTERS)
    try:
        rows = csv.reader(io.StringIO(folder.read_text(name), newline=""), delimiter=delimiter, strict=True)
        header = next(rows, [])
        image, text = (header.index(column) for column in _columns(folder, name, header))
        for row in rows:
            source = f"{name}, line {rows.line_num}"
            if not row:
                continue
            if len(row) != len(header):
                raise folder.error(source, f"has {len(row)} fields instead of {len(header)}; check its quotes")
            yield row[image], row[text], source
    except csv.Error as error:
        raise folder.error(f"{name}, line {rows.line_num}", f"is malformed ({error}); check its quotes") from None
    finally:
        csv.field_size_limit(limit)


def _read_json_lines(folder: Folder, name: str) -> Iterator[Row]:
    for entry in folder.read_json_lines(name):
        columns = _columns(folder, entry.location, list(entry.value) if isinstance(entry.value, dict) else [])
        image, text = (entry.field(column) for column in columns)
        yield image.text(), None if text.value is None else text.text(), entry.location


def _read_parquet(folder: Folder, name: str) -> Iterator[Row]:
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(folder.url_of(name))))
    except pa.ArrowException as error:
        raise folder.error(name, f"is not a Parquet file ({str(error).splitlines()[0]})") from None
    columns = _columns(folder, name, table.column_names)
    values: list[list[Any]] = []
    for column in columns:
        data = table[column]
        if not (pa.types.is_string(data.type) or pa.types.is_large_string(data.type)):
            try:
                data = data.cast(pa.string())
            except pa.ArrowException:
                raise folder.error(name, f"has the type {data.type} in column `{column}` instead of text") from None
        values.append(data.to_pylist())
    for number, (image, text) in enumerate(zip(*values, strict=True), 1):
        yield image or "", text, f"{name}, row {number}"


_READERS: dict[str, Callable[[Folder, str], Iterator[Row]]] = {
    "csv": _read_csv,
    "tsv": _read_csv,
    "jsonl": _read_json_lines,
    "parquet": _read_parquet,
}
