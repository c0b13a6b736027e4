"""Whether the GPU suite can run here: without a GPU it is skipped, with a GPU that torch cannot use it fails."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from lotlip_data.pipeline.core.gpus import InstalledGpus, TorchGpus, ask_torch, check_gpu_driver

SMI_SECONDS = 30


@dataclass(frozen=True)
class Availability:
    """What the suite does, and why."""

    action: Literal["run", "skip", "fail"]
    reason: str


def gpus_of_nvidia_smi() -> list[str]:
    """Name, memory, driver and compute capability of each GPU, a line each; empty if nvidia-smi lists none."""
    program = shutil.which("nvidia-smi")
    if not program:
        return []
    command = [program, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.strip().splitlines() if answer.returncode == 0 else []


def availability(
    installed: InstalledGpus | None = None, listed: list[str] | None = None, torch: TorchGpus | None = None
) -> Availability:
    """Decide what the suite does on this machine.

    Args:
        installed: The GPUs that the operating system knows. Default: detect them.
        listed: What nvidia-smi lists. Default: ask it.
        torch: What torch sees. Default: ask it, if there is a GPU.
    """
    installed = installed or InstalledGpus.detect()
    listed = gpus_of_nvidia_smi() if listed is None else listed
    if not installed.devices and not listed:
        return Availability("skip", "no GPU: neither /dev/nvidia* nor nvidia-smi shows one")
    present = installed if installed.devices else InstalledGpus(len(listed), True, installed.driver)
    seen = torch or ask_torch()
    if seen.gpus:
        return Availability("run", f"{len(seen.gpus)} × {seen.gpus[0][0]}")
    check = check_gpu_driver(present, seen)
    return Availability("fail", f"torch sees no GPU, and there is one: {check.finding}; {check.fix}")


def first_gpu_gib() -> float:
    """Memory of the first GPU that torch sees, in GiB."""
    return ask_torch().gpus[0][1] / 2**30
