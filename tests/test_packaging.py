"""What is installed is what is here, and nothing tells where or how it was made."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROOMS = ("captioners", "manifests", "pipeline", "training", "world")


def test_every_folder_with_python_files_is_a_package_that_is_listed() -> None:
    found = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    names = {"lotlip_data." + ".".join(folder.parts): str(folder) for folder in found}
    assert set(SETTINGS["packages"]) == set(names)
    assert SETTINGS["package-dir"] == names


def test_every_room_is_typed() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").exists()] == []


@pytest.mark.slow
def test_a_wheel_has_every_file_that_the_rooms_need(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {".py", ".yaml", ".txt", ".json", ".safetensors", ".typed", ".j2", ".css"}
    here = {
        f"lotlip_data/{path.relative_to(ROOT)}"
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.suffix in wanted or path.name == "py.typed"
    }
    assert here - names == set()
