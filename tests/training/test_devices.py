"""A process computes on the device that it was given, and in 16 bit only on a GPU."""

import pytest
import torch

from lotlip_data.manifests.errors import UserError
from lotlip_data.training.devices import in_16_bit, local_device, on_device, pick_device


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that torch is said to see."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_a_process_without_a_gpu_of_its_own_computes_on_the_cpu_although_torch_sees_one(gpu):
    assert local_device() == torch.device("cuda")
    with on_device("cpu"):
        assert local_device() == pick_device(None) == torch.device("cpu")
        with on_device("cuda:3"):
            assert local_device() == torch.device("cuda", 3)
        assert local_device() == torch.device("cpu")
    assert local_device() == torch.device("cuda")


def test_a_device_that_cannot_be_used_is_named():
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("cuda:7", "warp"):
        with pytest.raises(UserError, match=f"device '{name}': cannot be used .*; use cpu"):
            pick_device(name)


def test_the_cpu_computes_in_32_bit_and_a_gpu_in_16():
    with in_16_bit(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert in_16_bit(torch.device("cuda")).fast_dtype == torch.float16
