"""Merges the rows of a table that have the same URL: one per file of a captioner, or repeated ones."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Merged:
    """The rows of a table by uid."""

    rows: pa.Table
    """One row per uid, with the first text of each captioner that is not empty."""
    group: np.ndarray
    """Of each row that was merged, the number of its row in `rows`."""
    is_used: np.ndarray
    """Of each row that was merged, whether it is the first of its uid by a captioner, or has the text that counts."""
    differing: Counter[str] = field(default_factory=Counter)
    """By captioner, the texts that differ from the first one of their uid."""


def merge_rows(rows: pa.Table, names: Sequence[str]) -> Merged:
    """Merge rows with the same uid.

    Args:
        rows: Rows with `uid` and a column `text NAME` per captioner, sorted by uid. A text is null where the row's file
            does not have the captioner.
        names: The captioners.
    """
    count = rows.num_rows
    uids = rows["uid"].to_numpy()
    is_first = np.append(True, uids[1:] != uids[:-1])[:count]
    group = np.cumsum(is_first) - 1
    merged, is_used, differing = rows.filter(pa.array(is_first)), np.zeros(count, bool), Counter[str]()
    for name in names:
        texts = rows[f"text {name}"].combine_chunks()
        has_captioner = texts.is_valid().to_numpy(zero_copy_only=False)
        has_text = pc.fill_null(pc.greater(pc.utf8_length(texts), 0), False).to_numpy(zero_copy_only=False)
        chosen = np.full(merged.num_rows, -1)
        for candidates in (has_captioner, has_text):  # an empty text gives way to a later one that is not
            first = _first_of_each(np.flatnonzero(candidates), group)
            chosen[group[first]] = first
            is_used[first] = True
        others = np.flatnonzero(has_text & (chosen[group] != np.arange(count)))
        same = pc.equal(texts.take(pa.array(others)), texts.take(pa.array(chosen[group[others]])))
        if different := len(others) - (pc.sum(same).as_py() or 0):
            differing[name] = different
        column = merged.schema.get_field_index(f"text {name}")
        best = texts.take(pa.array(chosen, pa.int64(), mask=chosen < 0))
        merged = merged.set_column(column, rows.schema.field(f"text {name}"), best)
    return Merged(merged, group, is_used, differing)


def _first_of_each(rows: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Of these row numbers, in order, the first of each group."""
    groups = group[rows]
    return rows[np.append(True, groups[1:] != groups[:-1])[: len(rows)]]
