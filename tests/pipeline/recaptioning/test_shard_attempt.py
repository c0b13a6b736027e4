"""Several texts of each image: one reading makes them all, and each is resumed and committed for itself."""

import subprocess
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lotlip_data.captioners.base import CaptionerConfig, EngineDead
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.recaptioning.claims import claim_settings
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from tests.pipeline.recaptioning.grey_engine import outcomes, write_shard
from tests.pipeline.recaptioning.texts_engine import CONFIG, NAMES, TextsEngine

KILLED = 9
LONG, SHORT, TAGS = NAMES
STARTS = {LONG: "Describe", SHORT: "Name", TAGS: "Tag"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "a run"))


def caption(run: Run, engine: TextsEngine, *shards: int, config: CaptionerConfig = CONFIG, **options: Any) -> list[Any]:
    return outcomes(run, engine, *shards, config=config, **options)


def texts(run: Run, name: str, shard: int = 0) -> list[str | None]:
    """The committed texts of one name, in order of the keys."""
    table = pq.read_table(storage.open_read(run.caption_shard(name, shard)))
    assert len(set(table["uid"].to_pylist())) == table.num_rows
    column: list[str | None] = table["text"].to_pylist()
    return column


def expected(name: str, values: list[int]) -> list[str]:
    return [f"{STARTS[name]} {value}." for value in values]


def end_until_done(run: Run, log: Path, *fatal_values: int, part_size: int = 16, write: str = "") -> int:
    """Caption shard 0 in one process after another until one succeeds. Returns the number of processes that died.

    The first one dies at the write `write`, as in `texts_engine`, if one is given.
    """
    command = [sys.executable, "-m", "tests.pipeline.recaptioning.texts_engine", run.url, str(part_size), str(log)]
    for deaths in range(40):
        arguments = ["" if deaths else write, *fatal_values]
        if (code := subprocess.run([*command, *map(str, arguments)]).returncode) == 0:
            return deaths
        assert code == KILLED
    raise AssertionError("the shard was never completed")


def test_each_image_is_prepared_once_for_all_texts_and_their_requests_are_adjacent(run: Run) -> None:
    values = list(range(50))
    write_shard(run, 0, values)
    engine = TextsEngine()
    (outcome,) = caption(run, engine, 0)
    assert sorted(engine.prepared) == values
    assert [value for value, _ in groupby(value for _, value in engine.asked)] == values[::-1]  # as in the tar
    assert [(result.captioner, result.rows, result.captioned) for result in outcome.done] == [
        (name, 50, 50) for name in NAMES
    ]
    for name in NAMES:
        assert texts(run, name) == expected(name, values)
        metadata = pq.read_schema(storage.open_read(run.caption_shard(name, 0))).metadata
        assert metadata[b"captioner"].decode().startswith(f"{name}@")


def test_a_prompt_that_is_added_later_is_the_only_one_that_is_captioned(run: Run) -> None:
    write_shard(run, 0, list(range(20)))
    two = CONFIG.replace(prompts={key: CONFIG.prompts[key] for key in ("long", "tags")})
    caption(run, TextsEngine(), 0, config=two)
    before = {name: storage.read_bytes(run.caption_shard(name, 0)) for name in (LONG, TAGS)}
    engine = TextsEngine()
    caption(run, engine, 0, names=[SHORT])
    assert {name for name, _ in engine.asked} == {SHORT} and len(engine.asked) == 20
    assert texts(run, SHORT) == expected(SHORT, list(range(20)))
    assert before == {name: storage.read_bytes(run.caption_shard(name, 0)) for name in (LONG, TAGS)}


def test_a_text_that_is_committed_is_not_made_again_by_an_attempt_at_all_texts(run: Run) -> None:
    """A process that was killed between two commits."""
    write_shard(run, 0, list(range(20)))
    caption(run, TextsEngine(), 0, names=[LONG])
    engine = TextsEngine()
    (outcome,) = caption(run, engine, 0)
    assert Counter(name for name, _ in engine.asked) == {SHORT: 20, TAGS: 20}
    assert [(result.captioner, result.won) for result in outcome.done] == [(LONG, False), (SHORT, True), (TAGS, True)]


def test_an_image_that_cannot_be_decoded_has_its_reason_in_every_text_and_a_failed_request_in_its_own(run: Run) -> None:
    write_shard(run, 0, list(range(10)), broken=(3,))
    caption(run, TextsEngine(poison=((SHORT, 7),)), 0)
    missing = {name: [value for value, text in enumerate(texts(run, name)) if text is None] for name in NAMES}
    assert missing == {LONG: [3], SHORT: [3, 7], TAGS: [3]}
    quarantined = pq.read_table(run.quarantine("captions", SHORT, "00000.parquet"))
    assert quarantined["uid"].to_pylist() == ["u3", "u7"]


