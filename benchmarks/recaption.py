"""Images per second of recaptioning, ours beside what a user would have without it, with the tiny models.

    python benchmarks/recaption.py --ray-data-llm-env build/ray-data-llm

Every side is a process of its own that keeps its engine loaded; the two of a pair take turns on the same images, round
after round, so that whatever else the machine does falls on both. A ratio is the median over the rounds of the other's
time divided by ours in the same round. The last line of standard output is one JSON object; README.md beside this file
says what each side does and what the keys mean.
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
"""Name → ours, and the others; against the fastest of several others. Each two are measured by themselves, since idle
engines take processor time and memory from the rest."""


class Side:
    """A process that captions all images when asked."""

    def __init__(self, name: str, script: str, job: Job, work: Path, python: str = sys.executable) -> None:
        self.name, self.seconds, self.captions = name, [], {}
        self.log = work / f"{name}.log"
        file = work / f"{name}.json"
        file.write_text(json.dumps(job | {"scratch": str(work / name)}))
        environment = os.environ | {
            "PYTHONPATH": f"{HERE}:{HERE / 'sides'}",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # else Ray's sides alone would yield to whatever else the machine does
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
        self.start_seconds = self._answer()["seconds"]
        self._signal(signal.SIGSTOP)

    def run(self, number: int) -> float:
        """Seconds of one round. Outside its rounds a side stands still: an idle engine of vLLM's may spin."""
        self._signal(signal.SIGCONT)
        print(number, file=self.process.stdin)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        self.captions = answer["captions"]
        return answer["seconds"]

    def _signal(self, number: signal.Signals) -> None:
        """To all processes of the side, Ray's and the engine's too."""
        side = psutil.Process(self.process.pid)
        for process in [*side.children(recursive=True), side]:
            process.send_signal(number)

    def close(self) -> None:
        self._signal(signal.SIGCONT)
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def _answer(self) -> Any:
        if line := self.process.stdout.readline():
            return json.loads(line)
        raise SystemExit(f"{self.name} has ended; the end of {self.log}:\n{self.log.read_text()[-2000:]}")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024, help="images of a round (%(default)s)")
    parser.add_argument("--shards", type=int, default=4, help="tars that they lie in (%(default)s)")
    parser.add_argument("--pixels", type=int, default=96, help="side of a stored image (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="LLaVA's new tokens at most (%(default)s)")
    parser.add_argument("--seqs", type=int, default=64, help="vLLM's max_num_seqs, on all sides (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count; one more warms up (%(default)s)")
    parser.add_argument("--ray-data-llm-env", type=Path, help="made by ray_data_llm_env.sh; without it, no such ratio")
    parser.add_argument("--against", nargs="+", help="only these of the other sides")
    return parser.parse_args(given)


def jobs(options: argparse.Namespace, run: Path, tars: list[str]) -> dict[str, tuple[str, Job, str]]:
    """Name → script, job and Python of each side."""
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

    blip = job("tiny-instructblip", 256)  # to the end of each caption, as by default
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
    here, there = sys.executable, str(options.ray_data_llm_env / "bin/python") if options.ray_data_llm_env else ""
    sides = {
        "ours": ("ours", llava, here),
        "bare_vllm": ("bare_vllm", llava, here),
        "ray_data_llm": ("ray_data_llm", llava | {"stages": "default"}, there),
        "ray_data_llm_tuned": ("ray_data_llm", llava | {"stages": "multimodal"}, there),
        "ray_data_llm_engine_only": ("ray_data_llm", llava | {"stages": "engine"}, there),
        "generate": ("generate", llava, here),
        "instructblip_ours": ("ours", blip, here),
        "instructblip_generate": ("generate", blip, here),
        "instructblip_generate_16": ("generate", blip | {"batch_size": 16}, here),
    }
    return {name: side for name, side in sides.items() if side[2]}


def measure(pair: Sequence[Side], rounds: int) -> float:
    """One round to warm up, then `rounds` that count, ours and the other in turn; the ratio."""
    for number in range(rounds + 1):
        for side in pair:
            side.seconds.append(side.run(number))
        spent = ", ".join(f"{side.name} {side.seconds[-1]:.2f} s" for side in pair)
        print(f"{'warm-up' if number == 0 else f'round {number}'}: {spent}", flush=True)
    ours, other = pair
    assert ours.captions.keys() == other.captions.keys(), f"{other.name} has not captioned the same images"
    return statistics.median(theirs / own for own, theirs in zip(ours.seconds[1:], other.seconds[1:], strict=True))


def figures(pair: Sequence[Side], ratio: float, images: int) -> dict[str, Any]:
    """Of one pair: images per second, every round and the median, starts and warm-ups, and captions that are equal."""
    ours, other = pair
    same = sum(other.captions[key][0] == text for key, (text, _) in ours.captions.items())
    return {
        "ratio": round(ratio, 3),
        "images_per_second": {side.name: round(images / statistics.median(side.seconds[1:]), 1) for side in pair},
        "all_images_per_second": {side.name: [round(images / spent, 1) for spent in side.seconds[1:]] for side in pair},
        "start_seconds": {side.name: round(side.start_seconds, 1) for side in pair},
        "warm_up_seconds": {side.name: round(side.seconds[0], 1) for side in pair},
        "captions_as_ours": round(same / len(ours.captions), 4),
    }


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the sides are ended then, too
    from images import write_run

    work = Path(tempfile.mkdtemp(prefix="recaption-benchmark-"))
    tars = write_run(str(work / "run"), options.shards, options.images // options.shards, options.pixels)
    if not options.ray_data_llm_env:
        print("ray.data.llm is left out: name its environment with --ray-data-llm-env, see README.md", flush=True)
    there = jobs(options, work / "run", tars)
    found: dict[str, dict[str, Any]] = {}
    for our_name, others in RATIOS.values():
        for other in others:
            if other in there and other in (options.against or others):
                found[other] = run_pair({name: there[name] for name in (our_name, other)}, work / other, options)
    ratios = {
        key: min((found[other]["ratio"] for other in others if other in found), default=None)
        for key, (_, others) in RATIOS.items()
    }
    settings = {name: getattr(options, name) for name in ("images", "pixels", "tokens", "seqs", "rounds")}
    print(json.dumps(ratios | {"pairs": found} | settings))
    shutil.rmtree(work)


def run_pair(pair: dict[str, tuple[str, Job, str]], work: Path, options: argparse.Namespace) -> dict[str, Any]:
    work.mkdir()
    sides: list[Side] = []
    try:
        for name, (script, job, python) in pair.items():
            sides.append(Side(name, script, job, work, python))
            print(f"{name}: started in {sides[-1].start_seconds:.1f} s", flush=True)
        time.sleep(5)
        return figures(sides, measure(sides, options.rounds), options.images)
    finally:
        for side in sides:
            side.close()


if __name__ == "__main__":
    main()
