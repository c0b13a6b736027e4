"""What an evaluation task is, and how a folder of published files becomes images with their texts or classes."""

from __future__ import annotations

import dataclasses
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from lotlip_data.manifests import storage, subcaptions
from lotlip_data.manifests.text_tally import bert_tokens, tally
from lotlip_data.training.eval_tasks.files import Folder, TaskDataError
from lotlip_data.training.text import TextForm

Kind = Literal["long", "short", "classification"]
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Record:
    """One image of a task: where it may lie (the first that exists is taken), and its texts or its class."""

    places: tuple[str, ...]
    texts: tuple[str, ...] = ()
    label: int = -1


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
    """Names of the classes in the order of their labels, and templates with "{}"."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Of those of its files that are known."""


@dataclass(frozen=True)
class TaskImages:
    """The images of a task that are there, the paths of those that are not, and files that have other checksums."""

    task: Task
    paths: tuple[str, ...]
    missing: tuple[str, ...]
    changed: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.task.name

    def images(self) -> Iterator[Image.Image | None]:
        """All images in order, decoded ahead; None where a file holds no image that can be read."""
        return ahead(self.paths, read_image)


@dataclass(frozen=True)
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
        """The row of Table 1: images, texts, sub-captions (by the authors' rule) and BERT tokens a text."""
        return {"images": len(self.paths), **tally(self.texts, "authors", bert_tokens()).figures()}


@dataclass(frozen=True)
class ImageClasses(TaskImages):
    """Image i is of class `labels[i]`; a prompt is a template with the class's name in place of "{}"."""

    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]

    def statistics(self) -> dict[str, Any]:
        return {"images": len(self.paths), "classes": len(self.class_names), "templates": len(self.templates)}


def read_task(task: Task, folder: str, *, allow_partial: bool = False) -> ImageTexts | ImageClasses:
    """The task's images and texts in `folder` (a path or fsspec URL).

    Raises TaskDataError where a file is missing or not of the published form, and where images or texts are fewer or
    more than published, unless `allow_partial`.
    """
    files = Folder(folder, task.title, task.where)
    found: list[tuple[str, Record]] = []
    missing: list[str] = []
    for record in task.read(files):
        if task.classes is None and not record.texts:
            continue  # an image that nothing can be asked about; the counts tell
        path = next((place for place in record.places if files.has(place)), None)
        if path is None:
            missing.append(files.at(record.places[0]))
        else:
            found.append((files.at(path), record))
    count = sum(len(record.texts) for _, record in found)
    if not found or (_differs(task, len(found), count) and not allow_partial):
        raise TaskDataError(_complaint(task, folder, len(found), count, missing))
    paths = tuple(path for path, _ in found)
    changed = tuple(name for name, known in task.sha256.items() if files.sha256(name) != known)
    if task.classes is not None:
        names, templates = task.classes(files)
        labels = tuple(record.label for _, record in found)
        return ImageClasses(task, paths, tuple(missing), changed, labels, tuple(names), tuple(templates))
    pairs = [(text, index) for index, (_, record) in enumerate(found) for text in record.texts]
    texts, owners = tuple(text for text, _ in pairs), tuple(index for _, index in pairs)
    return ImageTexts(task, paths, tuple(missing), changed, texts, owners)


def is_partial(read: ImageTexts | ImageClasses) -> bool:
    return _differs(read.task, len(read.paths), len(read.texts) if isinstance(read, ImageTexts) else 0)


def _differs(task: Task, images: int, texts: int) -> bool:
    return images != task.images or texts != task.images * task.texts_an_image


def _complaint(task: Task, folder: str, images: int, texts: int, missing: Sequence[str]) -> str:
    with_texts = task.kind != "classification"
    expected = f"{task.images:,} images" + f" with {task.texts_an_image * task.images:,} texts" * with_texts
    have = f"{images:,}" + f" with {texts:,}" * with_texts
    lines = [f"{task.title}: {expected} are published, and {folder} holds {have}"]
    if missing:
        lines.append(f"{len(missing):,} images are missing, {missing[0]} for one")
    lines.append(task.where)
    if images:
        lines.append("To evaluate what there is, and have it named a part, add --allow-partial")
    return "\n".join(lines)


def read_image(path: str) -> Image.Image | None:
    """The image as RGB; None where it cannot be read. Orientation tags are not followed, as in published results."""
    try:
        return Image.open(io.BytesIO(storage.read_bytes(path))).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # SyntaxError: Pillow's, of broken PNGs
        return None


def ahead(items: Iterable[Any], make: Callable[[Any], Any], threads: int = THREADS) -> Iterator[Any]:
    """`map(make, items)` in order, by threads that are at most two rounds ahead of what is taken."""
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Any]] = deque()
        for item in items:
            under_way.append(pool.submit(make, item))
            if len(under_way) > 2 * threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
