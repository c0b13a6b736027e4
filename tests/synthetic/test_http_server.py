"""The scene server serves each scene byte for byte, and every documented fault."""

import collections
import contextlib
import csv
import http.client
import io
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from lotlip_data.manifests.manifest import load
from lotlip_data.synthetic.caption_writers import raw_text
from lotlip_data.synthetic.http_server import SceneServer, scene_bytes, seed_from_url
from lotlip_data.synthetic.scenes import render, sample_scene
from lotlip_data.synthetic.url_list import FAULTS, url_rows, write_list, write_manifest


@pytest.fixture(scope="module")
def server() -> Iterator[SceneServer]:
    with SceneServer(delay=1.0, pixels=64) as server:
        yield server


def get(url: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_scenes_are_served_as_drawn_and_with_the_same_bytes_every_time(server: SceneServer) -> None:
    for seed in (0, 3_000_000):
        status, headers, body = get(f"{server.url}/scene/{seed}.png")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), np.asarray(render(sample_scene(seed), 64)))
        for path in ("scene", "redirect", "slow", "robots"):
            url = f"{server.url}/{path}/{seed}.jpg"
            assert get(url)[2] == scene_bytes(seed, "jpg", 64)
            assert seed_from_url(url) == seed


def test_every_fault_behaves_as_documented(server: SceneServer) -> None:
    assert [get(f"{server.url}/{path}/1.jpg")[0] for path in ("dead", "gone", "error")] == [404, 410, 500]
    status, headers, body = get(f"{server.url}/html/1.jpg")
    assert (status, headers["Content-Type"], body[:9]) == (200, "image/jpeg", b"<!DOCTYPE")
    assert get(f"{server.url}/empty/1.jpg")[2] == b""
    whole = scene_bytes(1, "jpg", 64)
    assert get(f"{server.url}/truncated/1.jpg")[2] == whole[: len(whole) // 2]
    with pytest.raises(http.client.IncompleteRead) as cut:
        get(f"{server.url}/short/1.jpg")
    assert cut.value.partial == whole[: len(whole) // 2]
    assert get(f"{server.url}/loop/1.jpg")[0] == 302  # urllib gives up and returns the last response
    assert get(f"{server.url}/robots/1.jpg")[1]["X-Robots-Tag"] == "noai"
    started = time.monotonic()
    get(f"{server.url}/slow/2.jpg")
    assert time.monotonic() - started >= 1.0
    for path in ("", "/scene/x.jpg", "/nothing/1.jpg", "/scene/1.gif"):
        assert get(server.url + path)[0] == 404
    assert seed_from_url(f"{server.url}/dead/1.jpg") is None


def test_a_server_ends_when_the_process_that_started_it_is_killed() -> None:
    code = "import os; from lotlip_data.synthetic.http_server import SceneServer\n"
    code += "with SceneServer() as server: print(server.url, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    address = urlsplit(killed.stdout.strip())
    assert killed.returncode == -9 and address.port, "the process had started a server before it was killed"
    deadline = time.monotonic() + 300
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            with contextlib.suppress(ConnectionResetError):  # the server ends while the connection is made
                socket.create_connection((address.hostname, address.port), timeout=60).close()
            time.sleep(0.05)


def test_a_list_has_each_scene_and_each_fault_once_in_every_format(tmp_path: pathlib.Path) -> None:
    scenes, faults = range(3_000_000, 3_000_020), dict.fromkeys(FAULTS, 3)
    expected = url_rows("http://h", scenes, faults)
    kind_counts = collections.Counter(url.split("/")[3] for url, _ in expected)
    assert kind_counts == {"scene": 20, **faults}
    seeds = [int(url.split("/")[-1].removesuffix(".jpg")) for url, _ in expected]
    assert sorted(seeds) == list(range(3_000_000, 3_000_000 + len(expected)))
    assert seeds != sorted(seeds)
    assert all(text == raw_text(sample_scene(seed)) for (_, text), seed in zip(expected, seeds, strict=True))

    for ending in ("csv", "tsv", "jsonl", "parquet"):
        path = str(tmp_path / f"list.{ending}")
        assert write_list(path, "http://h", scenes, faults) == len(expected)
        assert read_back(path) == expected
        write_manifest(str(tmp_path / "manifest.yaml"), path, seed=7)
        (source,) = load(str(tmp_path / "manifest.yaml")).sources
        assert source.columns == (("caption", "url") if ending == "tsv" else None)


def read_back(path: str) -> list[tuple[str, str]]:
    if path.endswith("parquet"):
        rows = pq.read_table(path).to_pylist()
    elif path.endswith("jsonl"):
        rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    else:
        with open(path, newline="") as stream:
            if path.endswith("tsv"):
                rows = [dict(zip(("caption", "url"), line.rstrip("\n").split("\t"), strict=True)) for line in stream]
            else:
                rows = list(csv.DictReader(stream))
    return [(row["url"], row["caption"]) for row in rows]


def test_the_errors_on_unknown_faults_and_suffixes_list_the_known_ones(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no fault 'rude': choose among dead, gone"):
        url_rows("http://h", range(1), {"rude": 1})
    with pytest.raises(ValueError, match=r"the suffix of a list must be one of \.csv, \.tsv, \.jsonl, \.parquet"):
        write_list(str(tmp_path / "list.xls"), "http://h", range(1))
