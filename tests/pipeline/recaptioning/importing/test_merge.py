"""Rows with the same URL are merged as a loop over them would merge them."""

import random
from collections import Counter

import pyarrow as pa
import pytest

from lotlip_data.pipeline.recaptioning.importing.merge import merge_rows

NAMES = ("a", "b")
SCHEMA = pa.schema([("uid", pa.string()), *((f"text {name}", pa.string()) for name in NAMES)])
TEXTS = (None, "", "x", "y")


@pytest.mark.parametrize("seed", range(20))
def test_each_captioner_has_its_first_text_that_is_not_empty(seed: int) -> None:
    generator = random.Random(seed)
    rows = [
        {"uid": f"{generator.randrange(1 + seed):02d}", **{f"text {name}": generator.choice(TEXTS) for name in NAMES}}
        for _ in range(seed * 4)
    ]
    rows.sort(key=lambda row: str(row["uid"]))
    merged = merge_rows(pa.Table.from_pylist(rows, schema=SCHEMA), NAMES)
    expected: dict[str | None, dict[str, str | None]] = {}
    for row in rows:
        best = expected.setdefault(row["uid"], dict.fromkeys(SCHEMA.names[1:]))
        for column, text in best.items():
            if not text and row[column] is not None:
                best[column] = row[column] or text or ""
    assert merged.rows.to_pylist() == [{"uid": uid, **texts} for uid, texts in expected.items()]
    assert [merged.rows["uid"][number].as_py() for number in merged.group] == [row["uid"] for row in rows]
    differing = Counter(
        name
        for row in rows
        for name in NAMES
        if (text := row[f"text {name}"]) and text != expected[row["uid"]][f"text {name}"]
    )
    assert merged.differing == differing
    for uid in expected:  # a row that is not used brings nothing that an earlier one did not
        used = [row for row, is_used in zip(rows, merged.is_used, strict=True) if is_used and row["uid"] == uid]
        for column, text in expected[uid].items():
            assert text is None or text in [row[column] for row in used]
