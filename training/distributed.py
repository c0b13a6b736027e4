"""Collective operations between the processes of a training. With a single process each one returns its input.

torchrun or Ray Train starts the processes. torch.distributed connects them: NCCL between GPUs, gloo otherwise.

Shapes: P processes, b samples of one process, B = P·b samples of the global batch.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Import this before a process group exists. Imported later, as transformers does, its function defaults would keep the
# group alive: the group's threads would survive `destroy_process_group`, and can abort a process that is exiting.
import torch.distributed.nn
from torch import Tensor

Result = TypeVar("Result")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others. Writing a checkpoint to slow storage must fit into it."""
BUCKET_ELEMENTS = 2**24
"""Gradient elements per all-reduce: 64 MiB in float32."""


@dataclass(frozen=True)
class ProcessGroup:
    """The rank of this process and the number of processes of the training."""

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def local_rows(self, count: int) -> slice:
        """This process's share of `count` rows, where `count` is a multiple of the number of processes."""
        rows_per_process = count // self.size
        return slice(self.rank * rows_per_process, (self.rank + 1) * rows_per_process)


SINGLE_PROCESS = ProcessGroup()


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Join the processes that torchrun started, for the duration of the context.

    A group that is initialized already is used as it is. Without torchrun's variables the group is this process alone.
    """
    if dist.is_initialized():  # Ray Train initialized it and will destroy it
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


def cores_per_process() -> int:
    """CPU cores of this machine for each of its training processes, at least 1."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def all_gather(rows: Tensor, group: ProcessGroup) -> Tensor:
    """Concatenate the rows of all processes in rank order: [b, …] → [B, …].

    It is differentiable: the gradient of each row is summed over the processes and returned to the row's own process.
    """
    if group.size == 1:
        return rows
    gathered: Tensor = _AllGather.apply(rows, group)
    return gathered


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(group.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # Each process gets the sums of its own rows only: an all-reduce would send the sums of all rows to all.
        gradient = gradients[0].contiguous()
        own_rows = torch.empty_like(gradient[ctx.group.local_rows(len(gradient))])
        dist.reduce_scatter_tensor(own_rows, gradient)
        return own_rows, None


def all_reduce_sum(values: Tensor, group: ProcessGroup) -> Tensor:
    """Sum `values` over the processes, in place, and return them."""
    if group.size > 1:
        dist.all_reduce(values)
    return values


def sum_gradients(parameters: Sequence[Tensor], group: ProcessGroup) -> None:
    """Sum the gradient of each parameter over the processes, in place.

    The buckets depend on the parameters alone, so a step always gives the same bits. DistributedDataParallel rebuilds
    its buckets during the training, so that a resumed training would differ in the last digit.
    """
    if group.size == 1:
        return
    bucket: list[Tensor] = []
    elements = 0
    for gradient in [parameter.grad for parameter in parameters if parameter.grad is not None]:
        if bucket and elements + gradient.numel() > BUCKET_ELEMENTS:
            _all_reduce_bucket(bucket)
            bucket, elements = [], 0
        bucket.append(gradient)
        elements += gradient.numel()
    if bucket:
        _all_reduce_bucket(bucket)


def _all_reduce_bucket(gradients: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def broadcast_from_first(tensors: Sequence[Tensor], group: ProcessGroup) -> None:
    """Overwrite `tensors` on every process with the values of the first process."""
    if group.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def run_on_first(function: Callable[[], Result], group: ProcessGroup) -> Result:
    """Call `function` on the first process alone, and return its result on every process.

    An exception that it raises is raised on every process. All processes have to call this.
    """
    if group.size == 1:
        return function()
    message: list[Any] = [None]
    error: Exception | None = None
    if group.is_first:
        try:
            message = [(function(), None)]
        except Exception as raised:  # noqa: BLE001 - raised again below, on this process and on all others
            error, message = raised, [(None, raised)]
    dist.broadcast_object_list(message, 0)
    result, remote_error = message[0]
    if error or remote_error:
        raise error or remote_error
    answer: Result = result
    return answer
