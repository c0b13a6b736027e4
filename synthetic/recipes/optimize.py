"""The training loop of every recipe: AdamW, warm-up, linear decay to zero, clipped gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of one training stage."""

    steps: int
    batch: int
    rate: float
    """Learning rate after the warm-up."""
    warm_up: int
    """Steps of linear warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)


def minimise(
    name: str,
    loss_of: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    parameters: Iterable[nn.Parameter],
    schedule: Schedule,
) -> float:
    """Minimise a loss with AdamW.

    Args:
        name: Name of the stage in the printed progress.
        loss_of: The loss of a batch, given the indices of its samples.
        batches: Indices of the samples, one tensor per step; at least `schedule.steps` of them.
        parameters: The parameters to train.
        schedule: Number of steps and learning rate.

    Returns:
        The mean loss of the last twentieth of the steps.
    """
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=schedule.rate, betas=schedule.betas, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / schedule.warm_up, (schedule.steps - step) / (schedule.steps - schedule.warm_up)),
    )
    recent: list[float] = []
    interval = max(1, schedule.steps // 20)
    started = time.monotonic()
    for step, index in zip(range(1, schedule.steps + 1), batches, strict=False):
        loss = loss_of(index)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        scheduler.step()
        recent.append(loss.item())
        if step % interval == 0:
            mean = sum(recent[-interval:]) / interval
            seconds = time.monotonic() - started
            print(f"{name}: step {step}/{schedule.steps} loss {mean:.4f} {seconds:.0f} s", flush=True)
    return sum(recent[-interval:]) / interval


def shuffled(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, in a new order in every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // batch * batch].split(batch)


def shuffled_by_length(lengths: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """Like `shuffled`, but sequences of similar length share a batch, which saves padding."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for pool in torch.randperm(len(lengths), generator=generator).split(50 * batch):
            groups = [group for group in pool[lengths[pool].argsort()].split(batch) if len(group) == batch]
            for position in torch.randperm(len(groups), generator=generator).tolist():
                yield groups[position]
