"""Transient failures can be retried, committed shards stay, and an image is downloaded or in quarantine, once."""

import http.server
import io
import json
import pathlib
import shutil
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests import storage
from lotlip_data.manifests.formats.schema import IMAGES, LISTS
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading import failures, retry
from lotlip_data.pipeline.downloading.commit import commit, finish_commit
from lotlip_data.pipeline.downloading.failures import Failures
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard
from lotlip_data.pipeline.downloading.stage import DownloadSummary, download, read_summary
from lotlip_data.pipeline.recaptioning.importing.caption_table import open_caption_table
from lotlip_data.pipeline.recaptioning.importing.stage import import_captions
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.url_lists.partition import Partition
from lotlip_data.synthetic.http_server import scene_bytes
from lotlip_data.synthetic.url_list import write_manifest

DOWNLOAD = {"allow_hosts": ["127.0.0.1"], "timeout": 60, "total_timeout": 120, "retries": 0, "threads": 8}


class FlakyServer:
    """Serves scenes. /dead is always 404; while `down` is true, paths below /flaky are 503."""

    def __init__(self) -> None:
        flaky = self
        self.down = True

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                folder = self.path.split("/")[1]
                code = 404 if folder == "dead" else 503 if folder == "flaky" and flaky.down else 200
                body = scene_bytes(int(self.path.split("/")[2].split(".")[0])) if code == 200 else b""
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def flaky() -> Iterator[FlakyServer]:
    server = FlakyServer()
    yield server
    server.close()


def manifest_of(folder: pathlib.Path, urls: list[str], **settings: Any) -> Manifest:
    (folder / "list.csv").write_text("url,caption\n" + "".join(f"{url},text of {url}\n" for url in urls))
    settings = {"samples_per_shard": 6, "download": DOWNLOAD} | settings
    write_manifest(str(folder / "manifest.yaml"), "list.csv", **settings)
    return load(str(folder / "manifest.yaml"))


def committed_outcomes(run: Run) -> tuple[list[str], list[tuple[str, str]]]:
    """The URLs of all committed images, and (URL, reason) of all rows in quarantine."""
    fetched = []
    for shard in ledger.fetched_shards(run):
        table = pq.read_table(storage.join(run.images, ledger.read_image_stats(run, shard)["parquet"])).to_pylist()
        fetched += [row["url"] for row in table if row["status"] == "success"]
    failed = [row for name in storage.list_names(run.quarantine("images")) for row in quarantine_of(run, name)]
    return sorted(fetched), sorted((row["url"], row["reason"]) for row in failed)


def quarantine_of(run: Run, name: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(storage.read_bytes(run.quarantine("images", name)))).to_pylist()  # type: ignore[no-any-return]


def objects(folder: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_below(folder)}


@pytest.mark.usefixtures("ray_cluster")
def test_transient_failures_are_retried_in_further_shards_and_nothing_else_changes(
    tmp_path: pathlib.Path, flaky: FlakyServer, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"good": 9, "dead": 4, "flaky": 7}
    good, dead, failing = ([f"{flaky.url}/{kind}/{i}.jpg" for i in range(n)] for kind, n in counts.items())
    manifest, run = manifest_of(tmp_path, [*good, *dead, *failing]), Run.at(str(tmp_path / "run"))
    reasons = [(url, "http 404") for url in dead]

    def check_summary(summary: DownloadSummary, fetched: list[str], failed: list[tuple[str, str]]) -> None:
        assert committed_outcomes(run) == (sorted(fetched), sorted(failed))
        assert (summary.requested, summary.fetched, summary.failed) == (20, len(fetched), len(failed))
        assert summary.reasons == dict(Counter(reason for _, reason in failed).most_common())
        assert read_summary(run).to_dict() | {"shards_done": 0, "shards_skipped": 0} == summary.to_dict() | {
            "shards_done": 0,
            "shards_skipped": 0,
        }
        assert get_status(run)["shards"] == summary.shards
        assert get_status(run)["images"] == summary.fetched

    first = download(manifest, run, accept_failures=True)  # the last shard has two rows, and both can be flaky
    check_summary(first, good, reasons + [(url, "http 503") for url in failing])
    assert first.to_dict()["hosts"] == {flaky.url.removeprefix("http://"): {"http 503": 7, "http 404": 4}}
    committed = objects(run.images)

    still_down = download(manifest, run, retry_failed=True)  # 7 rows: a shard of six rows and one of one row
    check_summary(still_down, good, reasons + [(url, "http 503") for url in failing])
    assert (still_down.done, still_down.shards, still_down.failed_shards) == (2, first.shards + 2, [])

    flaky.down = False
    caplog.clear()
    assert download(manifest, run).nothing_to_do  # without `retry_failed`, no image is retried
    server_up = download(manifest, run, retry_failed=True)
    check_summary(server_up, good + failing, reasons)
    assert (server_up.done, server_up.shards, server_up.to_dict()["retried"]) == (2, first.shards + 4, 14)
    last = download(manifest, run, retry_failed=True)
    check_summary(last, good + failing, reasons)
    assert last.nothing_to_do
    assert "no image failed for a transient reason" in caplog.messages
    objects_after = objects(run.images)
    assert {name: objects_after[name] for name in committed} == committed

    (tmp_path / "captions.csv").write_text("url,caption\n" + "".join(f"{url},A shape.\n" for url in failing))
    table = open_caption_table(str(tmp_path / "captions.csv"), ["mine=caption"], "url", None)
    assert import_captions(run, table).matched == 7  # joined by URL, whatever the shard


