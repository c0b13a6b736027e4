"""Images per second of recaptioning on a CPU, compared with what a user would have without this project.

    python benchmarks/recaption.py --ray-data-llm-env build/ray-data-llm

The tiny models show what a pipeline costs per image. With the heavy ones, of 110 to 150 million parameters, the
engine's own work dominates, as with 7B models on a GPU.

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
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from recaption_jobs import RATIOS, WORKLOADS, Job, Sides, Workload, make_sides

HERE = Path(__file__).resolve().parent

ENGINE_PROCESS = "VLLM::"
"""How vLLM names its own processes."""
SMOKE_PAIRS = ("bare_vllm", "qwen_bare_vllm")


class Side:
    """A process that captions all images in each round.

    Attributes:
        seconds: Seconds of each round.
        outside_seconds: CPU seconds of each round outside vLLM's engine process; empty if there is no such process.
        captions: Text and number of tokens by key, of the last round.
    """

    def __init__(self, name: str, script: str, job: Job, work: Path, python: str = sys.executable) -> None:
        self.name, self.seconds, self.outside_seconds, self.captions = name, [], [], {}
        self.log = work / f"{name}.log"
        file = work / f"{name}.json"
        file.write_text(json.dumps(job | {"scratch": str(work / name)}))
        environment = os.environ | {
            "PYTHONPATH": f"{HERE}:{HERE / 'sides'}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"),
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

    def run(self, number: int) -> None:
        """Run a round. Between rounds the side is stopped: an idle vLLM engine may spin."""
        before, has_engine = self._cpu_seconds()
        self._signal(signal.SIGCONT)
        print(number, file=self.process.stdin)
        self.seconds.append(self._read_answer()["seconds"])
        after, _ = self._cpu_seconds()
        self.captions = self._read_answer()["captions"]
        self._signal(signal.SIGSTOP)
        if has_engine:
            self.outside_seconds.append(sum(seconds - before.get(pid, 0.0) for pid, seconds in after.items()))

    def _cpu_seconds(self) -> tuple[dict[int, float], bool]:
        """CPU seconds by process id, without vLLM's engine process; and whether there is such a process."""
        side = psutil.Process(self.process.pid)
        seconds: dict[int, float] = {}
        has_engine = False
        for process in [*side.children(recursive=True), side]:
            try:
                times, command = process.cpu_times(), process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if command and command[0].startswith(ENGINE_PROCESS):
                has_engine = True
            else:
                seconds[process.pid] = times.user + times.system
        return seconds, has_engine

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
    parser.add_argument(
        "--weight", choices=("tiny", "heavy", "both"), default="both", help="models (default: %(default)s)"
    )
    defaults = {field: [getattr(load, field) for load in WORKLOADS.values()] for field in vars(WORKLOADS["tiny"])}
    helps = {
        "images": "images per round, of which the heavy LLaVA and Qwen2.5-VL read half",
        "shards": "number of tars",
        "pixels": "width and height of the images",
        "tokens": "new tokens of LLaVA, at most, and exactly of the heavy LLaVA and Qwen2.5-VL",
        "seqs": "vLLM's max_num_seqs, on all sides (heavy InstructBLIP: 64)",
        "rounds": "measured rounds, after one warm-up",
    }
    for field, (tiny, heavy) in defaults.items():
        default = f"default: {tiny}" + (f"; heavy: {heavy}" if heavy != tiny else "")
        parser.add_argument(f"--{field}", type=int, help=f"{helps[field]} ({default})")
    parser.add_argument(
        "--ray-data-llm-env",
        type=Path,
        help="environment made by ray_data_llm_env.sh; without it, ray.data.llm is skipped",
    )
    parser.add_argument("--against", nargs="+", help="compare with these sides only, such as bare_vllm qwen_bare_vllm")
    parser.add_argument("--smoke", action="store_true", help="try the script: two pairs, at most 32 images, one round")
    options = parser.parse_args()
    options.weights = list(WORKLOADS) if options.weight == "both" else [options.weight]
    others = [other for weight in options.weights for pairs in RATIOS[weight].values() for _, other in pairs]
    if options.shards is not None and options.shards < 2:
        parser.error(f"--shards {options.shards}: use at least 2, since some sides read half of the tars")
    if unknown := set(options.against or ()) - set(others):
        parser.error(f"--against {' '.join(sorted(unknown))}: use {', '.join(dict.fromkeys(others))}")
    return options


