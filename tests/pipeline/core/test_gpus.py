"""The message that torch uses no GPU names the versions of torch, CUDA and the driver, and says what to do."""

import os
from pathlib import Path

import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.pipeline.core import gpus
from lotlip_data.pipeline.core.findings import Level
from lotlip_data.pipeline.core.gpus import (
    InstalledGpus,
    TorchGpus,
    ask_torch,
    check_gpu_driver,
    require_assigned,
    use_assigned,
)

OLD_DRIVER = InstalledGpus(8, True, "535.104.05")
NEW_DRIVER = InstalledGpus(8, True, "580.95.05")
H100 = ("NVIDIA H100 80GB HBM3", 85_000_000_000)


def machine(root: Path, version: str = "", devices: int = 0, on_bus: bool = False) -> Path:
    """The files by which the kernel shows its GPUs, below `root`."""
    (root / "dev").mkdir(parents=True)
    for name in ["nvidiactl", "nvidia-uvm", *(f"nvidia{index}" for index in range(devices))][0 if devices else 2 :]:
        (root / "dev" / name).touch()
    if version:
        file = root / "proc/driver/nvidia/version"
        file.parent.mkdir(parents=True)
        file.write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n")
    if on_bus:
        device = root / "sys/bus/pci/devices/0000:01:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    return root


def test_gpus_are_read_from_the_files_of_the_kernel(tmp_path: Path) -> None:
    assert InstalledGpus.detect(machine(tmp_path / "none")) == InstalledGpus(0, False, "")
    full = machine(tmp_path / "full", "580.95.05", devices=8, on_bus=True)
    assert InstalledGpus.detect(full) == NEW_DRIVER
    assert InstalledGpus.detect(machine(tmp_path / "no driver", on_bus=True)) == InstalledGpus(0, True, "")
    assert InstalledGpus.detect(machine(tmp_path / "container", "535.104.05")) == InstalledGpus(0, True, "535.104.05")


def test_a_machine_without_a_gpu_is_well_and_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "ask_torch", lambda: pytest.fail("torch was asked"))
    assert check_gpu_driver(InstalledGpus(0, False, "")).level is Level.OK


def test_gpus_that_a_container_does_not_get_are_a_warning() -> None:
    check = check_gpu_driver(InstalledGpus(0, True, "580.95.05"))
    assert check.level is Level.WARNING and "docker run --gpus all" in check.fix


def test_a_driver_that_is_too_old_for_the_build_of_torch_is_an_error_with_all_versions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check = check_gpu_driver(OLD_DRIVER, TorchGpus("2.14.0", "13.0", [], "The NVIDIA driver is too old"))
    assert check.level is Level.ERROR
    for part in ("torch 2.14.0 (CUDA 13.0)", "driver 535.104.05", "The NVIDIA driver is too old", "580.65.06 or newer"):
        assert part in str(check)
    same_driver = check_gpu_driver(OLD_DRIVER, TorchGpus("2.9.0", "12.8"))
    assert same_driver.level is Level.ERROR and "nvidia-smi" in same_driver.fix


def test_hidden_gpus_and_a_build_without_cuda_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = check_gpu_driver(NEW_DRIVER, TorchGpus("2.14.0", "13.0"))
    assert hidden.level is Level.WARNING and "CUDA_VISIBLE_DEVICES=''" in hidden.finding
    without_cuda = check_gpu_driver(NEW_DRIVER, TorchGpus("2.13.0+cpu", None))
    assert without_cuda.level is Level.WARNING and "lotlip-data[gpu]" in without_cuda.fix


def test_usable_gpus_are_named_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    check = check_gpu_driver(NEW_DRIVER, TorchGpus("2.14.0", "13.0", [H100] * 8))
    assert check.level is Level.OK and check.finding.startswith("8 × NVIDIA H100 80GB HBM3 of 79.2 GiB; driver 580")
    assert check_gpu_driver(NEW_DRIVER, TorchGpus("2.14.0", "13.0", [H100] * 7)).level is Level.WARNING
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert check_gpu_driver(NEW_DRIVER, TorchGpus("2.14.0", "13.0", [H100] * 2)).level is Level.OK


@pytest.mark.slow
def test_torch_is_asked_in_a_process_of_its_own() -> None:
    import torch

    answer = ask_torch()
    assert (answer.torch, answer.cuda) == (torch.__version__, torch.version.cuda)
    assert len(answer.gpus) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("installed", "seen", "words"),
    [
        (InstalledGpus(0, False, ""), TorchGpus(), ("--num-gpus=0", "`num_gpus: 0`", f"(CUDA {torch.version.cuda})")),
        (InstalledGpus(0, True, "580.95.05"), TorchGpus(), ("driver 580.95.05", "docker run --gpus all")),
        (OLD_DRIVER, TorchGpus("2.14.0", "13.0"), ("(CUDA 13.0)", "driver 535.104.05", "580.65.06 or newer")),
        (NEW_DRIVER, TorchGpus("2.14.0+cpu"), ("built without CUDA", "lotlip-data[gpu]")),
        (NEW_DRIVER, TorchGpus("2.14.0", "13.0", [H100]), (H100[0], "nvidia-smi")),
    ],
)
def test_a_process_with_a_reserved_gpu_that_torch_does_not_see_ends_instead_of_using_the_cpu(
    installed: InstalledGpus, seen: TorchGpus, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(InstalledGpus, "detect", lambda: installed)
    monkeypatch.setattr(gpus, "ask_torch", lambda: seen)
    with pytest.raises(UserError, match=r"captioner 'x': Ray reserved 1 GPU on .*, but torch sees 0: ") as error:
        require_assigned(0.5, "captioner 'x'")
    assert all(word in str(error.value) for word in words)


def test_a_process_needs_to_see_as_many_gpus_as_ray_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for reserved in (0, 0.5, 1):
        require_assigned(reserved, "x")
    with pytest.raises(UserError, match=r"Ray reserved 2 GPUs on .*, but torch sees 1"):
        require_assigned(2, "x")


def test_an_actor_without_a_gpu_of_its_own_sees_none_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the process of its engine, which inherits the variable."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    use_assigned(0.0, "x")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    use_assigned(0.5, "x")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
