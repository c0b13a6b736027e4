"""The caption worker without Ray and without a model: what the engine is asked for, and what is committed."""

import asyncio
import io
import json
import re
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotlip_data.captioners.base import Caption, CaptionError, EngineDead
from lotlip_data.manifests import storage
from lotlip_data.manifests.digests import digest_of_file
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.reader import ShardUnreadable
from lotlip_data.pipeline.recaptioning.worker import CaptionerBroken, CaptionWorker
from tests.pipeline.recaptioning.grey_engine import CONFIG, GreyEngine, caption, outcomes, rows, write_shard
from tests.pipeline.recaptioning.texts_engine import CONFIG as SEVERAL
from tests.pipeline.recaptioning.texts_engine import TextsEngine


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.at(str(tmp_path / "a run"))


def test_every_image_gets_its_own_caption_once_in_order_of_keys(run: Run) -> None:
    values = list(range(50))
    write_shard(run, 0, values)
    (result,) = caption(run, GreyEngine(), 0)
    assert [(row["uid"], row["sha256"], row["text"]) for row in rows(run, 0)] == [
        (f"u{value}", f"s{value}", f"It is {value}.") for value in values
    ]
    assert (result.rows, result.captioned, result.rejected, result.won) == (50, 50, 0, True)


def test_two_shards_share_one_request_window(run: Run) -> None:
    write_shard(run, 0, list(range(40)))
    write_shard(run, 1, list(range(100, 140)))
    engine = GreyEngine()
    caption(run, engine, 0, 1)
    assert engine.max_in_flight == GreyEngine.window
    assert len(rows(run, 0)) == len(rows(run, 1)) == 40


def test_an_image_that_cannot_be_captioned_costs_only_itself(run: Run) -> None:
    write_shard(run, 0, list(range(10)), broken=(3,))
    caption(run, GreyEngine(poison=(7,)), 0)
    by_uid = {row["uid"]: row for row in rows(run, 0)}
    assert [uid for uid, row in by_uid.items() if row["text"] is None] == ["u3", "u7"]
    assert "cannot be decoded" in by_uid["u3"]["error"]
    assert by_uid["u7"]["error"] == "poison"
    listed = pq.read_table(run.quarantine("captions", "grey", "00000.parquet")).to_pylist()
    assert listed == [by_uid["u3"], by_uid["u7"]]


def test_saved_parts_are_not_captioned_again_and_a_dead_engine_costs_at_most_one_part(run: Run) -> None:
    write_shard(run, 0, list(range(100)))
    with pytest.raises(EngineDead):
        caption(run, GreyEngine(max_requests=63), 0, part_size=10)
    assert not storage.exists(run.caption_shard("grey", 0))
    second = GreyEngine()
    (result,) = caption(run, second, 0, part_size=10)
    saved = 100 - len(second.requests)
    assert saved >= 63 - 10 - GreyEngine.window
    assert result.captioned == len(second.requests)
    assert [row["text"] for row in rows(run, 0)] == [f"It is {value}." for value in range(100)]
    assert storage.list_names(run.caption_parts("grey", 0)) == []


def test_a_committed_shard_is_never_overwritten(run: Run) -> None:
    write_shard(run, 0, [1, 2])
    first = GreyEngine()
    caption(run, first, 0)
    before = storage.read_bytes(run.caption_shard("grey", 0))
    second = GreyEngine()
    (result,) = caption(run, second, 0)
    assert not result.won and second.requests == []
    assert storage.read_bytes(run.caption_shard("grey", 0)) == before


def test_a_truncated_tar_is_named_and_nothing_is_committed(run: Run) -> None:
    write_shard(run, 0, list(range(20)))
    tar = Path(run.images) / "0-a.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: cannot be read"):
        caption(run, GreyEngine(), 0)
    assert not storage.exists(run.caption_shard("grey", 0))


