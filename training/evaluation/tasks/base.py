"""The images of a task with their texts or classes, as they are read from a folder of published files.

The records of a task whose images are there, and what is amiss with them.

What an evaluation task is, and a record of its files.
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
from lotlip_data.training.data.tokenizer import TextForm
from lotlip_data.training.evaluation.tasks.files import Folder, TaskDataError, read_image

Kind = Literal["long", "short", "classification"]


@dataclass(frozen=True)
class Record:
    """One image of a task: where it may lie (the first that exists is taken), and its texts or its class."""

    places: tuple[str, ...]
    source: str
    """The file, and where in it, that says so."""
    texts: tuple[str, ...] = ()
    label: int = -1
    substitutes: tuple[str, ...] = ()
    """Places under another name than the record's, which come last; they are told."""


@dataclass(frozen=True)
class Task:
    """A published evaluation set. `row` is its row of the paper's Table 1: sub-captions and tokens a text."""

    name: str
    title: str
    kind: Kind
    images: int
    texts_an_image: int
    where: str
    read: Callable[[Folder], Iterator[Record]]
    row: tuple[float, float] | None = None
    classes: Callable[[Folder], tuple[Sequence[str], Sequence[str]]] | None = None
    """Names of the classes in the order of their labels, and templates with "{}". All have equally many images."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Of those of its files and archives that are known, "sha256:…" or "md5:…"; archives need not be there."""
    distinct: bool = True
    """Whether every record has an image of its own, as published."""


def stamp(files: Folder, places: Sequence[str]) -> str:
    """A digest of which images these are: their paths in the folder, and the storage's stamps. One listing a folder."""
    wanted: dict[str, set[str]] = defaultdict(set)
    for place in places:
        folder, _, name = place.rpartition("/")
        wanted[folder].add(name)

    def stamps(folder: str) -> dict[str, str]:
        return {n: one for n, one in storage.list_stamps(files.at(folder)).items() if n in wanted[folder]}

    of = dict(zip(wanted, map_ordered(stamps, wanted), strict=True))
    content = [[place, of[place.rpartition("/")[0]].get(place.rpartition("/")[2])] for place in places]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class TaskImages:
    """The images of a task that are there, and what is to be told of them; all paths are whole."""

    task: Task
    paths: tuple[str, ...]
    missing: tuple[str, ...] = ()
    """Where images (or, of DCI, annotations) should be that are not there."""
    textless: tuple[str, ...] = ()
    """Images that are there without a text."""
    substituted: tuple[str, ...] = ()
    """Those of `paths` that have another name than the record asks for."""
    changed: tuple[str, ...] = ()
    """Files and archives whose checksums are not the published ones, as `Task.checksums` names them."""
    stamp: str = ""
    """Changes with the images' paths in the folder, their sizes and times (or ETags)."""

    @property
    def name(self) -> str:
        return self.task.name

    def images(self) -> Iterator[Image.Image | None]:
        """All images in order, decoded ahead; None where a file holds no image that can be read."""
        return map_ordered(read_image, self.paths, DECODE_THREADS)


@dataclass(frozen=True, kw_only=True)
class ImageTexts(TaskImages):
    """Text j belongs to image `image_of_text[j]`."""

    texts: tuple[str, ...]
    image_of_text: tuple[int, ...]

    def in_form(self, form: TextForm) -> ImageTexts:
        """As a model of that text form is to see it.

        The authors' evaluation drops the full stops and line breaks of long texts and joins the sub-captions with
        ". ", at which their tokenizer cuts; short texts stay as they are.
        """
        if self.task.kind != "long" or form != "authors":
            return self
        return dataclasses.replace(
            self, texts=tuple(". ".join(subcaptions.split(text, "authors")) for text in self.texts)
        )

    def statistics(self) -> dict[str, Any]:
        """The row of Table 1: images, texts, sub-captions (by the authors' rule) and BERT tokens a text.

        "repeated_images" are those that an earlier record has too.
        """
        repeated = len(self.paths) - len(set(self.paths))
        figures = tally(self.texts, "authors", bert_tokens()).to_dict()
        return {"images": len(self.paths), "repeated_images": repeated, **figures}


@dataclass(frozen=True, kw_only=True)
class ImageClasses(TaskImages):
    """Image i is of class `labels[i]`; a prompt is a template with the class's name in place of "{}"."""

    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def statistics(self) -> dict[str, Any]:
        return {"images": len(self.paths), "classes": len(self.class_names), "templates": len(self.templates)}