def test_parts_are_saved_for_each_text_and_a_dead_engine_costs_at_most_one_part_of_each(run: Run) -> None:
    write_shard(run, 0, list(range(100)))
    with pytest.raises(EngineDead):
        caption(run, TextsEngine(max_requests=190), 0, part_size=10)
    saved = {name: sum(record.rows for record in ledger.captioned(run, name)) for name in NAMES}
    assert all(count >= 190 // 3 - 10 - TextsEngine.window for count in saved.values())
    second = TextsEngine()
    (outcome,) = caption(run, second, 0, part_size=10)
    asked = Counter(name for name, _ in second.asked)
    assert asked == {name: 100 - count for name, count in saved.items()}
    assert {result.captioner: result.captioned for result in outcome.done} == asked
    assert max(Counter(second.asked).values()) == 1
    for name in NAMES:
        assert texts(run, name) == expected(name, list(range(100)))
        assert storage.list_names(run.caption_parts(name, 0)) == []


def test_an_image_that_kills_the_engine_is_found_once_for_all_texts(run: Run, tmp_path: Path) -> None:
    """It costs as many deaths as with one text, and no other image loses a text."""
    values = list(range(12))
    write_shard(run, 0, values)
    assert end_until_done(run, tmp_path / "log", 5) == 1 + 2
    for name in NAMES:
        table = pq.read_table(storage.open_read(run.caption_shard(name, 0))).to_pylist()
        assert [row["text"] for row in table if row["uid"] != "u5"] == expected(name, [v for v in values if v != 5])
        (row,) = [row for row in table if row["uid"] == "u5"]
        assert row["error"].startswith("the engine's process ended 3 times with this image, 2 of them with it alone")
        assert storage.list_below(run.parts(name)) == []


@pytest.mark.slow
@pytest.mark.parametrize("part_size", [8, 40])
def test_a_kill_costs_at_most_one_part_of_each_text(run: Run, tmp_path: Path, part_size: int) -> None:
    write_shard(run, 0, list(range(120)))
    deaths = end_until_done(run, tmp_path / "log", 60, part_size=part_size)
    finished = Counter((tmp_path / "log").read_text().splitlines())
    assert len(finished) == 3 * 119
    for name in NAMES:
        assert sum(n - 1 for line, n in finished.items() if line.startswith(name)) <= deaths * part_size


@pytest.mark.slow
@pytest.mark.parametrize(
    "write", ["log 1", *(f"{kind} {number}" for kind in ("part", "commit", "ledger") for number in (1, 2, 3))]
)
def test_a_process_that_is_killed_at_any_write_loses_no_saved_caption_and_commits_each_text_once(
    run: Run, tmp_path: Path, write: str
) -> None:
    values = list(range(24))
    write_shard(run, 0, values)
    deaths = end_until_done(run, tmp_path / "log", part_size=32, write=write)
    assert deaths == 1
    finished = Counter((tmp_path / "log").read_text().splitlines())
    for name in NAMES:
        assert texts(run, name) == expected(name, values)
        assert sum(n - 1 for line, n in finished.items() if line.startswith(name)) <= 32
        assert storage.list_below(run.parts(name)) == []
        (record,) = ledger.recorded(run.caption_ledger(name)).values()
        assert (record.rows, record.failed) == (24, 0)


def test_a_text_that_fails_on_most_images_is_refused_and_the_others_are_committed(run: Run) -> None:
    """After its prompt is mended, only its rejected images are captioned again."""
    write_shard(run, 0, list(range(50)))
    (outcome,) = caption(run, TextsEngine(poison=tuple((SHORT, value) for value in range(30))), 0)
    assert list(outcome.refused) == [SHORT]
    assert "30 of its 50 images were rejected" in outcome.refused[SHORT]
    assert [result.captioner for result in outcome.done] == [LONG, TAGS]
    assert not storage.exists(run.caption_shard(SHORT, 0))
    mended = TextsEngine()
    caption(run, mended, 0)
    assert sorted(mended.asked) == [(SHORT, value) for value in range(30)]
    assert texts(run, SHORT) == expected(SHORT, list(range(50)))
    assert storage.list_below(run.parts(SHORT)) == storage.list_below(run.parts(TAGS)) == []


def test_a_text_whose_name_another_command_has_claimed_costs_no_other_text(run: Run) -> None:
    write_shard(run, 0, list(range(10)))
    claim_settings(run, CONFIG.texts[0].replace(prompt="Another prompt."))
    with pytest.raises(RecaptionError, match=rf"{LONG} now belongs to {LONG}@"):
        caption(run, TextsEngine(), 0)
    assert not storage.exists(run.caption_shard(LONG, 0))
    assert texts(run, SHORT) == expected(SHORT, list(range(10)))
    assert texts(run, TAGS) == expected(TAGS, list(range(10)))


def test_the_texts_of_a_pass_share_the_actors_time(run: Run) -> None:
    """The times in the ledger add up to the actor's time, not to three times that, for each GPU."""
    for shard in (0, 1):
        write_shard(run, shard, list(range(100 * shard, 100 * shard + 40)))
    started = time.monotonic()
    caption(run, TextsEngine(), 0, 1, gpus=2.0)
    elapsed = time.monotonic() - started
    records = [record for name in NAMES for record in ledger.recorded(run.caption_ledger(name)).values()]
    assert len(records) == 6 and all(record.spent for record in records)
    assert sum(record.spent for record in records) / 1000 <= elapsed
    assert sum(record.gpu for record in records) == pytest.approx(2 * sum(record.spent for record in records), abs=6)


def test_without_texts_left_nothing_is_prepared(run: Run) -> None:
    write_shard(run, 0, list(range(10)))
    caption(run, TextsEngine(), 0)
    engine = TextsEngine()
    (outcome,) = caption(run, engine, 0)
    assert engine.prepared == [] and [result.won for result in outcome.done] == [False] * 3
