"""What a run could not use, with the reasons: the Parquet files of its quarantine, as they are."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.paging import Filter

MEANINGS = {
    "lists": "rows of the lists without a usable URL",
    "images": "images that could not be fetched",
    "captions": "images that a captioner gave no text",
    "import": "captions to import that no image has",
    "shard": "samples, and single texts, that are not in the dataset",
}
REASONS = ("reason", "error")
"""The columns that say why."""
SHOWN = ("what", *REASONS, "detail", "content", "url", "uid", "key", "source", "file", "row")
"""The columns that are shown, in this order, where a file has them."""


@dataclass(frozen=True)
class Kind:
    """The files of one stage, or of one captioner."""

    name: str
    """`images`, `captions/llava`, …"""
    files: tuple[str, ...]

    @property
    def meaning(self) -> str:
        return MEANINGS.get(self.name.partition("/")[0], "")


def kinds(run: Run) -> list[Kind]:
    """What there is, from one listing."""
    found: dict[str, list[str]] = {}
    for name in storage.list_below(run.quarantine()):
        if name.endswith(".parquet"):
            found.setdefault(name.rpartition("/")[0] or "other", []).append(run.quarantine(name))
    order = list(MEANINGS)
    known = {name: order.index(top) if (top := name.partition("/")[0]) in order else len(order) for name in found}
    return [Kind(name, tuple(found[name])) for name in sorted(found, key=lambda name: (known[name], name))]


def reason_filter(words: str) -> Filter:
    """Rows whose reason holds these words as they stand, letter case aside; all rows for none."""
    if not words:
        return Filter()

    def match(table: pa.Table) -> np.ndarray:
        found = np.zeros(len(table), bool)
        for name in REASONS:
            if name in table.column_names:
                found |= np.asarray(pc.fill_null(pc.match_substring(table[name], words, ignore_case=True), False))
        return found

    return Filter(REASONS, match)


def cells(row: Mapping[str, object]) -> dict[str, str]:
    """A row's columns that are shown, as text."""
    return {name: str(row[name])[:2000] for name in SHOWN if row.get(name) is not None}
