"""Wheels, built without a network and without leaving anything in the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

ROOMS = ("captioners", "manifests", "pipeline", "training", "synthetic")
_WHEEL = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]


def copy_project(folder: Path) -> None:
    """What the project's wheel is built of. Beside the original may lie what an earlier build left, stale files too."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / room)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)


def build(project: Path, out: Path) -> None:
    subprocess.run([*_WHEEL, "-w", str(out), str(project)], check=True)