OUTCOMES = (None, "http 404", "timeout", "http 503: x", "host is down: y")


def committed_run(folder: pathlib.Path) -> Run:
    """Three committed shards of five rows: an image, a 404, and three transient failures. Has no partition."""
    run = Run.at(str(folder / "run"))
    for shard in range(3):
        rows = []
        for row, message in enumerate(OUTCOMES):
            listed = {"texts": ["a", ""], "sources": ["s", "t"], "expected_md5": "0" * 32}
            identity = {
                "uid": f"{shard}-{row}",
                "url": f"http://h{row}.example/{shard}",
                "key": f"{shard:05d}{row:04d}",
            }
            outcome = {"status": "failed" if message else "success", "error_message": message}
            rows.append(identity | listed | outcome)
        table = pa.Table.from_pylist(rows, schema=IMAGES)
        scratch = folder / f"scratch-{shard}"
        scratch.mkdir()
        pq.write_table(table, scratch / "x.parquet")
        (scratch / "x.tar").write_bytes(b"")
        stats = {"count": 5, "successes": 1} | failures.count_failures(table)
        commit(run, shard, FetchedShard(scratch / "x.tar", scratch / "x.parquet", stats))
        finish_commit(run, shard, ledger.read_image_stats(run, shard))
    return run


def prepare_retry(run: Run) -> None:
    """The steps of a retry before it downloads any image."""
    if not retry.rounds(run):
        retry.open_round(run, [], 3, 4, ledger.fetched_shards(run))
    for retry_round in retry.rounds(run):
        retry.prepare(run, retry_round)


def test_a_round_has_every_transient_failure_once_with_all_columns_of_its_list(tmp_path: pathlib.Path) -> None:
    run = committed_run(tmp_path)
    prepare_retry(run)
    (retry_round,) = retry.rounds(run)
    assert (retry_round.first, retry_round.shards, retry_round.rows, retry_round.sources) == (3, 3, 9, (0, 1, 2))
    assert retry_round.reasons == ("host is down", "http 503", "timeout")
    tables = [pq.read_table(run.list_shard(shard)) for shard in (3, 4, 5)]
    assert [table.num_rows for table in tables] == [4, 4, 1]
    assert all(table.schema == LISTS for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["uid"] for row in rows] == [f"{shard}-{row}" for shard in range(3) for row in (2, 3, 4)]
    assert all((row["texts"], row["expected_md5"]) == (["a", ""], "0" * 32) for row in rows)
    assert committed_outcomes(run)[1] == [(f"http://h1.example/{shard}", "http 404") for shard in range(3)]
    assert not retry.open_round(run, [retry_round], 6, 4, range(3))


