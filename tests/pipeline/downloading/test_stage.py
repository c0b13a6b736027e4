"""What was asked for is either fetched or in quarantine with its reason, once, whatever happens on the way."""

import dataclasses
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
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.sample_id import uid_from_url
from lotlip_data.manifests.schema import IMAGES
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading.commit import DownloadTask, commit, fetch_and_commit, write_quarantine
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard
from lotlip_data.pipeline.downloading.stage import DownloadSummary, download, read_summary
from lotlip_data.pipeline.url_lists.partition import partition
from lotlip_data.synthetic.http_server import SceneServer, scene_bytes, seed_from_url
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.synthetic.url_list import FAULTS, write_list, write_manifest

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
AT_ONCE = {kind: 2 for kind in FAULTS if kind != "slow"}
SETTINGS = {"allow_hosts": ["127.0.0.1"], "timeout": 60, "total_timeout": 120, "retries": 0, "threads": 16}


@pytest.fixture(scope="module")
def server() -> Iterator[SceneServer]:
    with SceneServer(delay=60) as server:
        yield server


def world(folder: pathlib.Path, url: str, scenes: int, faults: dict[str, int] | None = None, **more: Any) -> Manifest:
    write_list(str(folder / "list.csv"), url, range(3_000_000, 3_000_000 + scenes), faults)
    write_manifest(
        str(folder / "manifest.yaml"), "list.csv", **({"samples_per_shard": 10, "download": SETTINGS} | more)
    )
    return load(str(folder / "manifest.yaml"))


def images_of(run: Run) -> dict[str, tuple[dict[str, Any], bytes]]:
    """uid → (json member, stored bytes), of all shards done; asserts that no uid comes twice."""
    found: dict[str, tuple[dict[str, Any], bytes]] = {}
    for marker in committed(run).values():
        with tarfile.open(storage.join(run.images, marker["tar"])) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name in members:
            if name.endswith(".json"):
                meta = json.loads(members[name])
                assert meta["uid"] not in found
                found[meta["uid"]] = meta, members[name.replace(".json", ".jpg")]
    return found


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
    manifest, run = world(folder, server.url, 25, AT_ONCE), Run.at(str(folder / "my run"))
    caplog.clear()
    summary = download(manifest, run)

    assert (summary.requested, summary.fetched, summary.failed) == (45, 27, 18)
    assert summary.failed_shards == []
    assert summary.reasons == {"truncated": 4} | {reason: 2 for reason in REASONS.values() if reason != "truncated"}
    assert len(caplog.messages) == 2 + summary.partition.shards

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

    assert_a_second_call_mends_and_repeats_nothing(manifest, run, summary, caplog)


@pytest.mark.usefixtures("ray_cluster")
def test_a_row_that_takes_too_long_is_a_failure(tmp_path: pathlib.Path, server: SceneServer) -> None:
    """Among slow rows alone: so impatient, a busy machine may be too late for any other."""
    impatient = SETTINGS | {"timeout": 1.0, "total_timeout": 1.0}
    manifest, run = world(tmp_path, server.url, 0, {"slow": 3}, download=impatient), Run.at(str(tmp_path / "run"))
    summary = download(manifest, run, accept_failures=True)
    assert (summary.requested, summary.failed, summary.reasons) == (3, 3, {"timeout": 3})
    failures = pq.read_table(run.quarantine("images")).to_pylist()
    assert {row["uid"]: row["reason"] for row in failures} == {row["uid"]: "timeout" for row in rows_of(run)}


def assert_a_second_call_mends_and_repeats_nothing(
    manifest: Manifest, run: Run, before: DownloadSummary, caplog: pytest.LogCaptureFixture
) -> None:
    """With the same end state as a kill after a commit: an orphan of another attempt, and a missing quarantine."""
    committed = {name: storage.read_bytes(storage.join(run.images, name)) for name in storage.list_below(run.images)}
    lost = storage.list_names(run.quarantine("images"))[0]
    failures = storage.read_bytes(run.quarantine("images", lost))
    storage.remove(run.quarantine("images", lost))
    storage.create(storage.join(run.images, "00001-0123456789ab.tar"), b"of a killed attempt")

    caplog.clear()
    again = download(manifest, run)
    assert again.nothing_to_do
    assert again.done == 0
    assert caplog.messages == ["5 of 5 shards are already downloaded"]
    assert again.to_dict() == before.to_dict() | {"shards_done": 0, "shards_skipped": 5}
    assert read_summary(run).to_dict() == again.to_dict()
    left = {name: storage.read_bytes(storage.join(run.images, name)) for name in storage.list_below(run.images)}
    assert left == committed
    assert storage.read_bytes(run.quarantine("images", lost)) == failures


