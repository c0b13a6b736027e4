"""The demo runs from an empty folder to its table of results, and a second call finds nothing left to do."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEMO = [sys.executable, "-m", "lotlip_data.pipeline.cli", "demo"]


def figures_of(run: str) -> dict[str, Any]:
    """The demo's figures, without the time that it took."""
    figures = json.loads(Path(run, "demo.json").read_text())
    return {name: value for name, value in figures.items() if name != "seconds"}


@pytest.mark.slow
def test_the_demo_ends_with_its_figures_and_a_second_call_repeats_none_of_the_work(tmp_path: Path) -> None:
    run = str(tmp_path / "a run")
    first = subprocess.run([*DEMO, run, "--images", "150"], capture_output=True, text=True)
    assert first.returncode == 0, first.stdout + first.stderr
    figures = figures_of(run)
    again = subprocess.run([*DEMO, run, "--images", "150"], capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "train: nothing to do" in again.stdout
    assert figures_of(run) == figures
