"""Evaluation sets: what a set declares, and how its images and texts are read from a folder of published files.

A set is one `Task`, whose function `read_records` yields one `Record` per published image. `read_task` looks for the
images in the folder, checks counts and checksums, and returns `ImageTexts` (retrieval) or `ImageClasses`
(classification), which `evaluate_zero_shot` takes. `urban1k.py` is the shortest complete set.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.iteration import DECODE_THREADS, map_ordered
from lotlip_data.manifests.text_stats import bert_tokens, tally
from lotlip_data.manifests.wording import count
from lotlip_data.training.data.tokenizer import TextForm
from lotlip_data.training.evaluation.tasks.files import Folder, TaskDataError, read_image

Kind = Literal["long", "short", "classification"]


@dataclass(frozen=True)
class Record:
    """One published image, with its texts or its class. All paths are relative to the folder of the set."""

    image_paths: tuple[str, ...]
    """Where the image may be. The first path that exists is used."""
    source: str
    """The file that describes the image, and the position in it; for error messages."""
    texts: tuple[str, ...] = ()
    label: int = -1
    """The index of the class, for classification."""
    substitute_paths: tuple[str, ...] = ()
    """Paths to try last, whose file name is not the record's. Images that are read from them are reported."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A published evaluation set."""

    name: str
    """As in `lotlip-data eval --task NAME`."""
    title: str
    """As in tables and messages."""
    kind: Kind
    images: int
    """Number of published images."""
    texts_per_image: int
    """0 for classification."""
    where: str
    """Where to get the files, and where to put them in FOLDER. Every error of the set ends with it."""
    read_records: Callable[[Folder], Iterator[Record]]
    table_1_row: tuple[float, float] | None = None
    """Sub-captions and tokens per text in the paper's Table 1."""
    read_classes: Callable[[Folder], tuple[Sequence[str], Sequence[str]]] | None = None
    """For classification: the class names in the order of the labels, and the prompt templates with "{}" in place of
    the name. All classes have equally many images."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Known checksums, "sha256:…" or "md5:…", of files and archives by path. Archives may be deleted."""
    distinct_images: bool = True
    """Whether no two records have the same image."""
    is_published: bool = True
    """False for a set of one's own, whose numbers of images and texts are what is in the folder."""


@dataclass(frozen=True, kw_only=True)
class TaskImages:
    """The images of a task that exist, and what differs from the published set. All paths are complete."""

    task: Task
    paths: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Expected paths of images (for DCI also of annotations) that do not exist."""
    textless: tuple[str, ...] = ()
    """Images that exist but have no text."""
    substituted: tuple[str, ...] = ()
    """Those of `paths` that come from `Record.substitute_paths`."""
    changed_files: tuple[str, ...] = ()
    """Those of `Task.checksums` whose checksum differs."""
    stamp: str = ""
    """A digest of the images' paths in the folder and of their sizes and times (or ETags)."""
    queries: str = ""
    """A digest of the names of the images, of their texts as published or their classes, and of the order of all: it
    is the same wherever the files are, and in each text form."""

    @property
    def name(self) -> str:
        """The name of the task."""
        return self.task.name

    def images(self) -> Iterator[Image.Image | None]:
        """All images in order, decoded ahead on threads; None for a file that is not an image."""
        return map_ordered(read_image, self.paths, DECODE_THREADS)


@dataclass(frozen=True, kw_only=True)
class ImageTexts(TaskImages):
    """A retrieval set: text j belongs to image `image_of_text[j]`."""

    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]
    text_form: Literal["published", "authors"] = "published"

    def in_form(self, form: TextForm) -> ImageTexts:
        """The set with its texts as a model of that text form expects them.

        The authors' evaluation removes the full stops and line breaks of long texts and joins the sub-captions with
        ". ", at which their tokenizer splits. Short texts are not changed.
        """
        if self.task.kind != "long" or form != "authors":
            return self
        texts = tuple(". ".join(subcaptions.split(text, "authors")) for text in self.texts)
        return dataclasses.replace(self, texts=texts, text_form="authors")

    def statistics(self) -> dict[str, Any]:
        """The columns of the paper's Table 1: images, texts, and per text the sub-captions and tokens.

        Sub-captions are counted by the authors' rule, tokens are BERT's. "repeated_images" is the number of records
        whose image an earlier record has too.
        """
        repeated = len(self.paths) - len(set(self.paths))
        text_figures = tally(self.texts, "authors", bert_tokens()).to_dict()
        return {"images": len(self.paths), "repeated_images": repeated, **text_figures}