@pytest.mark.usefixtures("ray_cluster")
def test_shards_are_not_done_while_the_server_is_down_and_are_fetched_when_it_is_back(tmp_path: pathlib.Path) -> None:
    with socket.socket() as kept:  # it refuses connections, and keeps the port for the server
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        port = kept.getsockname()[1]
        manifest, run = world(tmp_path, f"http://127.0.0.1:{port}", 15), Run.at(str(tmp_path / "run"))
        down = download(manifest, run)
        assert (down.fetched, down.failed, down.committed) == (0, 0, set())
        assert [line.split(" (")[0] for line in down.failed_shards] == [
            "shard 00000: no image downloaded",
            "shard 00001: no image downloaded",
        ]
        assert "10 × connection refused); the errors look transient" in down.failed_shards[0]
        assert storage.list_names(run.images) == []
        with SceneServer(port=port):
            up = download(manifest, run)
    assert (up.fetched, up.failed_shards, up.done) == (15, [], 2)


@pytest.mark.usefixtures("ray_cluster")
def test_a_list_of_dead_links_is_done_and_says_that_nothing_came(tmp_path: pathlib.Path, server: SceneServer) -> None:
    manifest, run = world(tmp_path, server.url, 0, {"dead": 12}), Run.at(str(tmp_path / "run"))
    for done in (2, 0):
        summary = download(manifest, run)
        assert (summary.failed, summary.done) == (12, done)
        assert summary.failed_shards == ["none of the 12 images downloaded: 12 × http 404"]


@pytest.mark.usefixtures("ray_cluster")
def test_a_task_that_dies_is_tried_again_and_given_up_without_its_neighbours(
    tmp_path: pathlib.Path, server: SceneServer
) -> None:
    manifest, run = world(tmp_path, server.url, 40), Run.at(str(tmp_path / "run"))

    def dying(work: DownloadTask) -> dict[str, Any]:
        tries = pathlib.Path(f"{work.run.url}-tries-{work.shard}")
        with open(tries, "a") as log:
            log.write("x")
        if work.shard == 1 or (work.shard == 2 and tries.read_text() == "x"):
            os.kill(os.getpid(), signal.SIGKILL)
        if work.shard == 3:
            raise OSError("the disk is full")
        return fetch_and_commit(work)

    summary = download(manifest, run, task=dying)
    assert summary.committed == {0, 2}
    assert [len(pathlib.Path(f"{run.url}-tries-{shard}").read_text()) for shard in range(4)] == [1, 3, 2, 3]
    dead, full = summary.failed_shards
    assert re.match("shard 00001: its task failed 3 times: .*died", dead)
    assert full == "shard 00003: its task failed 3 times: OSError: the disk is full"
    assert download(manifest, run).done == 2


@pytest.mark.usefixtures("ray_cluster")
def test_a_damaged_list_costs_its_own_shard_and_comes_back_as_its_message_says(
    tmp_path: pathlib.Path, server: SceneServer
) -> None:
    manifest, run = world(tmp_path, server.url, 15), Run.at(str(tmp_path / "run"))
    partition(manifest, run)
    url = pathlib.Path(run.list_shard(1))
    whole = url.read_bytes()
    url.write_bytes(whole[:-9])
    summary = download(manifest, run)
    assert summary.committed == {0}
    (told,) = summary.failed_shards
    assert re.match(rf"shard 00001: {url}: cannot be read .* Remove {url} and {run.plan}; ", told)
    for damaged in (url, pathlib.Path(run.plan)):
        damaged.unlink()
    assert download(manifest, run).done == 1
    assert url.read_bytes() == whole


def fake_shard(folder: pathlib.Path, body: bytes) -> FetchedShard:
    """A fetched shard of one image and one dead link."""
    folder.mkdir()
    rows = [{"key": "000000000", "status": "success", "uid": "a"}]
    rows += [{"key": "000000001", "status": "failed_to_download", "uid": "b", "error_message": "http 404"}]
    table = pa.Table.from_pylist(rows, schema=IMAGES)
    pq.write_table(table, folder / "x.parquet")
    (folder / "x.tar").write_bytes(body)
    stats = {"count": 2, "successes": 1, "status_dict": {"success": 1, "http 404": 1}}
    return FetchedShard(folder / "x.tar", folder / "x.parquet", table, stats)


