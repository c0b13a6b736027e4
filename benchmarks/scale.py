"""Time and memory of everything that looks at the whole of a run, at 1, 10 and 100 million images.

    python benchmarks/scale.py                        # lists of 1 and 10 million rows, runs of 1, 10 and 100 million
    python benchmarks/scale.py --rows 1 10 100        # lists of 100 million too: an hour more, 30 GB of disk

Each stage runs in a process of its own, on lists and ledgers that another one has made; its peak is the kernel's VmHWM.
`plan`, `partition` (which merges equal URLs), `duplicates` and `near_duplicates` take lists or hashes of `--rows`
million; the others read a run of `--runs` million images in shards of 10,000, with three captioners, of which all is
done or, for `status` and `ledger`, a tenth of the last captioner's shards is under way: its cost is one entry a shard.
The last line of standard output is one JSON object.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MILLION = 1_000_000
SHARD = 10_000
PARTS = 8
FAILED = 100
"""Images of a shard that could not be fetched, each from a host of its own."""
CAPTIONERS = ("llava", "instructblip", "sharegpt4v")
OF_LISTS = ("plan", "partition", "duplicates", "near_duplicates")
OF_RUNS = ("resume_download", "resume_recaption", "resume_shard", "ledger", "status")
PEAK_BOUND_MIB, GROWTH_BOUND = 1536, 1.10
BLOCK = 100_000


# What the stages read


def make_lists(folder: Path, rows: int) -> None:
    """Two Parquet files of `rows` rows together: a tenth of the second one's URLs stand in the first."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    half = rows // 2
    for name, start in (("first", 0), ("second", half - half // 10)):
        with pq.ParquetWriter(folder / f"{name}.parquet", pa.schema([("url", "string"), ("text", "string")])) as writer:
            for at in range(0, half, BLOCK):
                numbers = range(start + at, start + min(at + BLOCK, half))
                urls = [f"https://host{n % 9973}.example.org/photos/2021/{n:09x}.jpg?size=large" for n in numbers]
                texts = [f"a photo of thing {n} beside thing {n % 771} on a table" for n in numbers]
                writer.write_table(pa.table({"url": urls, "text": texts}))


def manifest_of(folder: Path) -> Any:
    from lotlip_data.manifests.manifest import Manifest

    sources = [
        {"name": name, "files": [str(folder / f"{name}.parquet")], "url": "url", "text": "text"}
        for name in ("first", "second")
    ]
    return Manifest.model_validate(
        {"name": "scale", "sources": sources, "samples_per_shard": SHARD, "captioners": list(CAPTIONERS)}
    )


def make_run(folder: Path, images: int) -> None:
    """What `images` images leave in a run's folder, but for the contents of tars and Parquet files."""
    from lotlip_data.manifests.manifest import freeze
    from lotlip_data.manifests.run_layout import Run, shard_name
    from lotlip_data.pipeline.core.ledger import WorkRecord
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.results import claim

    manifest, run, shards = manifest_of(folder), Run.at(str(folder / "run")), images // SHARD
    freeze(manifest, run)
    for at in ("lists", "images/.ledger", "quarantine/images", *(f"captions/{name}/.ledger" for name in CAPTIONERS)):
        Path(run.url, at).mkdir(parents=True)
    for one in resolve_captioners(manifest.captioners, None):
        claim(run, one.config)
    rows = shards * (SHARD + FAILED)
    plan = {"images": rows, "shards": shards, "samples_per_shard": SHARD + FAILED, "rows": rows, "duplicates": 0}
    Path(run.plan).write_text(json.dumps(plan | {"invalid": {}, "sources": {"first": rows}}))
    now = int(time.time())
    for shard in range(shards):
        name = shard_name(shard)
        tally = WorkRecord(SHARD, 0, 0, now - 60, now - 1)
        hosts = {f"images-{shard}-{host}.example.org": {"http 404": 1} for host in range(FAILED)}
        stats = {"count": SHARD + FAILED, "successes": SHARD, "seconds": 60.0, "failed_hosts": hosts}
        stats |= {"status_dict": {"success": SHARD, "http 404": FAILED}}
        stats |= {"tar": f"{name}-0a1b2c.tar", "parquet": f"{name}-0a1b2c.parquet", "start_time": 0, "end_time": 60}
        Path(run.image_stats(shard)).write_text(json.dumps(stats, indent=2))
        files = [f"{run.images}/{stats[kind]}" for kind in ("tar", "parquet")]
        for path in (run.list_shard(shard), run.quarantine("images", f"{name}.parquet"), *files):
            Path(path).touch()
        fetched = WorkRecord(SHARD + FAILED, FAILED, 0, now - 60, now - 1)
        Path(run.image_ledger, f"{name}-{fetched.name}").touch()
        for captioner in CAPTIONERS:
            Path(run.caption_shard(captioner, shard)).touch()
            Path(run.caption_ledger(captioner), f"{name}-{tally.name}").touch()
    _make_markers(run, manifest, shards)


def _make_markers(run: Any, manifest: Any, shards: int) -> None:
    """A committed dataset shard for each image shard."""
    from lotlip_data.manifests import dataset_index
    from lotlip_data.manifests.dataset_index import FileRecord
    from lotlip_data.pipeline.core.ledger import captioners
    from lotlip_data.pipeline.curation.filters import Filters
    from lotlip_data.pipeline.dataset import metadata
    from lotlip_data.pipeline.dataset.join import Joined
    from lotlip_data.pipeline.dataset.stage import plan_builds

    ids = {name: json.loads(Path(run.captioner_settings(name)).read_text())["id"] for name in captioners(run)}
    recipe = metadata.Recipe(ids, Filters.of(manifest))
    Path(run.shards, dataset_index.MARKERS).mkdir(parents=True)
    for unit in plan_builds(run, recipe, range(shards)):
        stem = f"train-{unit.shard:05d}"
        files = [FileRecord(f"{stem}.{kind}", 10**9, f"{unit.shard:064x}") for kind in ("tar", "parquet")]
        output = dataset_index.Output("train", SHARD, dict.fromkeys(recipe.captioners, SHARD), *files)
        record = metadata.record_of(unit.shard, unit.fingerprint, recipe, Joined(fetched=SHARD), [output], None)
        Path(dataset_index.marker(run, unit.shard, unit.fingerprint)).write_text(json.dumps(record.to_dict()))
        for file in files:
            Path(run.shards, file.name).touch()


def put_under_way(folder: Path, images: int) -> None:
    """The last tenth of a captioner's shards is not committed, but has parts."""
    from lotlip_data.manifests.run_layout import shard_name
    from lotlip_data.pipeline.core.ledger import WorkRecord

    run, shards, name, now = _run(folder), images // SHARD, CAPTIONERS[-1], int(time.time())
    for shard in range(shards - shards // 10, shards):
        Path(run.caption_shard(name, shard)).unlink()
        for line in Path(run.caption_ledger(name)).glob(f"{shard_name(shard)}-*"):
            line.unlink()
        parts = Path(run.caption_parts(name, shard))
        parts.mkdir(parents=True)
        for part in range(PARTS):
            tally = WorkRecord(512, 1, 70_000, now - 30, now)
            (parts / f"{part:05d}-0a1b2c3d-{tally.name}.parquet").touch()


# The stages, each in a process of its own


def stage_plan(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.planning.lists import plan_lists

    plan_lists(manifest_of(folder))


def stage_partition(folder: Path, rows: int) -> Any:
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.pipeline.url_lists.partition import partition

    plan = partition(manifest_of(folder), Run.at(str(folder / "cut")))
    assert (plan.rows, plan.duplicates) == (rows, rows // 20)


def hashes(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random hashes and their positions; a twentieth differs from an earlier one in two bits, a twentieth in none."""
    rng = np.random.default_rng(0)
    for at in range(0, rows, BLOCK):
        found = rng.integers(0, 2**64, min(BLOCK, rows - at), dtype=np.uint64)
        tenth = len(found) // 10
        found[-tenth:] = found[:tenth]
        found[-tenth // 2 :] ^= np.uint64(1 << 40 | 1 << 3)
        yield found, np.arange(at, at + len(found), dtype=np.uint64)


def stage_duplicates(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.curation import near_duplicates

    table = near_duplicates.Rows(folder / "sums", rows, "lower", "position")
    for found, position in hashes(rows):
        table.add(found, near_duplicates.mixed(found), position)
    assert sum(len(late) for late, _ in near_duplicates.exact_duplicates(table)) == rows // 20


def stage_near_duplicates(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.curation import near_duplicates

    table = near_duplicates.Rows(folder / "hashes", rows, "hash", "position")
    for values, position in hashes(rows):
        table.add(near_duplicates.mixed(values), values, position)
    (folder / "near").mkdir()
    found = sum(len(late) for late, _ in near_duplicates.near_duplicates(table, 4, folder / "near"))
    assert 0 <= found - rows // 10 <= rows // 10_000, "those that were made near, and a few of 64 random bits by chance"


def stage_ledger(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.core import ledger

    run, shards = _run(folder), rows // SHARD
    left = [len(ledger.caption_progress(run, name).left) for name in ledger.captioners(run)]
    assert sorted(left) == [0, 0, shards // 10]
    assert sum(len(ledger.recorded(run.caption_ledger(name))) for name in CAPTIONERS) == 3 * shards - shards // 10
    assert len(ledger.parts_under_way(run, CAPTIONERS[-1])) == shards // 10


def stage_status(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.reporting.status import status

    assert status(_run(folder))["images"] == rows


def stage_resume_download(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.downloading.stage import download

    assert download(manifest_of(folder), _run(folder)).nothing_to_do


def stage_resume_recaption(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption

    assert recaption(_run(folder), resolve_captioners(CAPTIONERS, None)).nothing_to_do


def stage_resume_shard(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.dataset.stage import shard

    summary = shard(manifest_of(folder), _run(folder))
    assert (summary.built, summary.skipped, summary.failed) == (0, rows // SHARD, [])


def _run(folder: Path) -> Any:
    from lotlip_data.manifests.run_layout import Run

    return Run.at(str(folder / "run"))


# The measuring


def measure(stage: Callable[[Path, int], Any], folder: Path, rows: int) -> dict[str, float]:
    started, cpu = time.monotonic(), time.process_time()
    stage(folder, rows)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": round(peak / 1024, 1),
    }


def in_process(stage: str, folder: Path, rows: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--count", str(rows)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(told.splitlines()[-1])
    return found


def all_of(stages: tuple[str, ...], make: str, millions: list[float], scratch: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    for size in millions:
        rows, folder = int(size * MILLION), scratch / f"{make}-{size:g}"
        folder.mkdir()
        in_process(make, folder, rows)
        for stage in stages:
            if stage == "ledger":
                in_process("under_way", folder, rows)
            found[stage][f"{size:g}M"] = told = in_process(stage, folder, rows)
            print(
                f"{stage:18}{size:>6g}M rows{told['cpu_seconds']:>9.2f} CPU s{told['peak_mib']:>9.1f} MiB", flush=True
            )
        shutil.rmtree(folder)
    return found


def growth(by_size: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """From each size to the next: how many times the rows, the processor's time and the peak memory."""
    sizes = list(by_size)
    return {
        f"{small} to {large}": {
            "rows": round(float(large[:-1]) / float(small[:-1]), 2),
            "cpu_seconds": round(by_size[large]["cpu_seconds"] / max(0.01, by_size[small]["cpu_seconds"]), 2),
            "peak": round(by_size[large]["peak_mib"] / by_size[small]["peak_mib"], 3),
        }
        for small, large in itertools.pairwise(sizes)
    }


def extrapolated(by_size: dict[str, dict[str, float]]) -> float | None:
    """Hours of one core for 100 million rows, by the largest size measured; None where they were measured."""
    size = list(by_size)[-1]
    rows = float(size[:-1])
    return None if rows >= 100 else round(by_size[size]["cpu_seconds"] * 100 / rows / 3600, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of what looks at a whole run.")
    parser.add_argument("--rows", nargs="+", type=float, default=[1, 10], help="millions of rows of lists")
    parser.add_argument("--runs", nargs="+", type=float, default=[1, 10, 100], help="millions of images of runs")
    parser.add_argument("--folder", help="where scratch files go; default: the system's temporary folder")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        makers: dict[str, Callable[[Path, int], Any]] = {
            "lists": make_lists,
            "runs": make_run,
            "under_way": put_under_way,
        }
        stage = makers.get(options.stage) or globals()[f"stage_{options.stage}"]
        print(json.dumps(measure(stage, Path(options.folder), options.count)))
        return
    with tempfile.TemporaryDirectory(prefix="lotlip-scale-", dir=options.folder) as scratch:
        found = all_of(OF_RUNS, "runs", options.runs, Path(scratch))
        found |= all_of(OF_LISTS, "lists", options.rows, Path(scratch))
    grown = {stage: growth(by_size) for stage, by_size in found.items()}
    steps = [step for of_stage in grown.values() for step in of_stage.values()]
    result = {
        "stages": found,
        "growth": grown,
        "peak_mib": max(one["peak_mib"] for by_size in found.values() for one in by_size.values()),
        "peak_growth": max((step["peak"] for step in steps), default=None),
        "bounds": {"peak_mib": PEAK_BOUND_MIB, "peak_growth": GROWTH_BOUND},
        "extrapolated_core_hours_of_100M": {stage: extrapolated(by_size) for stage, by_size in found.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
