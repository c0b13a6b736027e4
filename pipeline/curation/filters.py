"""What a sample is made of, and what is left out: plain functions from a fetched image's fields to reasons."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lotlip_data.captioners.quality_flags import RULES as FLAGS
from lotlip_data.captioners.quality_flags import is_foreign
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.subcaptions import SplitMode

SampleRow = dict[str, Any]

TOO_SMALL, TOO_LONG = "image_too_small", "image_too_elongated"
NO_RAW_TEXT, FEW_WORDS, MANY_WORDS, FOREIGN = "no_raw_text", "too_few_words", "too_many_words", "not_english"
TOO_FEW_LONG_TEXTS = "too_few_long_texts"
"""Reason of a drop: fewer long texts than `min_long_texts`."""
IMAGE_CHANGED = "image_changed"
"""Reason to leave out a long text: it is of other bytes than the image's, which was fetched again since."""


@dataclass(frozen=True)
class Filters:
    """The settings that decide what is in a sample and in which file it lies; named as in the manifest."""

    sub_captions: SplitMode = "punkt"
    min_long_texts: int = 1
    validation: float = 0.0
    max_samples: int | None = None
    max_bytes: int | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    min_words: int | None = None
    max_words: int | None = None
    language: str | None = None
    drop_flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, manifest: Manifest) -> "Filters":
        """Raises UserError where `drop_flags` names a flag that no captioner gives."""
        if unknown := sorted(set(manifest.clean.drop_flags) - set(FLAGS)):
            raise UserError(f"`clean.drop_flags`: no flag is called {', '.join(unknown)}; there are {', '.join(FLAGS)}")
        given = manifest.shard.model_dump() | manifest.clean.model_dump()
        return cls(**{field.name: given[field.name] for field in dataclasses.fields(cls)})

    @property
    def limits_files(self) -> bool:
        """Whether a shard may become several tars."""
        return self.max_samples is not None or self.max_bytes is not None


def image_rejection(image: SampleRow, rules: Filters) -> str | None:
    """Why this image is left out for its own sake; None where it is not. Looks at its size as it was fetched."""
    if rules.min_side is None and rules.max_aspect is None:
        return None
    short, long = sorted((image["original_width"], image["original_height"]))
    if rules.min_side is not None and short < rules.min_side:
        return TOO_SMALL
    if rules.max_aspect is not None and long > rules.max_aspect * short:
        return TOO_LONG
    return None


def text_rejection(text: str, rules: Filters) -> str | None:
    """Why this raw text is left out; None where it is not. Words are what blanks separate."""
    words = len(text.split())
    if rules.min_words is not None and words < rules.min_words:
        return FEW_WORDS
    if rules.max_words is not None and words > rules.max_words:
        return MANY_WORDS
    if rules.language == "english" and is_foreign(text):
        return FOREIGN
    return None


@dataclass(frozen=True)
class RawTexts:
    """The raw texts of one image, those that pass and the others, each with its source or its reason."""

    kept: list[tuple[str, str]]
    left_out: list[tuple[str, str]]

    @property
    def reason(self) -> str | None:
        """Why the sample is left out: what is wrong with the first of its texts where none passes."""
        return None if self.kept else self.left_out[0][1] if self.left_out else NO_RAW_TEXT

    @property
    def first(self) -> tuple[str, str]:
        """The first that passes and is not blank, with its source; a blank one where there is no other."""
        said = (pair for pair in self.kept if pair[0].strip())
        return next(said, self.kept[0] if self.kept else ("", ""))


def raw_texts(texts: Iterable[str | None], sources: Iterable[str], rules: Filters) -> RawTexts:
    """Judge the raw texts of one image, `texts[i]` from `sources[i]`."""
    found = RawTexts([], [])
    for text, source in zip(texts, sources, strict=True):
        reason = text_rejection(text or "", rules)
        if reason is None:
            found.kept.append((text or "", source))
        else:
            found.left_out.append((text or "", reason))
    return found


def split_of(uid: str, validation: float) -> str:
    """`validation` or `train`, from the uid alone: it stays when the dataset grows or its shards are cut otherwise.

    A larger share moves samples from train to validation and none back. The lower half of the uid is used: its upper
    half may have decided where a row lies.
    """
    return "validation" if int(uid[16:], 16) < validation * 2**64 else "train"
