"""Whether the NVIDIA GPUs of a machine can be used: their driver, and what torch sees of them.

torch is asked in a process of its own: this process does not touch CUDA, which vLLM's processes need untouched, and a
driver that hangs costs a time limit.
"""

import json
import math
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from importlib import util
from pathlib import Path

from lotlip_data.manifests import wording
from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core.findings import Check, Level

PROBE_SECONDS = 120.0
"""Time for torch to be imported and to look for GPUs."""
DRIVER_OF_CUDA = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""Oldest driver, by the major version of CUDA that torch is built with."""
NVIDIA_VENDOR = "0x10de"
SUBJECT = "GPUs"

_PROBE = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
print(json.dumps({
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
    "gpus": [[gpu.name, gpu.total_memory] for gpu in properties],
    "problem": " ".join(str(warning.message) for warning in caught if "CUDA" in str(warning.message)),
}))
"""


@dataclass(frozen=True)
class InstalledGpus:
    """The NVIDIA GPUs that the operating system knows."""

    devices: int
    """Number of GPUs that this process could open. 1 under WSL, which does not say it."""
    present: bool
    """Whether there is a GPU or a driver at all, even if this process cannot open it."""
    driver: str
    """Version of the driver; empty if it is not known."""

    @classmethod
    def detect(cls, root: Path = Path("/")) -> "InstalledGpus":
        """Read it from the file system whose root is `root`."""
        devices = len([path for path in (root / "dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)])
        devices = devices or int((root / "dev/dxg").exists())
        try:
            words = (root / "proc/driver/nvidia/version").read_text()
        except OSError:
            words = ""
        version = re.search(r"\b\d+\.\d+(\.\d+)?\b", words)
        vendors = (root / "sys/bus/pci/devices").glob("*/vendor")
        on_bus = any(_is_display(vendor) for vendor in vendors)
        return cls(devices, bool(devices or words or on_bus), version.group() if version else "")


@dataclass(frozen=True)
class TorchGpus:
    """What torch sees."""

    torch: str = ""
    """Its version; empty if it is not installed."""
    cuda: str | None = None
    """The version of CUDA that it is built with."""
    gpus: list[tuple[str, int]] = field(default_factory=list)
    """Name and memory in bytes of each GPU."""
    problem: str = ""
    """What it says about GPUs that it cannot use."""


@cache
def ask_torch() -> TorchGpus:
    """Ask torch, in another process, for the GPUs of this machine."""
    if not util.find_spec("torch"):
        return TorchGpus()
    try:
        process = subprocess.run(
            [sys.executable, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        if process.returncode == 0:
            answer = json.loads(process.stdout.splitlines()[-1])
            gpus = [(name, memory) for name, memory in answer["gpus"]]
            return TorchGpus(answer["torch"], answer["cuda"], gpus, answer["problem"])
        lines = process.stderr.strip().splitlines() or [f"its process ended with code {process.returncode}"]
        return TorchGpus("torch", "unknown", problem=lines[-1])
    except subprocess.TimeoutExpired:
        return TorchGpus("torch", "unknown", problem=f"no answer within {PROBE_SECONDS:g} seconds")


def smallest_gpu_gib() -> float | None:
    """Memory of the smallest GPU of this machine in GiB, as torch reports it; None without one."""
    gpus = ask_torch().gpus if InstalledGpus.detect().devices else []
    return min((memory for _, memory in gpus), default=0) / 2**30 or None


def check_gpu_driver(installed: InstalledGpus | None = None, torch: TorchGpus | None = None) -> Check:
    """Whether torch can use the NVIDIA GPUs of this machine. Without any, it takes milliseconds.

    Args:
        installed: The GPUs of the machine. Default: detect them.
        torch: What torch sees. Default: ask it.
    """
    installed = installed or InstalledGpus.detect()
    if not installed.present:
        return Check(SUBJECT, Level.OK, "no NVIDIA GPU; captioners and trainings run on the CPU")
    driver = f"driver {installed.driver}" if installed.driver else "driver of unknown version"
    if not installed.devices:
        return Check(
            SUBJECT,
            Level.WARNING,
            f"the machine has NVIDIA GPUs or their driver ({driver}), but this process can open none",
            "install the driver; in a container, pass the GPUs on (docker run --gpus all; nvidia.com/gpu in the limits "
            "of a Kubernetes container; --gres=gpu:N in Slurm)",
        )
    torch = torch or ask_torch()
    if not torch.torch:
        return Check(SUBJECT, Level.WARNING, "torch is not installed", "pip install 'lotlip-data[gpu]'")
    if torch.cuda is None:
        return Check(
            SUBJECT,
            Level.WARNING,
            f"torch {torch.torch} is built without CUDA, so it uses none of the {installed.devices} here",
            "pip install 'lotlip-data[gpu]' in a new environment",
        )
    if not torch.gpus:
        return _none_usable(installed, torch, driver)
    kinds = [f"{name} of {memory / 2**30:.1f} GiB" for name, memory in torch.gpus]
    named = ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds))
    finding = f"{named}; {driver}, torch {torch.torch} with CUDA {torch.cuda}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if len(torch.gpus) < installed.devices and not visible:
        return Check(
            SUBJECT,
            Level.WARNING,
            f"torch sees {len(torch.gpus)} of {wording.count(installed.devices, 'GPU')} ({finding})",
            "look at the others with nvidia-smi",
        )
    return Check(SUBJECT, Level.OK, finding)


def use_assigned(gpus: float, user: str) -> None:
    """Let this process, which Ray started for one actor, compute on the GPUs that Ray reserved for it and no others.

    Args:
        gpus: Number of GPUs that Ray reserved. With 0, all GPUs are hidden from this process and those that it starts:
            Ray hides none, and the actors of a machine would all compute on its first one.
        user: What they are for, such as "captioner 'llava'".

    Raises:
        UserError: As `require_assigned` does.
    """
    if gpus:
        require_assigned(gpus, user)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def require_assigned(gpus: float, user: str) -> None:
    """Check that torch sees the GPUs that Ray reserved for this process. It would compute on the CPU without a word.

    This process touches CUDA, as it is about to compute on it.

    Args:
        gpus: Number of GPUs that Ray reserved; 0 needs none.
        user: What they are for, such as "captioner 'llava'".

    Raises:
        UserError: torch sees fewer.
    """
    if not gpus:
        return
    import torch

    needed = math.ceil(gpus)
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible >= needed:
        return
    problem = f"{user}: Ray reserved {wording.count(needed, 'GPU')} on {platform.node()}, but torch sees {visible}"
    installed = InstalledGpus.detect()
    if not installed.present:
        raise UserError(
            f"{problem}: torch {torch.__version__} (CUDA {torch.version.cuda}) finds no NVIDIA GPU or driver there; "
            "start Ray on that machine with --num-gpus=0, or use the CPU with `num_gpus: 0`"
        )
    check = check_gpu_driver(installed)
    fix = check.fix or "see whether nvidia-smi lists the GPUs, and whether CUDA_VISIBLE_DEVICES names existing ones"
    raise UserError(f"{problem}: {check.finding}; {fix}")


def _none_usable(installed: InstalledGpus, torch: TorchGpus, driver: str) -> Check:
    """torch is built with CUDA and sees no GPU: hidden ones, an old driver, or whatever torch says."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        finding = f"CUDA_VISIBLE_DEVICES={visible!r} hides the {installed.devices} GPUs of this machine"
        return Check(SUBJECT, Level.WARNING, finding, "unset it to use them")
    said = f": {torch.problem}" if torch.problem else ""
    finding = (
        f"torch {torch.torch} (CUDA {torch.cuda}) can use none of the {installed.devices} here, with {driver}{said}"
    )
    needed = DRIVER_OF_CUDA.get(int(torch.cuda.partition(".")[0]), "") if torch.cuda and torch.cuda[0].isdigit() else ""
    if needed and installed.driver and _numbers(installed.driver) < _numbers(needed):
        major = str(torch.cuda).partition(".")[0]
        fix = (
            f"CUDA {major} needs driver {needed} or newer: update the driver, or install torch and vLLM for an older "
            "CUDA (https://pytorch.org/get-started/previous-versions/)"
        )
    else:
        fix = "see whether nvidia-smi lists the GPUs, and whether CUDA_VISIBLE_DEVICES names existing ones"
    return Check(SUBJECT, Level.ERROR, finding, f"{fix}; CUDA_VISIBLE_DEVICES= (empty) uses the CPU")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _is_display(vendor: Path) -> bool:
    """Whether a PCI device, by its file `vendor`, is a display controller of NVIDIA."""
    try:
        kind = vendor.with_name("class").read_text()
        return vendor.read_text().strip() == NVIDIA_VENDOR and kind.startswith("0x03")
    except OSError:
        return False
