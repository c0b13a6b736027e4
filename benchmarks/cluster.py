"""CPU time and memory of the driver that recaptions on 512 GPUs: 64 nodes, three captioners, 10,000 shards.

    python benchmarks/cluster.py                                      # some five minutes, 4 GB of memory
    python benchmarks/cluster.py --raylets 64 --processes 512         # a raylet per node, a process per GPU: 50 GB

The driver, its pools, the run's folder and Ray are real; the driver has a process of its own. Simulated are the
engines: a captioner's actor waits as long as a GPU would work, at another speed, and commits a shard without images.
Fewer processes than GPUs stand for the actors: each is a Ray actor that reserves its share of the GPUs and answers for
as many actors of the pools. The driver has the same actors in its pools, calls in flight and answers as with a process
per GPU. A tenth of the way, one of the processes is killed.

The work is done `--units-per-second` units (a shard and a captioner) at a time, far faster than 512 GPUs do it. So the
last line of standard output, one JSON object, has the driver's share of the time twice: as measured, and at the speed
of the GPUs (`driver_share`). That is its CPU seconds per unit times the units per second of the GPUs, plus its CPU
seconds per second while no unit ends.
"""

import argparse
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

CAPTIONERS = ("tiny-llava", "tiny-sharegpt4v", "tiny-instructblip")
IMAGES_PER_SHARD = 10_000
GPU_IMAGES_PER_SECOND = 24.0
"""Of one H100 with LLaVA-1.5 (estimated; `plan --tflops 989` says 27)."""
CAPTION_TOKENS = 140
KILL_AT = 0.1
"""Share of the units after which a process is killed."""
SHARE_BOUND, GROWTH_BOUND_MB = 0.05, 16.0


def make_run(folder: Path, shards: int) -> None:
    """Write the names of a run with downloaded shards, without their contents: the driver reads names only."""
    from lotlip_data.manifests.run_layout import Run, shard_name
    from lotlip_data.pipeline.core.ledger import WorkRecord

    run = Run.at(str(folder))
    Path(run.image_ledger).mkdir(parents=True)
    record = WorkRecord(IMAGES_PER_SHARD, 0, 0, 1, 60)
    for shard in range(shards):
        Path(run.image_stats(shard)).touch()
        Path(run.image_ledger, f"{shard_name(shard)}-{record.name}").touch()


# The simulated actors


