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
from lotlip_data.pipeline.dataset.scores import (
    NO_SCORES,
    NO_SUB_CAPTION,
    NO_TEXT,
    Scores,
    ShardScores,
    TextScores,
    best,
)

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
        """The number of texts left out of samples that stay, by reason: of raw texts, of a captioner's texts, and of
        its sub-captions, whose kind is the name of their column."""
        counts: dict[str, Counter[str]] = {}
        for row in self.dropped:
            if row["what"] != SAMPLE:
                counts.setdefault(row["what"], Counter())[row["reason"]] += 1
        return counts

    def drop(self, image: SampleRow, what: str, reason: str, detail: str = "", distance: int | None = None) -> None:
        identity = {name: image[name] for name in ("key", "uid", "url", "sha256")}
        self.dropped.append(identity | {"what": what, "reason": reason, "detail": detail, "distance": distance})


def join(
    images: Iterable[SampleRow],
    captions: Mapping[str, Captions],
    rules: Filters,
    drops: Drops | None = None,
    scores: ShardScores | None = None,
) -> Joined:
    """Join the images of one shard with their captions, by uid and sha256.

    A caption of other bytes than the image's is left out, with the reason that the image has changed, and so is one
    whose prompt had other columns of the sample than it has now.

    Args:
        images: The json members of the shard's tar.
        captions: The captions of the shard, by captioner.
        rules: What is left out.
        drops: The images to leave out because of other images.
        scores: The scores of the images and their texts. Default: the dataset has none.

    Raises:
        JoinError: An image does not have exactly one caption of each captioner, or a caption has no image.
        UserError: The scores are not of these images and texts.
    """
    joined = Joined()
    scores = scores or ShardScores(NO_SCORES, {}, {})
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
        _Image(image, taken, rules, scores, json_columns).add_to(joined, drops or {})
    for captions_of_one in captions.values():
        captions_of_one.check_all_taken()
    joined.dropped.sort(key=lambda row: (row["key"], row["what"], row["reason"], row["detail"]))
    # Readers infer types from the first samples (see `schema`), so samples with every text come first.
    joined.rows.sort(key=lambda row: (sum(row[name] is None for name in captions), row["key"]))
    return joined


