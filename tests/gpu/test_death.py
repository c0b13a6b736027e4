"""Section 5: a killed engine leaves no memory behind, a broken device rejects no image, GPUs are shared as reserved."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from lotlip_data.captioners.registry import get_default
from tests.gpu.engine_process import Job, held, run
from tests.gpu.scale import GIB, Scale, both
from tests.support.paths import ROOT

FREED_SECONDS = 10.0
NOISE_BYTES = GIB // 4
"""Memory that other processes of the machine may take meanwhile."""
TINY_CACHE = {"gpu_memory_utilization": 0.2, "kv_cache_gib": 0.05}


def memory_used(scale: Scale, session: int | None = None) -> int:
    """Bytes in use on the first GPU; without one, of the processes of a session, and 0 before it starts."""
    if scale.on_gpu:
        command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) << 20
    total = 0
    for process in psutil.process_iter() if session is not None else ():
        try:
            if os.getsid(process.pid) == session:
                total += process.memory_info().rss
        except (psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue
    return total


def seconds_until(condition: Callable[[], bool], limit: float) -> float:
    """Time until the condition holds. Fails after `limit` seconds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < limit, f"not within {limit:g} s"
        time.sleep(0.1)
    return time.monotonic() - started


@both(slow=True)
def test_the_memory_of_a_killed_engine_is_free_within_ten_seconds(scale: Scale, figures: dict[str, Any]) -> None:
    """SIGKILL ends the process that an actor would be. vLLM's own process has the memory."""
    before = memory_used(scale)
    with held(Job(get_default("tiny-llava").to_dict(), "vllm", TINY_CACHE, hold=True)) as process:
        while_running = memory_used(scale, process.pid)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        seconds = seconds_until(lambda: memory_used(scale, process.pid) <= before + NOISE_BYTES, FREED_SECONDS)
    figures |= {"engine_gib": round((while_running - before) / GIB, 2), "freed_seconds": round(seconds, 1)}
    assert while_running > before + NOISE_BYTES


@both(slow=True)
@pytest.mark.parametrize(("name", "engine"), [("tiny-llava", "transformers"), ("tiny-instructblip", "vllm")])
def test_a_broken_device_ends_the_engine_and_rejects_no_image(
    scale: Scale, name: str, engine: str, figures: dict[str, Any], tmp_path: Path
) -> None:
    options = {"batch_size": 4, "cache_dir": str(tmp_path)} | (TINY_CACHE if engine == "vllm" else {})
    job = Job(get_default(name).to_dict(), engine, options, scale.texts, scale.pixels, (8,), break_batch=1)
    (entry,) = run(job).rounds
    figures[f"after_device_error_{engine}"] = dict.fromkeys(sorted(set(entry.finish_reasons)), True)
    assert "EngineDead" in entry.finish_reasons
    assert set(entry.finish_reasons) <= {"stop", "length", "EngineDead"}, "no image is to blame"


def start_actors(scale: Scale, folder: Path, name: str, count: int, **pool: Any) -> list[dict[str, Any]]:
    """Start actors of a captioner in Ray. Returns their start reports."""
    captioner = {"preset": name, "pool": pool}
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    if not scale.on_gpu and pool["num_gpus"]:  # torch does not see logical GPUs, and this kind does not ask it
        options = pool.get("engine_options", {}) | {"engine_args": {"faults": str(folder)}}
        captioner = {"name": name, "kind": "faulty", "model": name, "pool": pool | {"engine_options": options}}
        paths = [str(ROOT / "tests" / "faults"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    gpus = "auto" if scale.on_gpu else "1"
    arguments = [str(folder / "run"), json.dumps(captioner), str(count), gpus]
    process = subprocess.run(
        [sys.executable, "-m", "tests.gpu.actors_process", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    reports: list[dict[str, Any]] = json.loads(process.stdout.splitlines()[-1])
    return reports


@both(slow=True)
def test_two_actors_of_half_a_gpu_run_at_the_same_time(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """On a GPU, each engine takes its cache from half of the memory: nothing limits it but the reserved share."""
    options = {} if scale.on_gpu else TINY_CACHE
    reports = start_actors(scale, tmp_path, "tiny-llava", 2, num_gpus=0.5, engine="vllm", engine_options=options)
    figures["half_gpu_cache_tokens"] = [report["capacity"]["cache_tokens"] for report in reports]
    assert [report["gpus"] for report in reports] == [0.5, 0.5]
    assert {report["environment"]["OMP_NUM_THREADS"] for report in reports} == {"1"}, "more threads would only spin"
    assert all(tokens > 0 for tokens in figures["half_gpu_cache_tokens"])


@both(slow=True)
def test_an_actor_without_a_gpu_computes_on_the_cpu(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    reports = start_actors(scale, tmp_path, "tiny-llava", 1, num_gpus=0, engine="transformers")
    figures["device_without_gpu"] = reports[0]["capacity"]["device"]
    assert (reports[0]["gpus"], reports[0]["capacity"]["device"]) == (0.0, "the CPU")
    assert reports[0]["environment"]["CUDA_VISIBLE_DEVICES"] == ""


@both(slow=True)
def test_plan_measures_a_captioner_outside_ray(scale: Scale, figures: dict[str, Any], tmp_path: Path) -> None:
    """The process has looked for GPUs before vLLM is imported."""
    (tmp_path / "list.csv").write_text("url,text\n" + "".join(f"http://x/{row}.jpg,a\n" for row in range(20)))
    manifest = {
        "name": "plan",
        "sources": [{"name": "web", "files": [str(tmp_path / "list.csv")], "url": "url", "text": "text"}],
        "captioners": [{"preset": "tiny-llava", "pool": {"engine": "vllm", "engine_options": TINY_CACHE}}],
    }
    (tmp_path / "plan.yaml").write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "lotlip_data.pipeline.cli.main", "plan", str(tmp_path / "plan.yaml")]
    process = subprocess.run([*command, "--time", "16", "--json"], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    assert "measured with 16 images" in process.stdout
    figures["plan_measures"] = True
