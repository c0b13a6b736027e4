"""The bar of a captioner counts committed shards, saved parts and failures of both."""

import logging
from pathlib import Path

import pytest

from lotlip_data.manifests import progress as bars
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.recaptioning import progress
from lotlip_data.pipeline.recaptioning.progress import CaptionProgress


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Two downloaded shards of 50 images each."""
    monkeypatch.setattr(bars, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "REFRESH_SECONDS_WITHOUT_BARS", 0.0)
    run = Run.at(str(tmp_path / "run"))
    for shard in (0, 1):
        ledger.record(run.image_ledger, shard, WorkRecord(50, 0, 0, 0, 10))
    return run


def save_part(run: Run, shard: int, record: WorkRecord) -> None:
    storage.create(storage.join(run.caption_parts("llava", shard), f"00000-x-{record.name}.parquet"), b"")


def test_saved_parts_and_committed_shards_count_once_and_failures_are_named(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), CaptionProgress(run, {"llava": {"llava": [0, 1]}}) as shown:
        save_part(run, 0, WorkRecord(20, 2, 2_000, 0, 10))
        shown.refresh()
        shown.complete("llava", 0, WorkRecord(50, 4, 5_000, 0, 10))
        shown.fail("llava", None)
    first, second = caplog.messages
    assert first.startswith("llava: 20 of 100 images (20%), 18 captioned, 2 failed, 2,000 tokens/s, ")
    assert second.startswith("llava: 50 of 100 images (50%), 46 captioned, 4 failed, ")


def test_a_stopped_captioner_has_all_its_shards_failed(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    save_part(run, 1, WorkRecord(10, 0, 0, 0, 10))
    with caplog.at_level(logging.INFO), CaptionProgress(run, {"llava": {"llava": [0, 1]}}) as shown:
        shown.fail("llava", None)
        save_part(run, 0, WorkRecord(20, 0, 0, 0, 10))
        shown.refresh()
    assert "2 shards failed" in caplog.messages[-1] and caplog.messages[-1].startswith("llava: 30 of 100 images")


def test_a_shard_that_ends_between_two_refreshes_counts_once_and_costs_no_listing(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing of the parts of all actors takes seconds on an object storage, and a large cluster ends many shards."""
    listings = []
    list_parts = ledger.parts_under_way
    monkeypatch.setattr(ledger, "parts_under_way", lambda *where: listings.append(where) or list_parts(*where))
    for shard in (0, 1):
        save_part(run, shard, WorkRecord(20, 0, 0, 0, 10))
    with caplog.at_level(logging.INFO), CaptionProgress(run, {"llava": {"llava": [0, 1]}}) as shown:
        shown.complete("llava", 0, WorkRecord(50, 0, 0, 0, 10))  # its parts are still there
        assert len(listings) == 1
        shown.refresh()
        shown.complete("llava", 1, WorkRecord(50, 0, 0, 0, 10))
    assert len(listings) == 2
    counts = [message.partition(" of ")[0] for message in caplog.messages]
    assert counts == ["llava: 70", "llava: 100"]


def test_the_texts_of_one_captioner_have_one_bar_of_captions(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        CaptionProgress(run, {"qwen": {"qwen_long": [0, 1], "qwen_tags": [1]}}) as shown,
    ):
        shown.complete("qwen_long", 1, WorkRecord(50, 0, 5_000, 0, 10))
        shown.complete("qwen_tags", 1, WorkRecord(50, 2, 500, 0, 10))
    assert caplog.messages[0].startswith("qwen: 50 of 150 captions (33%)")
    assert caplog.messages[-1].startswith("qwen: 100 of 150 captions (67%), 98 captioned, 2 failed, ")
