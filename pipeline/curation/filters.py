"""Decides what a sample contains and what is left out: plain functions from the fields of an image to a reason."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lotlip_data.captioners.quality_flags import FLAGS, is_non_english
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.manifest import Manifest
from lotlip_data.manifests.subcaptions import SplitMode

SampleRow = dict[str, Any]
"""The fields of an image or a sample, by column of `schema.IMAGES` or `schema.dataset`."""

TOO_SMALL, TOO_LONG = "image_too_small", "image_too_elongated"
"""Reasons to leave out an image."""
NO_RAW_TEXT, FEW_WORDS, MANY_WORDS, FOREIGN = "no_raw_text", "too_few_words", "too_many_words", "not_english"
"""Reasons to leave out a raw text, and an image without any other raw text."""
TOO_FEW_LONG_TEXTS = "too_few_long_texts"
"""Reason to leave out a sample: it has fewer long texts than `min_long_texts`."""
IMAGE_CHANGED = "image_changed"
"""Reason to leave out a long text: it is of other bytes than the image, which was downloaded again since."""
PROMPT_CHANGED = "prompt_changed"
"""Reason to leave out a long text: its prompt has columns of the sample, such as the raw text, that changed since."""


@dataclass(frozen=True)
class Filters:
    """The settings that decide what a sample contains and in which file it is. The names are those of the manifest."""

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
        """The filters of a manifest. Raises UserError if `drop_flags` names an unknown flag."""
        if unknown := sorted(set(manifest.clean.drop_flags) - set(FLAGS)):
            raise UserError(
                f"`clean.drop_flags`: there is no flag {', '.join(unknown)}; the flags are {', '.join(FLAGS)}"
            )
        settings = manifest.shard.model_dump() | manifest.clean.model_dump()
        return cls(**{field.name: settings[field.name] for field in dataclasses.fields(cls)})

    @property
    def limits_files(self) -> bool:
        """Whether the samples of an input shard may go into several tars per split."""
        return self.max_samples is not None or self.max_bytes is not None


class Exclusion(NamedTuple):
    """Why an image is left out because of another one."""

    reason: str
    of: str
    """The key of the other image, or its name in an evaluation set."""
    distance: int
    """The number of bits that differ between the perceptual hashes of the two; 0 for equal bytes."""


def image_rejection(image: SampleRow, rules: Filters) -> str | None:
    """Why an image is left out because of its original size; None if it is not."""
    if rules.min_side is None and rules.max_aspect is None:
        return None
    short, long = sorted((image["original_width"], image["original_height"]))
    if rules.min_side is not None and short < rules.min_side:
        return TOO_SMALL
    if rules.max_aspect is not None and long > rules.max_aspect * short:
        return TOO_LONG
    return None


def text_rejection(text: str, rules: Filters) -> str | None:
    """Why a raw text is left out; None if it is not. White space separates words."""
    words = len(text.split())
    if rules.min_words is not None and words < rules.min_words:
        return FEW_WORDS
    if rules.max_words is not None and words > rules.max_words:
        return MANY_WORDS
    if rules.language == "english" and is_non_english(text):
        return FOREIGN
    return None


@dataclass(frozen=True)
class RawTexts:
    """The raw texts of one image."""

    kept: list[tuple[str, str]]
    """Texts that pass the filters, each with its source."""
    left_out: list[tuple[str, str]]
    """The other texts, each with its reason."""
    kept_indices: list[int]
    """The places of the kept texts among all."""

    @property
    def reason(self) -> str | None:
        """Why the sample is left out: the reason of the first text if no text passes, else None."""
        return None if self.kept else self.left_out[0][1] if self.left_out else NO_RAW_TEXT

    @property
    def first(self) -> tuple[str, str]:
        """The first text that passes and is not blank, with its source; a blank text if there is no other."""
        not_blank = (pair for pair in self.kept if pair[0].strip())
        return next(not_blank, self.kept[0] if self.kept else ("", ""))


def raw_texts(
    texts: Sequence[str | None], sources: Sequence[str], rules: Filters, rejections: Sequence[str | None] = ()
) -> RawTexts:
    """Filter the raw texts of one image. `texts[i]` is from `sources[i]`.

    Args:
        texts: The texts.
        sources: Their sources.
        rules: The filters.
        rejections: For each text, why it is left out for another reason, or None. Default: none is.
    """
    result = RawTexts([], [], [])
    for index, (text, source) in enumerate(zip(texts, sources, strict=True)):
        reason = text_rejection(text or "", rules) or (rejections[index] if rejections else None)
        if reason is None:
            result.kept.append((text or "", source))
            result.kept_indices.append(index)
        else:
            result.left_out.append((text or "", reason))
    return result


def split_of(uid: str, validation: float) -> str:
    """The split of a sample, `validation` or `train`, from its uid alone.

    So it stays when the dataset grows or its shards are cut differently. A larger validation share moves samples from
    train to validation and none back. The lower half of the uid decides, because the upper half may decide where a row
    is in the lists.

    Args:
        uid: The uid of the sample, 32 hexadecimal digits.
        validation: The share of the validation split, from 0 to 1.
    """
    return "validation" if int(uid[16:], 16) < validation * 2**64 else "train"
