"""What failed for a while can be fetched again; what is committed stays; an image is fetched or in quarantine, once."""

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
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.schema import IMAGES, LISTS
from lotlip_data.pipeline.core import ledger
from lotlip_data.pipeline.downloading import failures, retry
from lotlip_data.pipeline.downloading.commit import commit, finish_commit
from lotlip_data.pipeline.downloading.failures import Failures
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard
from lotlip_data.pipeline.downloading.stage import DownloadSummary, download, read_summary
from lotlip_data.pipeline.recaptioning.caption_table import caption_table
from lotlip_data.pipeline.recaptioning.import_captions import import_captions
from lotlip_data.pipeline.reporting.status import get_status
from lotlip_data.pipeline.url_lists.partition import Partition
from lotlip_data.synthetic.http_server import scene_bytes
from lotlip_data.synthetic.url_list import write_manifest

DOWNLOAD = {"allow_hosts": ["127.0.0.1"], "timeout": 60, "total_timeout": 120, "retries": 0, "threads": 8}


class Flaky:
    """Serves scenes; while it is `down`, paths that begin with /flaky answer 503. /dead is always 404."""

    def __init__(self) -> None:
        flaky = self
        self.down = True

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                place = self.path.split("/")[1]
                code = 404 if place == "dead" else 503 if place == "flaky" and flaky.down else 200
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
def flaky() -> Iterator[Flaky]:
    server = Flaky()
    yield server
    server.close()


def manifest_of(folder: pathlib.Path, urls: list[str], **more: Any) -> Manifest:
    (folder / "list.csv").write_text("url,caption\n" + "".join(f"{url},text of {url}\n" for url in urls))
    write_manifest(str(folder / "manifest.yaml"), "list.csv", **({"samples_per_shard": 6, "download": DOWNLOAD} | more))
    return load(str(folder / "manifest.yaml"))


def accounts(run: Run) -> tuple[list[str], list[tuple[str, str]]]:
    """URLs fetched, and (URL, reason) in quarantine: from all that is committed."""
    got = []
    for shard in ledger.fetched_shards(run):
        table = pq.read_table(storage.join(run.images, ledger.read_image_stats(run, shard)["parquet"])).to_pylist()
        got += [row["url"] for row in table if row["status"] == "success"]
    failed = [row for name in storage.list_names(run.quarantine("images")) for row in quarantine_of(run, name)]
    return sorted(got), sorted((row["url"], row["reason"]) for row in failed)


def quarantine_of(run: Run, name: str) -> list[dict[str, Any]]:
    return pq.read_table(io.BytesIO(storage.read_bytes(run.quarantine("images", name)))).to_pylist()  # type: ignore[no-any-return]


def objects(folder: str) -> dict[str, bytes]:
    return {name: storage.read_bytes(storage.join(folder, name)) for name in storage.list_below(folder)}


