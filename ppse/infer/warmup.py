"""Warm-up: step sizes and a diagonal mass that suit the target, found before the draws that count, then frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro.infer.mcmc.adaptation import WarmupAdapter
from pyro.ops.dual_averaging import DualAveraging
from torch import Tensor

from .density import CHAINS_DIM, LogDensity, Position
from .kernels import Info, Kernel, State

RANGE = 20.0
"""How far a step size may go from its first guess, in nats, where no acceptance ever holds it: of a block that is dead, or flat."""

SHRINKAGE = 5.0
"""Positions that the first guess of the scale counts for, as in Stan."""


class Tuned(NamedTuple):
    """What a warm-up found.

    Attributes:
        step_size: per block, (…, 1, frames): one for all chains.
        scale: site → standard deviation of every coordinate, one for all chains, shaped like a position with one chain.
        state: where the chains stand.
    """

    step_size: Tensor
    scale: Position
    state: State


def warm_up(
    target: LogDensity, kernel: Callable[[Tensor, Position], Kernel], start: Position, steps: int, *, step_size: float | Tensor,
    target_acceptance: float, scale: Position | None = None,
) -> Tuned:
    """Run a kernel and tune the step size of every block and the scale of every coordinate on the way. Random.

    The step size follows dual averaging towards the wanted acceptance, pooled over the chains, block by block; it ends somewhat
    below it, accepting more. The scale (the root of the inverse of a diagonal mass) is the spread of the positions within
    chains (chains in different modes would make it too wide for any of them) in windows that double in length, shrunk a little
    towards the first guess. In every block it keeps the geometric mean of the first guess: the size that all coordinates have
    in common is in the step size. The first 15 % of the steps (75 at most) only look for the typical set, the last 10 %
    (50 at most) only settle the step size. Draws of the warm-up do not follow the target and are not kept.

    Args:
        target: density that the kernel is made for.
        kernel: step size and scale → kernel, e.g. ``lambda e, s: hmc(target, e, scale=s)``.
        start: unconstrained position of the chains.
        steps: how many, in all; some hundred. Below 20 only the step size is tuned.
        step_size: first guess, a number or a tensor that broadcasts against the blocks.
        target_acceptance: see :data:`TARGET_ACCEPTANCE`; HMC on awkward targets is safer at 0.8. ``langevin`` accepts always
            and cannot be tuned: give it the scale, and a tenth or so of the step size, that ``mala`` gets here.
        scale: first guess of the standard deviations by site, e.g. those of an encoder; 1 where none is given.

    Raises:
        ValueError: when a number is not positive, or the acceptance not below 1.

    References:
        Hoffman & Gelman (2014), The No-U-Turn sampler, for dual averaging; Stan reference manual, HMC algorithm parameters, for the windows.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import hmc, log_density, sample
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 100.0])).to_event(1))
    >>> target = log_density(model, chains=4)
    >>> tuned = warm_up(target, lambda e, s: hmc(target, e, scale=s), target.init(), 200, step_size=0.1, target_acceptance=0.8)
    >>> tuple(tuned.step_size.shape), tuple(tuned.scale["z"].shape)
    ((1, 3), (1, 3, 2))
    >>> draws = sample(target, hmc(target, tuned.step_size, scale=tuned.scale), tuned.state, 10)
    """
    tuner = Tuner(target, steps, step_size, target_acceptance, scale)
    state = kernel(tuner.step_size, tuner.scale).init(start)
    for _ in range(steps):
        state, info = kernel(tuner.step_size, tuner.scale).step(state)
        tuner.note(state.position, info)
    return Tuned(tuner.step_size, tuner.scale, state)


class Tuner:
    """The adaptation of :func:`warm_up`, step by step, for loops of one's own: read step_size and scale, step, note what happened."""

    def __init__(
        self, target: LogDensity, steps: int, step_size: float | Tensor, target_acceptance: float, scale: Position | None = None,
    ) -> None:
        start = target.init()
        like = next(iter(start.values()))
        first = torch.as_tensor(step_size, dtype=like.dtype, device=like.device)
        if steps < 1 or not 0 < target_acceptance < 1 or not bool(((first > 0) & first.isfinite()).all()):
            raise ValueError(f"warm_up: {steps=}, {step_size=}, {target_acceptance=}; all must be positive, the last below 1")
        self._target, self._wanted, self._step = target, target_acceptance, 0
        self._first = first.expand(target.shape).mean(CHAINS_DIM, keepdim=True)
        self.step_size = self._first
        dims = {name: CHAINS_DIM - target.event_dim(name) for name in start}
        self.scale = {
            name: torch.as_tensor((scale or {}).get(name, 1.0)).to(value).expand(value.shape).narrow(dims[name], 0, 1)
            for name, value in start.items()
        }
        self._guess, self._dims = self.scale, dims
        self._windows = _windows(steps)
        self._restart()

    def note(self, position: Position, info: Info) -> None:
        """Take in what one step of the kernel led to."""
        window = self._windows[self._step]
        self._averaging.step(self._wanted - info.acceptance.mean(CHAINS_DIM, keepdim=True))
        self.step_size = self._limited(self._averaging.get_state()[0])
        self._step += 1
        last = self._step == len(self._windows)
        if window:
            self._count += 1
            for name, value in position.items():
                before = value - self._mean.get(name, 0.0)
                self._mean[name] = self._mean.get(name, 0.0) + before / self._count
                self._squares[name] = self._squares.get(name, 0.0) + before * (value - self._mean[name])
            if not last and self._windows[self._step] != window:
                self._rescale()
                self._restart()
        if last:
            self.step_size = self._limited(self._averaging.get_state()[1])

    def _restart(self) -> None:
        """Forget what was seen at another scale."""
        self._count = 0
        self._mean: Position = {}
        self._squares: Position = {}
        self._averaging = DualAveraging((10 * self.step_size).log())

    def _limited(self, log_step: Tensor) -> Tensor:
        return log_step.clamp(self._first.log() - RANGE, self._first.log() + RANGE).exp()

    def _rescale(self) -> None:
        """The scale from the positions of a window, in logarithms, so that a spread of 1 : 1000 is learnt at once."""
        within = {k: v.mean(self._dims[k], keepdim=True) / max(self._count - 1, 1) / self._guess[k].square() for k, v in self._squares.items()}
        # A coordinate that has not moved, as none does in a dead block, says nothing.
        nats = {k: torch.where(v > 0, 0.5 * v.log(), 0.0) for k, v in within.items()}
        ones = {k: torch.ones_like(v) for k, v in nats.items()}
        common = (self._target.block_sum(nats) / self._target.block_sum(ones)).narrow(CHAINS_DIM, 0, 1)
        weight = self._count * self._target.chains / (self._count * self._target.chains + SHRINKAGE)
        self.scale = {k: self._guess[k] * (weight * (v - self._target.spread(common, k))).exp() for k, v in nats.items()}


def _windows(steps: int) -> list[int]:
    """For every step the number of the window in which its position tells the scale; 0 for those before and after all windows."""
    schedule = WarmupAdapter(adapt_step_size=True)
    schedule.configure(steps, mass_matrix_shape={})
    number = [0] * steps
    for i, (first, last) in enumerate(schedule.adaptation_schedule[1:-1], start=1):
        number[first : last + 1] = [i] * (last + 1 - first)
    return number
