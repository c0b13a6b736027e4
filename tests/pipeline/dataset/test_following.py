"""`shard --follow` writes each shard as soon as it has all captions, and ends with the dataset of the plain stage."""

import contextlib
import errno
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lotlip_data.manifests import manifest, storage
from lotlip_data.manifests.digests import JSON_KEY
from lotlip_data.manifests.formats import dataset_index
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline import stages
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.core.ledger import WorkRecord
from lotlip_data.pipeline.core.upstream import NOT_YET
from lotlip_data.pipeline.curation import exclusions
from lotlip_data.pipeline.dataset import stage
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.reporting.status_table import format_table
from tests.pipeline import run_fixture as fake_run
from tests.pipeline.following import Others, caption, download, partition

SHARDS, IMAGES = 3, 6
NAMES = ["instructblip", "llava"]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    """Shards are built in this process. While none can be built, the other processes make a step."""
    others = Others(monkeypatch)

    def run_tasks(task: Callable[[Any], Any], items: Iterable[Any], name: str) -> Iterator[tuple[Any, Any]]:
        for item in items:
            if item is NOT_YET:
                others.go_on()
            else:
                yield item, task(item)

    monkeypatch.setattr(stage, "run_ray_tasks", run_tasks)
    monkeypatch.setattr(exclusions, "run_ray_tasks", run_tasks)
    monkeypatch.setattr(stages, "ray_session", contextlib.nullcontext)
    return others


def make(folder: Path, **settings: Any) -> Run:
    """A run whose manifest has two captioners, and which is partitioned."""
    run = Run.at(str(folder))
    entries = tuple({"name": name, "kind": "llava", "model": "tiny-llava"} for name in NAMES)
    manifest.freeze(fake_run.make_manifest(**settings).replace(captioners=entries), run)
    partition(run, SHARDS, IMAGES)
    return run


def caption_all(run: Run, shard: int) -> None:
    for name in NAMES:
        caption(run, name, shard)


def built(run: Run) -> list[int]:
    return [shard for shard, _ in dataset_index.done_shards(run)]


def contents(run: Run) -> dict[str, bytes]:
    """The dataset. The fingerprints in dataset.json are those of the run's own inputs."""
    names = [name for name in storage.list_names(run.shards) if not name.startswith(".")]
    files = {name: storage.read_bytes(run.dataset_file(name)) for name in names}
    index = json.loads(files["dataset.json"])
    index.pop(JSON_KEY)
    for entry in index["inputs"]:
        entry.pop("fingerprint")
    return files | {"dataset.json": json.dumps(index).encode()}


def test_a_shard_is_written_as_soon_as_it_has_all_captions(tmp_path: Path, others: Others) -> None:
    """In the end the files are those of the plain stage on a run that was complete before."""
    run = make(tmp_path / "streamed")
    seen = []
    others.do(
        lambda: download(run, 1, IMAGES),
        lambda: caption(run, "llava", 1),
        lambda: seen.append(built(run)),
        lambda: caption(run, "instructblip", 1),
        lambda: None,
        lambda: (seen.append(built(run)), download(run, 0, IMAGES), download(run, 2, IMAGES), caption_all(run, 2)),
        lambda: None,
        lambda: (seen.append(built(run)), caption_all(run, 0)),
    )
    outcome = stages.shard(run, follow=True)
    assert seen == [[], [1], [1, 2]] and not outcome.failed
    assert (outcome.figures["built"], outcome.figures["skipped"], outcome.figures["published"]) == (SHARDS, 0, True)
    staged = make(tmp_path / "staged")
    for shard in range(SHARDS):
        download(staged, shard, IMAGES)
        caption_all(staged, shard)
    plain = stages.shard(staged)
    assert contents(run) == contents(staged) and outcome.figures == plain.figures
    assert not stages.shard(run, follow=True).did_something


def test_settings_that_change_before_the_first_captions_count(tmp_path: Path, others: Others) -> None:
    """Shards are not written with the settings that a captioner had before it committed anything."""
    run = make(tmp_path / "run")
    for name in NAMES:
        fake_run.claim_captioner(run, name, version="0")
    for shard in range(SHARDS):
        download(run, shard, IMAGES)

    def caption_with_other_settings() -> None:
        for name in NAMES:
            storage.remove(run.captioner_settings(name))
        caption_all(run, 0)

    others.do(lambda: None, caption_with_other_settings, lambda: caption_all(run, 1), lambda: caption_all(run, 2))
    assert stages.shard(run, follow=True).figures["built"] == len(built(run)) == SHARDS
    assert dataset_index.read_index(run)["captioners"] == {name: f"{name}@1" for name in NAMES}


