"""Every listed image is either downloaded or in quarantine with its reason, exactly once, after any failure."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.schema import IMAGES
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.commit import DownloadTask, commit, fetch_and_commit, write_quarantine
from lotlip_data.pipeline.downloading.http_client import GuardedOpener
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard
from lotlip_data.pipeline.downloading.stage import DownloadSummary, download, read_summary
from lotlip_data.pipeline.downloading.suspects import ShardSuspects
from lotlip_data.pipeline.url_lists.partition import partition
from lotlip_data.synthetic.http_server import SceneServer, scene_bytes, seed_from_url
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.synthetic.url_list import FAULTS, write_list, write_manifest
from tests.pipeline.downloading.images.test_isolation import heavy_png
from tests.pipeline.downloading.raw_server import RawServer, ok

REASONS = {
    "dead": "http 404",
    "gone": "http 410",
    "error": "http 500",
    "html": "not an image",
    "truncated": "truncated",
    "short": "truncated",
    "empty": "empty body",
    "loop": "too many redirects",
    "robots": "refused by x-robots-tag",
}
QUICK_FAULTS = {kind: 2 for kind in FAULTS if kind != "slow"}
SETTINGS = {"allow_hosts": ["127.0.0.1"], "timeout": 60, "total_timeout": 120, "retries": 0, "threads": 16}


@pytest.fixture(scope="module")
def server() -> Iterator[SceneServer]:
    with SceneServer(delay=60) as server:
        yield server


def make_manifest(
    folder: pathlib.Path, url: str, scenes: int, faults: dict[str, int] | None = None, **settings: Any
) -> Manifest:
    write_list(str(folder / "list.csv"), url, range(3_000_000, 3_000_000 + scenes), faults)
    settings = {"samples_per_shard": 10, "download": SETTINGS} | settings
    write_manifest(str(folder / "manifest.yaml"), "list.csv", **settings)
    return load(str(folder / "manifest.yaml"))


def images_of(run: Run) -> dict[str, tuple[dict[str, Any], bytes]]:
    """uid → (JSON member, image bytes) of all committed shards. Asserts that no uid occurs twice."""
    images: dict[str, tuple[dict[str, Any], bytes]] = {}
    for marker in committed(run).values():
        with tarfile.open(storage.join(run.images, marker["tar"])) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in members:
            if name.endswith(".json"):
                meta = json.loads(members[name])
                assert meta["uid"] not in images
                images[meta["uid"]] = meta, members[name.replace(".json", ".jpg")]
    return images


def image_objects(run: Run) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(run.images, name)) for name in storage.list_below(run.images)}


def rows_of(run: Run) -> list[dict[str, Any]]:
    tables = [pq.read_table(storage.join(run.images, marker["parquet"])) for marker in committed(run).values()]
    assert all(table.schema == IMAGES for table in tables)
    return [row for table in tables for row in table.to_pylist()]


@pytest.mark.usefixtures("ray_cluster")
def test_every_row_is_an_image_or_a_failure_with_its_reason(
    tmp_path: pathlib.Path, server: SceneServer, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    manifest, run = make_manifest(folder, server.url, 25, QUICK_FAULTS), Run.at(str(folder / "my run"))
    caplog.clear()
    summary = download(manifest, run)

    assert (summary.requested, summary.fetched, summary.failed) == (45, 27, 18)
    assert summary.failed_shards == []
    assert summary.reasons == {"truncated": 4} | {reason: 2 for reason in REASONS.values() if reason != "truncated"}
    assert sum(message.startswith("shard ") for message in caplog.messages) == summary.partition.shards

    rows = rows_of(run)
    assert sorted(row["key"] for row in rows) == sorted(
        f"{shard:05d}{row:04d}" for shard in range(5) for row in range(10 if shard < 4 else 5)
    )
    by_uid = {row["uid"]: row for row in rows}
    assert len(by_uid) == 45
    images = images_of(run)
    assert set(images) == {uid for uid, row in by_uid.items() if row["status"] == "success"}
    for uid, (meta, body) in images.items():
        assert meta == by_uid[uid]
        seed = seed_from_url(meta["url"])
        assert seed is not None
        assert uid == uid_from_url(meta["url"])
        assert meta["sha256"] == hashlib.sha256(scene_bytes(seed)).hexdigest()
        assert (meta["width"], meta["height"], meta["original_width"]) == (96, 96, 96)
        stored = np.asarray(Image.open(io.BytesIO(body)), float)
        assert np.abs(stored - np.asarray(render(sample_scene(seed)), float)).mean() < 3

    failures = pq.read_table(run.quarantine("images")).to_pylist()
    assert {row["uid"] for row in failures} == set(by_uid) - set(images)
    for row in failures:
        assert REASONS[row["url"].split("/")[3]] == row["reason"]

    check_that_a_second_call_repairs_the_run_and_downloads_nothing(manifest, run, summary, caplog)


@pytest.mark.usefixtures("ray_cluster")
def test_a_download_that_exceeds_the_total_timeout_fails(tmp_path: pathlib.Path, server: SceneServer) -> None:
    """All rows are slow: with so short a timeout, a busy machine could miss it for ordinary rows."""
    short_timeouts = SETTINGS | {"timeout": 1.0, "total_timeout": 1.0}
    manifest = make_manifest(tmp_path, server.url, 0, {"slow": 3}, download=short_timeouts)
    run = Run.at(str(tmp_path / "run"))
    summary = download(manifest, run, accept_failures=True)
    assert (summary.requested, summary.failed, summary.reasons) == (3, 3, {"timeout": 3})
    failures = pq.read_table(run.quarantine("images")).to_pylist()
    assert {row["uid"]: row["reason"] for row in failures} == {row["uid"]: "timeout" for row in rows_of(run)}


def check_that_a_second_call_repairs_the_run_and_downloads_nothing(
    manifest: Manifest, run: Run, before: DownloadSummary, caplog: pytest.LogCaptureFixture
) -> None:
    """Simulate a kill right after a commit: files of another attempt are left, and a quarantine is missing."""
    objects_before = image_objects(run)
    lost_name = storage.list_names(run.quarantine("images"))[0]
    failures = storage.read_bytes(run.quarantine("images", lost_name))
    storage.remove(run.quarantine("images", lost_name))
    storage.create(storage.join(run.images, "00001-0123456789ab.tar"), b"of a killed attempt")

    caplog.clear()
    second = download(manifest, run)
    assert second.nothing_to_do
    assert second.done == 0
    assert caplog.messages == ["5 of 5 shards are already downloaded"]
    assert second.to_dict() == before.to_dict() | {"shards_done": 0, "shards_skipped": 5}
    assert read_summary(run).to_dict() == second.to_dict()
    assert image_objects(run) == objects_before
    assert storage.read_bytes(run.quarantine("images", lost_name)) == failures


@pytest.mark.usefixtures("ray_cluster")
def test_shards_stay_pending_while_the_server_is_down_and_download_when_it_is_back(tmp_path: pathlib.Path) -> None:
    with socket.socket() as reserved:  # refuses connections, and reserves the port for the server
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        manifest, run = make_manifest(tmp_path, f"http://127.0.0.1:{port}", 15), Run.at(str(tmp_path / "run"))
        down = download(manifest, run)
        assert (down.fetched, down.failed, down.committed) == (0, 0, set())
        assert [line.split(" (")[0] for line in down.failed_shards] == [
            "shard 00000: no image downloaded",
            "shard 00001: no image downloaded",
        ]
        assert "10 × connection refused); the errors look transient" in down.failed_shards[0]
        assert storage.list_names(run.images) == []
        stop = ledger.stop_of(run.stopped("download"))
        assert stop == f"{down.failed_shards[0]} (and 1 more line like this)"
        with SceneServer(port=port):
            up = download(manifest, run)
    assert ledger.stop_of(run.stopped("download")) is None
    assert (up.fetched, up.failed_shards, up.done) == (15, [], 2)


@pytest.mark.usefixtures("ray_cluster")
def test_a_list_of_dead_links_is_committed_and_reported(tmp_path: pathlib.Path, server: SceneServer) -> None:
    manifest, run = make_manifest(tmp_path, server.url, 0, {"dead": 12}), Run.at(str(tmp_path / "run"))
    for done in (2, 0):
        summary = download(manifest, run)
        assert (summary.failed, summary.done) == (12, done)
        assert summary.failed_shards == ["none of the 12 images downloaded: 12 × http 404"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_dies_is_retried_and_does_not_affect_other_shards(
    tmp_path: pathlib.Path, server: SceneServer
) -> None:
    manifest, run = make_manifest(tmp_path, server.url, 40), Run.at(str(tmp_path / "run"))

    def dying_task(download_task: DownloadTask) -> dict[str, Any]:
        tries = pathlib.Path(f"{download_task.run.url}-tries-{download_task.shard}")
        with open(tries, "a") as log:
            log.write("x")
        if download_task.shard == 1 or (download_task.shard == 2 and tries.read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        if download_task.shard == 3:
            raise OSError("the disk is full")
        return fetch_and_commit(download_task)

    summary = download(manifest, run, task=dying_task)
    assert summary.committed == {0, 2}
    assert [len(pathlib.Path(f"{run.url}-tries-{shard}").read_text()) for shard in range(4)] == [1, 3, 2, 3]
    dead, full = summary.failed_shards
    assert re.match("shard 00001: its task failed 3 times: .*died", dead)
    assert full == "shard 00003: its task failed 3 times: OSError: the disk is full"
    assert download(manifest, run).done == 2


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_an_image_that_ends_its_worker_costs_only_itself(tmp_path: pathlib.Path) -> None:
    """As with Ray's memory monitor, which ends the worker and not the process that decodes."""
    server = RawServer()
    heavy = server.serve("/heavy.png", ok(heavy_png(5000)))
    urls = [server.serve(f"/{index}.jpg", ok(scene_bytes(index))) for index in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *(f"{url},text" for url in [*urls, heavy])]))
    write_manifest(str(tmp_path / "manifest.yaml"), "list.csv", download=SETTINGS)
    manifest, run = load(str(tmp_path / "manifest.yaml")), Run.at(str(tmp_path / "run"))

    def fragile_task(task: DownloadTask) -> dict[str, Any]:
        decoding = ShardSuspects.decoding

        @contextlib.contextmanager
        def fatal(suspects: ShardSuspects, sha256: str) -> Iterator[None]:
            with decoding(suspects, sha256):
                os.kill(os.getpid(), signal.SIGKILL)
                yield

        ShardSuspects.decoding = fatal  # type: ignore[method-assign]
        try:
            return fetch_and_commit(task)
        finally:
            ShardSuspects.decoding = decoding  # type: ignore[method-assign]

    summary = download(manifest, run, task=fragile_task)
    server.close()
    assert (summary.fetched, summary.reasons, summary.failed_shards) == (4, {"too much memory": 1}, [])
    (failure,) = pq.read_table(run.quarantine("images")).to_pylist()
    assert (failure["url"], failure["detail"].split(" ")[:2]) == (heavy, ["2", "attempts"])
    assert storage.list_names(run.image_suspects) == []


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_list_shard_fails_alone_and_is_rebuilt_as_its_message_says(
    tmp_path: pathlib.Path, server: SceneServer
) -> None:
    manifest, run = make_manifest(tmp_path, server.url, 15), Run.at(str(tmp_path / "run"))
    partition(manifest, run)
    url = pathlib.Path(run.list_shard(1))
    content = url.read_bytes()
    url.write_bytes(content[:-9])
    summary = download(manifest, run)
    assert summary.committed == {0}
    (message,) = summary.failed_shards
    assert re.match(rf"shard 00001: {url}: cannot be read .* Remove {url} and {run.plan}; ", message)
    for damaged in (url, pathlib.Path(run.plan)):
        damaged.unlink()
    assert download(manifest, run).done == 1
    assert url.read_bytes() == content


