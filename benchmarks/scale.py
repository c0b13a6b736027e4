"""Time and peak memory of everything that reads a whole run, at 1, 10 and 100 million images.

    python benchmarks/scale.py                        # lists of 1 and 10 million rows, runs of 1, 10 and 100 million
    python benchmarks/scale.py --rows 1 10 100        # lists of 100 million rows too: one more hour, 30 GB of disk

Each stage runs in its own process, on lists and ledgers that another process has made. Its peak is the kernel's VmHWM.
`plan`, `partition` (which merges equal URLs), `duplicates` and `near_duplicates` read lists or hashes of `--rows`
million rows. The other stages read a run of `--runs` million images in shards of 10,000, with three captioners. The run
is complete, except that for `status` and `ledger` a tenth of the last captioner's shards is in progress: the cost is
one entry per shard. The last line of standard output is one JSON object.
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
SHARD = 10_000  # images
PARTS_PER_SHARD = 8
FAILED_PER_SHARD = 100
"""Images of a shard whose download failed, each from another host."""
CAPTIONERS = ("llava", "instructblip", "sharegpt4v")
LIST_STAGES = ("plan", "partition", "duplicates", "near_duplicates")
RUN_STAGES = ("resume_download", "resume_recaption", "resume_shard", "ledger", "status")
PEAK_BOUND_MIB, GROWTH_BOUND = 1536, 1.10
BLOCK = 100_000  # rows that are made at a time


# The inputs of the stages


def make_lists(folder: Path, rows: int) -> None:
    """Write two Parquet files with `rows` rows in total; a tenth of the second one's URLs are in the first."""
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


def make_manifest(folder: Path) -> Any:
    """The manifest of the lists in `folder`."""
    from lotlip_data.manifests.manifest import Manifest

    sources = [
        {"name": name, "files": [str(folder / f"{name}.parquet")], "url": "url", "text": "text"}
        for name in ("first", "second")
    ]
    return Manifest.model_validate(
        {"name": "scale", "sources": sources, "samples_per_shard": SHARD, "captioners": list(CAPTIONERS)}
    )


def make_run(folder: Path, images: int) -> None:
    """Write all files of a run of `images` images, without the contents of tars and Parquet files."""
    from lotlip_data.manifests.manifest import freeze
    from lotlip_data.manifests.run_layout import Run, shard_name
    from lotlip_data.pipeline.core.ledger import WorkRecord
    from lotlip_data.pipeline.recaptioning.claims import claim_settings
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners

    manifest, run, shards = make_manifest(folder), Run.at(str(folder / "run")), images // SHARD
    freeze(manifest, run)
    for name in ("lists", "images/.ledger", "quarantine/images", *(f"captions/{name}/.ledger" for name in CAPTIONERS)):
        Path(run.url, name).mkdir(parents=True)
    for job in resolve_captioners(manifest.captioners, None):
        claim_settings(run, job.config)
    rows = shards * (SHARD + FAILED_PER_SHARD)
    plan = {
        "images": rows,
        "shards": shards,
        "samples_per_shard": SHARD + FAILED_PER_SHARD,
        "rows": rows,
        "duplicates": 0,
    }
    Path(run.plan).write_text(json.dumps(plan | {"invalid": {}, "sources": {"first": rows}}))
    now = int(time.time())
    for shard in range(shards):
        name = shard_name(shard)
        captioned = WorkRecord(SHARD, 0, 0, now - 60, now - 1)
        hosts = {f"images-{shard}-{host}.example.org": {"http 404": 1} for host in range(FAILED_PER_SHARD)}
        stats = {"count": SHARD + FAILED_PER_SHARD, "successes": SHARD, "seconds": 60.0, "failed_hosts": hosts}
        stats |= {"status_dict": {"success": SHARD, "http 404": FAILED_PER_SHARD}}
        stats |= {"tar": f"{name}-0a1b2c.tar", "parquet": f"{name}-0a1b2c.parquet", "start_time": 0, "end_time": 60}
        Path(run.image_stats(shard)).write_text(json.dumps(stats, indent=2))
        files = [f"{run.images}/{stats[kind]}" for kind in ("tar", "parquet")]
        for path in (run.list_shard(shard), run.quarantine("images", f"{name}.parquet"), *files):
            Path(path).touch()
        downloaded = WorkRecord(SHARD + FAILED_PER_SHARD, FAILED_PER_SHARD, 0, now - 60, now - 1)
        Path(run.image_ledger, f"{name}-{downloaded.name}").touch()
        for captioner in CAPTIONERS:
            Path(run.caption_shard(captioner, shard)).touch()
            Path(run.caption_ledger(captioner), f"{name}-{captioned.name}").touch()
    _make_markers(run, manifest, shards)