class _Image:
    """One image with its texts: what of it is in the dataset, and what is left out."""

    def __init__(
        self,
        image: SampleRow,
        taken: Mapping[str, LongText],
        rules: Filters,
        scores: ShardScores,
        json_columns: Mapping[str, Mapping[str, ColumnType]],
    ) -> None:
        self._image, self._taken, self._rules, self._recipe = image, taken, rules, scores.recipe
        self._json_columns = json_columns
        self._scores = scores.take(image)
        self._left_out: list[tuple[str, str, str]] = []
        """What, reason and text of each text that is left out of the sample."""
        self._of_texts: list[TextScores] = []
        """The scores of the long texts that are kept."""
        self.raws = self._raw_texts()
        self.row = _image_columns(image, self.raws)
        self._score_columns: SampleRow = {}
        for name, long_text in taken.items():
            self._add_text(name, long_text)
        if of_raws := self._scores.raws(len(image["texts"])):
            kept = [of_raws[index] for index in self.raws.kept_indices]
            for name in self._recipe.names_of_texts:
                self._score_columns[schema.raw_scores_column(name)] = [of_raw[name] for of_raw in kept]
        self.row |= self._score_columns | self._scores.image

    def add_to(self, joined: Joined, drops: Drops) -> None:
        """Add the image to the samples, or to what is left out, for the first reason that applies."""
        long_texts = sum(self.row[name] is not None for name in self._taken)
        reason, detail, distance = image_rejection(self._image, self._rules) or self.raws.reason, "", None
        if reason is None and self._image["key"] in drops:
            reason, detail, distance = drops[self._image["key"]]
        reason = reason or self._score_rejection()
        if reason is None and long_texts < self._rules.min_long_texts:
            reason, detail = TOO_FEW_LONG_TEXTS, str(long_texts)
        left_out = self._left_out
        if reason is None:
            joined.rows.append(self.row)
        else:
            joined.drop(self._image, SAMPLE, reason, detail, distance)
            # New captions would bring the sample back, so outdated ones are listed. Other texts are dropped with it.
            left_out = [text for text in left_out if reason == TOO_FEW_LONG_TEXTS and text[1] in OUTDATED]
        for what, text_reason, text in left_out:
            joined.drop(self._image, what, text_reason, text)

    def _raw_texts(self) -> RawTexts:
        texts, sources = self._image["texts"], self._image["sources"]
        rejections = [self._recipe.rejection("raw", scores) for scores in self._scores.raws(len(texts))]
        raws = raw_texts(texts, sources, self._rules, rejections)
        self._left_out += [(RAW, reason, text) for text, reason in raws.left_out]
        return raws

    def _score_rejection(self) -> str | None:
        """Why the sample is left out because of its score, or of those of all its long texts."""
        for limit in self._recipe.limits:
            if limit.of == "samples":
                is_of_image = limit.score in self._scores.image
                value = self._scores.image[limit.score] if is_of_image else best(self._whole_scores(), limit)
                if reason := limit.rejection(value):
                    return reason
        return None

    def _whole_scores(self) -> list[Scores]:
        return [scores.text for scores in self._of_texts]

    def _add_text(self, captioner: str, long_text: LongText) -> None:
        """Add the columns of one captioner. A text without any sub-caption (blank, or only full stops) is no text."""
        rejection = long_text.rejection(self._rules)
        text = long_text.text if rejection is None else None
        pieces = subcaptions.split(text or "", self._rules.sub_captions)
        scores = self._scores.text(captioner, len(pieces)) if pieces else NO_TEXT
        if pieces:
            self._of_texts.append(scores)
            rejection = self._recipe.rejection("texts", scores.text)
        if rejection is None and captioner not in self._recipe.whole_texts:
            text, pieces, scores, rejection = self._without_rejected_pieces(captioner, text, pieces, scores)
        if rejection is not None:
            self._left_out.append((captioner, rejection, long_text.text or ""))
            text, pieces, scores = None, [], NO_TEXT
        flags = [] if long_text.outdated else long_text.flags
        self.row |= {
            captioner: text if pieces else None,
            captioner + SUB_SUFFIX: pieces,
            captioner + FLAGS_SUFFIX: " ".join(flags),
        }
        self.row |= _value_columns(captioner, long_text, self.row[captioner], self._json_columns.get(captioner, {}))
        for name in self._recipe.names_of_texts:
            whole = scores.text.get(name) if pieces else None
            self._score_columns[schema.text_score_column(captioner, name)] = whole
            of_pieces = [piece[name] for piece in scores.pieces]
            self._score_columns[schema.piece_scores_column(captioner, name)] = of_pieces

    def _without_rejected_pieces(
        self, captioner: str, text: str | None, pieces: list[str], scores: TextScores
    ) -> tuple[str | None, list[str], TextScores, str | None]:
        """A text without the sub-captions whose scores are beyond a limit, and why it is left out if none is left."""
        reasons = [self._recipe.rejection("sub_captions", piece) for piece in scores.pieces]
        if not any(reasons):
            return text, pieces, scores, None
        kept = [index for index, reason in enumerate(reasons) if reason is None]
        if not kept:
            return text, pieces, scores, NO_SUB_CAPTION
        self._left_out += [
            (captioner + SUB_SUFFIX, reason, piece)
            for piece, reason in zip(pieces, reasons, strict=True)
            if reason is not None
        ]
        pieces = [pieces[index] for index in kept]
        of_kept = TextScores(scores.text, [scores.pieces[index] for index in kept])
        return subcaptions.join(pieces, self._rules.sub_captions), pieces, of_kept, None


def _image_columns(image: SampleRow, raws: RawTexts) -> SampleRow:
    raw, source = raws.first
    return {name: image[name] for name in _IMAGE_COLUMNS} | {
        "url": image["url"] or "",  # not null: readers would infer from the first samples that no sample has a URL
        "source": source,
        "raw": raw,
        "sources": [source for _, source in raws.kept],
        "raws": [text for text, _ in raws.kept],
    }


def _value_columns(captioner: str, long_text: LongText, text: str | None, types: Mapping[str, ColumnType]) -> SampleRow:
    """The columns of one captioner's keys. A text that is left out, or is no valid JSON, has nulls."""
    is_valid = invalid_json.__name__ not in long_text.flags
    values = column_values(text if is_valid else None, types)
    return {schema.value_column(captioner, key): value for key, value in values.items()}
