"""Inspects and kills processes. A process that has ended is never an error, since it can end at any moment."""

import subprocess
import time
from typing import Any

import psutil

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own agents. They commit nothing, and outlive their cluster by half a minute."""


def title(process: psutil.Process) -> str:
    """The command line of a process; empty if it has ended or is a zombie."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a ZombieProcess is one too
        return ""


def kill_driver(driver: "subprocess.Popen[Any]") -> None:
    """Send SIGKILL to a driver, and wait until its workers have ended: until then they can still commit shards."""
    workers = [child for child in psutil.Process(driver.pid).children(recursive=True) if _is_worker(child)]
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 300
    while alive := list(filter(_is_worker, workers)):
        assert time.monotonic() < deadline, f"workers outlived their driver: {alive}"
        time.sleep(0.05)


def _is_worker(process: psutil.Process) -> bool:
    command_line = title(process)
    is_child = command_line.startswith("ray::") or "default_worker.py" in command_line or "spawn_main" in command_line
    return is_child and not command_line.startswith(AGENTS)
