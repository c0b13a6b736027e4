"""The Parquet files of a run's quarantine: what the run could not use, with the reasons."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.paging import Filter

DESCRIPTIONS = {
    "lists": "Rows of the lists without a usable URL",
    "images": "Images that could not be downloaded",
    "captions": "Images without a text from this captioner",
    "import": "Imported captions that match no image",
    "shard": "Samples and single texts that are not in the dataset",
}
"""By stage, in the order of the pipeline."""
REASON_COLUMNS = ("reason", "error")
COLUMNS = ("what", *REASON_COLUMNS, "detail", "content", "url", "uid", "key", "source", "file", "row")
"""The columns that the page shows, in this order, if a file has them."""
CELL_CHARACTERS = 2000
"""Longest value shown."""


@dataclass(frozen=True)
class Category:
    """The quarantine files of one stage, or of one captioner."""

    name: str
    """`images`, `captions/llava`, …"""
    files: tuple[str, ...]

    @property
    def description(self) -> str:
        return DESCRIPTIONS.get(self.name.partition("/")[0], "")


def list_categories(run: Run) -> list[Category]:
    """Return the categories that have files, in the order of the pipeline. Makes one listing."""
    files: dict[str, list[str]] = {}
    for name in storage.list_below(run.quarantine()):
        if name.endswith(".parquet"):
            files.setdefault(name.rpartition("/")[0] or "other", []).append(run.quarantine(name))
    stages = list(DESCRIPTIONS)

    def order(name: str) -> tuple[int, str]:
        stage = name.partition("/")[0]
        return stages.index(stage) if stage in stages else len(stages), name

    return [Category(name, tuple(files[name])) for name in sorted(files, key=order)]


def reason_filter(words: str) -> Filter:
    """Return a filter for rows whose reason contains `words`, in any letter case. Without words, every row matches."""
    if not words:
        return Filter()

    def match(table: pa.Table) -> np.ndarray:
        is_match = np.zeros(len(table), bool)
        for name in REASON_COLUMNS:
            if name in table.column_names:
                contains = pc.match_substring(table[name], words, ignore_case=True)
                is_match |= np.asarray(pc.fill_null(contains, False))
        return is_match

    return Filter(REASON_COLUMNS, match)


def row_cells(row: Mapping[str, object]) -> dict[str, str]:
    """Return the values of a row that the page shows, as text, by column."""
    return {name: str(row[name])[:CELL_CHARACTERS] for name in COLUMNS if row.get(name) is not None}
