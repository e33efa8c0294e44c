"""Training on one device, or on several side by side with Lightning Fabric."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Workers(Protocol):
    """Processes that train the same model on batches of their own.

    Attributes:
        count: how many there are.
        rank: which one this is, from 0; the first one writes and reports.
        device: where its model lives.
    """

    count: int
    rank: int
    device: torch.device

    def average(self, value: Tensor) -> Tensor:
        """The mean of a value over the workers; all have to ask."""
        ...

    def wait(self) -> None:
        """Until all are here."""
        ...


class Alone:
    """One process. Needs no Lightning."""

    count, rank = 1, 0

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def average(self, value: Tensor) -> Tensor:
        return value

    def wait(self) -> None:
        pass


class Team:
    """Several processes, one per device, started by Lightning Fabric: each runs the same command from its beginning up to here.

    Args:
        count: how many.
        device: "cpu", or "cuda" for as many GPUs.

    Raises:
        ValueError: when Lightning Fabric is not installed, or there are not so many devices.
    """

    def __init__(self, count: int, device: str = "cuda") -> None:
        try:
            from lightning_fabric import Fabric
        except ImportError as error:
            raise ValueError(f"training on {count} devices needs Lightning Fabric; install ppse[train], or train on one device") from error
        available = torch.cuda.device_count()
        if device == "cuda" and count > available:
            raise ValueError(f"training on {count} GPUs: there are {available} here; give as many as there are, or train on the processor")
        self._fabric: Any = Fabric(accelerator=device, devices=count, strategy="ddp")
        self._fabric.launch()
        self.count, self.rank, self.device = count, int(self._fabric.global_rank), self._fabric.device

    def average(self, value: Tensor) -> Tensor:
        average: Tensor = self._fabric.all_reduce(value, reduce_op="mean")
        return average

    def wait(self) -> None:
        self._fabric.barrier()


def workers(count: int = 1, device: str = "cpu") -> Workers:
    """One process on a device, or ``count`` of them on devices of that kind; see :class:`Team`."""
    return Alone(device) if count == 1 else Team(count, device)


def average_gradients(parameters: Iterable[nn.Parameter], team: Workers) -> None:
    """Make the gradients of all workers their mean, in one exchange."""
    if team.count == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    mean = team.average(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))
