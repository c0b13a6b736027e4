"""The device that the models of this process compute on, and computation in 16 bit on it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from lotlip_data.manifests.errors import UserError

_assigned: torch.device | None = None


@contextmanager
def on_device(device: torch.device | str) -> Iterator[None]:
    """Compute on `device` while this is entered, whatever GPUs torch sees.

    A worker of Ray sees the GPUs of its machine, also those that Ray gave to others.
    """
    global _assigned
    previous, _assigned = _assigned, torch.device(device)
    try:
        yield
    finally:
        _assigned = previous


def local_device() -> torch.device:
    """The device of this process: the one of `on_device`, or its current GPU, or the CPU where there is no GPU."""
    if _assigned is not None:
        return _assigned
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_device(name: str | None) -> torch.device:
    """The device of a command.

    Args:
        name: Such as `cpu` or `cuda:1`. Default: `local_device`.

    Raises:
        UserError: The device cannot be used.
    """
    if name is None:
        return local_device()
    try:
        return torch.empty(0, device=name).device
    except (AssertionError, RuntimeError) as error:  # AssertionError if torch is built without CUDA
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"device {name!r}: cannot be used ({reason}); use cpu") from error


def in_16_bit(device: torch.device) -> AbstractContextManager[None]:
    """Products in float16 while this is entered, if the device is a GPU."""
    return torch.autocast(device.type, torch.float16, enabled=device.type == "cuda")
