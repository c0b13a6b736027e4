"""Images per second and CPU of our download of a shard beside plain img2dataset's, from the same loopback server.

    python benchmarks/download.py

Both fetch, resize and write the same list into a WebDataset shard: the same size, quality, threads, columns and hash,
one process each, in turns. Ours is what a Ray task of the download stage does: img2dataset's own downloader under the
guard (addresses, bytes, whole time, places of a host), every file looked at before it is decoded, the Parquet written
anew with reasons, then the commit to the run's folder. img2dataset's is its `Downloader` as its own command sets it up.
The server is one process that does nothing but send pictures from memory. The last line is one JSON object.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import socketserver
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from lotlip_data.manifests.identity import uid_of
from lotlip_data.manifests.layout import Run
from lotlip_data.manifests.manifest import DownloadSettings
from lotlip_data.manifests.schema import LISTS
from lotlip_data.pipeline.fetch_commit import Work, fetch_and_commit

SIZES = ((640, 480), (800, 600), (1024, 768), (500, 375))
"""Pixels, as photographs in web lists have them: most are larger than what is stored, some are not."""


def pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    found = []
    for width, height in SIZES * 4:
        small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=88)
        found.append(stream.getvalue())
    return found


def serve() -> None:
    """Answers `/N.jpg` with picture N modulo their number; prints its port, ends with standard input."""
    bodies = [
        f"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for body in pictures()
    ]

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            line = self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            with contextlib.suppress(ConnectionError):
                self.wfile.write(bodies[int(line.split()[1][1:-4]) % len(bodies)])

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 1024

    with Server(("127.0.0.1", 0), Handler) as server:
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()


def fetch_ours(rows: pa.Table, folder: Path, threads: int) -> None:
    run = Run.at(str(folder / "run"))
    Path(run.lists).mkdir(parents=True)
    pq.write_table(rows, run.list_shard(0))
    marker = fetch_and_commit(Work(run, 0, 10_000, DownloadSettings(threads=threads, allow_hosts=("127.0.0.1",))))
    assert marker["successes"] == rows.num_rows, marker


def fetch_plainly(rows: pa.Table, folder: Path, threads: int) -> None:
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    with pa.OSFile(str(folder / "rows.arrow"), "wb") as stream, pa.ipc.new_file(stream, rows.schema) as writer:
        writer.write_table(rows)
    downloader = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(512, "keep_ratio", resize_only_if_bigger=True, encode_quality=95, encode_format="jpg"),
        thread_count=threads,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=rows.schema.names,
        timeout=10,
        number_sample_per_shard=10_000,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=1,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )
    downloader.download_shard((0, str(folder / "rows.arrow")))
    assert json.loads((folder / "00000_stats.json").read_text())["successes"] == rows.num_rows


SIDES = {"ours": fetch_ours, "img2dataset": fetch_plainly}


def work(side: str, port: int, images: int, threads: int) -> None:
    """The process of one side: a line of JSON for each line of standard input, with its seconds and CPU seconds."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    urls = [f"http://127.0.0.1:{port}/{index}.jpg" for index in range(images)]
    columns: list[Any] = [[uid_of(url) for url in urls], urls, [["a text"]] * images, [["list"]] * images]
    rows = pa.table([*columns, [None] * images, [None] * images], schema=LISTS)
    for _ in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="lotlip-data-benchmark-") as folder:
            started, cpu = time.perf_counter(), time.process_time()
            SIDES[side](rows, Path(folder), threads)
            figures = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
        print(json.dumps(figures | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}), flush=True)


@contextlib.contextmanager
def child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    while line := process.stdout.readline():
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError("a side's process ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    if options.side:
        work(options.side, options.port, options.images, options.threads)
        return
    with child("--serve") as server, contextlib.ExitStack() as stack:
        assert server.stdout is not None
        common = ["--port", int(server.stdout.readline()), "--images", options.images, "--threads", options.threads]
        sides = {name: stack.enter_context(child("--side", name, *common)) for name in SIDES}
        for name, process in sides.items():
            print(f"{name}: warmed up in {ask(process)['seconds']:.1f} s")
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(options.rounds):
            order = list(sides)[:: 1 if number % 2 else -1]
            rounds.append({name: ask(sides[name]) for name in order})
            print({name: f"{options.images / one['seconds']:.1f}/s" for name, one in rounds[-1].items()})

    def median(name: str, key: str) -> float:
        return round(statistics.median(one[name][key] for one in rounds), 3)

    def ratio(key: str) -> float:
        return round(statistics.median(one["img2dataset"][key] / one["ours"][key] for one in rounds), 3)

    result = {
        "ours_vs_img2dataset": ratio("seconds"),
        "cpu_ours_vs_img2dataset": ratio("cpu"),
        "images": options.images,
        "threads": options.threads,
        "rounds": len(rounds),
    }
    for name in SIDES:
        result[name] = {
            "images_per_s": round(options.images / median(name, "seconds"), 1),
            "cpu_ms_an_image": round(1000 * median(name, "cpu") / options.images, 3),
            "peak_mebibytes": median(name, "peak"),
            "rounds": [round(options.images / one[name]["seconds"], 1) for one in rounds],
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
