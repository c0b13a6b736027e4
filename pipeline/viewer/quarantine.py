"""The Parquet files of a run's quarantine: what the run could not use, with the reasons and the pictures."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.formats.schema import SUB_SUFFIX
from lotlip_data.manifests.run_layout import Run, shard_name
from lotlip_data.pipeline.curation.exclusions import DUPLICATE, NEAR_DUPLICATE
from lotlip_data.pipeline.dataset.join import RAW, SAMPLE
from lotlip_data.pipeline.viewer.cards import web_link
from lotlip_data.pipeline.viewer.downloaded_images import DownloadedImages
from lotlip_data.pipeline.viewer.paging import Filter
from lotlip_data.pipeline.viewer.scans import reason_label

DESCRIPTIONS = {
    "lists": "Rows of the lists without a usable URL",
    "images": "Images that could not be downloaded",
    "captions": "Images without a text from this captioner",
    "import": "Imported captions that match no image",
    "shard": "Samples and single texts that are not in the dataset",
}
"""By stage, in the order of the pipeline."""
REASON_COLUMNS = ("reason", "error")
COLUMNS = (
    *("what", *REASON_COLUMNS, "detail", "content", "url", "uid", "key"),
    *("source", "file", "row", "container", "member"),
)
"""The columns that the page shows, in this order, if a file has them."""
CELL_CHARACTERS = 2000
"""Longest value shown."""
SHORT_CHARACTERS = 140
"""Longest value shown without opening it."""
_WITH_PICTURES = ("captions", "shard")
"""The stages whose rows are downloaded images."""
_PAIRS = (DUPLICATE, NEAR_DUPLICATE)
"""Reasons whose `detail` is the key of another image."""
_KEY = re.compile(r"[0-9]{6,24}")
_SHARD_FILE = re.compile(r"([0-9]{5,12})(?:-[^/]*)?\.parquet")


@dataclass(frozen=True)
class Category:
    """The quarantine files of one stage, or of one captioner."""

    name: str
    """`images`, `captions/llava`, …"""
    files: tuple[str, ...]
    stamps: tuple[str, ...]
    """Change when the files do."""

    @property
    def stage(self) -> str:
        return self.name.partition("/")[0]

    @property
    def description(self) -> str:
        return DESCRIPTIONS.get(self.stage, "")

    @property
    def has_pictures(self) -> bool:
        """Whether the rows are images that were downloaded."""
        return self.stage in _WITH_PICTURES


@dataclass(frozen=True)
class Picture:
    """An image of a row: the one that was left out, or the one that it is like."""

    shard: int
    key: str
    label: str
    size: str = ""
    """Width and height as downloaded; empty if they are not known."""
    uid: str = ""


@dataclass(frozen=True)
class Entry:
    """A row as the page shows it. Its texts come from the web; the template escapes them."""

    cells: dict[str, str]
    """Values as text, by column."""
    pictures: list[Picture] = field(default_factory=list)
    distance: int | None = None
    """The number of bits that differ between the perceptual hashes of the two images."""

    @property
    def reason(self) -> str:
        return next((self.cells[name] for name in REASON_COLUMNS if name in self.cells), "")

    @property
    def link(self) -> str | None:
        """The image's own URL if it is an http or https URL, otherwise None."""
        return web_link(self.cells.get("url", ""))


def list_categories(run: Run) -> list[Category]:
    """Return the categories that have files, in the order of the pipeline. Makes one listing."""
    files: dict[str, list[str]] = {}
    stamps = storage.stamps_below(run.quarantine())
    for name in sorted(stamps):
        if name.endswith(".parquet"):
            files.setdefault(name.rpartition("/")[0] or "other", []).append(name)
    stages = list(DESCRIPTIONS)

    def order(name: str) -> tuple[int, str]:
        stage = name.partition("/")[0]
        return stages.index(stage) if stage in stages else len(stages), name

    return [
        Category(name, tuple(map(run.quarantine, files[name])), tuple(stamps[file] for file in files[name]))
        for name in sorted(files, key=order)
    ]


def what_label(what: str) -> str:
    """A value of `what` in words: what was left out of the dataset."""
    if what in (SAMPLE, RAW):
        return {SAMPLE: "whole sample", RAW: "raw text"}[what]
    captioner = what.removesuffix(SUB_SUFFIX)
    return f"text by {what}" if captioner == what else f"sub-caption by {captioner}"


def reason_filter(words: str, label: str = "", what: str = "") -> Filter:
    """Return a filter of rows.

    Args:
        words: A part of the reason, in any letter case. Empty: any reason.
        label: The label of the reason (`reason_label`). Empty: any reason.
        what: What was left out. Empty: anything.
    """
    if not words and not label and not what:
        return Filter()

    def match_column(column: pa.ChunkedArray) -> np.ndarray:
        is_match = np.asarray(pc.is_valid(column))
        if words:
            is_match = np.asarray(pc.fill_null(pc.match_substring(column, words, ignore_case=True), False))
        if label:
            reasons = [reason for reason in pc.unique(column).to_pylist() if reason is not None]
            chosen = pa.array([reason for reason in reasons if reason_label(reason) == label], pa.string())
            is_match = is_match & np.asarray(pc.is_in(column, chosen))
        return is_match

    def match(table: pa.Table) -> np.ndarray:
        columns = [table[name] for name in REASON_COLUMNS if name in table.column_names]
        is_match = np.any([match_column(column) for column in columns], axis=0) if columns else None
        if is_match is None or (what and "what" not in table.column_names):
            return np.zeros(len(table), bool)
        return is_match & np.asarray(pc.fill_null(pc.equal(table["what"], what), False)) if what else is_match

    return Filter((*REASON_COLUMNS, "what") if what else REASON_COLUMNS, match)


def make_entry(
    row: Mapping[str, object], category: Category, url: str, images: DownloadedImages, deadline: float
) -> Entry:
    """Return a row as the page shows it.

    Args:
        row: A row of a file of the quarantine.
        category: The category of the file.
        url: The file.
        images: The downloaded images of the run.
        deadline: Monotonic time after which sizes of images are not read any more.
    """
    cells = {name: str(row[name])[:CELL_CHARACTERS] for name in COLUMNS if row.get(name) is not None}
    key, match = cells.get("key", ""), _SHARD_FILE.fullmatch(url.rpartition("/")[2])
    if not category.has_pictures or match is None or not _KEY.fullmatch(key):
        return Entry(cells)
    shard = int(match[1])
    is_whole = category.stage == "shard" and cells.get("what") == SAMPLE
    pictures = [_picture(images, shard, key, "left out" if is_whole else "", deadline)]
    other = cells.get("detail", "")
    digits = len(key) - len(shard_name(shard))  # of the row, equal in all keys of a run
    is_pair = is_whole and cells.get("reason") in _PAIRS and _KEY.fullmatch(other)
    if is_pair and 0 < digits < len(other):
        pictures.append(_picture(images, int(other[:-digits]), other, "like this one", deadline))
    distance = row.get("distance")
    return Entry(cells, pictures, distance if isinstance(distance, int) else None)


def _picture(images: DownloadedImages, shard: int, key: str, label: str, deadline: float) -> Picture:
    if time.monotonic() >= deadline:
        return Picture(shard, key, label)
    try:
        facts = images.facts(shard, key)
    except (UserError, OSError):  # the picture itself cannot be shown either, and says why
        facts = None
    if facts is None:
        return Picture(shard, key, label)
    return Picture(shard, key, label, f"{facts.width} × {facts.height}", facts.uid)
