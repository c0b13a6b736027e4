"""The processes of a training and what they tell each other. Alone, every function here hands back what it got.

torchrun and Ray Train start the processes; torch.distributed carries what they say (NCCL between GPUs, gloo else).
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Before there is a group: imported later, as transformers does, it keeps the group in its functions' defaults for good.
# The group's threads then outlive `destroy_process_group`, and may abort a process that ends.
import torch.distributed.nn
from torch import Tensor

Answer = TypeVar("Answer")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: as long as a checkpoint to slow storage may take."""
BUCKET = 2**24
"""Elements summed over the processes in one go: 64 MiB in float32."""


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the training."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Which of `count` rows, a multiple of the processes, are this one's."""
        here = count // self.size
        return slice(self.rank * here, (self.rank + 1) * here)


ALONE = ProcessGroup()


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """The processes that torchrun started, joined for as long as it lasts; those that are joined already; or one."""
    if dist.is_initialized():  # Ray Train has done it, and will undo it
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ProcessGroup()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def device() -> torch.device:
    """This process's own."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def gather(rows: Tensor, of: ProcessGroup) -> Tensor:
    """The rows of all processes in order, [b, …] to [b × size, …]. Their gradient goes back to where they came from."""
    if of.size == 1:
        return rows
    everywhere: Tensor = _Gather.apply(rows, of)
    return everywhere


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, of: ProcessGroup) -> Tensor:
        ctx.of = of
        parts = [torch.empty_like(rows) for _ in range(of.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        slope = slopes[0].contiguous()
        dist.all_reduce(slope)
        return slope[ctx.of.share(len(slope))], None


def sum_over(values: Tensor, of: ProcessGroup) -> Tensor:
    """The sum of every process's `values`, in place."""
    if of.size > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Sequence[Tensor], of: ProcessGroup) -> None:
    """Add up every parameter's gradient over the processes.

    Always in the same pieces, so that the same step gives the same bits: DistributedDataParallel cuts its buckets
    anew as it runs, and a resumed training would differ in the last digit.
    """
    if of.size == 1:
        return
    piece: list[Tensor] = []
    for parameter in [*parameters, None]:
        if piece and (parameter is None or sum(one.numel() for one in piece) + parameter.numel() > BUCKET):
            flat = torch.cat([gradient.flatten() for gradient in piece])
            dist.all_reduce(flat)
            for gradient, summed in zip(piece, flat.split([one.numel() for one in piece]), strict=True):
                gradient.copy_(summed.view_as(gradient))
            piece = []
        if parameter is not None and parameter.grad is not None:
            piece.append(parameter.grad)


def same_everywhere(tensors: Sequence[Tensor], of: ProcessGroup) -> None:
    """Give every process the first one's values."""
    if of.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def first_decides(work: Callable[[], Answer], of: ProcessGroup) -> Answer:
    """What `work` returns to the first process, on all; where it raises there, all raise that."""
    if of.size == 1:
        return work()
    told: list[Any] = [None]
    error: Exception | None = None
    if of.is_first:
        try:
            told = [(work(), None)]
        except Exception as raised:  # noqa: BLE001 - it is raised again below, here and on all others
            error, told = raised, [(None, raised)]
    dist.broadcast_object_list(told, 0)
    answer, raised_there = told[0]
    if error or raised_there:
        raise error or raised_there
    found: Answer = answer
    return found
