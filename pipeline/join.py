"""Images and their captions into samples: one to one by identity, nothing lost, nothing twice, never by position.

Plain functions over iterables; nothing here knows of Ray or of a run's folder.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.pipeline.rules import TOO_FEW_LONG_TEXTS, RawTexts, Row, Rules, image_reason, raw_texts

SAMPLE, RAW = "sample", "raw"
"""`what` was left out, beside the captioners' names; see `schema.DROPPED`."""

Drops = Mapping[str, tuple[str, str]]
"""By key, the reason why an image is left out for another one's sake, and that one's key or name."""


class JoinError(UserError):
    """Images and captions that do not belong together; the message names both."""


class Captions:
    """The captions of one shard by one captioner, kept as Arrow columns and found by uid.

    `table` has the columns of `schema.CAPTIONS`; `where` is named in errors.
    """

    def __init__(self, table: pa.Table, where: str) -> None:
        self.where = where
        self._columns = {name: table[name].combine_chunks() for name in ("sha256", "text", "flags")}
        self._rows = {uid: row for row, uid in enumerate(table["uid"].to_pylist())}
        self.unused = set(self._rows)
        if len(self._rows) != len(table):
            raise JoinError(f"{where}: {len(table)} captions of {len(self._rows)} images; each has exactly one")

    def take(self, image: Mapping[str, Any]) -> tuple[str | None, list[str]]:
        """The text (None where there is none) and the flags of this image.

        Raises JoinError where there is no caption of its uid, or one of other bytes.
        """
        uid, name = image["uid"], f"image {image['key']} (uid {image['uid']}, {image['url']})"
        row = self._rows.get(uid)
        if row is None:
            raise JoinError(f"{self.where} has no row for {name}")
        self.unused.discard(uid)
        if (captioned := self._columns["sha256"][row].as_py()) != image["sha256"]:
            raise JoinError(
                f"{name} has sha256 {image['sha256']}, but its caption in {self.where} is of {captioned}: "
                "the image was fetched again after it had been captioned"
            )
        return self._columns["text"][row].as_py(), self._columns["flags"][row].as_py() or []


@dataclass
class Joined:
    """The samples of a shard in the order in which they are written, and what was left out."""

    fetched: int = 0
    rows: list[Row] = field(default_factory=list)
    dropped: list[Row] = field(default_factory=list)
    """Rows of `schema.DROPPED`, by key: whole samples, and single texts of samples that stay."""

    @property
    def drops(self) -> Counter[str]:
        """How many samples were left out, by reason."""
        return Counter(row["reason"] for row in self.dropped if row["what"] == SAMPLE)

    @property
    def text_drops(self) -> dict[str, Counter[str]]:
        """How many texts of samples that stay were left out: by `raw` or captioner, and by reason."""
        found: dict[str, Counter[str]] = {}
        for row in self.dropped:
            if row["what"] != SAMPLE:
                found.setdefault(row["what"], Counter())[row["reason"]] += 1
        return found

    def drop(self, image: Row, what: str, reason: str, detail: str = "") -> None:
        identity = {name: image[name] for name in ("key", "uid", "url", "sha256")}
        self.dropped.append(identity | {"what": what, "reason": reason, "detail": detail})


def join(images: Iterable[Row], captions: Mapping[str, Captions], rules: Rules, drops: Drops | None = None) -> Joined:
    """Join one shard: `images` (the json members of its tar) with each captioner's captions, by uid and sha256.

    Raises JoinError unless every image has exactly one caption row of each captioner, and every row its image.
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
            raise JoinError(f"{index.where}: {len(index.unused)} captions have no image, that of uid {uid} among them")
    joined.dropped.sort(key=lambda row: (row["key"], row["what"], row["reason"], row["detail"]))
    # Readers infer types from the first samples (see `schema`), so those that have every text come first.
    joined.rows.sort(key=lambda row: (sum(row[name] is None for name in captions), row["key"]))
    return joined


def _judge(
    joined: Joined, image: Row, taken: Mapping[str, tuple[str | None, list[str]]], rules: Rules, drops: Drops
) -> None:
    """One image with its captions becomes a sample, or is left out for the first reason that holds."""
    raws = raw_texts(image["texts"], image["sources"], rules)
    row = _of_the_image(image, raws)
    unwanted: list[tuple[str, str, str]] = [(RAW, reason, text) for text, reason in raws.left_out]
    for name, (text, flags) in taken.items():
        if text is not None and (flag := next((flag for flag in flags if flag in rules.drop_flags), None)):
            unwanted.append((name, flag, text))
            text = None
        pieces = subcaptions.split(text or "", rules.sub_captions)
        # A text without a single sub-caption (blank, or nothing but full stops) says nothing: it is none.
        row |= {name: text if pieces else None, name + SUB_SUFFIX: pieces, name + FLAGS_SUFFIX: " ".join(flags)}
    long_texts = sum(row[name] is not None for name in taken)
    reason, detail = image_reason(image, rules) or raws.reason, ""
    if reason is None and image["key"] in drops:
        reason, detail = drops[image["key"]]
    if reason is None and long_texts < rules.min_long_texts:
        reason, detail = TOO_FEW_LONG_TEXTS, str(long_texts)
    if reason is not None:
        joined.drop(image, SAMPLE, reason, detail)
        return
    joined.rows.append(row)
    for what, why, text in unwanted:
        joined.drop(image, what, why, text)


def _of_the_image(image: Row, raws: RawTexts) -> Row:
    copied = ("key", "uid", "url", "sha256", "width", "height", "original_width", "original_height")
    first, source = raws.kept[0] if raws.kept else ("", "")
    return {name: image[name] for name in copied} | {
        "source": source,
        "raw": first,
        "sources": [source for _, source in raws.kept],
        "raws": [text for text, _ in raws.kept],
    }
