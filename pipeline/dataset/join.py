"""Joins images and their captions into samples: one to one by identity, never by position; nothing lost, nothing twice.

Plain functions over iterables, independent of Ray and of a run.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from lotlip_data.captioners.quality_flags import invalid_json
from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats import schema
from lotlip_data.manifests.formats.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.manifests.settings.structured import ColumnType, column_values
from lotlip_data.pipeline.curation.filters import (
    TOO_FEW_LONG_TEXTS,
    Exclusion,
    Filters,
    RawTexts,
    SampleRow,
    image_rejection,
    raw_texts,
)
from lotlip_data.pipeline.dataset.outdated import OUTDATED, outdated_reason

SAMPLE, RAW = "sample", "raw"
"""Values of `what` in `schema.DROPPED`, besides the names of the captioners."""

Drops = Mapping[str, Exclusion]
"""By key of an image that is left out because of another one."""

_IMAGE_COLUMNS = ("key", "uid", "url", "sha256", "width", "height", "original_width", "original_height")


class JoinError(UserError):
    """Images and captions that do not belong together; the message names both."""


class LongText(NamedTuple):
    """A captioner's text on an image."""

    text: str | None
    """None if the image has no caption."""
    flags: list[str]
    outdated: str | None
    """Why the caption is not of the sample as it is now, as `outdated_reason` says; None if it is."""
    error: str | None = None
    """Why the image has no caption, as the captioner has recorded it."""

    def rejection(self, rules: Filters) -> str | None:
        """Why the text is left out; None if it is not, or if there is no text."""
        if self.outdated is not None:
            return self.outdated
        return None if self.text is None else next((flag for flag in self.flags if flag in rules.drop_flags), None)


class Captions:
    """The captions of one shard by one captioner, as Arrow columns with an index by uid."""

    def __init__(
        self,
        table: pa.Table,
        url: str,
        remedy: Callable[[], str],
        fields: tuple[str, ...] = (),
        json_columns: Mapping[str, ColumnType] | None = None,
    ) -> None:
        """Args:
        table: The captions, with the columns `uid`, `sha256`, `text` and `flags` of `schema.CAPTIONS`. Without the
            column `fields_sha256` it is not known what the prompts had, and without `error`, why a text is missing.
        url: The name of the captions in errors.
        remedy: Returns what to do if they do not fit the images; the end of an error message.
        fields: Names of the fields in the captioner's prompt.
        json_columns: The keys of the texts, which are JSON objects, that are columns of the dataset, and their types.

        Raises:
            JoinError: A uid occurs twice.
        """
        self.url, self.remedy = url, remedy
        for name in {"fields_sha256", "error"}.difference(table.column_names):
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
        names = ("sha256", "text", "flags", "fields_sha256", "error")
        self._columns = {name: table[name].combine_chunks() for name in names}
        self._fields = fields
        self.json_columns = json_columns or {}
        self._rows = {uid: row for row, uid in enumerate(table["uid"].to_pylist())}
        self.unused = set(self._rows)
        """The uids that `take` has not been called for."""
        if len(self._rows) != len(table):
            counts = f"{len(table)} captions of {len(self._rows)} images, but each image has exactly one"
            raise JoinError(f"{url}: {counts}. {remedy()}")

    def take(self, image: Mapping[str, Any]) -> LongText:
        """The text on an image. Raises JoinError if there is no caption of its uid."""
        uid = image["uid"]
        row = self._rows.get(uid)
        if row is None:
            name = f"image {image['key']} (uid {uid}, {image['url']})"
            raise JoinError(f"{self.url} has no row for {name}. {self.remedy()}")
        self.unused.discard(uid)
        sha256, text, flags, fields_sha256, error = (column[row].as_py() for column in self._columns.values())
        return LongText(text, flags or [], outdated_reason(sha256, fields_sha256, image, self._fields), error)

    def check_all_taken(self) -> None:
        """Raise JoinError if `take` has not been called for a caption: it has no image."""
        if self.unused:
            problem = f"{len(self.unused)} captions have no image, for example that of uid {min(self.unused)}"
            raise JoinError(f"{self.url}: {problem}. {self.remedy()}")


@dataclass
class Joined:
    """The samples of a shard in the order in which they are written, and what was left out."""

    fetched: int = 0
    """The number of images."""
    rows: list[SampleRow] = field(default_factory=list)
    dropped: list[SampleRow] = field(default_factory=list)
    """Rows of `schema.DROPPED`, by key: whole samples, texts of samples that stay, and texts that a sample lacks
    because they are outdated."""

    @property
    def drops(self) -> Counter[str]:
        """The number of samples left out, by reason."""
        return Counter(row["reason"] for row in self.dropped if row["what"] == SAMPLE)

    @property
    def text_drops(self) -> dict[str, Counter[str]]:
        """The number of texts left out of samples that stay: by `raw` or captioner, and by reason."""
        counts: dict[str, Counter[str]] = {}
        for row in self.dropped:
            if row["what"] != SAMPLE:
                counts.setdefault(row["what"], Counter())[row["reason"]] += 1
        return counts

    def drop(self, image: SampleRow, what: str, reason: str, detail: str = "", distance: int | None = None) -> None:
        identity = {name: image[name] for name in ("key", "uid", "url", "sha256")}
        self.dropped.append(identity | {"what": what, "reason": reason, "detail": detail, "distance": distance})