def test_part_of_a_shard_is_never_committed_as_the_whole(run: Run) -> None:
    """Of a tar without a digest: a damaged header in the middle, and a tar with fewer images than its marker says."""
    write_shard(run, 0, list(range(45)))
    tar = Path(run.images) / "0-a.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: 20 * 2048 + 1] + b"?" + whole[20 * 2048 + 2 :])
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: cannot be read \(bad checksum at byte .*Remove "):
        caption(run, GreyEngine(), 0)
    write_shard(run, 1, list(range(20)))
    other = Path(run.images) / "1-a.tar"
    other.rename(tar)
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: contains 20 images, but its marker says 45\. Remove "):
        caption(run, GreyEngine(), 0)
    assert not storage.exists(run.caption_shard("grey", 0))


def add_digest(run: Run) -> Path:
    """Record the digest of the tar of shard 0 in its marker. Returns the tar."""
    tar, marker = Path(run.images) / "0-a.tar", Path(run.image_stats(0))
    digest = asdict(digest_of_file(tar))
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"digests": {"tar": digest}}))
    return tar


def test_no_caption_of_a_damaged_image_is_kept(run: Run) -> None:
    """The damage is noticed at the end of the tar, when captions are saved already."""
    write_shard(run, 0, list(range(40)))
    tar = add_digest(run)
    whole = tar.read_bytes()
    tar.write_bytes(whole[:520] + bytes([whole[520] ^ 1]) + whole[521:])
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: cannot be read \(its content does not match"):
        caption(run, GreyEngine(), 0, part_size=10)
    assert not storage.exists(run.caption_shard("grey", 0))
    tar.write_bytes(whole)
    (result,) = caption(run, GreyEngine(), 0, part_size=10)
    assert (result.rows, result.captioned) == (40, 40)


def test_captions_of_a_tar_that_was_downloaded_again_are_not_reused(run: Run) -> None:
    write_shard(run, 0, list(range(40)))
    with pytest.raises(EngineDead):
        caption(run, GreyEngine(max_requests=30), 0, part_size=10)
    marker = Path(run.image_stats(0))
    marker.write_text(marker.read_text().replace("0-a.tar", "0-b.tar"))
    (Path(run.images) / "0-a.tar").rename(Path(run.images) / "0-b.tar")
    (result,) = caption(run, GreyEngine(), 0, part_size=10)
    assert (result.rows, result.captioned) == (40, 40)


@pytest.mark.parametrize("damage", ["{", "[]", '{"tar": "0-a.tar"}'])
def test_a_damaged_completion_mark_is_named_and_nothing_is_committed(run: Run, damage: str) -> None:
    write_shard(run, 0, list(range(2)))
    Path(run.image_stats(0)).write_text(damage)
    with pytest.raises(
        UserError, match=r"00000_stats\.json: .* Remove it; `lotlip-data download` then downloads the shard again"
    ):
        caption(run, GreyEngine(), 0)
    assert not storage.exists(run.caption_shard("grey", 0))


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"uid": 1, "sha256": "a"}'])
def test_a_damaged_tar_member_is_named_with_its_tar(run: Run, damage: str) -> None:
    write_shard(run, 0, list(range(2)))
    with tarfile.open(Path(run.images) / "0-a.tar", "a") as tar:
        for name, content in (("9.jpg", b""), ("9.json", damage.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ShardUnreadable, match=r"0-a\.tar: cannot be read \(9\.json: .*Remove "):
        caption(run, GreyEngine(), 0)


def test_a_shard_without_images_is_committed_empty(run: Run) -> None:
    write_shard(run, 0, [])
    (result,) = caption(run, GreyEngine(), 0)
    assert result.rows == 0
    assert rows(run, 0) == []


def _actor_seconds(run: Run) -> dict[int, float]:
    """By shard, the actor's time that the ledger records."""
    records = ledger.recorded(run.caption_ledger("grey"))
    return {shard: record.spent / 1000 for shard, record in records.items()}


def test_shards_that_are_captioned_at_the_same_time_share_the_actors_time(run: Run) -> None:
    """The times in the ledger add up to the actor's time, not to twice that."""
    for shard in (0, 1):
        write_shard(run, shard, list(range(100 * shard, 100 * shard + 60)))
    started = time.monotonic()
    caption(run, GreyEngine(), 0, 1)
    elapsed = time.monotonic() - started
    seconds = _actor_seconds(run).values()
    assert all(0 < shard_seconds < elapsed for shard_seconds in seconds) and sum(seconds) <= elapsed


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"PAR1" + bytes(200) + data[204:]])
def test_a_damaged_part_is_named_with_its_remedy_and_its_removal_repeats_only_its_own_images(
    run: Run, damage: Callable[[bytes], bytes]
) -> None:
    write_shard(run, 0, list(range(60)))
    with pytest.raises(EngineDead):
        caption(run, GreyEngine(max_requests=50), 0, part_size=10)
    folder = Path(run.caption_parts("grey", 0))
    part = sorted(folder.glob("*.parquet"))[0]
    part.write_bytes(damage(part.read_bytes()))
    with pytest.raises(UserError, match=rf"{re.escape(part.name)}: cannot be read .*Remove it"):
        caption(run, GreyEngine(), 0, part_size=10)
    part.unlink()
    caption(run, GreyEngine(), 0, part_size=10)
    assert len(rows(run, 0)) == 60


