"""Recaptioning of tars that exist, where they lie, compared with recaptioning of the shards that a download writes.

    python benchmarks/existing.py

Both sides are this project's worker, from the images to the committed Parquet files of captions, each in a process that
keeps its engine loaded. They take turns on the same images: one side reads the tars of a run, the other side those of a
second run, whose manifest names these tars as its source. The ratio is the median over the rounds of the time on our
own shards divided by the time on the existing tars. The last line of standard output is one JSON object. README.md in
this folder has its keys.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from images import write_run
from recaption import Job, Side, measure, summarise


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm", help="default: %(default)s")
    parser.add_argument("--images", type=int, default=1024, help="images per round (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=4, help="number of tars (default: %(default)s)")
    parser.add_argument("--pixels", type=int, default=256, help="width and height of the images (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of each caption (default: %(default)s)")
    parser.add_argument("--seqs", type=int, default=48, help="captions at a time (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=9, help="measured rounds, after one warm-up (default: %(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="try the script: transformers, 16 images, one round")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(engine="transformers", images=16, shards=2, pixels=96, tokens=8, rounds=1)
    return options


def write_existing(url: str, tars: list[str]) -> None:
    """Make a run whose manifest names these tars, and scan them. Its images have the uids of the tars' own run."""
    from lotlip_data.manifests.manifest import Manifest
    from lotlip_data.manifests.run_layout import Run
    from lotlip_data.pipeline.downloading.commit import DownloadTask, fetch_and_commit
    from lotlip_data.pipeline.existing_images.partition import ExistingImages
    from lotlip_data.pipeline.url_lists.partition import partition

    source = {"name": "tars", "files": tars, "text": None, "url": "json.url"}
    manifest, run = Manifest.model_validate({"name": "existing", "sources": [source], "captioners": []}), Run.at(url)
    parts = partition(manifest, run, ExistingImages)
    for shard in range(parts.shards):
        task = DownloadTask(run, shard, parts.samples_per_shard, manifest.download, sources=manifest.sources)
        marker = fetch_and_commit(task)
        assert "tar" not in marker and marker["successes"] == marker["count"], marker


def make_job(options: argparse.Namespace, tars: list[str]) -> Job:
    """What both sides do, without their run."""
    tokens = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    prompts = {"long": {"prompt": "Describe the image in detail.", **tokens}}
    captioner = {"name": "tiny", "kind": "llava", "model": "tiny-llava", "dtype": "float32", "prompts": prompts}
    of_engine = {"batch_size": options.seqs}
    if options.engine == "vllm":
        of_engine = {"max_num_seqs": options.seqs, "kv_cache_gib": 0.5}
    job = {"tars": tars, "captioner": captioner, "engine": options.engine, "options": of_engine}
    return job | {"one_pass": True, "identity": "uid"}


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the sides end too
    work = Path(tempfile.mkdtemp(prefix="existing-benchmark-"))
    tars = write_run(str(work / "run"), options.shards, options.images // options.shards, options.pixels)
    write_existing(str(work / "existing"), tars)
    sides: list[Side] = []
    try:
        for name, folder in (("existing", "existing"), ("ours", "run")):
            sides.append(Side(name, "texts", make_job(options, tars) | {"run": str(work / folder)}, work))
            print(f"{name}: started in {sides[-1].start_seconds:.1f} s", flush=True)
        pair = summarise(sides, measure(sides, options.rounds), options.images)
    finally:
        for side in sides:
            side.close()
    print(json.dumps({"existing_vs_ours": pair["ratio"], "pair": pair} | vars(options)))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
