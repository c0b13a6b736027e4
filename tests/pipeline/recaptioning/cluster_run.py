"""A Ray cluster of several nodes on this machine, drivers that recaption on it, and ways to kill its processes.

As a program, this module is such a driver: `python -m tests.pipeline.recaptioning.cluster_run RUN CAPTIONERS`.
CAPTIONERS is a JSON list, as in a manifest. The program prints its summary as JSON and exits with 1 if a unit failed.
"""

import asyncio
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from PIL import Image

from lotlip_data.manifests import storage
from lotlip_data.manifests.run_layout import Run
from lotlip_data.manifests.storage_retry import DiskError
from lotlip_data.pipeline.core.ledger import captioned_shards, fetched_shards
from lotlip_data.pipeline.downloading.reader import fetched_images
from tests.support.paths import ROOT
from tests.support.processes import title

FAULTS = ROOT / "tests" / "faults"
DEADLINE_SECONDS = 800.0
AUTH_VARIABLES = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")

sys.path.insert(0, str(FAULTS))

Entry = Mapping[str, Any]


def decoded(run: Run) -> dict[str, Image.Image]:
    """By uid, the images of a run as a captioner receives them."""
    images = (image for shard in fetched_shards(run) for image in fetched_images(run, shard))
    return {image.uid: Image.open(io.BytesIO(image.image)).convert("RGB") for image in images}


def undisturbed(images: Mapping[str, Image.Image], name: str) -> dict[str, str]:
    """By uid, the captioner's texts for the images, generated without Ray and without faults."""
    from lotlip_data.captioners.registry import get_default, load_engine

    engine = load_engine(get_default(name), "transformers")

    async def caption_all() -> list[Any]:
        return await asyncio.gather(*(engine.caption(engine.prepare(image)) for image in images.values()))

    captions = asyncio.run(caption_all())
    engine.close()
    return {uid: caption.text for uid, caption in zip(images, captions, strict=True)}


def rows(run: Run, name: str) -> list[dict[str, Any]]:
    """All committed caption rows of a captioner."""
    return [
        row
        for shard in captioned_shards(run, name)
        for row in pq.read_table(storage.open_read(run.caption_shard(name, shard))).to_pylist()
    ]


def assert_exactly_once(run: Run, name: str, texts: Mapping[str, str], failed: Sequence[str] = ()) -> None:
    """Each image has exactly one row: the text of an undisturbed run or, for the images of `failed`, a reason.

    The quarantine lists exactly the images of `failed`, and no parts are left.
    """
    committed_rows = rows(run, name)
    assert sorted(row["uid"] for row in committed_rows) == sorted(texts)
    assert {row["uid"] for row in committed_rows if row["text"] is None} == set(failed)
    assert all(row["text"] == texts[row["uid"]] for row in committed_rows if row["uid"] not in failed)
    assert all(row["error"] for row in committed_rows if row["uid"] in failed)
    folder = run.quarantine("captions", name)
    quarantined = [
        row
        for shard in storage.list_names(folder)
        for row in pq.read_table(storage.open_read(storage.join(folder, shard))).to_pylist()
    ]
    assert sorted(row["uid"] for row in quarantined) == sorted(failed)
    assert storage.list_below(run.parts(name)) == []


def committed(run: Run, names: Sequence[str]) -> dict[str, tuple[int, bytes]]:
    """By path, the modification time and the bytes of the committed caption shards."""
    paths = [Path(run.caption_shard(name, shard)) for name in names for shard in captioned_shards(run, name)]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_SECONDS) -> Any:
    """Wait until the condition is true, and return its value. `what` names the expected event."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"no {what} within {seconds:.0f} s"
        time.sleep(0.02)
    return answer


@dataclass
class Driver:
    """A process that recaptions on the cluster, and the file with its output."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def running(self) -> bool:
        """Whether the process has not ended."""
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def end(self) -> dict[str, Any]:
        """Wait for the process to end. Returns its summary, with its exit status as `code`."""
        self.process.wait(DEADLINE_SECONDS)
        print(self.log.read_text())
        summary: dict[str, Any] = json.loads(self.log.read_text().splitlines()[-1])
        return summary | {"code": self.process.returncode}


