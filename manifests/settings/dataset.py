"""The manifest's `shard` and `clean` sections: the form of the dataset, and what is left out of it."""

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from lotlip_data.manifests.settings.base import Name, Settings
from lotlip_data.manifests.settings.captioners import CaptionerName
from lotlip_data.manifests.settings.scores import ScoreRule
from lotlip_data.manifests.subcaptions import SplitMode

MAX_DISTANCE = 8
"""The largest Hamming distance between two 64-bit perceptual hashes that a manifest can set."""

Distance = Annotated[int, Field(ge=0, le=MAX_DISTANCE)]


class ShardSettings(Settings):
    """The form of a sample, and how samples are distributed over files."""

    sub_captions: SplitMode = "punkt"
    """Rule that splits a long text into sub-captions: NLTK's Punkt, or the rule of the paper's authors."""
    min_long_texts: Annotated[int, Field(ge=0)] = 1
    """Smallest number of long texts of a sample. Samples with fewer are left out and counted."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of samples in the validation split, chosen by their uid: a sample never changes its split."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Largest number of samples per tar. A shard with more becomes several tars."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """Largest size of a tar in bytes. A larger sample gets a tar of its own."""
    captioners: tuple[CaptionerName, ...] = ()
    """Captioners whose texts the dataset has, in the order of its columns. Default: all that the run has captions by,
    and those of the manifest that have started."""
    score_weights: dict[Name, Annotated[float, Field(ge=0)]] = {}
    """By scorer of texts, its weight in the combined score, in which lower scores count with a minus where they are
    better. Default: all alike whose higher scores are better; counts, such as those of `repetition`, have no weight
    then."""

    @model_serializer(mode="wrap")
    def _omit_defaults(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `captioners` and `score_weights`, earlier releases can read the section too."""
        settings: dict[str, Any] = serialize(self)
        return {name: value for name, value in settings.items() if name not in ("captioners", "score_weights") or value}


class CleanSettings(Settings):
    """What is left out of the dataset. Every filter is off by default; what it removes is counted and listed."""

    duplicates: bool = False
    """Leave out images whose downloaded bytes equal those of an earlier image of the run (sha256)."""
    near_duplicates: Distance | None = None
    """Leave out images whose perceptual hash is within this Hamming distance of another image's, which `keep` names;
    4 is usual."""
    keep: Literal["largest", "first"] = "largest"
    """Which of the images that look alike stays: the one with the most pixels as downloaded (the earliest of equally
    large ones), or the earliest of the run. Of images with equal bytes, the earliest stays."""
    evaluation_sets: tuple[str, ...] = ()
    """Images that must not be in the dataset: folders, tars, images, or `.txt` lists of images; paths or URLs."""
    evaluation_distance: Distance = 4
    """Leave out images that equal an evaluation image, or whose perceptual hash is within this Hamming distance of an
    evaluation image's."""
    min_side: Annotated[int, Field(ge=1)] | None = None
    """Smallest shorter side of a downloaded image in pixels."""
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio of the longer side to the shorter side."""
    min_words: Annotated[int, Field(ge=1)] | None = None
    """Smallest number of words of a raw text. A sample keeps the raw texts that pass, and is left out without any."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    """Largest number of words of a raw text."""
    language: Literal["english"] | None = None
    """Language of a raw text. English: nearly all letters are ASCII, and longer texts have English function words."""
    drop_flags: tuple[str, ...] = ()
    """Leave out long texts with any of these quality flags, such as `repetition`."""
    scores: tuple[ScoreRule, ...] = ()
    """Leave out sub-captions, texts or samples because of their scores."""

    @model_serializer(mode="wrap")
    def _omit_unused_scores(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `scores`, earlier releases can read the section too."""
        settings: dict[str, Any] = serialize(self)
        return {name: value for name, value in settings.items() if name != "scores" or value}

    @model_validator(mode="after")
    def _check_word_limits(self) -> "CleanSettings":
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"`min_words` is {self.min_words}, above `max_words`, {self.max_words}: no text can pass")
        return self

    @property
    def looks_at_pixels(self) -> bool:
        """Whether perceptual hashes are needed."""
        return self.near_duplicates is not None or bool(self.evaluation_sets)

    @property
    def compares_images(self) -> bool:
        """Whether an image can be left out because of another image."""
        return self.duplicates or self.looks_at_pixels