def workload(options: argparse.Namespace, weight: str) -> Workload:
    """How much a round does with the models of a weight."""
    if options.smoke:
        return Workload(images=32, shards=2, pixels=96, tokens=8, seqs=16, rounds=1)
    fields = vars(WORKLOADS[weight])
    load = Workload(**{name: getattr(options, name) or value for name, value in fields.items()})
    return replace(load, images=load.images // load.shards * load.shards)


def measure(pair: Sequence[Side], rounds: int) -> float:
    """Run a warm-up round, then the measured rounds; both sides take turns. Returns the ratio."""
    for number in range(rounds + 1):
        for side in pair:
            side.run(number)
        times = ", ".join(f"{side.name} {side.seconds[-1]:.2f} s" for side in pair)
        print(f"{'warm-up' if number == 0 else f'round {number}'}: {times}", flush=True)
    ours, other = pair
    assert ours.captions.keys() == other.captions.keys(), f"{other.name} has captioned other images than ours"
    return statistics.median(theirs / own for own, theirs in zip(ours.seconds[1:], other.seconds[1:], strict=True))


def summarise(pair: Sequence[Side], ratio: float, images: int) -> dict[str, Any]:
    """The result of a pair: rates and CPU time per round, start and warm-up times, lengths and equality of captions."""
    ours, other = pair
    equal = sum(other.captions[key][0] == text for key, (text, _) in ours.captions.items())
    return {
        "ratio": round(ratio, 3),
        "images_per_second": {side.name: round(images / statistics.median(side.seconds[1:]), 1) for side in pair},
        "all_images_per_second": {
            side.name: [round(images / seconds, 1) for seconds in side.seconds[1:]] for side in pair
        },
        "cpu_ms_per_image_outside_engine": {
            side.name: round(1000 * statistics.median(side.outside_seconds[1:]) / images, 2)
            for side in pair
            if side.outside_seconds
        },
        "tokens_per_caption": {
            side.name: round(statistics.mean(tokens for _, tokens in side.captions.values()), 1) for side in pair
        },
        "start_seconds": {side.name: round(side.start_seconds, 1) for side in pair},
        "warm_up_seconds": {side.name: round(side.seconds[0], 1) for side in pair},
        "captions_as_ours": round(equal / len(ours.captions), 4),
    }


def main() -> None:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the sides end too
    if not options.ray_data_llm_env:
        print("ray.data.llm is skipped: give its environment with --ray-data-llm-env, see README.md", flush=True)
    work = Path(tempfile.mkdtemp(prefix="recaption-benchmark-"))
    results = {weight: measure_weight(weight, work / weight, options) for weight in options.weights}
    heaviest = results[options.weights[-1]]["ratios"]
    print(json.dumps(heaviest | {"weight": options.weights[-1]} | results))
    shutil.rmtree(work)


def measure_weight(weight: str, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all pairs of the models of one weight. `work`: a new folder."""
    from images import write_run

    work.mkdir()
    load = workload(options, weight)
    tars = write_run(str(work / "run"), load.shards, load.images // load.shards, load.pixels)
    ray_python = str(options.ray_data_llm_env / "bin/python") if options.ray_data_llm_env else ""
    sides = make_sides(weight, load, work, tars, ray_python)
    wanted = SMOKE_PAIRS if options.smoke else options.against
    pairs: dict[str, dict[str, Any]] = {}
    for our_name, other in [pair for pairs_of_ratio in RATIOS[weight].values() for pair in pairs_of_ratio]:
        if other in sides and other in (wanted or sides):
            pairs[other] = run_pair({name: sides[name] for name in (our_name, other)}, work / other, load.rounds)
    ratios = {
        key: min((pairs[other]["ratio"] for _, other in pairs_of_ratio if other in pairs), default=None)
        for key, pairs_of_ratio in RATIOS[weight].items()
    }
    return {"ratios": ratios, "pairs": pairs} | vars(load)


def run_pair(pair: Sides, work: Path, rounds: int) -> dict[str, Any]:
    """Start the two sides of a pair, measure them and end them.

    Args:
        pair: The sides, ours first.
        work: A new folder.
        rounds: Number of measured rounds.
    """
    work.mkdir()
    sides: list[Side] = []
    try:
        for name, (script, job, python) in pair.items():
            sides.append(Side(name, script, job, work, python))
            print(f"{name}: started in {sides[-1].start_seconds:.1f} s", flush=True)
        time.sleep(5)
        return summarise(sides, measure(sides, rounds), job["images"])
    finally:
        for side in sides:
            side.close()


if __name__ == "__main__":
    main()
