"""What is installed is what is here, and nothing tells where or how it was made."""

import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.wheels import ROOMS, ROOT, build, copy_project

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_python_files_is_a_package_that_is_listed() -> None:
    found = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    names = {"lotlip_data." + ".".join(folder.parts): str(folder) for folder in found}
    assert set(SETTINGS["packages"]) == set(names)
    assert SETTINGS["package-dir"] == {f"lotlip_data.{room}": room for room in ROOMS}  # packages inside follow


def test_every_room_is_typed() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").exists()] == []


@pytest.mark.slow
def test_a_wheel_has_every_file_that_the_rooms_need(tmp_path: Path) -> None:
    copy_project(tmp_path / "project")
    build(tmp_path / "project", tmp_path)
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
