"""Images and their captions into samples: one to one by identity, nothing lost, nothing twice, never by position.

Plain functions over iterables; nothing here knows of Ray or of a run's folder.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.pipeline.curation.filters import (
    IMAGE_CHANGED,
    TOO_FEW_LONG_TEXTS,
    Filters,
    RawTexts,
    SampleRow,
    image_rejection,
    raw_texts,
)

SAMPLE, RAW = "sample", "raw"
"""`what` was left out, beside the captioners' names; see `schema.DROPPED`."""

Drops = Mapping[str, tuple[str, str]]
"""By key, the reason why an image is left out for another one's sake, and that one's key or name."""


class JoinError(UserError):
    """Images and captions that do not belong together; the message names both."""


class LongText(NamedTuple):
    """What a captioner says of an image: the text (None where there is none) and its flags.

    changed: it says that of other bytes, which the image's URL gave when it was fetched before.
    """

    text: str | None
    flags: list[str]
    changed: bool

    def reason(self, rules: Filters) -> str | None:
        """Why it is left out; None where it is not, or where there is nothing to leave out."""
        if self.changed:
            return IMAGE_CHANGED
        return None if self.text is None else next((flag for flag in self.flags if flag in rules.drop_flags), None)


class Captions:
    """The captions of one shard by one captioner, kept as Arrow columns and found by uid.

    `table` has the columns of `schema.CAPTIONS`; `where` is named in errors, and what `remedy` says is to be done.
    """

    def __init__(self, table: pa.Table, where: str, remedy: Callable[[], str]) -> None:
        self.where, self.remedy = where, remedy
        self._columns = {name: table[name].combine_chunks() for name in ("sha256", "text", "flags")}
        self._rows = {uid: row for row, uid in enumerate(table["uid"].to_pylist())}
        self.unused = set(self._rows)
        if len(self._rows) != len(table):
            counts = f"{len(table)} captions of {len(self._rows)} images; each has exactly one"
            raise JoinError(f"{where}: {counts}. {remedy()}")

    def take(self, image: Mapping[str, Any]) -> LongText:
        """What there is of this image. Raises JoinError where there is no caption of its uid."""
        uid = image["uid"]
        row = self._rows.get(uid)
        if row is None:
            name = f"image {image['key']} (uid {uid}, {image['url']})"
            raise JoinError(f"{self.where} has no row for {name}. {self.remedy()}")
        self.unused.discard(uid)
        sha256, text, flags = (column[row].as_py() for column in self._columns.values())
        return LongText(text, flags or [], sha256 != image["sha256"])


@dataclass
class Joined:
    """The samples of a shard in the order in which they are written, and what was left out."""

    fetched: int = 0
    rows: list[SampleRow] = field(default_factory=list)
    dropped: list[SampleRow] = field(default_factory=list)
    """Rows of `schema.DROPPED`, by key: whole samples, single texts of samples that stay, and texts that a sample lacks
    because its image has changed."""

    @property
    def drops(self) -> Counter[str]:
        """How many samples were left out, by reason."""
        return Counter(row["reason"] for row in self.dropped if row["what"] == SAMPLE)

    @property
    def text_drops(self) -> dict[str, Counter[str]]:
        """How many texts were left out, but with their samples: by `raw` or captioner, and by reason."""
        found: dict[str, Counter[str]] = {}
        for row in self.dropped:
            if row["what"] != SAMPLE:
                found.setdefault(row["what"], Counter())[row["reason"]] += 1
        return found

    def drop(self, image: SampleRow, what: str, reason: str, detail: str = "") -> None:
        identity = {name: image[name] for name in ("key", "uid", "url", "sha256")}
        self.dropped.append(identity | {"what": what, "reason": reason, "detail": detail})


def join(
    images: Iterable[SampleRow], captions: Mapping[str, Captions], rules: Filters, drops: Drops | None = None
) -> Joined:
    """Join one shard: `images` (the json members of its tar) with each captioner's captions, by uid and sha256.

    A caption of other bytes than the image's is left out, as one of an image that has changed. Raises JoinError unless
    every image has exactly one caption row of each captioner, and every row its image.
    """
    joined = Joined()
    seen: set[str] = set()
    for image in images:
        if image["uid"] in seen:
            raise JoinError(f"image {image['key']} ({image['url']}): uid {image['uid']} stands twice in this shard")
        seen.add(image["uid"])
        joined.fetched += 1
        if not image["texts"] or len(image["texts"]) != len(image["sources"]):
            raise JoinError(
                f"image {image['key']}: {len(image['texts'])} raw texts from {len(image['sources'])} sources"
            )
        _judge(joined, image, {name: index.take(image) for name, index in captions.items()}, rules, drops or {})
    for index in captions.values():
        if index.unused:
            uid = min(index.unused)
            few = f"{len(index.unused)} captions have no image, that of uid {uid} among them"
            raise JoinError(f"{index.where}: {few}. {index.remedy()}")
    joined.dropped.sort(key=lambda row: (row["key"], row["what"], row["reason"], row["detail"]))
    # Readers infer types from the first samples (see `schema`), so those that have every text come first.
    joined.rows.sort(key=lambda row: (sum(row[name] is None for name in captions), row["key"]))
    return joined


def _judge(joined: Joined, image: SampleRow, taken: Mapping[str, LongText], rules: Filters, drops: Drops) -> None:
    """One image with its captions becomes a sample, or is left out for the first reason that holds."""
    raws = raw_texts(image["texts"], image["sources"], rules)
    row = _of_the_image(image, raws)
    unwanted: list[tuple[str, str, str]] = [(RAW, reason, text) for text, reason in raws.left_out]
    for name, found in taken.items():
        text, flags = found.text, [] if found.changed else found.flags
        if why_not := found.reason(rules):
            unwanted.append((name, why_not, text or ""))
            text = None
        pieces = subcaptions.split(text or "", rules.sub_captions)
        # A text without a single sub-caption (blank, or nothing but full stops) says nothing: it is none.
        row |= {name: text if pieces else None, name + SUB_SUFFIX: pieces, name + FLAGS_SUFFIX: " ".join(flags)}
    long_texts = sum(row[name] is not None for name in taken)
    reason, detail = image_rejection(image, rules) or raws.reason, ""
    if reason is None and image["key"] in drops:
        reason, detail = drops[image["key"]]
    if reason is None and long_texts < rules.min_long_texts:
        reason, detail = TOO_FEW_LONG_TEXTS, str(long_texts)
    if reason is not None:
        joined.drop(image, SAMPLE, reason, detail)
        # Which captions would bring it back is to be known; other texts go with their sample.
        unwanted = [one for one in unwanted if reason == TOO_FEW_LONG_TEXTS and one[1] == IMAGE_CHANGED]
    else:
        joined.rows.append(row)
    for what, why, lost in unwanted:
        joined.drop(image, what, why, lost)


def _of_the_image(image: SampleRow, raws: RawTexts) -> SampleRow:
    copied = ("key", "uid", "url", "sha256", "width", "height", "original_width", "original_height")
    raw, source = raws.first
    return {name: image[name] for name in copied} | {
        "source": source,
        "raw": raw,
        "sources": [source for _, source in raws.kept],
        "raws": [text for text, _ in raws.kept],
    }
