"""Processes that tests look at and kill. One that has ended is never an error: it may end at any moment."""

import subprocess
import time
from typing import Any

import psutil

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of Ray's own: they commit nothing, and live on for half a minute."""


def title(process: psutil.Process) -> str:
    """Its command line; empty for one that has ended, whether or not its parent knows."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # or a zombie, which is one
        return ""


def kill_driver(driver: "subprocess.Popen[Any]") -> None:
    """SIGKILL to it. Returns once its workers have ended too: what they had begun may be committed until then."""
    workers = [child for child in psutil.Process(driver.pid).children(recursive=True) if _works(child)]
    driver.kill()
    driver.wait()
    until = time.monotonic() + 300
    while alive := list(filter(_works, workers)):
        assert time.monotonic() < until, f"workers that outlive their driver: {alive}"
        time.sleep(0.05)


def _works(process: psutil.Process) -> bool:
    line = title(process)
    worker = line.startswith("ray::") or "default_worker.py" in line or "spawn_main" in line
    return worker and not line.startswith(AGENTS)