def test_a_round_killed_before_any_change_to_the_storage_is_prepared_the_same_and_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no step is a row both in quarantine and in a list shard, from which it can be downloaded."""
    undisturbed = committed_run(tmp_path)
    shutil.copytree(undisturbed.url, tmp_path / "before")
    prepare_retry(undisturbed)
    folders = (lambda run: run.lists, lambda run: run.quarantine())
    expected = {folder: objects(folder(undisturbed)) for folder in folders}

    class Killed(Exception):
        pass

    for step in range(100):
        run = Run.at(str(tmp_path / f"killed-{step}"))
        shutil.copytree(tmp_path / "before", run.url)
        steps_left = [step]

        def dying(change: Any, steps_left: list[int] = steps_left) -> Any:
            def change_or_die(*arguments: Any) -> Any:
                if not steps_left[0]:
                    raise Killed
                steps_left[0] -= 1
                return change(*arguments)

            return change_or_die

        with monkeypatch.context() as patch:
            for name in ("create", "replace"):
                patch.setattr(storage, name, dying(getattr(storage, name)))
            try:
                prepare_retry(run)
            except Killed:
                finished = False
            else:
                finished = True
        lists = [name for name in storage.list_names(run.lists) if name.endswith(".parquet")]
        pending = {uid for name in lists for uid in pq.read_table(storage.join(run.lists, name))["uid"].to_pylist()}
        quarantines = storage.list_names(run.quarantine("images"))
        quarantined = {row["uid"] for name in quarantines for row in quarantine_of(run, name)}
        assert not pending & quarantined
        prepare_retry(run)
        assert {folder: objects(folder(run)) for folder in expected} == expected
        if finished:
            break
    assert step == 1 + 3 + 3  # the round, three quarantines, three lists


@pytest.mark.usefixtures("ray_cluster")
def test_private_hosts_are_refused_with_a_hint_and_download_once_they_are_allowed(
    tmp_path: pathlib.Path, flaky: FlakyServer
) -> None:
    urls = [f"{flaky.url}/good/{index}.jpg" for index in range(8)]
    allowed = manifest_of(tmp_path, urls)
    not_allowed = manifest_of(tmp_path, urls, download=DOWNLOAD | {"allow_hosts": []})
    pending, done = Run.at(str(tmp_path / "pending")), Run.at(str(tmp_path / "done"))
    for run in (pending, done):
        summary = download(not_allowed, run)
        assert summary.committed == set() and len(summary.failed_shards) == 2
        assert "`download.allow_hosts` in the manifest lists their private hosts" in summary.failed_shards[0]
    assert download(allowed, pending).fetched == 8  # with the same command

    accepted = download(not_allowed, done, accept_failures=True)
    assert accepted.reasons == {"address not allowed": 8}
    assert any(
        "`download.allow_hosts` and use --retry-failed" in line for line in failures.format_text(accepted.to_dict())
    )
    assert download(allowed, done, retry_failed=True).fetched == 8
    assert committed_outcomes(done) == (sorted(urls), [])


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_retry_continues_with_its_own_shards(
    tmp_path: pathlib.Path, flaky: FlakyServer, caplog: pytest.LogCaptureFixture
) -> None:
    failing = [f"{flaky.url}/flaky/{index}.jpg" for index in range(8)]
    good = [f"{flaky.url}/good/{index}.jpg" for index in range(8)]
    manifest, run = manifest_of(tmp_path, [*good, *failing], samples_per_shard=4), Run.at(str(tmp_path / "run"))
    accepted = download(manifest, run, accept_failures=True)
    flaky.down = False
    retry.open_round(run, [], 4, 4, range(4))  # a kill here leaves this state
    caplog.clear()
    resumed = download(manifest, run, retry_failed=True)
    assert "resuming the previous --retry-failed download" in caplog.messages
    assert (accepted.fetched, resumed.fetched, resumed.done, len(retry.rounds(run))) == (8, 16, 2, 1)
    assert committed_outcomes(run) == (sorted(good + failing), [])


@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_without_images_is_committed_after_shard_tries_or_with_accept_failures(
    tmp_path: pathlib.Path, flaky: FlakyServer
) -> None:
    """Three shards of one row, one of which never downloads. Tries count only once the run has an image."""
    urls = [f"{flaky.url}/{name}.jpg" for name in ("flaky/1", "flaky/2")] + ["http://127.0.0.1:1/x.jpg"]
    manifest, run = manifest_of(tmp_path, urls, samples_per_shard=1), Run.at(str(tmp_path / "run"))
    for _ in range(3):
        assert download(manifest, run).committed == set()
    assert ledger.tries(run) == {}
    shutil.copytree(run.url, tmp_path / "other")
    flaky.down = False
    for attempt in (1, 2):
        summary = download(manifest, run)
        assert (summary.fetched, len(summary.pending)) == (2, 1)
        assert list(ledger.tries(run).values()) == [attempt]
    done = download(manifest, run)
    assert (done.fetched, done.reasons, done.failed_shards) == (2, {"connection refused": 1}, [])
    assert download(manifest, run).nothing_to_do

    other = Run.at(str(tmp_path / "other"))
    assert len(download(manifest, other).pending) == 1
    accepted = download(manifest, other, accept_failures=True)
    assert (accepted.done, accepted.failed_shards, accepted.reasons) == (1, [], {"connection refused": 1})
    assert download(manifest, other, retry_failed=True).to_dict()["retried"] == 1  # an accepted failure can be retried


def test_the_failures_table_is_bounded_and_keeps_the_worst_host() -> None:
    counted = Failures()
    for shard in range(500):
        hosts = {f"h{shard}-{host}.example": {"timeout": 1} for host in range(99)} | {
            "worst.example": {"http 404": 2, "timeout": 1}
        }
        counted.add({"status_dict": {"success": 5, "timeout": 100, "http 404": 2}, "failed_hosts": hosts})
    assert len(counted.hosts) <= 2_000
    figures = counted.to_dict()
    assert figures["reasons"] == {"timeout": 50_000, "http 404": 1000}
    assert len(figures["hosts"]) == 20
    assert next(iter(figures["hosts"].items())) == ("worst.example", {"http 404": 1000, "timeout": 500})
    assert any("worst.example (1,000 × http 404, 500 × timeout)" in line for line in failures.format_text(figures))


@pytest.mark.slow
def test_the_summary_of_a_run_keeps_the_sums_of_its_markers_and_not_the_markers(tmp_path: pathlib.Path) -> None:
    """Under 1 kB per shard. A marker with 100 failed hosts is about 4 kB, and more as Python objects.

    Three thousand shards are added: the peak varies by about 200 kB with the number of markers that are read ahead.
    """
    peaks = []
    for shards in (100, 3100):
        run = Run.at(str(tmp_path / f"of-{shards}"))
        partition = Partition(100 * shards, shards, 110, 110 * shards, 0, {}, {})
        storage.create(run.plan, json.dumps(asdict(partition)).encode())
        for shard in range(shards):
            hosts = {f"images-{shard}-{host}.example.org": {"http 404": 1} for host in range(100)}
            counts = {"count": 110, "successes": 10, "status_dict": {"success": 10, "http 404": 100}}
            marker = counts | {"failed_hosts": hosts, "tar": "a.tar", "parquet": "a.parquet"}
            storage.create(run.image_stats(shard), json.dumps(marker).encode())
        tracemalloc.start()
        summary = read_summary(run)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (summary.fetched, summary.failed, len(summary.committed)) == (10 * shards, 100 * shards, shards)
    assert (peaks[1] - peaks[0]) / 3000 < 1000


def test_retried_failures_are_not_counted_in_their_first_shard() -> None:
    counted = Failures()
    counts = {"timeout": 2, "http 404": 1}
    hosts = {"a": counts, "b": {"timeout": 1}}
    counted.add({"status_dict": {"success": 1} | counts, "failed_hosts": hosts}, {"timeout"})
    assert counted.to_dict() == {"reasons": {"http 404": 1}, "hosts": {"a": {"http 404": 1}}}


def test_reasons_with_equal_counts_are_ordered_by_name() -> None:
    counted = Failures()
    for reasons in ({"truncated": 1, "http 404": 1}, {"timeout": 2}):
        counted.add({"status_dict": reasons, "failed_hosts": {"a.example": reasons}})
    figures = counted.to_dict()
    assert list(figures["reasons"]) == ["timeout", "http 404", "truncated"] == list(figures["hosts"]["a.example"])
    assert failures.format_text({"reasons": {"truncated": 1}, "hosts": {}})[0] == "1 image cannot be used:"
