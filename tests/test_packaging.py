"""The installed package has all files of the checkout that it needs."""

import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.tools import load_tool
from tests.support.wheels import PACKAGES, ROOT, build, copy_project

release_metadata = load_tool("release_metadata")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_folder_with_python_files_is_listed_in_pyproject() -> None:
    folders = {path.parent.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    names = {"lotlip_data." + ".".join(folder.parts): str(folder) for folder in folders}
    assert set(SETTINGS["packages"]) == set(names)
    # Packages inside these follow from them.
    assert SETTINGS["package-dir"] == {f"lotlip_data.{package}": package for package in PACKAGES}


def test_every_top_package_is_typed() -> None:
    assert [package for package in PACKAGES if not (ROOT / package / "py.typed").exists()] == []


def test_the_released_readme_has_no_relative_link_and_the_package_has_urls() -> None:
    repository = "https://code.example/lotlip-data"
    before = (ROOT / "README.md").read_text()
    after = release_metadata.absolute_links(before, repository, "v1")
    assert f"]({repository}/blob/v1/docs/" in after
    targets = re.findall(r"\]\(([^)\s]+)\)", after)
    assert all(target.startswith(("https://", "http://", "#")) for target in targets), targets
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", before))
    for path in re.findall(rf"\]\({repository}/blob/v1/([^)#]+)", after):
        assert (ROOT / path).exists(), path
    released = release_metadata.with_urls((ROOT / "pyproject.toml").read_text(), repository, "v1")
    assert tomllib.loads(released)["project"]["urls"]["Repository"] == repository


@pytest.mark.slow
def test_a_wheel_has_every_file_that_the_packages_need_and_no_weights(tmp_path: Path) -> None:
    copy_project(tmp_path / "project")
    build(tmp_path / "project", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    suffixes = {".py", ".yaml", ".txt", ".json", ".typed", ".j2", ".css"}
    checkpoints = ROOT / "synthetic" / "checkpoints"
    expected = {
        f"lotlip_data/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in suffixes and checkpoints not in path.parents
    }
    assert expected - names == set()
    assert not any("checkpoints/tiny" in name for name in names) and wheel.stat().st_size < 2 << 20
