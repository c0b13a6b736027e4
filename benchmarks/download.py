"""Images per second and CPU time of a shard's download, compared with plain img2dataset, from one loopback server.

    python benchmarks/download.py

Both sides download, resize and write the same list into a WebDataset shard, with the same size, quality, threads,
columns and hash. They take turns in one process. This is repeated in several processes, because the speed of equal
processes differs by 2 to 3 percent. `ours` is what a Ray task of the download stage does: img2dataset's downloader with
the HTTP guard (limits on addresses, bytes, total time and requests per host), checks of every file before it is
decoded, a new Parquet file with failure reasons, and the commit to the run's folder. `img2dataset` is its `Downloader`
as its own command configures it.

The server is one process that sends pictures from memory. It is a single host instead of the thousands of a real list,
so both sides may send it as many concurrent requests as they have threads. With `--tls` all downloads use https, like
most of a real list. With `--web` the server answers like the web, and both sides have their recommended settings: see
`download_web.py`. The last line of standard output is one JSON object.
"""

import argparse
import contextlib
import io
import json
import os
import socketserver
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import certifi
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import trustme
from PIL import Image

from lotlip_data.manifests.formats.schema import LISTS
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.settings import DownloadSettings
from lotlip_data.manifests.sources.sample_id import uid_from_url
from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit

SIZES = ((640, 480), (800, 600), (1024, 768), (500, 375))
"""Width and height in pixels, typical of web lists: most images are larger than the stored size, some are not."""

SHARD_ROWS = 10_000
"""Rows of a full shard. Keys depend on it, time does not."""


def make_pictures() -> list[bytes]:
    """JPEG files of the SIZES, four of each."""
    rng = np.random.default_rng(0)
    pictures = []
    for width, height in SIZES * 4:
        small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=88)
        pictures.append(stream.getvalue())
    return pictures


def serve(authority: str) -> None:
    """Run the server: print its port, and respond to `/N.jpg` with picture N modulo their number.

    The server ends when standard input closes. authority: the file for the certificates that clients must trust; if it
    is not empty, the server uses https.
    """
    bodies = [
        f"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        for body in make_pictures()
    ]

    tls = None
    if authority:
        tls, issuer = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), trustme.CA()
        issuer.issue_cert("127.0.0.1").configure_cert(tls)
        trusted = Path(
            certifi.where()
        ).read_bytes()  # a client reads all the usual certificates too, as it does elsewhere
        Path(authority).write_bytes(trusted + issuer.cert_pem.bytes())

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

        def get_request(self) -> Any:
            sock, address = super().get_request()
            return (sock if tls is None else tls.wrap_socket(sock, True, do_handshake_on_connect=False)), address

    with Server(("127.0.0.1", 0), Handler) as server:
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()


def download_ours(rows: pa.Table, folder: Path, threads: int) -> None:
    run = Run.at(str(folder / "run"))
    Path(run.lists).mkdir(parents=True)
    pq.write_table(rows, run.list_shard(0))
    settings = DownloadSettings(threads=threads, per_host=threads, allow_hosts=("127.0.0.1",))
    marker = fetch_and_commit(DownloadTask(run, 0, SHARD_ROWS, settings))
    assert marker["successes"] == rows.num_rows, marker


def fetch_with_img2dataset(rows: pa.Table, folder: Path, threads: int, retries: int) -> int:
    """Download a shard with img2dataset and the settings of the product. Returns the number of images."""
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
        number_sample_per_shard=SHARD_ROWS,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=retries,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )
    downloader.download_shard((0, str(folder / "rows.arrow")))
    return int(json.loads((folder / "00000_stats.json").read_text())["successes"])


def download_img2dataset(rows: pa.Table, folder: Path, threads: int) -> None:
    assert fetch_with_img2dataset(rows, folder, threads, retries=1) == rows.num_rows


Round = dict[str, dict[str, float]]
"""Seconds and CPU seconds (`cpu`) of each side."""
SIDES = {"ours": download_ours, "img2dataset": download_img2dataset}


def cpu_seconds() -> float:
    """CPU time of this process and of its children, such as the one that decodes our images."""
    living = (child.cpu_times() for child in psutil.Process().children())
    return sum(os.times()[:4]) + sum(times.user + times.system for times in living)