@dataclass(frozen=True, kw_only=True)
class ImageClasses(TaskImages):
    """A classification set: image i is of class `labels[i]`."""

    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    """Prompts with "{}" in place of the class name."""

    def statistics(self) -> dict[str, Any]:
        """Number of images, classes and templates."""
        return {"images": len(self.paths), "classes": len(self.class_names), "templates": len(self.templates)}


def read_task(task: Task, folder: str, *, allow_partial: bool = False) -> ImageTexts | ImageClasses:
    """Read the images and texts of a task.

    Args:
        task: The evaluation set.
        folder: The folder of its published files: a path or an fsspec URL.
        allow_partial: Accept other numbers of images or texts than published.

    Raises:
        TaskDataError: If a file is missing or is not as published, if no image exists, or, without `allow_partial`, if
            the number of images, of texts, or of images per class differs from the published one.
    """
    files = Folder(folder, task.title, task.where)
    located = _locate_images(task, files)
    task_images = _to_task_images(task, files, located)
    if not task_images.paths or (is_partial(task_images) and not allow_partial):
        raise TaskDataError(_incomplete_message(task_images, folder))
    return dataclasses.replace(
        task_images,
        changed_files=files.changed_files(task.checksums),
        stamp=_image_stamp(files, located.paths),
        queries=_queries_digest(located),
    )


def is_partial(task_images: ImageTexts | ImageClasses) -> bool:
    """Whether the number of images, of texts, or of images per class differs from the published one.

    A set of one's own is partial if an image or its text is missing.
    """
    task = task_images.task
    if not task.is_published:
        return bool(task_images.missing or task_images.textless)
    if isinstance(task_images, ImageTexts) and len(task_images.texts) != task.images * task.texts_per_image:
        return True
    return len(task_images.paths) != task.images or bool(_overfull_classes(task_images))


@dataclass
class _LocatedRecords:
    """Records with the paths of their images in the folder, and what is missing or differs."""

    paths: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    """The record of each path."""
    missing: list[str] = field(default_factory=list)
    textless: list[str] = field(default_factory=list)
    substituted: list[str] = field(default_factory=list)


def _locate_images(task: Task, files: Folder) -> _LocatedRecords:
    """Look for the image of each record.

    Raises:
        TaskDataError: For a blank text, and for an image of several records if each should have its own.
    """
    located = _LocatedRecords()
    for record in task.read_records(files):
        path = next((path for path in (*record.image_paths, *record.substitute_paths) if files.has(path)), None)
        if not all(map(str.strip, record.texts)):
            raise files.error(record.source, "has a blank text; download it again")
        if path is None:
            located.missing.append(record.image_paths[0])
        elif not task.read_classes and not record.texts:  # retrieval cannot use an image without text
            located.textless.append(path)
        else:
            located.paths.append(path)
            located.records.append(record)
            if path not in record.image_paths:
                located.substituted.append(path)
    if task.distinct_images and len(set(located.paths)) < len(located.paths):
        raise _repeated_image_error(files, located)
    return located


def _to_task_images(task: Task, files: Folder, located: _LocatedRecords) -> ImageTexts | ImageClasses:
    paths, missing, textless, substituted = (
        tuple(map(files.url_of, paths))
        for paths in (located.paths, located.missing, located.textless, located.substituted)
    )
    if task.read_classes is None:
        return ImageTexts(
            task=task,
            paths=paths,
            missing=missing,
            textless=textless,
            substituted=substituted,
            texts=tuple(text for record in located.records for text in record.texts),
            image_of_text=tuple(index for index, record in enumerate(located.records) for _ in record.texts),
        )
    class_names, templates = task.read_classes(files)
    return ImageClasses(
        task=task,
        paths=paths,
        missing=missing,
        substituted=substituted,
        labels=tuple(record.label for record in located.records),
        class_names=tuple(class_names),
        templates=tuple(templates),
    )


