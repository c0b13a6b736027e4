"""A plain install has no torch and no Ray. The commands that only look at lists and runs work with it."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lotlip_data.pipeline.cli.main import FULL_INSTALL
from lotlip_data.pipeline.dataset.stage import shard
from tests.pipeline import run_fixture
from tests.support.paths import ROOT
from tests.support.wheels import PACKAGES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
Light = Callable[[str, str], "subprocess.CompletedProcess[str]"]
RUN_COMMAND = "from lotlip_data.pipeline.cli.main import main; main()"
BUILD_VIEWER = """
from lotlip_data.manifests.run_layout import Run
from lotlip_data.pipeline.viewer.app import View, create_app
create_app(View(Run.at("run"), seconds=1.0))
"""


def canonical(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def installed_by(requirements: list[str]) -> set[str]:
    """The distributions that these requirements install."""
    distributions: set[str] = set()
    pending = [Requirement(requirement).name for requirement in requirements]
    while pending:
        name = canonical(pending.pop())
        if name in distributions:
            continue
        distributions.add(name)
        for text in metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                pending.append(requirement.name)
    return distributions


def install_light(folder: Path) -> None:
    """Fill a folder with links to what a plain install puts into site-packages: its requirements and the project."""
    light = installed_by(PROJECT["dependencies"])
    for name in light:
        distribution = metadata.distribution(name)
        for top in {Path(str(file)).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    own_metadata = folder / f"lotlip_data-{PROJECT['version']}.dist-info" / "METADATA"
    own_metadata.parent.mkdir()
    own_metadata.write_text(f"Metadata-Version: 2.4\nName: lotlip-data\nVersion: {PROJECT['version']}\n")
    (folder / "lotlip_data").mkdir()
    for package in PACKAGES:
        (folder / "lotlip_data" / package).symlink_to(ROOT / package)


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Light:
    """Runs a program with arguments on a plain install, in a folder with a dataset and a manifest."""
    folder, site = tmp_path_factory.mktemp("light"), tmp_path_factory.mktemp("site")
    fake = run_fixture.make(folder / "run", shards=1, writers=["llava"])
    shard(fake.manifest, fake.run)
    (folder / "list.csv").write_text("url,caption\nhttp://a.example/1,x\nhttp://a.example/2,y\n")
    (folder / "m.yaml").write_text(
        "name: m\nsources: [{name: a, files: list.csv}]\n"
        "captioners: [llava, {name: other, preset: llava, model: a/b}]\n"
    )
    install_light(site)
    assert (site / "pyarrow").exists() and not (site / "torch").exists() and not (site / "ray").exists()

    def run(program: str, arguments: str) -> "subprocess.CompletedProcess[str]":
        """Python without its own site-packages (-S), without the current folder and PYTHON variables (-I)."""
        program = f"import sys; sys.path.append({str(site)!r})\n{program}"
        command = [sys.executable, "-I", "-S", "-c", program, *arguments.split()]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "arguments",
    [
        *("sources", "manifest-schema", "plan m.yaml", "doctor m.yaml --run run"),
        *("status run", "stats run", "verify run", "report run", "view --help"),
    ],
)
def test_commands_that_only_look_need_neither_torch_nor_ray(arguments: str, light: Light) -> None:
    process = light(RUN_COMMAND, arguments)
    output = process.stdout + process.stderr
    assert process.returncode in (0, 1) and "Traceback" not in output, output
    assert "this command needs" not in output


def test_the_viewer_is_built_without_torch_and_ray(light: Light) -> None:
    process = light(BUILD_VIEWER, "")
    assert process.returncode == 0, process.stderr


def test_every_other_command_names_the_missing_package_and_the_extra(light: Light) -> None:
    process = light(RUN_COMMAND, "download m.yaml new")
    assert process.returncode == 2, process.stdout + process.stderr
    assert "pip install 'lotlip-data[full]'" in process.stdout and "Traceback" not in process.stderr


def test_the_modules_of_the_full_install_are_those_of_pyproject() -> None:
    names = {canonical(Requirement(text).name) for text in PROJECT["optional-dependencies"]["full"]}
    modules = FULL_INSTALL - {"cv2"} | {"opencv-python-headless"}
    assert {canonical(module) for module in modules} == names - {"standard-imghdr"}