class Nodes:
    """The cluster. Its head node has no CPU, so every actor is on a node that can be killed."""

    def __init__(self, faults: Path) -> None:
        from ray.cluster_utils import Cluster

        paths = [str(FAULTS), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.env = {
            # The first Ray of this process sets how nodes authenticate. A driver must use the same settings.
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith("RAY_") or name in AUTH_VARIABLES
            },
            "PYTHONPATH": os.pathsep.join(paths),
            "LOTLIP_FAULTS": str(faults),
            "OMP_NUM_THREADS": "1",
        }
        self.faults = faults
        self._previous_env = {name: os.environ.get(name) for name in ("PYTHONPATH", "LOTLIP_FAULTS", "OMP_NUM_THREADS")}
        os.environ.update({name: self.env[name] for name in self._previous_env})  # inherited by the nodes' workers
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers: list[Any] = []
        self._drivers: list[Driver] = []

    def add(self, **resources: Any) -> None:
        """Add a node. Its default resource is one CPU."""
        self.workers.append(self._cluster.add_node(object_store_memory=80 << 20, **{"num_cpus": 1, **resources}))

    def kill_node(self, node: Any) -> None:
        """Kill the node's raylet with SIGKILL. Its workers die with it."""
        self.workers.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def driver(self, run: Run, entries: Sequence[Entry]) -> Driver:
        """Start a driver that recaptions the run with these entries of a manifest's `captioners`."""
        command = [sys.executable, "-m", "tests.pipeline.recaptioning.cluster_run", run.url, json.dumps(list(entries))]
        env = {**self.env, "RAY_ADDRESS": self._cluster.address}
        log = Path(tempfile.mkstemp(prefix="driver-", suffix=".log", dir=self.faults.parent)[1])
        with log.open("w") as out:
            process = subprocess.Popen(command, env=env, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        self._drivers.append(Driver(process, log))
        return self._drivers[-1]

    def kill_drivers(self) -> None:
        """Kill all drivers. Those that a failed test leaves would keep the nodes from the next test."""
        while self._drivers:
            self._drivers.pop().kill()

    def actors(self) -> list[psutil.Process]:
        """The processes of caption actors on all nodes."""
        return [process for process in self._processes() if title(process).startswith("ray::CaptionActor")]

    def engines(self) -> list[psutil.Process]:
        """vLLM's engine processes, by the titles that they have before and after their start.

        Only direct children of caption actors count: a child of an engine has the engine's title for a moment.
        """
        children = [child for actor in self.actors() for child in _children(actor, recursive=False)]
        return [process for process in children if re.search(r"^VLLM::|spawn_main", title(process))]

    def close(self) -> None:
        """Stop the drivers and the cluster, and restore the environment."""
        self.kill_drivers()
        self._cluster.shutdown()
        for name, value in self._previous_env.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _processes(self) -> list[psutil.Process]:
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in self.workers]
        return [child for raylet in raylets for child in _children(raylet)]


def _children(process: psutil.Process, recursive: bool = True) -> list[psutil.Process]:
    try:
        children: list[psutil.Process] = process.children(recursive=recursive)
        return children
    except psutil.NoSuchProcess:
        return []


def kill(process: psutil.Process) -> None:
    """Kill a process with SIGKILL, unless it has ended."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


@contextmanager
def nodes(faults: Path, count: int = 2) -> Iterator[Nodes]:
    """A cluster with `count` nodes besides its head, whose captioners read faults from the folder `faults`."""
    cluster = Nodes(faults)
    try:
        for _ in range(count):
            cluster.add()
        yield cluster
    finally:
        cluster.close()


def main() -> int:
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption

    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    try:
        summary = recaption(Run.at(sys.argv[1]), resolve_captioners(json.loads(sys.argv[2])))
    except DiskError as error:
        print(json.dumps({"failed": [str(error)]}), flush=True)
        return 1
    print(json.dumps({"failed": summary.failed, **summary.to_dict()}), flush=True)
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