def test_of_two_attempts_at_a_shard_the_first_counts_and_the_second_leaves_nothing(tmp_path: pathlib.Path) -> None:
    run = Run.at(str(tmp_path / "run"))
    assert commit(run, 0, fake_shard(tmp_path / "first", b"first"))
    marker, names = ledger.read_image_stats(run, 0), storage.list_names(run.images)
    assert not commit(run, 0, fake_shard(tmp_path / "second", b"second"))
    assert ledger.read_image_stats(run, 0) == marker
    assert storage.list_names(run.images) == names
    assert sorted(names) == sorted([marker["tar"], marker["parquet"], "00000_stats.json"])
    assert storage.read_bytes(storage.join(run.images, marker["tar"])) == b"first"


def test_the_quarantine_of_a_shard_is_the_same_however_often_it_is_written(tmp_path: pathlib.Path) -> None:
    run = Run.at("memory://quarantine-run")
    commit(run, 0, fake_shard(tmp_path / "first", b"first"))
    for _ in range(2):
        write_quarantine(run, 0, ledger.read_image_stats(run, 0))
        (row,) = pq.read_table(io.BytesIO(storage.read_bytes(run.quarantine("images", "00000.parquet")))).to_pylist()
        assert (row["key"], row["uid"], row["reason"], row["detail"]) == ("000000001", "b", "http 404", "")


def test_a_shard_is_left_undone_only_where_nothing_came_and_a_failure_can_pass(tmp_path: pathlib.Path) -> None:
    shard = fake_shard(tmp_path / "x", b"")
    for counts, undone in (
        ({"success": 0, "timeout": 2, "http 503": 1}, True),
        ({"success": 0, "timeout": 2, "malformed url": 1}, True),  # which comes without a network, too
        ({"success": 0, "address not allowed": 2, "http 404": 1}, True),  # the settings may name the host
        ({"success": 0, "http 404": 2, "http 410": 1}, False),
        ({"success": 1, "timeout": 2}, False),
    ):
        stats = {"successes": counts["success"], "status_dict": counts}
        assert dataclasses.replace(shard, stats=stats).is_retriable is undone


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
def test_after_a_kill_of_the_driver_the_same_command_gives_the_images_of_an_undisturbed_run(
    tmp_path: pathlib.Path,
) -> None:
    shards = 16
    with SceneServer(delay=0.3) as server:
        manifest = world(tmp_path, server.url, shards * 10 - 32, {"slow": 32})  # a few slow ones in each shard
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
        at_the_kill = committed(run)
        assert 0 < len(at_the_kill) < shards

        again = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(again.stdout.splitlines()[-1])
    assert 0 < figures["shards_done"] < shards
    assert figures["shards_skipped"] >= len(at_the_kill)
    summary = read_summary(run)
    markers = committed(run)
    assert summary.committed == set(markers) and markers | at_the_kill == markers
    found = images_of(run)
    assert {uid: (meta["sha256"], body) for uid, (meta, body) in found.items()} == {
        uid: (meta["sha256"], body) for uid, (meta, body) in expected.items()
    }
    named = {name for marker in markers.values() for name in (marker["tar"], marker["parquet"])}
    found_names = {name for name in storage.list_names(run.images) if not name.endswith("_stats.json")}
    assert found_names - {".ledger"} == named


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


def test_a_killed_partition_starts_over_with_the_same_shards(tmp_path: pathlib.Path) -> None:
    """Killed when it has written ten of its thirty lists."""
    rows = "".join(f"http://a.example/{index}.jpg,x\n" for index in range(600))
    (tmp_path / "list.csv").write_text("url,caption\n" + rows)
    write_manifest(str(tmp_path / "manifest.yaml"), "list.csv", samples_per_shard=20)
    manifest, whole, run = (
        load(str(tmp_path / "manifest.yaml")),
        Run.at(str(tmp_path / "a")),
        Run.at(str(tmp_path / "b")),
    )
    plan = partition(manifest, whole)
    killed = subprocess.run([sys.executable, "-c", KILLED_PARTITION, str(tmp_path / "manifest.yaml"), run.url])
    assert (killed.returncode, len(storage.list_names(run.lists)), plan.shards) == (-signal.SIGKILL, 10, 30)
    assert partition(manifest, run) == plan
    for shard in range(plan.shards):
        assert storage.read_bytes(run.list_shard(shard)) == storage.read_bytes(whole.list_shard(shard))