@pytest.mark.usefixtures("ray_cluster")
def test_what_failed_for_a_while_comes_in_further_shards_and_nothing_else_changes(
    tmp_path: pathlib.Path, flaky: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    counts = {"good": 9, "dead": 4, "flaky": 7}
    good, dead, often = ([f"{flaky.url}/{kind}/{i}.jpg" for i in range(n)] for kind, n in counts.items())
    manifest, run = manifest_of(tmp_path, [*good, *dead, *often]), Run.at(str(tmp_path / "run"))
    reasons = [(url, "http 404") for url in dead]

    def check(summary: DownloadSummary, fetched: list[str], failed: list[tuple[str, str]]) -> None:
        assert accounts(run) == (sorted(fetched), sorted(failed))
        assert (summary.requested, summary.fetched, summary.failed) == (20, len(fetched), len(failed))
        assert summary.reasons == dict(Counter(reason for _, reason in failed).most_common())
        assert read_summary(run).to_dict() | {"shards_done": 0, "shards_skipped": 0} == summary.to_dict() | {
            "shards_done": 0,
            "shards_skipped": 0,
        }
        assert get_status(run)["shards"] == summary.shards
        assert get_status(run)["images"] == summary.fetched

    first = download(manifest, run, accept_failures=True)  # the last shard has two rows, which may both be flaky ones
    check(first, good, reasons + [(url, "http 503") for url in often])
    assert first.to_dict()["hosts"] == {flaky.url.removeprefix("http://"): {"http 503": 7, "http 404": 4}}
    committed = objects(run.images)

    still_down = download(manifest, run, retry_failed=True)  # 7 rows: a shard of six and one of one
    check(still_down, good, reasons + [(url, "http 503") for url in often])
    assert (still_down.done, still_down.shards, still_down.failed_shards) == (2, first.shards + 2, [])

    flaky.down = False
    caplog.clear()
    assert download(manifest, run).nothing_to_do  # without being asked, nothing is fetched again
    up = download(manifest, run, retry_failed=True)
    check(up, good + often, reasons)
    assert (up.done, up.shards, up.to_dict()["retried"]) == (2, first.shards + 4, 14)
    last = download(manifest, run, retry_failed=True)
    check(last, good + often, reasons)
    assert last.nothing_to_do
    assert "no image failed for a transient reason" in caplog.messages
    now = objects(run.images)
    assert {name: now[name] for name in committed} == committed

    (tmp_path / "captions.csv").write_text("url,caption\n" + "".join(f"{url},A shape.\n" for url in often))
    table = caption_table(str(tmp_path / "captions.csv"), ["mine=caption"], "url", None)
    assert import_captions(run, table).matched == 7  # by URL, in whichever shard they have come


OUTCOMES = (None, "http 404", "timeout", "http 503: x", "host is down: y")


def committed_run(folder: pathlib.Path) -> Run:
    """Three committed shards of five rows: an image, a 404, and three failures that can pass. No plan; needs no Ray."""
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
        commit(run, shard, FetchedShard(scratch / "x.tar", scratch / "x.parquet", table, stats))
        finish_commit(run, shard, ledger.read_image_stats(run, shard))
    return run


def begin(run: Run) -> None:
    """What a download does of a retry before it fetches anything."""
    if not retry.rounds(run):
        retry.open_round(run, [], 3, 4, ledger.fetched_shards(run))
    for one in retry.rounds(run):
        retry.prepare(run, one)


def test_a_round_has_every_row_that_can_pass_once_with_all_that_its_list_said(tmp_path: pathlib.Path) -> None:
    run = committed_run(tmp_path)
    begin(run)
    (one,) = retry.rounds(run)
    assert (one.first, one.shards, one.rows, one.sources) == (3, 3, 9, (0, 1, 2))
    assert one.reasons == ("host is down", "http 503", "timeout")
    tables = [pq.read_table(run.list_shard(shard)) for shard in (3, 4, 5)]
    assert [table.num_rows for table in tables] == [4, 4, 1]
    assert all(table.schema == LISTS for table in tables)
    rows = pa.concat_tables(tables).to_pylist()
    assert [row["uid"] for row in rows] == [f"{shard}-{row}" for shard in range(3) for row in (2, 3, 4)]
    assert all((row["texts"], row["expected_md5"]) == (["a", ""], "0" * 32) for row in rows)
    assert accounts(run)[1] == [(f"http://h1.example/{shard}", "http 404") for shard in range(3)]
    assert not retry.open_round(run, [one], 6, 4, range(3))


def test_killed_before_any_change_of_the_storage_a_round_is_prepared_the_same_and_never_twice(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever the moment, nothing that may be fetched already is still in quarantine."""
    whole = committed_run(tmp_path)
    shutil.copytree(whole.url, tmp_path / "before")
    begin(whole)
    expected = {folder: objects(folder(whole)) for folder in (lambda run: run.lists, lambda run: run.quarantine())}

    class Killed(Exception):
        pass

    for step in range(100):
        run = Run.at(str(tmp_path / f"killed-{step}"))
        shutil.copytree(tmp_path / "before", run.url)
        left = [step]

        def dying(change: Any, left: list[int] = left) -> Any:
            def do(*arguments: Any) -> Any:
                if not left[0]:
                    raise Killed
                left[0] -= 1
                return change(*arguments)

            return do

        with monkeypatch.context() as patch:
            for name in ("create", "replace"):
                patch.setattr(storage, name, dying(getattr(storage, name)))
            try:
                begin(run)
            except Killed:
                finished = False
            else:
                finished = True
        lists = [name for name in storage.list_names(run.lists) if name.endswith(".parquet")]
        waiting = {uid for name in lists for uid in pq.read_table(storage.join(run.lists, name))["uid"].to_pylist()}
        quarantines = storage.list_names(run.quarantine("images"))
        quarantined = {row["uid"] for name in quarantines for row in quarantine_of(run, name)}
        assert not waiting & quarantined
        begin(run)
        assert {folder: objects(folder(run)) for folder in expected} == expected
        if finished:
            break
    assert step == 1 + 3 + 3  # the round, three quarantines, three lists


@pytest.mark.usefixtures("ray_cluster")
def test_private_hosts_that_the_settings_forgot_are_named_and_fetched_once_they_are_allowed(
    tmp_path: pathlib.Path, flaky: Flaky
) -> None:
    urls = [f"{flaky.url}/good/{index}.jpg" for index in range(8)]
    allowed = manifest_of(tmp_path, urls)
    forgot = manifest_of(tmp_path, urls, download=DOWNLOAD | {"allow_hosts": []})
    undone, done = Run.at(str(tmp_path / "undone")), Run.at(str(tmp_path / "done"))
    for run in (undone, done):
        summary = download(forgot, run)
        assert summary.committed == set() and len(summary.failed_shards) == 2
        assert "`download.allow_hosts` in the manifest lists their private hosts" in summary.failed_shards[0]
    assert download(allowed, undone).fetched == 8  # by the same command

    accepted = download(forgot, done, accept_failures=True)  # as the shards of before, which were done at once
    assert accepted.reasons == {"address not allowed": 8}
    assert any(
        "`download.allow_hosts` and use --retry-failed" in line for line in failures.format_text(accepted.to_dict())
    )
    assert download(allowed, done, retry_failed=True).fetched == 8
    assert accounts(done) == (sorted(urls), [])


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_retry_goes_on_with_its_own_shards(
    tmp_path: pathlib.Path, flaky: Flaky, caplog: pytest.LogCaptureFixture
) -> None:
    often = [f"{flaky.url}/flaky/{index}.jpg" for index in range(8)]
    good = [f"{flaky.url}/good/{index}.jpg" for index in range(8)]
    manifest, run = manifest_of(tmp_path, [*good, *often], samples_per_shard=4), Run.at(str(tmp_path / "run"))
    accepted = download(manifest, run, accept_failures=True)
    flaky.down = False
    retry.open_round(run, [], 4, 4, range(4))  # and here it is killed
    caplog.clear()
    again = download(manifest, run, retry_failed=True)
    assert "resuming the previous --retry-failed download" in caplog.messages
    assert (accepted.fetched, again.fetched, again.done, len(retry.rounds(run))) == (8, 16, 2, 1)
    assert accounts(run) == (sorted(good + often), [])


@pytest.mark.usefixtures("ray_cluster")
def test_a_shard_of_which_nothing_comes_is_done_after_some_downloads_or_on_request(
    tmp_path: pathlib.Path, flaky: Flaky
) -> None:
    """Shards of one row: two come, one never does. Before any image has come, no download counts."""
    urls = [f"{flaky.url}/{name}.jpg" for name in ("flaky/1", "flaky/2")] + ["http://127.0.0.1:1/x.jpg"]
    manifest, run = manifest_of(tmp_path, urls, samples_per_shard=1), Run.at(str(tmp_path / "run"))
    for _ in range(3):
        assert download(manifest, run).committed == set()
    assert ledger.tries(run) == {}
    shutil.copytree(run.url, tmp_path / "other")
    flaky.down = False
    for attempt in (1, 2):
        tried = download(manifest, run)
        assert (tried.fetched, len(tried.pending)) == (2, 1)
        assert list(ledger.tries(run).values()) == [attempt]
    done = download(manifest, run)
    assert (done.fetched, done.reasons, done.failed_shards) == (2, {"connection refused": 1}, [])
    assert download(manifest, run).nothing_to_do

    other = Run.at(str(tmp_path / "other"))
    assert len(download(manifest, other).pending) == 1
    accepted = download(manifest, other, accept_failures=True)
    assert (accepted.done, accepted.failed_shards, accepted.reasons) == (1, [], {"connection refused": 1})
    assert download(manifest, other, retry_failed=True).to_dict()["retried"] == 1  # accepted is not for ever


def test_the_table_of_failures_is_bounded_and_the_worst_host_stays_in_it() -> None:
    found = Failures()
    for shard in range(500):
        hosts = {f"h{shard}-{host}.example": {"timeout": 1} for host in range(99)} | {
            "worst.example": {"http 404": 2, "timeout": 1}
        }
        found.add({"status_dict": {"success": 5, "timeout": 100, "http 404": 2}, "failed_hosts": hosts})
    assert len(found.hosts) <= 2_000
    figures = found.to_dict()
    assert figures["reasons"] == {"timeout": 50_000, "http 404": 1000}
    assert len(figures["hosts"]) == 20
    assert next(iter(figures["hosts"].items())) == ("worst.example", {"http 404": 1000, "timeout": 500})
    assert any("worst.example (1,000 × http 404, 500 × timeout)" in line for line in failures.format_text(figures))


def test_a_runs_summary_keeps_sums_of_its_markers_and_not_the_markers(tmp_path: pathlib.Path) -> None:
    """Less than 1 kB a shard, whose markers of 100 failed hosts are some 4 kB each, and more as objects.

    A thousand shards more: a peak is some 200 kB higher or lower by how many markers the readers are ahead.
    """
    peaks = []
    for shards in (100, 1100):
        run = Run.at(str(tmp_path / f"of-{shards}"))
        plan = Partition(100 * shards, shards, 110, 110 * shards, 0, {}, {})
        storage.create(run.plan, json.dumps(asdict(plan)).encode())
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
    assert (peaks[1] - peaks[0]) / 1000 < 1000


def test_failures_that_are_retried_are_not_counted_where_they_came_from() -> None:
    found = Failures()
    counts = {"timeout": 2, "http 404": 1}
    hosts = {"a": counts, "b": {"timeout": 1}}
    found.add({"status_dict": {"success": 1} | counts, "failed_hosts": hosts}, {"timeout"})
    assert found.to_dict() == {"reasons": {"http 404": 1}, "hosts": {"a": {"http 404": 1}}}
