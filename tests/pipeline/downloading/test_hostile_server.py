"""The download of a shard that has only hostile URLs: bounded memory, bounded time, correct reasons."""

import gzip
import hashlib
import json
import pathlib
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lotlip_data.manifests.formats.schema import LISTS
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.downloading.img2dataset_adapter import FetchedShard, fetch
from lotlip_data.synthetic.http_server import scene_bytes
from tests.pipeline.downloading.raw_server import RawServer, ok, redirect
from tests.support.paths import ROOT

SIDE = 16_000


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    server = RawServer()
    yield server
    server.close()


def rows_of(urls: list[str], **hashes: list[str | None]) -> pa.Table:
    none = [None] * len(urls)
    columns = {"uid": [uid_from_url(url) for url in urls], "url": urls, "texts": [["a"]] * len(urls)}
    expected = {name: hashes.get(name, none) for name in ("expected_sha256", "expected_md5")}
    return pa.table(columns | {"sources": [["s"]] * len(urls)} | expected, schema=LISTS)


def huge_png() -> bytes:
    """A PNG of under 1 MB that decodes to 768 MB."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    compressor = zlib.compressobj(9)
    pixels = b"".join(compressor.compress(bytes(1 + 3 * SIDE)) for _ in range(SIDE)) + compressor.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    assert len(data) < 1_000_000
    return data


def hostile_urls(server: RawServer) -> dict[str, str]:
    """URL → the reason for which its download fails."""
    headers = b"HTTP/1.1 200 OK\r\n"
    picture = scene_bytes(1)
    bomb = gzip.compress(bytes(300_000_000), 9)
    assert len(bomb) < 1_000_000
    elsewhere = f"http://localhost:{server.port}/scene"
    server.serve("/loop", redirect("/loop"))
    server.serve("/scene", ok(picture))
    return {
        server.drip("/drip-body", headers + b"Content-Length: 9999\r\n\r\n", b"x", 0.05): "timeout",
        server.drip("/drip-header", headers + b"X-Endless: ", b"x", 0.05): "timeout",
        server.drip("/drip-chunks", headers + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.05): "timeout",
        server.drip("/endless", b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 65536, 0): "too large",
        server.drip("/endless-chunks", headers + b"Transfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + b"x" * 65535 + b"\r\n", 0): "too large",  # noqa: E501
        server.serve("/promised", headers + b"Content-Length: 99999999999\r\n\r\n"): "too large",
        server.serve("/huge-chunk", headers + b"Transfer-Encoding: chunked\r\n\r\nffffffffffff\r\nxxx"): "truncated",
        server.url + "/loop": "too many redirects",
        server.serve("/to-localhost", redirect(elsewhere)): "address not allowed",
        server.serve("/to-metadata", redirect("http://169.254.169.254/latest/meta-data/")): "address not allowed",
        server.serve("/to-a-file", redirect("file:///etc/passwd")): "scheme not allowed",
        server.serve("/bomb", ok(bomb, "Content-Encoding: gzip\r\nContent-Type: image/jpeg\r\n")): "not an image",
        server.serve("/bombs", ok(gzip.compress(bomb), "Content-Encoding: gzip, gzip\r\n")): "not an image",
        server.serve("/huge.png", ok(huge_png())): "too many pixels",
        server.serve("/page.jpg", ok(b"<html>" * 50, "Content-Type: image/jpeg\r\n")): "not an image",
        server.serve("/robots", ok(picture, "X-Robots-Tag: noai\r\n")): "refused by x-robots-tag",
        server.serve("/robots-many", ok(picture, "X-Robots-Tag: all\r\nX-Robots-Tag: lotlip-data: NoImageAI, x\r\n")): "refused by x-robots-tag",  # noqa: E501
        "http://127.0.0.2:1/x": "address not allowed",
        "http://[::ffff:10.0.0.1]/x": "address not allowed",
        f"https://127.0.0.1:{server.port}/tls": "tls error",
    }  # fmt: skip


CHILD = """
import json, pathlib, sys, time
import pyarrow.parquet as pq
from lotlip_data.manifests.manifest import DownloadSettings
from lotlip_data.pipeline.downloading.img2dataset_adapter import fetch
from tests.pipeline.peak_memory import peak_memory_bytes
folder = pathlib.Path(sys.argv[1])
rows = pq.read_table(folder / "rows.parquet")
settings = DownloadSettings.model_validate_json((folder / "settings.json").read_text())
(folder / "warm").mkdir(); (folder / "out").mkdir()
fetch(rows.slice(rows.num_rows - 1), 0, 10, settings, folder / "warm")
before, started = peak_memory_bytes(), time.monotonic()
stats = fetch(rows, 0, 1000, settings, folder / "out").stats
print(json.dumps({"memory": peak_memory_bytes() - before, "seconds": time.monotonic() - started, "stats": stats}))
"""


@pytest.mark.slow
def test_a_shard_of_hostile_urls_takes_bounded_memory_and_time(tmp_path: pathlib.Path, server: RawServer) -> None:
    """The huge PNG, a decompressed bomb or an endless body would each take more memory than the bound."""
    expected = hostile_urls(server)
    good = server.serve("/good", ok(scene_bytes(7)))
    pq.write_table(rows_of([*expected, good]), tmp_path / "rows.parquet")
    settings = DownloadSettings(
        allow_hosts=("127.0.0.1",),
        timeout=0.5,
        total_timeout=1.0,
        retries=1,
        threads=16,
        max_bytes=4_000_000,
        host_failures=100,
    )
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = json.loads(child.stdout.splitlines()[-1])
    table = pq.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    reasons = {row["url"]: (row["error_message"] or "").split(":")[0] for row in table}
    assert reasons == expected | {good: ""}
    assert measured["stats"]["successes"] == 1
    assert measured["memory"] < 128 * 2**20
    assert measured["seconds"] < 60  # two attempts of a second each; the drips would take minutes


def fetch_rows(tmp_path: pathlib.Path, rows: pa.Table) -> FetchedShard:
    folder = tmp_path / "out"
    folder.mkdir()
    return fetch(rows, 0, 100, DownloadSettings(allow_hosts=("127.0.0.1",), retries=3), folder)


def test_a_body_without_the_expected_hash_is_never_stored(tmp_path: pathlib.Path, server: RawServer) -> None:
    body = scene_bytes(3)
    sha256, md5 = hashlib.sha256(body).hexdigest(), hashlib.md5(body).hexdigest()
    cases = [(sha256, None), (None, md5), (sha256, md5), (None, None)]
    cases += [("0" * 64, None), (None, "0" * 32), (sha256, "0" * 32), ("0" * 64, md5)]
    urls = [server.serve(f"/hashed/{index}.jpg", ok(body)) + "#part" for index in range(len(cases))]
    sha256s, md5s = [case[0] for case in cases], [case[1] for case in cases]
    shard = fetch_rows(tmp_path, rows_of(urls, expected_sha256=sha256s, expected_md5=md5s))
    messages = {row["url"]: row["error_message"] for row in pq.read_table(shard.parquet).to_pylist()}
    assert [messages[url] for url in urls] == [None] * 4 + [
        "hash mismatch: sha256",
        "hash mismatch: md5",
        "hash mismatch: md5",
        "hash mismatch: sha256",
    ]
    with tarfile.open(shard.tar) as tar:
        stored = {name.split(".")[0] for name in tar.getnames()}
    assert stored == {row["key"] for row in pq.read_table(shard.parquet).to_pylist() if row["status"] == "success"}
    assert shard.stats["status_dict"] == {"success": 4, "hash mismatch": 4}
    assert len([request for request in server.requests if "/hashed/" in request]) == 8  # final: none is retried
    assert not shard.is_retriable
