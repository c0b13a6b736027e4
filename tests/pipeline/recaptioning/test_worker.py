"""One unit of recaptioning, without Ray and without a model: what is asked of the engine and what is committed."""

import io
import re
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lotlip_data.captioners.base import EngineDead
from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.reader import ShardUnreadable
from tests.pipeline.recaptioning.grey_engine import Seer, caption, fetched, rows


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "a run"))


def test_every_image_gets_its_own_caption_once_in_order_of_keys(run: Run) -> None:
    values = list(range(50))
    fetched(run, 0, values)
    (result,) = caption(run, Seer(), 0)
    assert [(row["uid"], row["sha256"], row["text"]) for row in rows(run, 0)] == [
        (f"u{value}", f"s{value}", f"It is {value}.") for value in values
    ]
    assert (result.rows, result.captioned, result.rejected, result.won) == (50, 50, 0, True)


def test_two_units_share_one_window(run: Run) -> None:
    fetched(run, 0, list(range(40)))
    fetched(run, 1, list(range(100, 140)))
    seer = Seer()
    caption(run, seer, 0, 1)
    assert seer.most == Seer.window
    assert len(rows(run, 0)) == len(rows(run, 1)) == 40


def test_an_image_that_cannot_be_captioned_costs_only_itself(run: Run) -> None:
    fetched(run, 0, list(range(10)), broken=(3,))
    caption(run, Seer(poison=(7,)), 0)
    found = {row["uid"]: row for row in rows(run, 0)}
    assert [uid for uid, row in found.items() if row["text"] is None] == ["u3", "u7"]
    assert "cannot be decoded" in found["u3"]["error"]
    assert found["u7"]["error"] == "poison"
    listed = pq.read_table(run.quarantine("captions", "seer", "00000.parquet")).to_pylist()
    assert listed == [found["u3"], found["u7"]]


def test_what_parts_hold_is_not_captioned_again_and_at_most_one_part_is_lost(run: Run) -> None:
    fetched(run, 0, list(range(100)))
    with pytest.raises(EngineDead):
        caption(run, Seer(die_at=63), 0, part_size=10)
    assert not storage.exists(run.caption_shard("seer", 0))
    second = Seer()
    (result,) = caption(run, second, 0, part_size=10)
    kept = 100 - len(second.seen)
    assert kept >= 63 - 10 - Seer.window
    assert result.captioned == len(second.seen)
    assert [row["text"] for row in rows(run, 0)] == [f"It is {value}." for value in range(100)]
    assert storage.list_names(run.caption_parts("seer", 0)) == []


def test_what_is_committed_is_never_overwritten(run: Run) -> None:
    fetched(run, 0, [1, 2])
    first = Seer()
    caption(run, first, 0)
    before = storage.read_bytes(run.caption_shard("seer", 0))
    second = Seer()
    (result,) = caption(run, second, 0)
    assert not result.won and second.seen == []
    assert storage.read_bytes(run.caption_shard("seer", 0)) == before


def test_a_truncated_tar_commits_nothing_and_names_itself(run: Run) -> None:
    fetched(run, 0, list(range(20)))
    tar = Path(run.images) / "0-a.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: cannot be read"):
        caption(run, Seer(), 0)
    assert not storage.exists(run.caption_shard("seer", 0))


