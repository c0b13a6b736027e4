"""Three texts of each image in one pass, compared with three passes of one text each.

    python benchmarks/one_pass.py

Both sides are this project's worker, from the tar to the committed Parquet files of captions, each in a process that
keeps its engine loaded. They take turns on the same images. A ratio is the median over the rounds of the passes' time
divided by that of the one pass. Models are the tiny LLaVA, and a LLaVA of 112 million random parameters, of which 86
million read the image, with short texts: there the image dominates, as with real models. The last line of standard
output is one JSON object. README.md in this folder has its keys.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from heavy_models import write_llava
from recaption import Job, Side, measure, summarise

PROMPTS = {
    "long": "Describe the image in detail.",
    "short": "Describe the image in one sentence.",
    "tags": "List what the image shows.",
}
TOKENS = {"tiny": {"long": 48, "short": 16, "tags": 16}, "heavy": {"long": 24, "short": 12, "tags": 12}}
"""Tokens of each text. Texts have exactly as many, so that both sides do the same work whatever the model writes."""
IMAGES = {"tiny": 512, "heavy": 32}
PIXELS = {"tiny": 96, "heavy": 224}
IMAGE_LLAVA = {
    "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "text": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}
"""The image tower of CLIP ViT-B/16 and a small Llama."""
ENGINES = ("vllm", "transformers")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=IMAGES, default=list(IMAGES), help="models (default: all)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="engines (default: both)")
    parser.add_argument(
        "--images", type=int, help="images per round (default: 512 with the tiny model, 32 with the other)"
    )
    parser.add_argument("--seqs", type=int, default=48, help="captions at a time (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measured rounds, after one warm-up (default: %(default)s)"
    )
    parser.add_argument("--smoke", action="store_true", help="try the script: the tiny model, transformers, 16 images")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(models=["tiny"], engines=["transformers"], images=16, rounds=1)
    return options


def make_job(model: str, engine: str, run: Path, tars: list[str], options: argparse.Namespace, folder: Path) -> Job:
    prompts = {
        key: {"prompt": prompt, "max_new_tokens": TOKENS[model][key], "min_new_tokens": TOKENS[model][key]}
        for key, prompt in PROMPTS.items()
    }
    path = "tiny-llava" if model == "tiny" else str(folder)
    captioner = {"name": "texts", "kind": "llava", "model": path, "dtype": "float32", "prompts": prompts}
    of_engine = (
        {"max_num_seqs": options.seqs, "kv_cache_gib": 0.5} if engine == "vllm" else {"batch_size": options.seqs}
    )
    return {
        "run": str(run),
        "tars": tars,
        "captioner": captioner,
        "engine": engine,
        "options": of_engine,
        "identity": "key",
    }


def compare(job: Job, work: Path, images: int, rounds: int) -> dict[str, Any]:
    """Measure one pass against the passes with one engine and model. `work`: a new folder."""
    work.mkdir()
    sides: list[Side] = []
    try:
        for name in ("one_pass", "passes"):
            sides.append(Side(name, "texts", job | {"one_pass": name == "one_pass"}, work))
            print(f"{name}: started in {sides[-1].start_seconds:.1f} s", flush=True)
        return summarise(sides, measure(sides, rounds), images)
    finally:
        for side in sides:
            side.close()


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the sides end too
    from images import write_run

    work = Path(tempfile.mkdtemp(prefix="one-pass-benchmark-"))
    pairs: dict[str, dict[str, Any]] = {}
    for model in options.models:
        images = options.images or IMAGES[model]
        folder = work / model
        folder.mkdir()
        if model == "heavy":
            write_llava(folder / "model", PIXELS[model], **IMAGE_LLAVA, dtype="float32")
        tars = write_run(str(folder / "run"), 2, images // 2, PIXELS[model])
        for engine in options.engines:
            print(f"{model} model, {engine}", flush=True)
            job = make_job(model, engine, folder / "run", tars, options, folder / "model")
            pairs[f"{model}_{engine}"] = compare(job, folder / engine, images, options.rounds)
    ratios = {name: pair["ratio"] for name, pair in pairs.items()}
    dominated = [ratio for name, ratio in ratios.items() if name.startswith("heavy")]
    smallest = min(dominated or ratios.values())
    settings = {name: getattr(options, name) for name in ("seqs", "rounds")}
    print(json.dumps({"one_pass_vs_passes": smallest, "ratios": ratios, "pairs": pairs, "tokens": TOKENS} | settings))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