def _image_stamp(files: Folder, paths: Sequence[str]) -> str:
    """A digest of the images' paths in the folder and the storage's stamps. Each subfolder is listed once."""
    names_by_parent: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        parent, _, name = path.rpartition("/")
        names_by_parent[parent].add(name)

    def list_stamps(parent: str) -> dict[str, str]:
        stamps = storage.list_stamps(files.url_of(parent))
        return {name: stamp for name, stamp in stamps.items() if name in names_by_parent[parent]}

    stamps = dict(zip(names_by_parent, map_ordered(list_stamps, names_by_parent), strict=True))
    content = [[path, stamps[path.rpartition("/")[0]].get(path.rpartition("/")[2])] for path in paths]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _queries_digest(located: _LocatedRecords) -> str:
    """See `TaskImages.queries`."""
    names = (path.rpartition("/")[2] for path in located.paths)
    content = [[name, record.texts, record.label] for name, record in zip(names, located.records, strict=True)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _overfull_classes(task_images: ImageTexts | ImageClasses) -> dict[str, int]:
    """The number of images of each class that has more of them than published."""
    if isinstance(task_images, ImageTexts):
        return {}
    names = task_images.class_names
    most = -(-task_images.task.images // len(names))
    counts = Counter(task_images.labels)
    return {f"{label} ({names[label]})": images for label, images in counts.items() if images > most}


def _incomplete_message(task_images: ImageTexts | ImageClasses, folder: str) -> str:
    """What differs from the published set, where to get it, and how to evaluate it all the same."""
    task = task_images.task
    if not task.is_published:
        return _incomplete_own_message(task_images, folder)
    published, existing = f"{task.images:,} images", f"{len(task_images.paths):,}"
    if isinstance(task_images, ImageTexts):
        published += f" with {task.texts_per_image * task.images:,} texts"
        existing += f" with {len(task_images.texts):,}"
    lines = [f"{task.title}: {published} are published, but {folder} has {existing}"]
    if overfull := _overfull_classes(task_images):
        name, images = next(iter(overfull.items()))
        lines.append(
            f"{len(overfull):,} classes have more images than published: for example, class {name} has {images:,}"
        )
    if missing := task_images.missing:
        lines.append(f"{count(len(missing), 'image')} missing: for example, there is no {missing[0]}")
    lines.append(task.where)
    if task_images.paths:
        lines.append("To evaluate the images that exist, and to mark the results as partial, add --allow-partial")
    return "\n".join(lines)


def _incomplete_own_message(task_images: ImageTexts | ImageClasses, folder: str) -> str:
    """What is missing of a set of one's own."""
    lines = []
    if missing := task_images.missing:
        lines.append(f"{count(len(missing), 'text')} without an image: for example, there is no {missing[0]}")
    if textless := task_images.textless:
        lines.append(f"{count(len(textless), 'image')} without a text: for example, {textless[0]}")
    lines = [f"{task_images.task.title}: {folder} has {line}" for line in lines] + [task_images.task.where]
    if task_images.paths:
        lines.append("To leave these out, and to mark the results as partial, add --allow-partial")
    return "\n".join(lines)


def _repeated_image_error(files: Folder, located: _LocatedRecords) -> TaskDataError:
    sources: dict[str, list[str]] = defaultdict(list)
    for path, record in zip(located.paths, located.records, strict=True):
        sources[path].append(record.source)
    repeated = {path: path_sources for path, path_sources in sources.items() if len(path_sources) > 1}
    path, path_sources = next(iter(repeated.items()))
    return files.error(
        path,
        f"is the image of {len(path_sources)} records ({', '.join(sorted(set(path_sources)))}), the first of "
        f"{len(repeated):,} such images; download the files that name them again",
    )
