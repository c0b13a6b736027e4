"""`download.py --web`: a shard's download from a server that answers like the web, compared with img2dataset.

The server (`lotlip_data.synthetic.web_server`) has a log-normal latency of 300 ms in the median with a slow tail, 5%
dead hosts, one host with half of all URLs, and photographs of 0.2 to 4 megapixels. Host names are looked up with a
simulated name server, whose answers take time too. Each side has its own recommended settings: ours its defaults,
img2dataset the 64 threads per process of its examples and its default timeout and retries. Both are measured from one
process and from as many as there are cores, each of which downloads a list of its own.
"""

import argparse
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from download import SHARD_ROWS, child_process, cpu_seconds, fetch_with_img2dataset

from lotlip_data.manifests.formats.schema import LISTS
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit
from lotlip_data.synthetic.web_server import ALL_HOSTS, WebServer, host_of

LOOKUP_SECONDS = 0.03
"""Median time to the answer of the name server."""

UNKNOWN_SECONDS = 1.0
"""Time until it says that there is no such name."""


def host_name(address: str) -> str:
    """The name of a host of the server."""
    return address if address.endswith(".invalid") else f"h{address.replace('.', '-')}.example"


def simulate_name_server() -> None:
    """Let this process look the names of `host_name` up as in a network. Other names are looked up as ever."""
    real, addresses = socket.getaddrinfo, {host_name(address): address for address in ALL_HOSTS}

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        if str(host).endswith(".invalid"):
            time.sleep(UNKNOWN_SECONDS)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host in addresses:
            time.sleep(LOOKUP_SECONDS * random.lognormvariate(0, 0.5))
        return real(addresses.get(host, host), *arguments, **options)

    socket.getaddrinfo = getaddrinfo


def make_rows(port: int, numbers: Sequence[int]) -> pa.Table:
    """The rows of a list shard."""
    urls = [f"http://{host_name(host_of(number))}:{port}/{number}.jpg" for number in numbers]
    count = len(urls)
    columns: list[Any] = [list(map(uid_from_url, urls)), urls, [["a text"]] * count, [["list"]] * count]
    return pa.table([*columns, [None] * count, [None] * count], schema=LISTS)


def download_ours(rows: pa.Table, folder: Path) -> int:
    run = Run.at(str(folder / "run"))
    Path(run.lists).mkdir(parents=True)
    pq.write_table(rows, run.list_shard(0))
    settings = DownloadSettings(allow_hosts=tuple(map(host_name, ALL_HOSTS)))
    marker = fetch_and_commit(DownloadTask(run, 0, SHARD_ROWS, settings))
    return int(marker["successes"])


def download_img2dataset(rows: pa.Table, folder: Path) -> int:
    return fetch_with_img2dataset(rows, folder, threads=64, retries=0)


SIDES = {"ours": download_ours, "img2dataset": download_img2dataset}


def run_worker(port: int, images: int, first: int) -> None:
    """Measure each side that standard input names, and print its times and images as one line of JSON."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    simulate_name_server()
    rows = make_rows(port, range(first, first + images))
    warm_up = rows.slice(0, min(images, 4))
    for side in SIDES.values():  # imports
        with tempfile.TemporaryDirectory(prefix="lotlip-data-benchmark-") as folder:
            side(warm_up, Path(folder))
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="lotlip-data-benchmark-") as folder:
            cpu = cpu_seconds()
            stored = SIDES[line.strip()](rows, Path(folder))
            print(json.dumps({"stored": stored, "cpu": cpu_seconds() - cpu}), flush=True)


def _answer(worker: subprocess.Popen[str]) -> dict[str, float]:
    assert worker.stdout is not None
    while line := worker.stdout.readline():
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError("a worker process has ended; its error is above")


def measure(workers: Sequence[subprocess.Popen[str]], side: str) -> dict[str, float]:
    """Images per second and CPU milliseconds per image of a side, with all workers at once."""
    started = time.perf_counter()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{side}\n")
        worker.stdin.flush()
    answers = [_answer(worker) for worker in workers]
    stored = sum(answer["stored"] for answer in answers)
    return {
        "images_per_s": stored / (time.perf_counter() - started),
        "cpu_ms_an_image": 1000 * sum(answer["cpu"] for answer in answers) / stored,
        "stored": stored,
    }


def run_rounds(options: argparse.Namespace, port: int, processes: int) -> dict[str, Any]:
    """All rounds from a number of processes; the sides take turns. Returns ratios and medians."""
    rounds: list[dict[str, dict[str, float]]] = []
    with contextlib.ExitStack() as stack:
        arguments = ["--web", "--port", port, "--images", options.images]
        workers = [
            stack.enter_context(child_process(*arguments, "--first", index * options.images))
            for index in range(processes)
        ]
        for worker in workers:
            _answer(worker)  # it is ready
        for number in range(options.rounds):
            order = list(SIDES)[:: 1 if number % 2 else -1]
            rounds.append({side: measure(workers, side) for side in order})
            print(processes, {side: f"{rounds[-1][side]['images_per_s']:.1f}/s" for side in SIDES}, flush=True)

    def ratio(key: str) -> float:
        return statistics.median(times["ours"][key] / times["img2dataset"][key] for times in rounds)

    medians = {
        side: {key: round(statistics.median(times[side][key] for times in rounds), 2) for key in rounds[0][side]}
        for side in SIDES
    }
    return {"speed": round(ratio("images_per_s"), 3), "cpu": round(1 / ratio("cpu_ms_an_image"), 3)} | medians


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The result. The ratios are the smaller ones of one process and of as many as there are cores."""
    with WebServer(options.pictures) as server:
        results = {count: run_rounds(options, server.port, count) for count in sorted({1, options.cores})}
    return {
        "ours_vs_img2dataset_web": min(result["speed"] for result in results.values()),
        "cpu_ours_vs_img2dataset_web": min(result["cpu"] for result in results.values()),
        "images": options.images,
        "rounds": options.rounds,
        "processes": results,
    }