class Machine:
    """A Ray actor whose process stands for `gpus` actors of the pools."""

    def __init__(self, run_url: str, gpus: int, seconds: float) -> None:
        import asyncio

        from lotlip_data.manifests.run_layout import Run

        self._run, self._seconds = Run(run_url), seconds
        self._free = asyncio.Semaphore(gpus)
        self._placed: set[int] = set()
        self._ended: set[int] = set()

    async def process(self) -> int:
        """The process's number."""
        return os.getpid()

    async def placed(self, number: int) -> None:
        """Answer once a GPU is free, as Ray does once it has placed an actor."""
        if number in self._placed:
            return
        await self._free.acquire()
        if number in self._ended:
            self._free.release()
        else:
            self._placed.add(number)

    async def start(self, name: str) -> Any:
        """Report an engine that has started."""
        from lotlip_data.captioners.base import Capacity
        from lotlip_data.captioners.sizing import reading_defaults
        from lotlip_data.pipeline.recaptioning.actor import StartReport

        capacity = Capacity("bfloat16", "simulated", 128, 98_304)
        return StartReport(name, "stub", "simulated", 1.0, 60.0, 1.0, capacity, reading_defaults())

    async def caption(self, name: str, idle_seconds: float, shard: int) -> Any:
        """Caption a shard in two parts, then commit it. Leaves the names that a worker leaves in the run's folder."""
        import asyncio

        from lotlip_data.manifests.run_layout import shard_name
        from lotlip_data.pipeline.core.ledger import WorkRecord
        from lotlip_data.pipeline.recaptioning.results import UnitResult
        from lotlip_data.pipeline.recaptioning.shard_text import ShardOutcome

        started, parts = int(time.time()), Path(self._run.caption_parts(name, shard))
        target, tokens = Path(self._run.caption_shard(name, shard)), CAPTION_TOKENS * IMAGES_PER_SHARD
        half = WorkRecord(IMAGES_PER_SHARD // 2, 0, tokens // 2, started, started)
        seconds = self._seconds * (0.75 + shard * 7919 % 101 / 200)  # units do not end at the same time
        await asyncio.sleep(idle_seconds)
        for part in range(2):
            await asyncio.sleep(seconds / 2)
            parts.mkdir(parents=True, exist_ok=True)
            Path(parts, f"{part:05d}-0a1b2c3d-{half.name}.parquet").touch()
        won = not target.exists()  # the process that stood for its actor was killed after the commit
        target.touch()
        record = WorkRecord(IMAGES_PER_SHARD, 0, tokens, started, int(time.time()), 1000, 1000)
        entry = Path(self._run.caption_ledger(name), f"{shard_name(shard)}-{record.name}")
        entry.parent.mkdir(exist_ok=True)
        entry.touch()
        shutil.rmtree(parts, ignore_errors=True)
        return ShardOutcome([UnitResult(name, shard, IMAGES_PER_SHARD, IMAGES_PER_SHARD, 0, won, tokens)], {})

    async def end(self, number: int) -> None:
        """Free the GPU of an actor that its pool has released."""
        self._ended.add(number)
        if number in self._placed:
            self._placed.remove(number)
            self._free.release()


class Handle:
    """What a pool has of one actor. The calls go to the process that stands for it."""

    def __init__(self, machine: Any, number: int, name: str, idle_seconds: float) -> None:
        self._machine, self._number, self._name = machine, number, name
        self._idle_calls = 2  # the first units of an actor
        self._idle_seconds = idle_seconds
        self.placed = _Remote(lambda: machine.placed.remote(number))
        self.start = _Remote(lambda: machine.start.remote(name))
        self.drain = _Remote(lambda: machine.process.remote())
        self.caption = _Remote(self._caption)

    def end(self) -> None:
        self._machine.end.remote(self._number)

    def _caption(self, shard: int, texts: Any) -> Any:
        idle = self._idle_seconds if self._idle_calls > 0 else 0.0
        self._idle_calls -= 1
        return self._machine.caption.remote(self._name, idle, shard)


class _Remote:
    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call


# The driver; it runs in its own process


def drive(options: argparse.Namespace) -> dict[str, Any]:
    """Recaption the run on the cluster of RAY_ADDRESS, and measure this process."""
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.pipeline.core.ray_cluster import cluster, ray_session
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption

    logging.basicConfig(filename=f"{options.folder}/log", level=logging.INFO)
    run, units = Run.at(f"{options.folder}/run"), len(CAPTIONERS) * options.shards
    jobs = resolve_captioners(CAPTIONERS, {"num_gpus": 1, "max_actors": options.gpus})
    with ray_session(), cluster():
        meter = Meter(units)
        with simulated_actors(run, options, meter), meter:
            summary = recaption(run, jobs)
        assert recaption(run, jobs).nothing_to_do
    assert not summary.failed and sum(summary.units.values()) == units, summary
    assert sum(summary.captions.values()) == units * IMAGES_PER_SHARD
    return meter.figures(options)


@contextmanager
def simulated_actors(run: Any, options: argparse.Namespace, meter: "Meter") -> Iterator[None]:
    """Let the pools create simulated actors, in turns on the processes that stand for them."""
    import ray

    from lotlip_data.pipeline.recaptioning import actor_pool

    share = options.gpus // options.processes
    seconds = 2 * options.gpus / options.units_per_second  # an actor holds two units
    machine_class: Any = ray.remote(Machine)
    machine_class = machine_class.options(
        num_cpus=0, num_gpus=share, max_concurrency=20 * options.gpus, max_restarts=-1, scheduling_strategy="SPREAD"
    )
    machines = [machine_class.remote(run.url, share, seconds) for _ in range(options.processes)]
    meter.processes = ray.get([machine.process.remote() for machine in machines])
    handles: list[Handle] = []

    def create(pool: Any, num_cpus: float) -> Handle:
        machine = machines[len(handles) % len(machines)]
        handles.append(Handle(machine, len(handles), pool.config.name, options.idle_seconds))
        return handles[-1]

    def end(handle: Handle, restart: bool = False) -> None:
        handle.end()

    collect = actor_pool.ActorPool.collect

    def count(pool: Any, reference: Any) -> Any:
        results = collect(pool, reference)
        meter.units += sum(isinstance(result, actor_pool.UnitResult) for result in results)
        return results

    with (
        patch.object(actor_pool, "create_actor", create),
        patch.object(actor_pool, "end_actor", end),
        patch.object(actor_pool.ActorPool, "collect", count),
    ):
        yield


class Sample(NamedTuple):
    """The state of the driver's process."""

    time: float
    cpu: float
    """CPU seconds of all its threads, those of Ray included."""
    units: int
    rss_mb: float


class Meter:
    """Samples this process twice a second, and kills one of `processes` when a tenth of the units is done."""

    def __init__(self, total: int) -> None:
        self._total, self.units = total, 0
        self.processes: list[int] = []
        self._samples: list[Sample] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="meter", daemon=True)

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        killed = False
        while not self._ended.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rss = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            self._samples.append(Sample(time.monotonic(), time.process_time(), self.units, rss))
            if not killed and self.units >= KILL_AT * self._total:
                os.kill(self.processes[-1], signal.SIGKILL)
                killed = True

    def figures(self, options: argparse.Namespace) -> dict[str, Any]:
        """The figures of the whole."""
        first = next(number for number, sample in enumerate(self._samples) if sample.units)
        idle_from = self._samples[first].time - 0.7 * options.idle_seconds
        idle = [sample for sample in self._samples[:first] if sample.time >= idle_from]
        busy = self._samples[first:]
        idle_share = _cpu_share(idle)
        seconds = busy[-1].time - busy[0].time
        per_unit = (busy[-1].cpu - busy[0].cpu - idle_share * seconds) / (busy[-1].units - busy[0].units)
        gpu_units_per_second = options.gpus * GPU_IMAGES_PER_SECOND / IMAGES_PER_SHARD
        early, late = (
            statistics.median(sample.rss_mb for sample in busy if start <= sample.units / self._total <= start + 0.1)
            for start in (0.15, 0.9)
        )
        return {
            "driver_share": round(idle_share + per_unit * gpu_units_per_second, 5),
            "driver_rss_growth_mb": round(late - early, 1),
            "units_per_second": round((busy[-1].units - busy[0].units) / seconds, 1),
            "shards_per_second": round(options.shards / seconds, 1),
            "measured_share": round(_cpu_share(busy), 4),
            "idle_share": round(idle_share, 5),
            "cpu_ms_per_unit": round(1000 * per_unit, 3),
            "gpu_units_per_second": round(gpu_units_per_second, 3),
            "driver_rss_mb": round(late, 1),
            "driver_peak_rss_mb": round(max(sample.rss_mb for sample in self._samples), 1),
        }


