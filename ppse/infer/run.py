"""The MCMC loop: run a kernel, keep the draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .density import LogDensity, Position
from .kernels import Info, Kernel, State


class Draws(NamedTuple):
    """What a run kept.

    Attributes:
        values: site → constrained draws (draw, …, chain, …): a leading draw dim before the shape of the site.
        stats: the Info of every kept step, each field (draw, …, chain, frame).
        state: where the chains stand, to go on from.
    """

    values: dict[str, Tensor]
    stats: Info
    state: State


def sample(
    target: LogDensity, kernel: Kernel, start: Position | State, num_samples: int, *, warmup: int = 0, thin: int = 1,
    callback: Callable[[int, State, Info], None] | None = None,
) -> Draws:
    """Run a kernel and keep every ``thin``-th state after ``warmup`` steps. Random from the global generator.

    Args:
        target: density that the kernel was made for.
        start: a position (see :meth:`LogDensity.init`), or the state of an earlier run.
        num_samples: draws to keep, per chain.
        callback: called with (step, state, info) after every step.

    Raises:
        ValueError: when a number is not positive.
    """
    if num_samples < 1 or warmup < 0 or thin < 1:
        raise ValueError(f"sample: num_samples={num_samples}, warmup={warmup}, thin={thin}; expected >= 1, >= 0, >= 1")
    state = start if isinstance(start, State) else kernel.init(start)
    kept: list[Position] = []
    stats: list[Info] = []
    for step in range(warmup + num_samples * thin):
        state, info = kernel.step(state)
        if step >= warmup and (step - warmup + 1) % thin == 0:
            kept.append(target.constrain(state.position))
            stats.append(info)
        if callback:
            callback(step, state, info)
    values = {name: torch.stack([position[name] for position in kept]) for name in target.sites}
    return Draws(values, Info(*(torch.stack(field) for field in zip(*stats, strict=True))), state)