def make_fetched_shard(folder: pathlib.Path, body: bytes) -> FetchedShard:
    """A fetched shard of one image and one dead link."""
    folder.mkdir()
    rows = [{"key": "000000000", "status": "success", "uid": "a"}]
    rows += [{"key": "000000001", "status": "failed_to_download", "uid": "b", "error_message": "http 404"}]
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    pq.write_table(table, folder / "x.parquet")
    (folder / "x.tar").write_bytes(body)
    stats = {"count": 2, "successes": 1, "status_dict": {"success": 1, "http 404": 1}}
    return FetchedShard(folder / "x.tar", folder / "x.parquet", stats)


def test_of_two_attempts_at_a_shard_the_first_wins_and_the_second_leaves_no_file(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    assert commit(run, 0, make_fetched_shard(tmp_path / "first", b"first"))
    marker, names = ledger.read_image_stats(run, 0), storage.list_names(run.images)
    assert not commit(run, 0, make_fetched_shard(tmp_path / "second", b"second"))
    assert ledger.read_image_stats(run, 0) == marker
    assert storage.list_names(run.images) == names
    assert sorted(names) == sorted([marker["tar"], marker["parquet"], "00000_stats.json"])
    assert storage.read_bytes(storage.join(run.images, marker["tar"])) == b"first"


def test_writing_the_quarantine_of_a_shard_is_idempotent(tmp_path: pathlib.Path) -> None:
    run = Run.at("memory://quarantine-run")
    commit(run, 0, make_fetched_shard(tmp_path / "first", b"first"))
    for _ in range(2):
        write_quarantine(run, 0, ledger.read_image_stats(run, 0))
        (row,) = pq.read_table(io.BytesIO(storage.read_bytes(run.quarantine("images", "00000.parquet")))).to_pylist()
        assert (row["key"], row["uid"], row["reason"], row["detail"]) == ("000000001", "b", "http 404", "")


def test_a_shard_is_retriable_only_if_no_image_downloaded_and_a_failure_is_transient(tmp_path: pathlib.Path) -> None:
    shard = make_fetched_shard(tmp_path / "x", b"")
    for counts, retriable in (
        ({"success": 0, "timeout": 2, "http 503": 1}, True),
        ({"success": 0, "timeout": 2, "malformed url": 1}, True),  # this one fails without a network, too
        ({"success": 0, "address not allowed": 2, "http 404": 1}, True),  # the settings can allow the host
        ({"success": 0, "http 404": 2, "http 410": 1}, False),
        ({"success": 1, "timeout": 2}, False),
    ):
        stats = {"successes": counts["success"], "status_dict": counts}
        assert dataclasses.replace(shard, stats=stats).is_retriable is retriable


DRIVER = """
import json, sys, ray
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.manifest import load
from lotlip_data.pipeline.downloading.stage import download
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(json.dumps(download(load(sys.argv[1]), Run.at(sys.argv[2])).to_dict()))
"""


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_after_the_driver_is_killed_the_same_command_gives_the_images_of_an_undisturbed_run(
    tmp_path: pathlib.Path,
) -> None:
    shards = 16
    with SceneServer(delay=0.3) as server:
        manifest = make_manifest(tmp_path, server.url, shards * 10 - 32, {"slow": 32})  # a few per shard
        undisturbed, run = Run.at(str(tmp_path / "undisturbed")), Run.at(str(tmp_path / "killed"))
        download(manifest, undisturbed)
        expected = images_of(undisturbed)
        assert len(expected) == shards * 10

        command = [sys.executable, "-c", DRIVER, str(tmp_path / "manifest.yaml"), run.url]
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(committed(run)) < 2 and driver.poll() is None:
            time.sleep(0.01)
        driver.kill()
        driver.wait()
        committed_at_kill = committed(run)
        assert 0 < len(committed_at_kill) < shards

        resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(resumed.stdout.splitlines()[-1])
    assert 0 < figures["shards_done"] < shards
    assert figures["shards_skipped"] >= len(committed_at_kill)
    summary = read_summary(run)
    markers = committed(run)
    assert summary.committed == set(markers) and markers | committed_at_kill == markers
    images = images_of(run)
    assert {uid: (meta["sha256"], body) for uid, (meta, body) in images.items()} == {
        uid: (meta["sha256"], body) for uid, (meta, body) in expected.items()
    }
    names_in_markers = {name for marker in markers.values() for name in (marker["tar"], marker["parquet"])}
    file_names = {name for name in storage.list_names(run.images) if not name.endswith("_stats.json")}
    assert file_names - {".ledger"} == names_in_markers


def committed(run: Run) -> dict[int, dict[str, Any]]:
    names = [name for name in storage.list_names(run.images) if name.endswith("_stats.json")]
    return {int(name[:5]): ledger.read_image_stats(run, int(name[:5])) for name in names}


KILLED_PARTITION = """
import os, signal, sys
from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.manifest import load
from lotlip_data.pipeline.url_lists.partition import partition
create, run = storage.create, Run.at(sys.argv[2])
def dying(url, data):
    if len(storage.list_names(run.lists)) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return create(url, data)
storage.create = dying
partition(load(sys.argv[1]), run)
"""


def test_a_killed_partition_starts_over_and_writes_the_same_shards(tmp_path: pathlib.Path) -> None:
    """It is killed after ten of thirty list shards."""
    rows = "".join(f"http://a.example/{index}.jpg,x\n" for index in range(600))
    (tmp_path / "list.csv").write_text("url,caption\n" + rows)
    write_manifest(str(tmp_path / "manifest.yaml"), "list.csv", samples_per_shard=20)
    manifest, undisturbed, run = (
        load(str(tmp_path / "manifest.yaml")),
        Run.at(str(tmp_path / "a")),
        Run.at(str(tmp_path / "b")),
    )
    expected = partition(manifest, undisturbed)
    killed = subprocess.run([sys.executable, "-c", KILLED_PARTITION, str(tmp_path / "manifest.yaml"), run.url])
    assert (killed.returncode, len(storage.list_names(run.lists)), expected.shards) == (-signal.SIGKILL, 10, 30)
    assert partition(manifest, run) == expected
    for shard in range(expected.shards):
        assert storage.read_bytes(run.list_shard(shard)) == storage.read_bytes(undisturbed.list_shard(shard))


@pytest.mark.parametrize("failing", ["addfile", "close"])
def test_a_full_disk_ends_the_requests_of_a_shard(
    server: SceneServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """img2dataset alone would go on with the other images, and lose them."""
    manifest, run = make_manifest(tmp_path, server.url, 60, samples_per_shard=60), Run.at(str(tmp_path / "run"))
    manifest = manifest.replace(download=manifest.download.replace(threads=1))
    requests: list[str] = []

    def refuse(self: object, *arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    open_url = GuardedOpener.open

    def count(self: GuardedOpener, request: Any, *arguments: Any, **options: Any) -> Any:
        requests.append(request.full_url)
        return open_url(self, request, *arguments, **options)

    monkeypatch.setattr(tarfile.TarFile, failing, refuse)
    monkeypatch.setattr(GuardedOpener, "open", count)
    lists = partition(manifest, run)
    task = DownloadTask(run, 0, lists.samples_per_shard, manifest.download)
    with pytest.raises(DiskError, match=r"set TMPDIR to use another folder.*the disk is full"):
        fetch_and_commit(task)
    assert len(requests) == 60 if failing == "close" else len(requests) < 10
    assert ledger.fetched_shards(run) == []
