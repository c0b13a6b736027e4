"""The manifest's `shard` and `clean` sections: what a sample looks like, and what is left out of the dataset."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lotlip_data.manifests.subcaptions import SplitMode

MAX_DISTANCE = 8
"""The largest Hamming distance of two 64-bit perceptual hashes that can be asked for."""

Distance = Annotated[int, Field(ge=0, le=MAX_DISTANCE)]


class ShardSettings(BaseModel):
    """What a sample of the dataset looks like, and how samples are laid out in files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sub_captions: SplitMode = "punkt"
    min_long_texts: Annotated[int, Field(ge=0)] = 1
    """Samples with fewer long texts than this are left out, and counted."""
    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """The share of samples that goes to the validation split, by their uid: a sample never changes sides."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Samples in a tar at most; a shard with more becomes several tars."""
    max_bytes: Annotated[int, Field(ge=1)] | None = None
    """The same in bytes of a tar. A sample that is larger by itself gets a tar of its own."""


class CleanSettings(BaseModel):
    """What is left out of the dataset: everything is off unless it is asked for, counted and listed with its reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    duplicates: bool = False
    """Leave out images whose fetched bytes an earlier image of the run has (equal sha256)."""
    near_duplicates: Distance | None = None
    """Leave out images whose perceptual hash is within this Hamming distance of an earlier image's; 4 is usual."""
    evaluation_sets: tuple[str, ...] = ()
    """Images that must not be in the dataset: folders, tars, images, or `.txt` lists of images; paths or URLs."""
    evaluation_distance: Distance = 4
    """Leave out images whose perceptual hash is within this distance of an evaluation image's, or that equal one."""
    min_side: Annotated[int, Field(ge=1)] | None = None
    """Of the shorter side of the fetched image, in pixels."""
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    """Of the longer side to the shorter one."""
    min_words: Annotated[int, Field(ge=1)] | None = None
    """Of a raw text. A sample that several sources list keeps the raw texts that pass, and is left out without any."""
    max_words: Annotated[int, Field(ge=1)] | None = None
    language: Literal["english"] | None = None
    """Of a raw text: ASCII letters nearly all, and in longer texts some English function words."""
    drop_flags: tuple[str, ...] = ()
    """Leave out long texts with any of these flags of the captioners, such as `repetition`."""

    @model_validator(mode="after")
    def _words_in_order(self) -> "CleanSettings":
        if self.min_words and self.max_words and self.min_words > self.max_words:
            raise ValueError(f"`min_words` is {self.min_words}, above `max_words`, {self.max_words}: no text can pass")
        return self

    @property
    def looks_at_pixels(self) -> bool:
        """Whether perceptual hashes are needed."""
        return self.near_duplicates is not None or bool(self.evaluation_sets)

    @property
    def compares_images(self) -> bool:
        """Whether an image can be left out because of another one."""
        return self.duplicates or self.looks_at_pixels
