"""What a scorer is: it gives numbers to images and their texts, one shard at a time.

A scorer of a kind is a class with the members of `Scorer`. Another package adds one through an entry point (see
`registry`). Two protocols exist, by what a score depends on:

- `ShardScorer`: on the image and its texts alone, such as the similarity of image and text.
- `DatasetScorer`: on all images and texts of the run, such as the number of images with the same sub-caption. Each
  shard is surveyed on its own; the surveys are combined on disk; and each shard gets the numbers of its texts.

Higher is better or worse, as the scorer says: the rules of a manifest name the side that is left out.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from lotlip_data.manifests.formats.score_file import RAW as RAW
from lotlip_data.manifests.formats.score_file import ScoreSummary
from lotlip_data.manifests.settings.base import Settings


@dataclass(frozen=True)
class ImageText:
    """A text on an image."""

    name: str
    """RAW, or the captioner."""
    text: str
    pieces: tuple[str, ...] = ()
    """The sub-captions of a long text, in order; none of a raw text."""


@dataclass(frozen=True)
class ScoredImage:
    """An image with its texts, as a scorer gets it."""

    uid: str
    sha256: str
    """Of the downloaded bytes."""
    content: bytes
    """The stored file; empty for a scorer that reads texts alone."""
    texts: tuple[ImageText, ...]
    """The raw texts, then the long texts that exist, in the order of the captioners."""
    url: str = ""
    """Where it was downloaded from; empty for an image that has no URL."""


@dataclass(frozen=True)
class TextScore:
    """The score of a text and of its sub-captions; None for what cannot be scored, such as a blank text."""

    score: float | None
    pieces: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class ImageScores:
    """The scores of an image: a number of its own, or one for each of its texts, or the reason why there are none."""

    image: float | None = None
    texts: tuple[TextScore, ...] = ()
    """As many as the image has texts; none of a scorer of images."""
    error: str | None = None
    """Why the image has no scores, such as an image that cannot be decoded."""


class Scorer(Protocol):
    """What all scorers have. Instances are pickled and sent to the tasks, so a model is loaded at the first shard.

    A class is called with the entry's `model`, its `options` as an instance of `settings_type`, and the `device` where
    a model computes, such as `cuda`; None is a GPU if there is one.
    """

    scores: ClassVar[Literal["texts", "images"]]
    """Whether it scores texts and their sub-captions, or images."""
    reads_images: ClassVar[bool]
    """Whether it needs the image files. If not, no image is read."""
    better: ClassVar[Literal["higher", "lower"]]
    """Which scores are better. A combined score counts the lower ones with a minus."""
    needs_model: ClassVar[bool]
    """Whether an entry must name a `model`. If not, it must not."""
    settings_type: ClassVar[type[Settings]]
    """What the entry's `options` are validated as."""

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that a score depends on besides the image and its texts: settings, and digests of models."""


class ShardScorer(Scorer, Protocol):
    """A scorer whose scores depend on an image and its texts alone."""

    def score(self, images: Iterable[ScoredImage]) -> Iterator[ImageScores]:
        """The scores of each image, in order. Images are read as they are needed, so that few are in memory."""


@dataclass(frozen=True)
class Survey:
    """What a dataset-wide scorer notes of one shard: arrays of n values, which belong together."""

    columns: tuple[np.ndarray, ...]
    """uint64 [n] each. The meaning is the scorer's."""


class DatasetScorer(Scorer, Protocol):
    """A scorer whose scores depend on all images and texts."""

    def survey(self, images: Iterable[ScoredImage]) -> Survey:
        """Reduce a shard to a few numbers, on Ray. Row i of a survey gets number i of `combine`."""

    def combine(
        self, surveys: Iterable[tuple[int, Survey]], rows: int, folder: Path
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Compare the surveys of all shards, on the driver, in memory that does not grow with their number.

        Args:
            surveys: The shards with their surveys, in any order. They are read once.
            rows: About how many rows there are in all, which decides the number of files.
            folder: An empty folder for files.

        Yields:
            Each shard that has rows, once, with a float64 for each row of its survey, in the order of the rows.
        """

    def assign(self, images: Iterable[ScoredImage], numbers: Sequence[float]) -> Iterator[ImageScores]:
        """The scores of each image, in order, from the numbers of its shard. The images have no content here."""


@runtime_checkable
class Summarises(Protocol):
    """A dataset-wide scorer that has something to tell people about the whole run."""

    def summarise(self, folder: Path, read_shard: Callable[[int], Iterable[ScoredImage]]) -> ScoreSummary:
        """What `report` shows. It is stored beside the scores.

        Args:
            folder: That of `combine`, which has given its first shard.
            read_shard: The images of a shard, without content.
        """
