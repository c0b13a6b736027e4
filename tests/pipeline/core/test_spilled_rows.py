"""Spilled rows come back once, in the buckets of their first column, with any buffer and number of buckets."""

import itertools
import pathlib

import numpy as np
import pytest

from lotlip_data.pipeline.core import spilled_rows
from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread


@pytest.mark.parametrize("buffer_bytes", [1, 1000, 1 << 20])
def test_drained_rows_are_those_that_were_added_and_their_files_are_gone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int
) -> None:
    monkeypatch.setattr(spilled_rows, "ROWS_PER_BUCKET", 20)
    table = SpilledRows(tmp_path / "rows", 300, "number", buffer_bytes=buffer_bytes)
    numbers = np.arange(300, dtype=np.uint64)
    for part in np.array_split(numbers, 7):
        table.add(spread(part), part)
    seen, ends = [], []
    for order, number in table.drain():
        assert (spread(number) == order).all()
        assert (np.diff(number.astype(int)) > 0).all(), "rows of a bucket are in the order in which they were added"
        ends.append((int(order.min()), int(order.max())))
        seen += number.tolist()
    assert sorted(seen) == numbers.tolist()
    assert len(ends) > 5 and all(before[1] < after[0] for before, after in itertools.pairwise(ends))
    assert list((tmp_path / "rows").iterdir()) == []


def test_the_number_of_files_is_bounded(tmp_path: pathlib.Path) -> None:
    counts = [SpilledRows(tmp_path / str(rows), rows).count for rows in (0, 10**6, 10**10)]
    assert counts == [1, 11, spilled_rows.MAX_BUCKETS]
