"""Reads an evaluation set from a folder: looks for the images, and checks counts and checksums."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from lotlip_data.manifests import storage, wording
from lotlip_data.manifests.iteration import map_ordered
from lotlip_data.manifests.wording import count
from lotlip_data.training.evaluation.tasks.base import (
    ImageChoices,
    ImageClasses,
    ImageTexts,
    ReadImages,
    Record,
    Task,
)
from lotlip_data.training.evaluation.tasks.files import Folder, TaskDataError
from lotlip_data.training.evaluation.tasks.regions import Box


def read_task(task: Task, folder: str, *, allow_partial: bool = False) -> ReadImages:
    """Read the images and texts of a task.

    Args:
        task: The evaluation set.
        folder: The folder of its published files: a path or an fsspec URL.
        allow_partial: Accept other numbers of images or texts than published.

    Raises:
        TaskDataError: If a file is missing or is not as published, if no image exists, or, without `allow_partial`, if
            the number of images, of texts, of images per class, or of queries differs from the published one.
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


def is_partial(task_images: ReadImages) -> bool:
    """Whether the number of images, of texts, of images per class, or of queries differs from the published one.

    A set of one's own is partial if an image or its text is missing.
    """
    task = task_images.task
    if not task.is_published:
        return bool(task_images.missing or task_images.textless)
    if isinstance(task_images, ImageChoices):
        return bool(task_images.missing or _other_counts(task_images))
    if isinstance(task_images, ImageTexts) and len(task_images.texts) != task.images * task.texts_per_image:
        return True
    return len(task_images.paths) != task.images + task.distractors or bool(_overfull_classes(task_images))


@dataclass
class _LocatedRecords:
    """Records with the paths of their images in the folder, and what is missing or differs."""

    paths: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    """The record of each path."""
    missing: dict[str, None] = field(default_factory=dict)
    """In order; several queries may have one image."""
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
        captions = (*record.choice.right, *record.choice.wrong) if record.choice else record.texts
        if not all(map(str.strip, captions)):
            raise files.error(record.source, "has a blank text; download it again")
        if path is None:
            located.missing[record.image_paths[0]] = None
        elif not (task.read_classes or captions or record.is_distractor):  # an image without text cannot be used
            located.textless.append(path)
        else:
            located.paths.append(path)
            located.records.append(record)
            if path not in record.image_paths:
                located.substituted.append(path)
    if task.distinct_images and len(set(located.paths)) < len(located.paths):
        raise _repeated_image_error(files, located)
    return located


def _to_task_images(task: Task, files: Folder, located: _LocatedRecords) -> ReadImages:
    paths, missing, textless, substituted = (
        tuple(map(files.url_of, paths))
        for paths in (located.paths, located.missing, located.textless, located.substituted)
    )
    if task.kind == "selection":
        return _to_choices(task, paths, located, missing, textless)
    if task.read_classes is None:
        return ImageTexts(
            task=task,
            paths=paths,
            missing=missing,
            textless=textless,
            substituted=substituted,
            texts=tuple(text for record in located.records for text in record.texts),
            image_of_text=tuple(index for index, record in enumerate(located.records) for _ in record.texts),
            distractors=sum(record.is_distractor for record in located.records),
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


def _to_choices(
    task: Task, paths: Sequence[str], located: _LocatedRecords, missing: tuple[str, ...], textless: tuple[str, ...]
) -> ImageChoices:
    """The queries, with each region once."""
    sources: dict[tuple[str, Box | None], str] = {}
    for path, record in zip(paths, located.records, strict=True):
        sources.setdefault((path, record.box), record.source)
    index = {region: number for number, region in enumerate(sources)}
    queries = [
        (record.choice, index[path, record.box])
        for path, record in zip(paths, located.records, strict=True)
        if record.choice
    ]
    return ImageChoices(
        task=task,
        paths=tuple(path for path, _ in sources),
        missing=missing,
        textless=textless,
        boxes=tuple(box for _, box in sources),
        sources=tuple(sources.values()),
        choices=tuple(choice for choice, _ in queries),
        image_of_choice=tuple(image for _, image in queries),
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
    content = [
        [name, record.texts, record.label, *([record.choice, record.box] if record.choice else [])]
        for name, record in zip(names, located.records, strict=True)
    ]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _other_counts(task_images: ImageChoices) -> list[str]:
    """What differs from the published numbers of queries, by category."""
    counts = task_images.query_counts
    published = task_images.task.categories
    return [
        f"{category}: {number:,} queries are published, but there {wording.plural(counts[category], 'is')} "
        f"{counts[category]:,}"
        for category, number in published.items()
        if number is not None and counts[category] != number
    ]


def _overfull_classes(task_images: ReadImages) -> dict[str, int]:
    """The number of images of each class that has more of them than published."""
    if not isinstance(task_images, ImageClasses):
        return {}
    names = task_images.class_names
    most = -(-task_images.task.images // len(names))
    counts = Counter(task_images.labels)
    return {f"{label} ({names[label]})": images for label, images in counts.items() if images > most}


def _incomplete_message(task_images: ReadImages, folder: str) -> str:
    """What differs from the published set, where to get it, and how to evaluate it all the same."""
    task = task_images.task
    if not task.is_published:
        return _incomplete_own_message(task_images, folder)
    if isinstance(task_images, ImageChoices):
        lines = [f"{task.title}: {folder} does not have the whole published set", *_other_counts(task_images)]
    else:
        lines = [_count_line(task_images, folder)]
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


def _count_line(task_images: ImageTexts | ImageClasses, folder: str) -> str:
    """How many images and texts are published, and how many exist."""
    task = task_images.task
    published, existing = f"{task.images:,} images", f"{len(task_images.paths):,}"
    if isinstance(task_images, ImageTexts):
        existing = f"{len(task_images.paths) - task_images.distractors:,} with {len(task_images.texts):,}"
        published += f" with {task.texts_per_image * task.images:,} texts"
    if isinstance(task_images, ImageTexts) and task.distractors:
        existing += f" and {task_images.distractors:,}"
        published += f" and {task.distractors:,} images without texts"
    return f"{task.title}: {published} are published, but {folder} has {existing}"


def _incomplete_own_message(task_images: ReadImages, folder: str) -> str:
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