def read_task(task: Task, folder: str, *, allow_partial: bool = False) -> ImageTexts | ImageClasses:
    """The task's images and texts in `folder` (a path or fsspec URL).

    Raises TaskDataError where a file is missing or not of the published form, and where images or texts (of a class,
    too) are fewer or more than published, unless `allow_partial`.
    """
    files = Folder(folder, task.title, task.where)
    found = find(task, files)
    read = _assembled(task, files, found)
    if not read.paths or (is_partial(read) and not allow_partial):
        raise TaskDataError(_complaint(read, folder))
    return dataclasses.replace(read, changed=files.changed(task.checksums), stamp=stamp(files, found.places))


@dataclass
class Found:
    """Records with the places of their images; where others should be; images without a text; which have another name
    than asked for."""

    places: list[str] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    textless: list[str] = field(default_factory=list)
    substituted: list[str] = field(default_factory=list)


def _assembled(task: Task, files: Folder, found: Found) -> ImageTexts | ImageClasses:
    paths, missing, textless, substituted = (
        tuple(map(files.at, places)) for places in (found.places, found.missing, found.textless, found.substituted)
    )
    if task.classes is None:
        pairs = [(text, index) for index, record in enumerate(found.records) for text in record.texts]
        return ImageTexts(
            task=task,
            paths=paths,
            missing=missing,
            textless=textless,
            substituted=substituted,
            texts=tuple(text for text, _ in pairs),
            image_of_text=tuple(index for _, index in pairs),
        )
    names, templates = task.classes(files)
    return ImageClasses(
        task=task,
        paths=paths,
        missing=missing,
        substituted=substituted,
        labels=tuple(record.label for record in found.records),
        class_names=tuple(names),
        templates=tuple(templates),
    )


def is_partial(read: ImageTexts | ImageClasses) -> bool:
    """Whether it is not the whole published set: other counts of images, of texts, or of images of a class."""
    if isinstance(read, ImageTexts) and len(read.texts) != read.task.images * read.task.texts_an_image:
        return True
    return len(read.paths) != read.task.images or bool(_overfull(read))


def _overfull(read: ImageTexts | ImageClasses) -> dict[str, int]:
    """Classes with more images than each has as published, and how many they have."""
    if isinstance(read, ImageTexts):
        return {}
    most = -(-read.task.images // len(read.class_names))
    counts = Counter(read.labels)
    return {f"{label} ({read.class_names[label]})": count for label, count in counts.items() if count > most}


def _complaint(read: ImageTexts | ImageClasses, folder: str) -> str:
    task, texts, have = read.task, "", f"{len(read.paths):,}"
    if isinstance(read, ImageTexts):
        texts = f" with {task.texts_an_image * task.images:,} texts"
        have += f" with {len(read.texts):,}"
    lines = [f"{task.title}: {task.images:,} images{texts} are published, and {folder} holds {have}"]
    if overfull := _overfull(read):
        name, count = next(iter(overfull.items()))
        lines.append(f"{len(overfull):,} classes have more images than the others; class {name} has {count:,}, for one")
    if read.missing:
        lines.append(f"{len(read.missing):,} images are missing: there is no {read.missing[0]}, for one")
    lines.append(task.where)
    if read.paths:
        lines.append("To evaluate what there is, and have it named a part, add --allow-partial")
    return "\n".join(lines)


def find(task: Task, files: Folder) -> Found:
    """Raises TaskDataError for a blank text, and for an image of several records where each should have its own."""
    found = Found()
    for record in task.read(files):
        place = next((place for place in (*record.places, *record.substitutes) if files.has(place)), None)
        if not all(map(str.strip, record.texts)):
            raise files.broken(record.source, "has a blank text; fetch it again")
        if place is None:
            found.missing.append(record.places[0])
        elif not task.classes and not record.texts:  # nothing can be asked of it
            found.textless.append(place)
        else:
            found.places.append(place)
            found.records.append(record)
            if place not in record.places:
                found.substituted.append(place)
    if task.distinct and len(set(found.places)) < len(found.places):
        raise _repeated(files, found)
    return found


def _repeated(files: Folder, found: Found) -> TaskDataError:
    sources: dict[str, list[str]] = defaultdict(list)
    for place, record in zip(found.places, found.records, strict=True):
        sources[place].append(record.source)
    repeated = {place: named for place, named in sources.items() if len(named) > 1}
    place, named = next(iter(repeated.items()))
    return files.broken(
        place,
        f"is the image of {len(named)} records ({', '.join(sorted(set(named)))}), the first of {len(repeated):,} such "
        "images; fetch the files that name them again",
    )