def run_worker(url: str, images: int, threads: int) -> None:
    """Measure each side that standard input names, and print its seconds and CPU seconds as one line of JSON."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    urls = [f"{url}/{index}.jpg" for index in range(images)]
    columns: list[Any] = [[uid_from_url(url) for url in urls], urls, [["a text"]] * images, [["list"]] * images]
    rows = pa.table([*columns, [None] * images, [None] * images], schema=LISTS)
    for side in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="lotlip-data-benchmark-") as folder:
            started, cpu = time.perf_counter(), cpu_seconds()
            SIDES[side.strip()](rows, Path(folder), threads)
            times = {"seconds": time.perf_counter() - started, "cpu": cpu_seconds() - cpu}
        print(json.dumps(times), flush=True)


@contextlib.contextmanager
def child_process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """This script with other arguments, in a process that is killed at the end of the block."""
    command = [sys.executable, __file__, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def measure(process: subprocess.Popen[str], side: str) -> dict[str, float]:
    """Seconds and CPU seconds of one download by a side, in a worker process."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{side}\n")
    process.stdin.flush()
    while line := process.stdout.readline():
        if line.startswith("{"):
            return dict(json.loads(line))
    raise RuntimeError("a worker process has ended; its error is above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="images of the shard (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=16, help="threads per side (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds per process (default: %(default)s)")
    parser.add_argument(
        "--processes", type=int, default=3, help="processes, one after the other (default: %(default)s)"
    )
    parser.add_argument("--tls", action="store_true", help="download over https")
    parser.add_argument("--web", action="store_true", help="download from a server that answers like the web")
    parser.add_argument(
        "--cores", type=int, default=os.cpu_count(), help="processes at once with --web (default: %(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="try the script: 20 images, one process, one round")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--authority", default="", help=argparse.SUPPRESS)
    for name, kind in (("--url", str), ("--port", int), ("--first", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.set_defaults(pictures=24)
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(images=20, rounds=1, processes=1, pictures=2)
    if options.serve:
        serve(options.authority)
        return
    if options.url:
        run_worker(options.url, options.images, options.threads)
        return
    if options.web:
        import download_web

        if options.port:
            download_web.run_worker(options.port, options.images, options.first)
        else:
            print(json.dumps(download_web.run(options)))
        return
    print(json.dumps(summarise(run_rounds(options), options)))


def run_rounds(options: argparse.Namespace) -> list[Round]:
    """Start the server, and run all rounds of all processes; the sides take turns."""
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        authority = f"{folder}/authority.pem" if options.tls else ""
        server = stack.enter_context(child_process("--serve", "--authority", authority))
        assert server.stdout is not None
        url = f"{'https' if options.tls else 'http'}://127.0.0.1:{server.stdout.readline().strip()}"
        if options.tls:
            os.environ["SSL_CERT_FILE"] = authority  # for the worker processes
        common = ["--url", url, "--images", options.images, "--threads", options.threads]
        for _ in range(options.processes):
            with child_process(*common) as process:
                print("warm-up", {side: f"{measure(process, side)['seconds']:.1f} s" for side in SIDES})
                for number in range(options.rounds):
                    order = list(SIDES)[:: 1 if number % 2 else -1]
                    rounds.append({side: measure(process, side) for side in order})
                    print({side: f"{options.images / times['seconds']:.1f}/s" for side, times in rounds[-1].items()})
    return rounds


def summarise(rounds: Sequence[Round], options: argparse.Namespace) -> dict[str, Any]:
    """The result: medians over the rounds; ratios above 1 mean that ours is faster."""

    def median(side: str, key: str) -> float:
        return statistics.median(times[side][key] for times in rounds)

    def ratio(key: str) -> float:
        return round(statistics.median(times["img2dataset"][key] / times["ours"][key] for times in rounds), 3)

    suffix = "_tls" if options.tls else ""
    result: dict[str, Any] = {
        f"ours_vs_img2dataset{suffix}": ratio("seconds"),
        f"cpu_ours_vs_img2dataset{suffix}": ratio("cpu"),
        "images": options.images,
        "threads": options.threads,
        "rounds": len(rounds),
    }
    for side in SIDES:
        result[side] = {
            "images_per_s": round(options.images / median(side, "seconds"), 1),
            "cpu_ms_an_image": round(1000 * median(side, "cpu") / options.images, 3),
            "rounds": [round(options.images / times[side]["seconds"], 1) for times in rounds],
        }
    return result


if __name__ == "__main__":
    main()