@pytest.mark.parametrize("damage", ["{", "[]", '{"tar": "0-a.tar"}'])
def test_a_damaged_marker_commits_nothing_and_names_itself(run: Run, damage: str) -> None:
    fetched(run, 0, list(range(2)))
    Path(run.image_stats(0)).write_text(damage)
    with pytest.raises(UserError, match=r"00000_stats\.json: .* Remove it; the shard is then fetched again"):
        caption(run, Seer(), 0)
    assert not storage.exists(run.caption_shard("seer", 0))


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"uid": 1, "sha256": "a"}'])
def test_a_damaged_member_names_itself_and_its_tar(run: Run, damage: str) -> None:
    fetched(run, 0, list(range(2)))
    with tarfile.open(Path(run.images) / "0-a.tar", "a") as tar:
        for name, content in (("9.jpg", b""), ("9.json", damage.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: cannot be read \(9\.json: .*Remove "):
        caption(run, Seer(), 0)


def test_a_shard_without_images_is_committed_empty(run: Run) -> None:
    fetched(run, 0, [])
    (result,) = caption(run, Seer(), 0)
    assert result.rows == 0
    assert rows(run, 0) == []


def _spent(run: Run) -> dict[int, float]:
    tallies = ledger.recorded(run.caption_ledger("seer"))
    return {shard: tally.spent / 1000 for shard, tally in tallies.items()}


def test_units_at_hand_at_once_share_the_actors_time(run: Run) -> None:
    """What the ledger says that they took adds up to the actor's time, not to twice that."""
    for shard in (0, 1):
        fetched(run, shard, list(range(100 * shard, 100 * shard + 60)))
    began = time.monotonic()
    caption(run, Seer(), 0, 1)
    took = time.monotonic() - began
    spent = _spent(run)
    assert all(0 < one < took for one in spent.values()) and sum(spent.values()) <= took


@pytest.mark.parametrize("damaged", [lambda data: data[:-20], lambda data: b"PAR1" + bytes(200) + data[204:]])
def test_a_damaged_part_is_named_with_what_to_do_and_removed_costs_its_own_images_alone(
    run: Run, damaged: Callable[[bytes], bytes]
) -> None:
    fetched(run, 0, list(range(60)))
    with pytest.raises(EngineDead):
        caption(run, Seer(die_at=50), 0, part_size=10)
    folder = Path(run.caption_parts("seer", 0))
    part = sorted(folder.glob("*.parquet"))[0]
    part.write_bytes(damaged(part.read_bytes()))
    with pytest.raises(UserError, match=rf"{re.escape(part.name)}: cannot be read .*Remove it"):
        caption(run, Seer(), 0, part_size=10)
    part.unlink()
    caption(run, Seer(), 0, part_size=10)
    assert len(rows(run, 0)) == 60


def test_the_gpus_of_every_actor_that_worked_on_a_unit_count(run: Run) -> None:
    """Killed on half a GPU, gone on without one, ended on two."""
    fetched(run, 0, list(range(90)))
    for die_at, gpus in ((30, 0.5), (40, 0.0)):  # the second has 60 to see, at least
        with pytest.raises(EngineDead):
            caption(run, Seer(die_at=die_at), 0, part_size=10, gpus=gpus)
    before = ledger.throughput(ledger.captioned(run, "seer"))
    assert 0 < before.gpu_seconds < before.seconds / 2
    caption(run, Seer(), 0, part_size=10, gpus=2.0)
    after = ledger.throughput(ledger.captioned(run, "seer"))
    last = after.seconds - before.seconds
    assert last > 0 and after.gpu_seconds - before.gpu_seconds == pytest.approx(2 * last, abs=0.002)


def test_the_time_of_a_unit_that_was_killed_is_not_that_of_the_night_between(run: Run) -> None:
    fetched(run, 0, list(range(100)))
    with pytest.raises(EngineDead):
        caption(run, Seer(die_at=63), 0, part_size=10)
    before = ledger.throughput(ledger.captioned(run, "seer"))
    assert before.images >= 43 and before.seconds > 0
    for name in storage.list_names(run.caption_parts("seer", 0), ".parquet"):  # as if begun a day ago
        part = Path(run.caption_parts("seer", 0), name)
        part.rename(part.with_name(re.sub(r"from\d+", f"from{int(time.time()) - 86_400}", name)))
    began = time.monotonic()
    caption(run, Seer(), 0, part_size=10)
    took = time.monotonic() - began
    (tally,) = ledger.recorded(run.caption_ledger("seer")).values()
    assert tally.ended - tally.started >= 86_400
    assert before.seconds - 0.01 <= _spent(run)[0] <= before.seconds + took + 0.01
