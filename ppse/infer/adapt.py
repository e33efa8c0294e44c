"""Step sizes alone, by a search that can follow a target that moves, as it does in EM.

For a target that stays as it is, :func:`ppse.infer.warm_up` finds a scale for every coordinate as well, and is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .density import Position
from .kernels import Kernel, State

TARGET_ACCEPTANCE = {"metropolis": 0.234, "mala": 0.574, "hmc": 0.651}
"""Acceptance rates that are optimal for many independent dimensions (Roberts & Rosenthal 2001; Beskos et al. 2013)."""


class StepSizeAdapter:
    """Robbins-Monro search for the step size of every block at which a kernel accepts as often as wanted.

    Its moves die out slowly and its average forgets, so that it follows parameters that M-steps change; the dual averaging of
    :func:`ppse.infer.warm_up` settles sooner, on one target.

    Call it with the acceptance of each step; read :attr:`step_size` (pooled over chains, smoothed) when
    done. log(step_size) moves by ``rate * t^-0.6 * (acceptance - target)``.

    Args:
        step_size: first guess, a number or a tensor that broadcasts against the blocks.
        target: wanted acceptance.
        rate: length of the first move, in nats.
    """

    def __init__(self, step_size: float | Tensor, target: float, rate: float = 2.0) -> None:
        self._log = torch.as_tensor(step_size).log()
        self._mean = self._log
        self._target, self._rate, self._count = target, rate, 0

    def __call__(self, acceptance: Tensor) -> Tensor:
        """Note the acceptance (…, chains, frames) of one step; returns the step size for the next one, (…, 1, frames)."""
        self._count += 1
        pooled = acceptance.mean(-2, keepdim=True)
        self._log = self._log + self._rate * self._count**-0.6 * (pooled - self._target)
        weight = min(1.0, 4.0 / self._count)
        self._mean = (1 - weight) * self._mean + weight * self._log
        return self._log.exp()

    @property
    def step_size(self) -> Tensor:
        """The smoothed step size per block: what to freeze after warm-up."""
        return self._mean.exp()


def adapt_step_size(
    kernel: Callable[[float | Tensor], Kernel], position: Position, steps: int, step_size: float, target_acceptance: float,
) -> tuple[Tensor, State]:
    """Run warm-up steps and tune the step size of every block on the way; :func:`ppse.infer.warm_up` tunes the scale, too.

    Args:
        kernel: step size → kernel, e.g. ``lambda e: mala(target, e)``.
        position: where to start.
        steps: how many warm-up steps.
        step_size: first guess.
        target_acceptance: see :data:`TARGET_ACCEPTANCE`.

    Returns:
        step size per block, to be kept from now on, and the state reached. Draws of the warm-up do not
        follow the target and are not kept.
    """
    if steps < 1 or not 0 < target_acceptance < 1 or not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"adapt_step_size: {steps=}, {step_size=}, {target_acceptance=}; all must be positive, the last below 1")
    adapter = StepSizeAdapter(step_size, target_acceptance)
    current: float | Tensor = step_size
    state = kernel(current).init(position)
    for _ in range(steps):
        state, info = kernel(current).step(state)
        current = adapter(info.acceptance)
    return adapter.step_size, state
