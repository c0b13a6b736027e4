"""`recaption --follow` captions each shard once, as the download commits it, and ends with the download."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.captioners.registry import get_kind, load_engine
from lotlip_data.manifests import manifest
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.upstream import Upstream
from lotlip_data.pipeline.recaptioning import actor_pool, stage
from lotlip_data.pipeline.recaptioning.config import resolve_captioners
from lotlip_data.pipeline.recaptioning.results import RecaptionError
from lotlip_data.pipeline.recaptioning.worker import CaptionWorker
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.following import Others, download, partition
from tests.support.paths import ROOT

SHARDS, IMAGES = 4, 5
TEXTS = ["qwen_long", "qwen_short"]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    return Others(monkeypatch)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Others) -> Run:
    """A run without a manifest. Its captioner needs no model, and its pools work in this process."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "faults"))
    get_kind.cache_clear()

    def run_pools(pools: Sequence[Any], on_done: Any, on_failed: Any, on_tick: Any) -> None:
        while any(pool.busy for pool in pools):
            for pool in pools:
                engine = load_engine(pool.config, **pool.settings.engine_options.explicit)
                while pool.queue:
                    shard = pool.queue.popleft()
                    worker = CaptionWorker(pool.run, pool.config, engine)
                    on_done(pool.config.name, asyncio.run(worker.caption_shard(shard, pool.texts[shard])).done)
            if any(pool.more for pool in pools):
                others.go_on()
                on_tick()

    monkeypatch.setattr(actor_pool, "run_pools", run_pools)
    monkeypatch.setattr(stage, "cluster", contextlib.nullcontext)
    return Run.at(str(tmp_path / "run"))


def write_manifest(run: Run, faults: Path) -> None:
    pool = {"engine_options": {"engine_args": {"faults": str(faults)}}}
    prompts = {"long": "Describe.", "short": "Name."}
    entry = {"name": "qwen", "kind": "texts", "model": "m", "prompts": prompts, "pool": pool}
    manifest.freeze(fake_run.make_manifest().replace(captioners=(entry,)), run)


def test_a_follower_that_starts_before_the_download_captions_each_shard_once(
    run: Run, tmp_path: Path, others: Others, caplog: pytest.LogCaptureFixture
) -> None:
    """The manifest, the partition and the shards come one by one, and not in their order."""
    others.do(
        lambda: None,
        lambda: write_manifest(run, tmp_path),
        lambda: partition(run, SHARDS, IMAGES),
        lambda: download(run, 2, IMAGES),
        lambda: (download(run, 0, IMAGES), download(run, 3, IMAGES)),
        lambda: None,
        lambda: download(run, 1, IMAGES),
    )
    with caplog.at_level(logging.INFO):
        outcome = stages.recaption(run, follow=True)
    done = {"shards_skipped": 0, "shards_done": SHARDS, "captioned": SHARDS * IMAGES, "rejected": 0}
    assert outcome.figures == dict.fromkeys(TEXTS, done) and not outcome.failed
    made = Counter(line.split()[0] for line in (tmp_path / "log").read_text().splitlines())
    assert made == dict.fromkeys(TEXTS, SHARDS * IMAGES)
    waits = [line for line in caplog.messages if "waits for" in line]
    assert waits == [
        f"recaption: waits for {run.manifest}, which `lotlip-data download` writes",
        "recaption: waits for the lists to be read",
    ]


def test_a_follower_of_a_complete_download_is_the_plain_stage(run: Run, tmp_path: Path, others: Others) -> None:
    write_manifest(run, tmp_path)
    partition(run, 1, IMAGES)
    download(run, 0, IMAGES)
    assert stages.recaption(run, follow=True).figures["qwen_long"]["shards_done"] == 1
    assert not stages.recaption(run, follow=True).did_something


def test_a_second_follower_captions_only_what_the_first_one_left(run: Run, tmp_path: Path, others: Others) -> None:
    write_manifest(run, tmp_path)
    partition(run, 2, IMAGES)
    download(run, 0, IMAGES)

    def fail() -> None:
        raise KeyboardInterrupt

    others.do(fail)
    with pytest.raises(KeyboardInterrupt):
        stages.recaption(run, follow=True)
    assert ledger.captioned_shards(run, "qwen_short") == [0]
    others.do(lambda: download(run, 1, IMAGES))
    figures = stages.recaption(run, follow=True).figures["qwen_short"]
    assert (figures["shards_skipped"], figures["shards_done"]) == (1, 1)


def test_a_text_that_is_selected_is_made_alone(run: Run, tmp_path: Path, others: Others) -> None:
    write_manifest(run, tmp_path)
    partition(run, 1, IMAGES)
    others.do(lambda: download(run, 0, IMAGES))
    assert list(stages.recaption(run, ["qwen_short"], follow=True).figures) == ["qwen_short"]
    assert ledger.captioners(run) == ["qwen_short"]


def test_a_download_without_any_image_is_an_error_as_for_the_plain_stage(
    run: Run, tmp_path: Path, others: Others
) -> None:
    write_manifest(run, tmp_path)
    ended = False

    def end() -> None:
        nonlocal ended
        ended = True

    others.do(end)
    jobs = resolve_captioners(manifest.frozen(run).captioners)
    with pytest.raises(RecaptionError, match="no images here yet"):
        stage.recaption(run, jobs, Upstream(lambda: "" if ended else "the download"))
