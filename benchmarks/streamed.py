"""A run that streams, compared with its longest stage alone and with the stages in turn.

    python benchmarks/streamed.py

`lotlip-data run` downloads, captions and writes the dataset at the same time. The other side runs the stages one after
another on a second run of the same list: a stage's time alone is that of its command. Both sides are this project's
stages on one Ray cluster of this process. The images come from a server that answers like the web: log-normal latency
of 300 ms in the median, and 5% of the URLs on dead hosts. The captioners are tiny ones whose captions take as long as
those of a 7B model on a GPU; that GPU, and the CPUs, are those of Ray's accounting. A small run before is a warm-up.

A ratio is wall time: below 1.15, the streamed run takes hardly longer than its longest stage. The last line of standard
output is one JSON object. README.md in this folder has its keys.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).parent / "plugins"
"""The captioner kind `slow`. The workers of Ray find it there too."""
CPUS, GPUS = 4, 1
"""Resources of the cluster, as Ray counts them."""
WINDOW = 16
"""Captions at a time."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=24, help="shards of the run (default: %(default)s)")
    parser.add_argument("--images", type=int, default=60, help="URLs per shard (default: %(default)s)")
    parser.add_argument("--captioners", type=int, default=1, help="captioners (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of a caption (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=16, help="threads of a download task (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=5.0, help="time limit of a request (default: %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="try the script: a few images")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(shards=3, images=8, seconds=0.2, timeout=1.0)
    return options


def write_manifest(folder: Path, urls: list[str], hosts: list[str], images: int, options: argparse.Namespace) -> Path:
    """Write the list and its manifest."""
    folder.mkdir()
    (folder / "urls.txt").write_text("\n".join(urls) + "\n")
    pool = {
        "engine": "transformers",
        "num_gpus": 1 / options.captioners,
        "concurrency": WINDOW,
        "engine_options": {"engine_args": {"seconds": options.seconds}},
    }
    captioner = {"kind": "slow", "model": "tiny-llava", "max_new_tokens": 32, "pool": pool}
    content = {
        "name": "streamed",
        "sources": [{"name": "web", "files": [str(folder / "urls.txt")], "text": None}],
        "samples_per_shard": images,
        "download": {
            "allow_hosts": hosts,
            "threads": options.threads,
            "timeout": options.timeout,
            "total_timeout": 2 * options.timeout,
            "retries": 0,
        },
        "captioners": [captioner | {"name": f"slow-{number}"} for number in range(options.captioners)],
        "train": [],
    }
    path = folder / "manifest.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def measure(call: Callable[[], Any]) -> float:
    """Seconds of a stage. Fails if the stage has failed."""
    began = time.monotonic()
    outcome = call()
    seconds = time.monotonic() - began
    assert outcome.did_something and not outcome.failed, outcome.failed
    return seconds


def compare(work: Path, urls: list[str], hosts: list[str], images: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the stages in turn and the streamed run, on two runs of one list."""
    from lotlip_data.pipeline import stages

    manifest = str(write_manifest(work, urls, hosts, images, options))
    staged, streamed = str(work / "staged"), str(work / "streamed")
    seconds = {
        "download": measure(lambda: stages.download(manifest, staged)),
        "recaption": measure(lambda: stages.recaption(staged)),
        "shard": measure(lambda: stages.shard(staged)),
    }
    print(f"stages in turn: {seconds}", file=sys.stderr)
    together = measure(lambda: stages.run_pipeline(manifest, streamed))
    longest, total = max(seconds.values()), sum(seconds.values())
    return {
        "streamed_vs_longest": round(together / longest, 3),
        "staged_vs_longest": round(total / longest, 3),
        "streamed_seconds": round(together, 1),
        "staged_seconds": round(total, 1),
        "stages": {name: round(value, 1) for name, value in seconds.items()},
        "longest": max(seconds, key=lambda name: seconds[name]),
    }


def main() -> None:
    options = parse_arguments()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
    os.environ.pop("RAY_ADDRESS", None)
    sys.path.insert(0, str(PLUGINS))
    import ray

    from lotlip_data.pipeline.core.ray_cluster import LOCAL_OBJECT_STORE_BYTES, start_local
    from lotlip_data.synthetic.web_server import ALL_HOSTS, WebServer

    start_local(num_cpus=CPUS, num_gpus=GPUS, object_store_memory=LOCAL_OBJECT_STORE_BYTES)
    rows = options.shards * options.images
    with tempfile.TemporaryDirectory() as folder, WebServer() as server:
        hosts = list(ALL_HOSTS)
        if not options.smoke:  # processes of Ray start, and import what they need
            few = argparse.Namespace(**{**vars(options), "seconds": 0.1})
            compare(Path(folder, "warm-up"), server.urls(range(2 * CPUS * 8)), hosts, 8, few)
        urls = server.urls(range(1_000_000, 1_000_000 + rows))
        figures = compare(Path(folder, "run"), urls, hosts, options.images, options)
    ray.shutdown()
    settings = ("shards", "images", "captioners", "seconds", "threads", "timeout")
    print(json.dumps(figures | {name: getattr(options, name) for name in settings} | {"cpus": CPUS, "gpus": GPUS}))


if __name__ == "__main__":
    main()