def test_the_gpu_time_of_every_actor_that_worked_on_a_shard_counts(run: Run) -> None:
    """The engine dies on half a GPU, dies again without a GPU, and finishes on two."""
    write_shard(run, 0, list(range(90)))
    for max_requests, gpus in ((30, 0.5), (40, 0.0)):  # at least 60 images are left for the second engine
        with pytest.raises(EngineDead):
            caption(run, GreyEngine(max_requests=max_requests), 0, part_size=10, gpus=gpus)
    before = ledger.throughput(ledger.captioned(run, "grey"))
    assert 0 < before.gpu_seconds < before.seconds / 2
    caption(run, GreyEngine(), 0, part_size=10, gpus=2.0)
    after = ledger.throughput(ledger.captioned(run, "grey"))
    added = after.seconds - before.seconds
    assert added > 0 and after.gpu_seconds - before.gpu_seconds == pytest.approx(2 * added, abs=0.002)


def test_the_time_between_a_kill_and_the_next_attempt_does_not_count(run: Run) -> None:
    write_shard(run, 0, list(range(100)))
    with pytest.raises(EngineDead):
        caption(run, GreyEngine(max_requests=63), 0, part_size=10)
    before = ledger.throughput(ledger.captioned(run, "grey"))
    assert before.images >= 43 and before.seconds > 0
    for name in storage.list_names(run.caption_parts("grey", 0), ".parquet"):  # as if started a day ago
        part = Path(run.caption_parts("grey", 0), name)
        part.rename(part.with_name(re.sub(r"from\d+", f"from{int(time.time()) - 86_400}", name)))
    started = time.monotonic()
    caption(run, GreyEngine(), 0, part_size=10)
    elapsed = time.monotonic() - started
    (record,) = ledger.recorded(run.caption_ledger("grey")).values()
    assert record.ended - record.started >= 86_400
    assert before.seconds - 0.01 <= _actor_seconds(run)[0] <= before.seconds + elapsed + 0.01


def test_a_shard_whose_images_are_mostly_rejected_is_reported_and_its_captions_are_kept(run: Run) -> None:
    """After the captioner is mended, only the rejected images are captioned again."""
    write_shard(run, 0, list(range(50)))
    (outcome,) = outcomes(run, GreyEngine(poison=tuple(range(30))), 0)
    assert "30 of its 50 images were rejected, 30 of them with: poi" in outcome.refused["grey"]
    assert outcome.done == []
    assert not storage.exists(run.caption_shard("grey", 0))
    assert not storage.exists(run.quarantine("captions", "grey", "00000.parquet"))
    mended = GreyEngine()
    caption(run, mended, 0)
    assert sorted(mended.requests) == list(range(30))
    assert [row["text"] for row in rows(run, 0)] == [f"It is {value}." for value in range(50)]


