"""The whole line on the offline world: scenes served over real HTTP, tiny captioners, three trained models.

Everything but the scenes and the size of the models is what a real run uses; nothing in the line knows of the demo.
"""

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq

from lotlip_data.manifests import storage
from lotlip_data.manifests.errors import UserError
from lotlip_data.manifests.layout import Run
from lotlip_data.manifests.manifest import Manifest, load
from lotlip_data.pipeline.ledger import captioned_shards
from lotlip_data.pipeline.line import Outcome, run_all
from lotlip_data.pipeline.summary import summary_lines

CAPTIONERS = ("tiny-instructblip", "tiny-llava", "tiny-sharegpt4v")
METHODS = ("lit", "lit_long", "lotlip")
FAULTS = {
    "dead": 20,
    "gone": 4,
    "error": 4,
    "html": 6,
    "truncated": 6,
    "short": 4,
    "empty": 4,
    "loop": 2,
    "slow": 4,
    "robots": 4,
    "redirect": 20,
}
PATIENCE = 2.0
"""Seconds in which a fetch must be over; the slow answers take twice as long."""
PORT = 29753
"""Of a new run's server, where it is free: the order of samples follows from their URLs, and all figures from that."""


def demo(run: Run, images: int, say: Callable[[str], None]) -> Outcome:
    """Run the line over `images` served scenes and the faults of a real list, and say what came of it.

    Writes demo.json into the run's folder. Raises UserError where the folder is not on this machine, or the port of an
    earlier start is taken.
    """
    if not storage.is_local(run.url):
        raise UserError(f"{run.url}: the demo serves and reads its scenes on this machine; give it a local folder")
    from lotlip_data.world.server import WorldServer

    began = time.monotonic()
    folder = Path(run.url) / "input"
    with WorldServer(delay=2 * PATIENCE, port=_port_of(folder)) as server:
        say(f"serving {images} scenes, and {sum(FAULTS.values())} links with the faults of the web, at {server.url}")
        manifest = _write_input(folder, server.url, images)
        outcome = run_all(manifest, run, say)
    result = storage.join(run.url, "demo.json")
    if outcome.failed:
        return outcome
    if outcome.did_something or not storage.exists(result):
        figures = {**_figures(run), "seconds": round(time.monotonic() - began, 1)}
        storage.replace(result, json.dumps(figures, indent=1).encode())
    outcome.figures = json.loads(storage.read_bytes(result))
    for line in summary_lines(outcome.figures, run):
        say(line)
    return outcome


def _port_of(folder: Path) -> int:
    """The port of an earlier start, so that its URLs go on; of a new run, PORT, or 0 (any) where that is taken."""
    known = folder / "server.url"
    if not known.exists():
        return PORT if _is_free(PORT) else 0
    port = urlsplit(known.read_text()).port or 0
    if not _is_free(port):
        raise UserError(
            f"{known}: this run's images are served at port {port}, which something else uses now, another demo "
            "perhaps. Wait for that, or give another folder."
        )
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _write_input(folder: Path, base_url: str, images: int) -> Manifest:
    """The list of URLs, as a CSV, and its manifest: what a user would bring."""
    from lotlip_data.world.lists import write_list, write_manifest
    from lotlip_data.world.scenes import SPLITS

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.url").write_text(base_url)
    write_list(str(folder / "images.csv"), base_url, SPLITS["images"][:images], FAULTS)
    write_manifest(
        str(folder / "manifest.yaml"),
        "images.csv",
        name="demo",
        samples_per_shard=100,
        download={
            "allow_hosts": ["127.0.0.1"],
            "threads": 16,
            "timeout": PATIENCE,
            "total_timeout": PATIENCE,
            "retries": 0,
        },
        captioners=list(CAPTIONERS),
        train=[{"method": method, "preset": "demo"} for method in METHODS],
        evaluate=["world"],
    )
    return load(str(folder / "manifest.yaml"))


def _figures(run: Run) -> dict[str, Any]:
    """What demo.json holds, but for the seconds; read back from what the stages committed."""
    from lotlip_data.pipeline.download import read_summary
    from lotlip_data.pipeline.stats import dataset_stats

    download = read_summary(run)
    return {
        "download": {
            "asked": download.asked,
            "fetched": download.fetched,
            "failed": download.failed,
            "failed_by_reason": dict(download.reasons),
        },
        "captions": {name: _accuracy(run, name) for name in CAPTIONERS},
        "stats": dataset_stats(run),
        "retrieval": {method: _recall(run, method) for method in METHODS},
    }


def _recall(run: Run, method: str) -> dict[str, dict[str, float]]:
    """R@1 in % on long and short texts, both ways."""
    found = json.loads(storage.read_bytes(run.evaluation(method)))["retrieval"]
    return {name: {way: 100 * found[name][way]["R@1"] for way in ("t2i", "i2t")} for name in ("long", "short")}


def _accuracy(run: Run, captioner: str) -> dict[str, Any]:
    """How many captions there are, and how true they are, against the scenes that their URLs name."""
    from lotlip_data.pipeline.accuracy import score
    from lotlip_data.world.scenes import sample_scene
    from lotlip_data.world.server import seed_of

    pairs = []
    for shard in captioned_shards(run, captioner):
        urls = dict(_columns(run.list_shard(shard), "uid", "url"))
        for uid, text in _columns(run.caption_shard(captioner, shard), "uid", "text"):
            seed = seed_of(urls[uid])
            if text is not None and seed is not None:
                pairs.append((text, sample_scene(seed)))
    found = score(pairs)
    return {"count": len(pairs), "facts_precision": found.precision, "facts_recall": found.recall}


def _columns(url: str, *names: str) -> list[tuple[Any, ...]]:
    with storage.open_read(url) as stream:
        table = pq.read_table(stream, columns=list(names))
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))
