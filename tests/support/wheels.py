"""Builds wheels without network access and without writing to the checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

PACKAGES = ("captioners", "manifests", "pipeline", "training", "synthetic")
_WHEEL = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]


def copy_project(folder: Path) -> None:
    """Copy the files that the wheel is built from. The checkout itself can hold stale files of an earlier build."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)


def build(project: Path, out: Path) -> None:
    """Build the wheel of the project in the folder `project` into the folder `out`."""
    subprocess.run([*_WHEEL, "-w", str(out), str(project)], check=True)
