"""A kill of a driver, for tests that look at what it left."""

import subprocess
from typing import Any

import psutil

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of Ray's own: they commit nothing, and live on for half a minute."""


def kill_driver(driver: "subprocess.Popen[Any]") -> None:
    """SIGKILL to it. Returns once its workers have ended too: what they had begun may be committed until then."""
    workers = [child for child in psutil.Process(driver.pid).children(recursive=True) if _works(child)]
    driver.kill()
    driver.wait()
    _, alive = psutil.wait_procs(workers, timeout=300)
    assert not alive, f"workers that outlive their driver: {alive}"


def _works(process: psutil.Process) -> bool:
    try:
        title = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    worker = title.startswith("ray::") or "default_worker.py" in title or "spawn_main" in title
    return worker and not title.startswith(AGENTS)
