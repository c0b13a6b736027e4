"""Images per second of recaptioning with the tiny models, compared with what a user would have without this project.

    python benchmarks/recaption.py --ray-data-llm-env build/ray-data-llm

Each side is a process that keeps its engine loaded. The two sides of a pair take turns on the same images, so that
other load on the machine affects both. A ratio is the median over the rounds of the other side's time divided by ours
in the same round. The last line of standard output is one JSON object. README.md in this folder has its keys, and
docs/development/benchmarks.md says what each side does.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
Job = dict[str, Any]

RATIOS = {
    "ours_vs_bare_vllm": ("ours", ["bare_vllm"]),
    "ours_vs_ray_data_llm": ("ours", ["ray_data_llm"]),
    "ours_vs_ray_data_llm_tuned": ("ours", ["ray_data_llm_tuned", "ray_data_llm_engine_only"]),
    "ours_vs_generate": ("ours", ["generate"]),
    "instructblip_vs_generate": ("instructblip_ours", ["instructblip_generate", "instructblip_generate_16"]),
}
"""Ratio → our side, and the other sides, of which the fastest counts.

Each pair is measured alone, because idle engines take CPU time and memory from the others.
"""


class Side:
    """A process that captions all images in each round."""

    def __init__(self, name: str, script: str, job: Job, work: Path, python: str = sys.executable) -> None:
        self.name, self.seconds, self.captions = name, [], {}
        self.log = work / f"{name}.log"
        file = work / f"{name}.json"
        file.write_text(json.dumps(job | {"scratch": str(work / name)}))
        environment = os.environ | {
            "PYTHONPATH": f"{HERE}:{HERE / 'sides'}",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # by default, Ray's processes yield to all other load on the machine
        }
        self.process = subprocess.Popen(
            [python, str(HERE / "sides" / f"{script}.py"), str(file)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        self.start_seconds = self._read_answer()["seconds"]
        self._signal(signal.SIGSTOP)

    def run(self, number: int) -> float:
        """Run a round and return its seconds. Between rounds the side is stopped: an idle vLLM engine may spin."""
        self._signal(signal.SIGCONT)
        print(number, file=self.process.stdin)
        answer = self._read_answer()
        self._signal(signal.SIGSTOP)
        self.captions = answer["captions"]
        return answer["seconds"]

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the side, including those of Ray and the engine."""
        side = psutil.Process(self.process.pid)
        for process in [*side.children(recursive=True), side]:
            process.send_signal(number)

    def close(self) -> None:
        """Let the side end, and kill it after 30 seconds."""
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _read_answer(self) -> Any:
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise SystemExit(
            f"the side {self.name} has ended; the last lines of {self.log}:\n{self.log.read_text()[-2000:]}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="images per round (default: %(default)s)")
    parser.add_argument("--shards", type=int, default=4, help="number of tars (default: %(default)s)")
    parser.add_argument("--pixels", type=int, default=96, help="width and height of the images (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="limit of LLaVA's new tokens (default: %(default)s)")
    parser.add_argument("--seqs", type=int, default=64, help="vLLM's max_num_seqs, on all sides (default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=9, help="measured rounds, after one warm-up (default: %(default)s)"
    )
    parser.add_argument(
        "--ray-data-llm-env",
        type=Path,
        help="environment made by ray_data_llm_env.sh; without it, ray.data.llm is skipped",
    )
    parser.add_argument("--against", nargs="+", help="compare with these sides only")
    parser.add_argument("--smoke", action="store_true", help="try the script: one pair, 32 images, one round")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(images=32, shards=2, tokens=8, rounds=1, against=["bare_vllm"])
    return options


def make_jobs(options: argparse.Namespace, run: Path, tars: list[str]) -> dict[str, tuple[str, Job, str]]:
    """The script, job and Python interpreter of each side, by name."""
    from lotlip_data.captioners.registry import get_default, get_kind
    from lotlip_data.manifests.checkpoints.resolve import resolve

    def job(name: str, tokens: int) -> Job:
        config = get_default(name).to_dict() | {"max_new_tokens": tokens, "dtype": "float32"}
        kind = get_kind(config["kind"])
        return {
            "run": str(run),
            "tars": tars,
            "images": options.images,
            "captioner": config,
            "checkpoint": resolve(config["model"]),
            "model_class": kind.model_class,
            "text": kind.template.replace("{prompt}", config["prompt"]),
            "max_num_seqs": options.seqs,
            "kv_cache_gib": 0.25,
            "sampling": {"temperature": 0.0, "max_tokens": tokens},
            "batch_size": options.seqs,
        }

    blip = job("tiny-instructblip", 256)  # enough for whole captions, as by default
    llava = job("tiny-llava", options.tokens)
    llava["captioner"]["max_model_len"] = 64 + options.tokens
    llava["vllm"] = {
        "dtype": "float32",
        "max_model_len": 64 + options.tokens,
        "max_num_seqs": options.seqs,
        "kv_cache_memory_bytes": 2**28,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 1},
        "mm_processor_cache_gb": 0,
        "enable_prefix_caching": False,
        "disable_log_stats": True,
        "generation_config": "vllm",
        "seed": 0,
    }
    python, ray_python = (
        sys.executable,
        str(options.ray_data_llm_env / "bin/python") if options.ray_data_llm_env else "",
    )
    sides = {
        "ours": ("ours", llava, python),
        "bare_vllm": ("bare_vllm", llava, python),
        "ray_data_llm": ("ray_data_llm", llava | {"stages": "default"}, ray_python),
        "ray_data_llm_tuned": ("ray_data_llm", llava | {"stages": "multimodal"}, ray_python),
        "ray_data_llm_engine_only": ("ray_data_llm", llava | {"stages": "engine"}, ray_python),
        "generate": ("generate", llava, python),
        "instructblip_ours": ("ours", blip, python),
        "instructblip_generate": ("generate", blip, python),
        "instructblip_generate_16": ("generate", blip | {"batch_size": 16}, python),
    }
    return {name: side for name, side in sides.items() if side[2]}


def measure(pair: Sequence[Side], rounds: int) -> float:
    """Run a warm-up round, then the measured rounds; both sides take turns. Returns the ratio."""
    for number in range(rounds + 1):
        for side in pair:
            side.seconds.append(side.run(number))
        times = ", ".join(f"{side.name} {side.seconds[-1]:.2f} s" for side in pair)
        print(f"{'warm-up' if number == 0 else f'round {number}'}: {times}", flush=True)
    ours, other = pair
    assert ours.captions.keys() == other.captions.keys(), f"{other.name} has captioned other images than ours"
    return statistics.median(theirs / own for own, theirs in zip(ours.seconds[1:], other.seconds[1:], strict=True))


def summarise(pair: Sequence[Side], ratio: float, images: int) -> dict[str, Any]:
    """The result of a pair: rates per round, their medians, start and warm-up times, the share of equal captions."""
    ours, other = pair
    equal = sum(other.captions[key][0] == text for key, (text, _) in ours.captions.items())
    return {
        "ratio": round(ratio, 3),
        "images_per_second": {side.name: round(images / statistics.median(side.seconds[1:]), 1) for side in pair},
        "all_images_per_second": {
            side.name: [round(images / seconds, 1) for seconds in side.seconds[1:]] for side in pair
        },
        "start_seconds": {side.name: round(side.start_seconds, 1) for side in pair},
        "warm_up_seconds": {side.name: round(side.seconds[0], 1) for side in pair},
        "captions_as_ours": round(equal / len(ours.captions), 4),
    }


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the sides end too
    from images import write_run

    work = Path(tempfile.mkdtemp(prefix="recaption-benchmark-"))
    tars = write_run(str(work / "run"), options.shards, options.images // options.shards, options.pixels)
    if not options.ray_data_llm_env:
        print("ray.data.llm is skipped: give its environment with --ray-data-llm-env, see README.md", flush=True)
    side_jobs = make_jobs(options, work / "run", tars)
    pairs: dict[str, dict[str, Any]] = {}
    for our_name, others in RATIOS.values():
        for other in others:
            if other in side_jobs and other in (options.against or others):
                pairs[other] = run_pair({name: side_jobs[name] for name in (our_name, other)}, work / other, options)
    ratios = {
        key: min((pairs[other]["ratio"] for other in others if other in pairs), default=None)
        for key, (_, others) in RATIOS.items()
    }
    settings = {name: getattr(options, name) for name in ("images", "pixels", "tokens", "seqs", "rounds")}
    print(json.dumps(ratios | {"pairs": pairs} | settings))
    shutil.rmtree(work)


def run_pair(pair: dict[str, tuple[str, Job, str]], work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Start the two sides of a pair, measure them and end them. `pair`: our side first; `work`: a new folder."""
    work.mkdir()
    sides: list[Side] = []
    try:
        for name, (script, job, python) in pair.items():
            sides.append(Side(name, script, job, work, python))
            print(f"{name}: started in {sides[-1].start_seconds:.1f} s", flush=True)
        time.sleep(5)
        return summarise(sides, measure(sides, options.rounds), options.images)
    finally:
        for side in sides:
            side.close()


if __name__ == "__main__":
    main()