def _cpu_share(samples: list[Sample]) -> float:
    """CPU seconds per second between the first and the last sample."""
    return (samples[-1].cpu - samples[0].cpu) / (samples[-1].time - samples[0].time)


# The cluster


@contextmanager
def simulated_cluster(options: argparse.Namespace) -> Iterator[str]:
    """A Ray cluster with all logical GPUs on `options.raylets` nodes of this machine. Yields its address."""
    from ray.cluster_utils import Cluster

    os.environ.update(OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
    try:
        for _ in range(options.raylets):
            cluster.add_node(num_cpus=1, num_gpus=options.gpus // options.raylets, object_store_memory=80 << 20)
        yield cluster.address
    finally:
        cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=10_000, help="shards of the run")
    parser.add_argument("--gpus", type=int, default=512, help="logical GPUs: one actor each")
    parser.add_argument("--raylets", type=int, default=8, help="Ray nodes, which share the GPUs")
    parser.add_argument("--processes", type=int, default=16, help="processes that stand for the actors of all GPUs")
    parser.add_argument("--units-per-second", type=float, default=150.0, help="speed of the simulation")
    parser.add_argument("--idle-seconds", type=float, default=20.0, help="time in which no unit ends, at the start")
    parser.add_argument("--folder", help="folder for scratch files (default: the system's temporary folder)")
    parser.add_argument("--drive", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="try the script: 64 GPUs, 300 shards, a Ray node")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(shards=300, gpus=64, raylets=1, processes=2, units_per_second=90.0, idle_seconds=4.0)
    if options.drive:
        print(json.dumps(drive(options)))
        return
    with tempfile.TemporaryDirectory(prefix="lotlip-cluster-", dir=options.folder) as scratch:
        make_run(Path(scratch, "run"), options.shards)
        with simulated_cluster(options) as address:
            sizes = ("shards", "gpus", "processes", "units_per_second", "idle_seconds")
            arguments = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in sizes]
            command = [sys.executable, __file__, "--drive", f"--folder={scratch}", *arguments]
            environment = {**os.environ, "RAY_ADDRESS": address}
            driver = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if driver.returncode:
            print(Path(scratch, "log").read_text()[-4000:], file=sys.stderr)
            sys.exit(1)
    figures = json.loads(driver.stdout.splitlines()[-1])
    sizes = {name: getattr(options, name) for name in ("shards", "gpus", "raylets", "processes")}
    bounds = {"driver_share": SHARE_BOUND, "driver_rss_growth_mb": GROWTH_BOUND_MB}
    print(json.dumps({**figures, **sizes, "captioners": len(CAPTIONERS), "bounds": bounds}))


if __name__ == "__main__":
    main()
