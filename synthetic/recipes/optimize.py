"""The training loop shared by every stage: AdamW, warm-up, linear decay to zero, clipped gradients."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage learns."""

    steps: int
    batch: int
    rate: float
    warm_up: int
    betas: tuple[float, float] = (0.9, 0.98)


def minimise(
    name: str,
    loss_of: Callable[[Tensor], Tensor],
    batches: Iterable[Tensor],
    parameters: Iterable[nn.Parameter],
    schedule: Schedule,
) -> float:
    """Take one step per batch of indices, `schedule.steps` in all; returns the mean loss of the last twentieth."""
    parameters = list(parameters)
    optimiser = torch.optim.AdamW(parameters, lr=schedule.rate, betas=schedule.betas, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / schedule.warm_up, (schedule.steps - step) / (schedule.steps - schedule.warm_up)),
    )
    recent: list[float] = []
    every = max(1, schedule.steps // 20)
    began = time.monotonic()
    for step, index in zip(range(1, schedule.steps + 1), batches, strict=False):
        loss = loss_of(index)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        scheduler.step()
        recent.append(loss.item())
        if step % every == 0:
            mean = sum(recent[-every:]) / every
            print(f"{name}: step {step}/{schedule.steps} loss {mean:.4f} {time.monotonic() - began:.0f} s", flush=True)
    return sum(recent[-every:]) / every


def shuffled(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices below `count`, a new order every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // batch * batch].split(batch)


def shuffled_by_length(lengths: Tensor, batch: int, seed: int) -> Iterator[Tensor]:
    """As `shuffled`, but sequences of like length share a batch, so little is spent on padding."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for pool in torch.randperm(len(lengths), generator=generator).split(50 * batch):
            groups = [group for group in pool[lengths[pool].argsort()].split(batch) if len(group) == batch]
            for position in torch.randperm(len(groups), generator=generator).tolist():
                yield groups[position]