def join(
    images: Iterable[SampleRow], captions: Mapping[str, Captions], rules: Filters, drops: Drops | None = None
) -> Joined:
    """Join the images of one shard with their captions, by uid and sha256.

    A caption of other bytes than the image's is left out, with the reason that the image has changed, and so is one
    whose prompt had other columns of the sample than it has now.

    Args:
        images: The json members of the shard's tar.
        captions: The captions of the shard, by captioner.
        rules: What is left out.
        drops: The images to leave out because of other images.

    Raises:
        JoinError: An image does not have exactly one caption of each captioner, or a caption has no image.
    """
    joined = Joined()
    json_columns = {name: captions_of_one.json_columns for name, captions_of_one in captions.items()}
    seen: set[str] = set()
    for image in images:
        if image["uid"] in seen:
            raise JoinError(f"image {image['key']} ({image['url']}): uid {image['uid']} occurs twice in this shard")
        seen.add(image["uid"])
        joined.fetched += 1
        if not image["texts"] or len(image["texts"]) != len(image["sources"]):
            raise JoinError(
                f"image {image['key']}: has {len(image['texts'])} raw texts but {len(image['sources'])} sources"
            )
        taken = {name: captions_of_one.take(image) for name, captions_of_one in captions.items()}
        _add_image(joined, image, taken, rules, drops or {}, json_columns)
    for captions_of_one in captions.values():
        captions_of_one.check_all_taken()
    joined.dropped.sort(key=lambda row: (row["key"], row["what"], row["reason"], row["detail"]))
    # Readers infer types from the first samples (see `schema`), so samples with every text come first.
    joined.rows.sort(key=lambda row: (sum(row[name] is None for name in captions), row["key"]))
    return joined


def _add_image(
    joined: Joined,
    image: SampleRow,
    taken: Mapping[str, LongText],
    rules: Filters,
    drops: Drops,
    json_columns: Mapping[str, Mapping[str, ColumnType]],
) -> None:
    """Add one image with its captions to the samples, or to what is left out, for the first reason that applies."""
    raws = raw_texts(image["texts"], image["sources"], rules)
    dropped_texts: list[tuple[str, str, str]] = [(RAW, reason, text) for text, reason in raws.left_out]
    row = _image_columns(image, raws)
    for name, long_text in taken.items():
        rejection = long_text.rejection(rules)
        if rejection is not None:
            dropped_texts.append((name, rejection, long_text.text or ""))
        row |= _text_columns(name, long_text, rejection is None, rules)
        row |= _value_columns(name, long_text, row[name], json_columns.get(name, {}))
    long_texts = sum(row[name] is not None for name in taken)
    reason, detail, distance = image_rejection(image, rules) or raws.reason, "", None
    if reason is None and image["key"] in drops:
        reason, detail, distance = drops[image["key"]]
    if reason is None and long_texts < rules.min_long_texts:
        reason, detail = TOO_FEW_LONG_TEXTS, str(long_texts)
    if reason is None:
        joined.rows.append(row)
    else:
        joined.drop(image, SAMPLE, reason, detail, distance)
        # New captions would bring the sample back, so outdated ones are listed. Other texts are dropped with it.
        dropped_texts = [text for text in dropped_texts if reason == TOO_FEW_LONG_TEXTS and text[1] in OUTDATED]
    for what, text_reason, text in dropped_texts:
        joined.drop(image, what, text_reason, text)


def _image_columns(image: SampleRow, raws: RawTexts) -> SampleRow:
    raw, source = raws.first
    return {name: image[name] for name in _IMAGE_COLUMNS} | {
        "url": image["url"] or "",  # not null: readers would infer from the first samples that no sample has a URL
        "source": source,
        "raw": raw,
        "sources": [source for _, source in raws.kept],
        "raws": [text for text, _ in raws.kept],
    }


def _text_columns(captioner: str, long_text: LongText, is_kept: bool, rules: Filters) -> SampleRow:
    """The columns of one captioner. A text without any sub-caption (blank, or only full stops) counts as no text."""
    text = long_text.text if is_kept else None
    pieces = subcaptions.split(text or "", rules.sub_captions)
    flags = [] if long_text.outdated else long_text.flags
    return {
        captioner: text if pieces else None,
        captioner + SUB_SUFFIX: pieces,
        captioner + FLAGS_SUFFIX: " ".join(flags),
    }


def _value_columns(captioner: str, long_text: LongText, text: str | None, types: Mapping[str, ColumnType]) -> SampleRow:
    """The columns of one captioner's keys. A text that is left out, or is no valid JSON, has nulls."""
    is_valid = invalid_json.__name__ not in long_text.flags
    values = column_values(text if is_valid else None, types)
    return {schema.value_column(captioner, key): value for key, value in values.items()}