def _make_markers(run: Any, manifest: Any, shards: int) -> None:
    """Write the markers of one committed dataset shard per image shard."""
    from lotlip_data.manifests.formats import dataset_index
    from lotlip_data.manifests.formats.dataset_index import FileRecord
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
        output = dataset_index.ShardFile(
            "train", SHARD, dict.fromkeys(recipe.captioners, SHARD), *files, folder=run.shards
        )
        record = metadata.make_record(unit.shard, unit.fingerprint, recipe, Joined(fetched=SHARD), [output], None)
        Path(dataset_index.marker(run, unit.shard, unit.fingerprint)).write_text(json.dumps(record.to_dict()))
        for file in files:
            Path(run.shards, file.name).touch()


def put_in_progress(folder: Path, images: int) -> None:
    """Replace the last tenth of a captioner's committed shards by partial results."""
    from lotlip_data.manifests.run_layout import shard_name
    from lotlip_data.pipeline.core.ledger import WorkRecord

    run, shards, name, now = _run(folder), images // SHARD, CAPTIONERS[-1], int(time.time())
    for shard in range(shards - shards // 10, shards):
        Path(run.caption_shard(name, shard)).unlink()
        for entry in Path(run.caption_ledger(name)).glob(f"{shard_name(shard)}-*"):
            entry.unlink()
        parts = Path(run.caption_parts(name, shard))
        parts.mkdir(parents=True)
        for part in range(PARTS_PER_SHARD):
            record = WorkRecord(512, 1, 70_000, now - 30, now)
            (parts / f"{part:05d}-0a1b2c3d-{record.name}.parquet").touch()


# The stages; each runs in its own process


def stage_plan(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.planning.lists import plan_lists

    plan_lists(make_manifest(folder))


def stage_partition(folder: Path, rows: int) -> Any:
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.pipeline.url_lists.partition import partition

    plan = partition(make_manifest(folder), Run.at(str(folder / "cut")))
    assert (plan.rows, plan.duplicates) == (rows, rows // 20)


def random_hashes(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random hashes and their positions. A twentieth equals an earlier hash, a twentieth differs in two bits."""
    rng = np.random.default_rng(0)
    for at in range(0, rows, BLOCK):
        block = rng.integers(0, 2**64, min(BLOCK, rows - at), dtype=np.uint64)
        tenth = len(block) // 10
        block[-tenth:] = block[:tenth]
        block[-tenth // 2 :] ^= np.uint64(1 << 40 | 1 << 3)
        yield block, np.arange(at, at + len(block), dtype=np.uint64)


def stage_duplicates(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread
    from lotlip_data.pipeline.curation import near_duplicates

    table = SpilledRows(folder / "sums", rows, "lower", "position")
    for hashes, position in random_hashes(rows):
        table.add(hashes, spread(hashes), position)
    assert sum(len(late) for late, _, _ in near_duplicates.exact_duplicates(table)) == rows // 20


def stage_near_duplicates(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.core.spilled_rows import SpilledRows, spread
    from lotlip_data.pipeline.curation import near_duplicates

    table = SpilledRows(folder / "hashes", rows, "hash", "precedence", "position")
    for hashes, position in random_hashes(rows):
        precedence = spread(position) >> np.uint64(40)
        table.add(spread(hashes), hashes, precedence, position)
    (folder / "near").mkdir()
    count = sum(len(late) for late, _, _ in near_duplicates.near_duplicates(table, 4, folder / "near"))
    assert 0 <= count - rows // 10 <= rows // 10_000, "all constructed near duplicates, and a few random ones"


def stage_ledger(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.core import ledger

    run, shards = _run(folder), rows // SHARD
    left = [len(ledger.caption_progress(run, name).left) for name in ledger.captioners(run)]
    assert sorted(left) == [0, 0, shards // 10]
    assert sum(len(ledger.recorded(run.caption_ledger(name))) for name in CAPTIONERS) == 3 * shards - shards // 10
    assert len(ledger.parts_under_way(run, CAPTIONERS[-1])) == shards // 10


def stage_status(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.reporting.status import get_status

    assert get_status(_run(folder))["images"] == rows


def stage_resume_download(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.downloading.stage import download

    assert download(make_manifest(folder), _run(folder)).nothing_to_do


def stage_resume_recaption(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.recaptioning.config import resolve_captioners
    from lotlip_data.pipeline.recaptioning.stage import recaption

    assert recaption(_run(folder), resolve_captioners(CAPTIONERS, None)).nothing_to_do


def stage_resume_shard(folder: Path, rows: int) -> Any:
    from lotlip_data.pipeline.dataset.stage import shard

    summary = shard(make_manifest(folder), _run(folder))
    assert (summary.built, summary.skipped, summary.failed) == (0, rows // SHARD, [])


def _run(folder: Path) -> Any:
    from lotlip_data.manifests.run_layout import Run

    return Run.at(str(folder / "run"))


# Measurement


def measure(stage: Callable[[Path, int], Any], folder: Path, rows: int) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory (MiB) of a stage in this process."""
    started, cpu = time.monotonic(), time.process_time()
    stage(folder, rows)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {
        "seconds": round(time.monotonic() - started, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "peak_mib": round(peak / 1024, 1),
    }


def run_in_process(stage: str, folder: Path, rows: int) -> dict[str, float]:
    """Measure a stage, or make its inputs, in a new process."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--count", str(rows)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def measure_stages(
    stages: tuple[str, ...], inputs: str, millions: list[float], scratch: Path
) -> dict[str, dict[str, Any]]:
    """Measure the stages at several sizes. inputs: "lists" or "runs". Returns the figures by stage and size."""
    results: dict[str, dict[str, Any]] = {stage: {} for stage in stages}
    for size in millions:
        rows, folder = int(size * MILLION), scratch / f"{inputs}-{size:g}"
        folder.mkdir()
        run_in_process(inputs, folder, rows)
        for stage in stages:
            if stage == "ledger":
                run_in_process("in_progress", folder, rows)
            results[stage][f"{size:g}M"] = figures = run_in_process(stage, folder, rows)
            print(
                f"{stage:18}{size:>6g}M rows{figures['cpu_seconds']:>9.2f} CPU s{figures['peak_mib']:>9.1f} MiB",
                flush=True,
            )
        shutil.rmtree(folder)
    return results


def growth(by_size: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The factors by which rows, CPU seconds and peak memory grow from each size to the next."""
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
    """CPU hours for 100 million rows, extrapolated from the largest size; None if that is 100 million."""
    size = list(by_size)[-1]
    rows = float(size[:-1])
    return None if rows >= 100 else round(by_size[size]["cpu_seconds"] * 100 / rows / 3600, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=float, default=[1, 10], help="sizes of lists, in million rows")
    parser.add_argument("--runs", nargs="+", type=float, default=[1, 10, 100], help="sizes of runs, in million images")
    parser.add_argument("--folder", help="folder for scratch files (default: the system's temporary folder)")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="try the script: 20,000 and 40,000 rows and images")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(rows=[0.02, 0.04], runs=[0.02, 0.04])
    if options.stage:
        makers: dict[str, Callable[[Path, int], Any]] = {
            "lists": make_lists,
            "runs": make_run,
            "in_progress": put_in_progress,
        }
        stage = makers.get(options.stage) or globals()[f"stage_{options.stage}"]
        print(json.dumps(measure(stage, Path(options.folder), options.count)))
        return
    with tempfile.TemporaryDirectory(prefix="lotlip-scale-", dir=options.folder) as scratch:
        results = measure_stages(RUN_STAGES, "runs", options.runs, Path(scratch))
        results |= measure_stages(LIST_STAGES, "lists", options.rows, Path(scratch))
    growth_by_stage = {stage: growth(by_size) for stage, by_size in results.items()}
    steps = [step for by_size in growth_by_stage.values() for step in by_size.values()]
    result = {
        "stages": results,
        "growth": growth_by_stage,
        "peak_mib": max(figures["peak_mib"] for by_size in results.values() for figures in by_size.values()),
        "peak_growth": max((step["peak"] for step in steps), default=None),
        "bounds": {"peak_mib": PEAK_BOUND_MIB, "peak_growth": GROWTH_BOUND},
        "extrapolated_core_hours_of_100M": {stage: extrapolated(by_size) for stage, by_size in results.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
