"""Evaluation sets: what a set declares, and how its images and texts are read from a folder of published files.

A set is one `Task`, whose function `read_records` yields one `Record` per published image, or per query if captions are
selected. `read_task` (`reading.py`) looks for the images in the folder, checks counts and checksums, and returns
`ImageTexts` (retrieval), `ImageClasses` (classification) or `ImageChoices` (selection), which `evaluate_zero_shot`
takes. `urban1k.py` is the shortest complete set, `sugarcrepe.py` the shortest one whose captions are selected.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.iteration import DECODE_THREADS, map_ordered
from lotlip_data.manifests.text_stats import bert_tokens, tally
from lotlip_data.training.data.tokenizer import TextForm
from lotlip_data.training.evaluation.selection import Choice
from lotlip_data.training.evaluation.tasks.files import Folder, read_image
from lotlip_data.training.evaluation.tasks.regions import Box, read_region

Kind = Literal["long", "short", "classification", "selection"]


@dataclass(frozen=True)
class Record:
    """One published image with its texts or its class, or one query. All paths are relative to the set's folder."""

    image_paths: tuple[str, ...]
    """Where the image may be. The first path that exists is used."""
    source: str
    """The file that describes the image, and the position in it; for error messages."""
    texts: tuple[str, ...] = ()
    label: int = -1
    """The index of the class, for classification."""
    substitute_paths: tuple[str, ...] = ()
    """Paths to try last, whose file name is not the record's. Images that are read from them are reported."""
    is_distractor: bool = False
    """Whether the image has no text on purpose: it is only compared with the texts of others. Distractors come last."""
    choice: Choice | None = None
    """The captions to select from, for selection."""
    box: Box | None = None
    """The region of the image that the captions are about; None for the whole image."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A published evaluation set."""

    name: str
    """As in `lotlip-data eval --task NAME`."""
    title: str
    """As in tables and messages."""
    kind: Kind
    images: int = 0
    """Number of published images, without distractors; 0 for selection, whose queries are counted instead."""
    texts_per_image: int = 0
    """0 for classification and selection."""
    where: str
    """Where to get the files, and where to put them in FOLDER. Every error of the set ends with it."""
    read_records: Callable[[Folder], Iterator[Record]]
    table_1_row: tuple[float, float] | None = None
    """Sub-captions and tokens per text in the paper's Table 1."""
    read_classes: Callable[[Folder], tuple[Sequence[str], Sequence[str]]] | None = None
    """For classification: the class names in the order of the labels, and the prompt templates with "{}" in place of
    the name. All classes have equally many images."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    """Known checksums of files and archives by path, as `Folder.changed_files` takes them. Archives may be deleted."""
    distractors: int = 0
    """Number of published images without texts, which texts are compared with too."""
    categories: Mapping[str, int | None] = field(default_factory=dict)
    """For selection: the number of published queries of each category; None if it is not known."""
    has_overall: bool = True
    """For selection: whether the queries of all categories together have a meaning."""
    has_text_only: bool = False
    """For selection: whether the two right captions of each query are also compared without the image."""
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
    distractors: int = 0
    """Number of images, the last ones, that have no text."""
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
        distractors = {"distractors": self.distractors} if self.distractors else {}
        images = len(self.paths) - self.distractors
        return {"images": images, "repeated_images": repeated, **distractors, **text_figures}


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


@dataclass(frozen=True, kw_only=True)
class ImageChoices(TaskImages):
    """A selection set: `choices[q]` is of image `image_of_choice[q]`, image i the region `boxes[i]` of `paths[i]`."""

    boxes: tuple[Box | None, ...]
    """None for a whole picture."""
    sources: tuple[str, ...]
    """Where each image is named first, for messages."""
    choices: tuple[Choice, ...]
    image_of_choice: tuple[int, ...]

    @property
    def picture_of_image(self) -> list[int]:
        """The index of the picture of each image: regions of one picture have the same one."""
        index = {path: number for number, path in enumerate(dict.fromkeys(self.paths))}
        return [index[path] for path in self.paths]

    @property
    def has_overall(self) -> bool:
        """Whether the queries of all categories together have a meaning."""
        return self.task.has_overall

    @property
    def has_text_only(self) -> bool:
        """Whether the right captions are also compared without the image."""
        return self.task.has_text_only

    @property
    def query_counts(self) -> Counter[str]:
        """The number of queries of each category."""
        return Counter(choice.category for choice in self.choices)

    def images(self) -> Iterator[Image.Image | None]:
        """All regions in order, decoded ahead on threads; None for a file that is not an image."""
        regions = zip(self.paths, self.boxes, self.sources, strict=True)
        return map_ordered(lambda region: read_region(*region), regions, DECODE_THREADS)

    def statistics(self) -> dict[str, Any]:
        """Number of pictures, of their regions, and of the queries of each category.

        "unanswerable" is the number of queries with a wrong caption that equals a right one, which no model answers.
        """
        unanswerable = sum(not set(choice.right).isdisjoint(choice.wrong) for choice in self.choices)
        return {
            "images": len(set(self.paths)),
            "regions": len(self.paths),
            "queries": dict(self.query_counts),
            "unanswerable": unanswerable,
        }


ReadImages = ImageTexts | ImageClasses | ImageChoices
"""What `read_task` returns."""
