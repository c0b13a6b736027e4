"""The installed package has all files of the checkout that it needs."""

import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.wheels import PACKAGES, ROOT, build, copy_project

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_python_files_is_listed_in_pyproject() -> None:
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    names = {"lotlip_data." + ".".join(folder.parts): str(folder) for folder in folders}
    assert set(SETTINGS["packages"]) == set(names)
    # Packages inside these follow from them.
    assert SETTINGS["package-dir"] == {f"lotlip_data.{package}": package for package in PACKAGES}


def test_every_top_package_is_typed() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()] == []


@pytest.mark.slow
def test_a_wheel_has_every_file_that_the_packages_need(tmp_path: Path) -> None:
    copy_project(tmp_path / "project")
    build(tmp_path / "project", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    suffixes = {".py", ".yaml", ".txt", ".json", ".safetensors", ".typed", ".j2", ".css"}
    expected = {
        f"lotlip_data/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in suffixes or path.name == "py.typed"
    }
    assert expected - names == set()