@pytest.mark.parametrize(("images", "rejected", "committed"), [(40, 20, 1), (40, 21, 0), (10, 10, 1), (17, 17, 0)])
def test_half_of_at_least_32_images_may_be_rejected(run: Run, images: int, rejected: int, committed: int) -> None:
    write_shard(run, 0, list(range(images)))
    (outcome,) = outcomes(run, GreyEngine(poison=tuple(range(rejected))), 0)
    assert (len(outcome.done), len(outcome.refused)) == (committed, 1 - committed)
    assert storage.exists(run.caption_shard("grey", 0)) == committed


def test_a_larger_share_of_rejections_is_committed_where_the_pool_allows_it(run: Run) -> None:
    write_shard(run, 0, list(range(40)))
    (result,) = caption(run, GreyEngine(poison=tuple(range(40))), 0, max_rejected=1.0)
    assert (result.rows, result.rejected) == (40, 40)


class WordlessEngine(GreyEngine):
    """Gives captions without a word, as a model does whose weights are not finite."""

    def __init__(self, text: str = "!!!!", values: tuple[int, ...] = tuple(range(256))) -> None:
        super().__init__()
        self._text, self._values = text, values

    async def caption(self, value: int) -> Caption:
        caption = await super().caption(value)
        return Caption(self._text, "length", 4) if value in self._values else caption


@pytest.mark.parametrize("text", ["", "!!!!"])
def test_captions_without_a_word_count_as_rejections(run: Run, text: str) -> None:
    write_shard(run, 0, list(range(40)))
    (outcome,) = outcomes(run, WordlessEngine(text, tuple(range(21))), 0)
    assert "21 of its 40 images were rejected, 21 of them with: a caption without a word" in outcome.refused["grey"]
    assert not storage.exists(run.caption_shard("grey", 0))
    mended = WordlessEngine(text, tuple(range(20)))
    (result,) = caption(run, mended, 0)
    assert sorted(mended.requests) == list(range(21))
    assert (result.rows, result.rejected) == (40, 0)
    assert sum(row["flags"] == ["truncated", "empty"] for row in rows(run, 0)) == 20


async def warm_up(run: Run, engine: GreyEngine) -> None:
    await CaptionWorker(run, CONFIG, engine).warm_up()


def test_a_captioner_without_a_word_for_plain_images_does_not_start(run: Run) -> None:
    with pytest.raises(CaptionerBroken, match=r"captioner 'grey' gives plain images captions without a word.*weights"):
        asyncio.run(warm_up(run, WordlessEngine()))


def test_a_text_without_a_word_for_plain_images_is_named_whatever_the_other_texts_say(run: Run) -> None:
    class HalfWordlessEngine(TextsEngine):
        async def caption(self, prepared: Any) -> Caption:
            caption = await super().caption(prepared)
            return Caption("", "length", 4) if prepared[1] == "grey_tags" else caption

    message = r"captioner 'grey_tags' gives plain images captions without a word.*weights"
    with pytest.raises(CaptionerBroken, match=message):
        asyncio.run(CaptionWorker(run, SEVERAL, HalfWordlessEngine()).warm_up())


def test_a_captioner_that_has_nothing_to_say_about_plain_images_starts(run: Run) -> None:
    class SilentEngine(GreyEngine):
        async def caption(self, value: int) -> Caption:
            return Caption("", "stop", 1)

    asyncio.run(warm_up(run, SilentEngine()))


class ShapeEngine(GreyEngine):
    """Cannot caption images that are wider than high."""

    def prepare(self, image: Image.Image) -> int:
        if image.width > image.height:
            raise CaptionError("Image features and image tokens\ndo not match")
        return super().prepare(image)


def test_a_captioner_that_fails_on_a_plain_image_of_some_shape_does_not_start(run: Run) -> None:
    asyncio.run(warm_up(run, GreyEngine()))
    message = (
        r"captioner 'grey' .* of 96×64 pixels: Image features and image tokens do not match\. Check the files of grey"
    )
    with pytest.raises(CaptionerBroken, match=message):
        asyncio.run(warm_up(run, ShapeEngine()))
