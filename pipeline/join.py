"""Images and their captions into samples: one to one by identity, nothing lost, nothing twice, never by position.

Plain functions over iterables; nothing here knows of Ray or of a run's folder.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from lotlip_data.manifests import subcaptions
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.schema import FLAGS_SUFFIX, SUB_SUFFIX
from lotlip_data.manifests.subcaptions import SplitMode

Row = dict[str, Any]

TOO_FEW_LONG_TEXTS = "too_few_long_texts"
"""Reason of a drop: fewer long texts than `min_long_texts`."""


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


@dataclass(frozen=True)
class Rules:
    """What a sample is made of."""

    sub_captions: SplitMode = "punkt"
    min_long_texts: int = 1


@dataclass
class Joined:
    """The samples of a shard in the order in which they are written, and what was left out."""

    rows: list[Row] = field(default_factory=list)
    dropped: list[Row] = field(default_factory=list)
    """key, uid, url, sha256 and `reason`, by key."""
    long_texts: Counter[str] = field(default_factory=Counter)
    """By captioner, over `rows`."""

    @property
    def drops(self) -> Counter[str]:
        """How many were left out, by reason."""
        return Counter(row["reason"] for row in self.dropped)


def join(images: Iterable[Row], captions: Mapping[str, Captions], rules: Rules) -> Joined:
    """Join one shard: `images` (the json members of its tar) with each captioner's captions, by uid and sha256.

    Raises JoinError unless every image has exactly one caption row of each captioner, and every row its image.
    """
    joined = Joined()
    for row in samples(images, captions, rules):
        if len(texts := [name for name in captions if row[name] is not None]) < rules.min_long_texts:
            identity = {name: row[name] for name in ("key", "uid", "url", "sha256")}
            joined.dropped.append(identity | {"reason": TOO_FEW_LONG_TEXTS, "long_texts": len(texts)})
        else:
            joined.rows.append(row)
            joined.long_texts.update(texts)
    joined.dropped.sort(key=lambda row: row["key"])
    # Readers infer types from the first samples (see `schema`), so those that have every text come first.
    joined.rows.sort(key=lambda row: (sum(row[name] is None for name in captions), row["key"]))
    return joined


def samples(images: Iterable[Row], captions: Mapping[str, Captions], rules: Rules) -> Iterator[Row]:
    """One row of `schema.dataset(captions)` for each image, in the same order. Raises JoinError as `join`."""
    seen: set[str] = set()
    for image in images:
        if image["uid"] in seen:
            raise JoinError(f"image {image['key']} ({image['url']}): uid {image['uid']} stands twice in this shard")
        seen.add(image["uid"])
        row = _of_the_image(image)
        for name, index in captions.items():
            text, flags = index.take(image)
            pieces = subcaptions.split(text or "", rules.sub_captions)
            # A text without a single sub-caption (blank, or nothing but full stops) says nothing: it is none.
            row |= {name: text if pieces else None, name + SUB_SUFFIX: pieces, name + FLAGS_SUFFIX: " ".join(flags)}
        yield row
    for index in captions.values():
        if index.unused:
            uid = min(index.unused)
            raise JoinError(f"{index.where}: {len(index.unused)} captions have no image, that of uid {uid} among them")


def _of_the_image(image: Row) -> Row:
    raws = [text or "" for text in image["texts"]]
    if not raws or len(raws) != len(image["sources"]):
        raise JoinError(f"image {image['key']}: {len(raws)} raw texts from {len(image['sources'])} sources")
    copied = ("key", "uid", "url", "sha256", "width", "height", "original_width", "original_height")
    return {name: image[name] for name in copied} | {
        "source": image["sources"][0],
        "raw": raws[0],
        "sources": image["sources"],
        "raws": raws,
    }