def test_duplicates_are_known_once_all_images_are_there_so_no_shard_is_written_before(
    tmp_path: Path, others: Others, caplog: pytest.LogCaptureFixture
) -> None:
    run = make(tmp_path / "run", clean={"duplicates": True})
    seen = []
    for shard in (0, 1):
        download(run, shard, IMAGES)
        caption_all(run, shard)
    others.do(
        lambda: None,
        lambda: (seen.append(built(run)), download(run, 2, IMAGES)),
        lambda: None,
        lambda: (seen.append(built(run)), caption_all(run, 2)),
    )
    with caplog.at_level(logging.INFO):
        assert not stages.shard(run, follow=True).failed
    assert seen == [[], [0, 1]] and built(run) == [0, 1, 2]
    assert "no shard is written before the last image" in caplog.text


def test_what_is_missing_in_the_end_is_reported_as_by_the_plain_stage(
    tmp_path: Path, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The captioners have ended without the captions of one shard, as within `run`."""
    run = make(tmp_path / "run")
    for shard in range(SHARDS):
        download(run, shard, IMAGES)
    caption_all(run, 0)
    ended = False

    def end() -> None:
        nonlocal ended
        caption_all(run, 1)
        ended = True

    others.do(end)
    before = stage.StagesBefore(stage.Upstream(lambda: ""), stage.Upstream(lambda: "" if ended else "recaption"))
    summary = stage.shard(manifest.frozen(run), run, before=before)
    assert summary.built == 2 and not summary.published
    assert [line.partition(":")[0] for line in summary.failed] == ["missing"] * 2
    assert summary.failed == stage.shard(manifest.frozen(run), run).failed


def test_a_shard_that_cannot_be_built_fails_once_and_is_tried_again_at_the_end(
    tmp_path: Path, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "run")
    tries = []
    build = stage.build_shard

    def fail_twice(run: Run, recipe: Any, task: Any) -> Any:
        if task.shard == 0 and len(tries) < 2:
            tries.append(task)
            return OSError("no answer of the storage")
        return build(run, recipe, task)

    monkeypatch.setattr(stage, "build_shard", fail_twice)
    for shard in range(SHARDS):
        download(run, shard, IMAGES)
    caption_all(run, 0)
    others.do(lambda: caption_all(run, 1), lambda: caption_all(run, 2))
    outcome = stages.shard(run, follow=True)
    assert outcome.failed == ["shard 00000: OSError: no answer of the storage"] and len(tries) == 2
    assert outcome.figures["built"] == 2
    assert not stages.shard(run, follow=True).failed


def test_a_folder_that_cannot_be_written_to_ends_the_stage_before_the_first_captions(
    tmp_path: Path, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "run")

    def refuse(folder: str) -> None:
        raise DiskError(errno.EROFS, f"{folder}: the file system is read-only")

    monkeypatch.setattr(storage, "check_writable", refuse)
    with pytest.raises(DiskError, match="shards: the file system is read-only"):
        stages.shard(run, follow=True)


def test_the_status_shows_the_shards_that_are_written_and_captioners_that_wait(tmp_path: Path, others: Others) -> None:
    run = make(tmp_path / "run")
    download(run, 0, IMAGES)
    caption_all(run, 0)

    def stop() -> None:
        raise KeyboardInterrupt

    others.do(stop)
    with pytest.raises(KeyboardInterrupt):
        stages.shard(run, follow=True)
    ledger.record(run.caption_ledger("llava"), 0, WorkRecord(IMAGES, 0, 0, 0, 1))
    status = get_status(run)
    assert status["building"] == {"done": 1, "left": 2, "running": False, "stopped": "interrupted"}
    rows = [line.split() for line in format_table(status)]
    assert ["dataset", "1", "of", "3", "shards", "stopped"] in rows
    assert ["recaption", "llava", "6", "of", "6", "images", "0", "waiting"] in rows
