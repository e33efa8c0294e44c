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
        scale: site → standard deviation of every coordinate, one for all chains, shaped like a position with one chain; or, if dense,
            the Cholesky factors of the covariances of the last event dim.
        state: where the chains stand.
    """

    step_size: Tensor
    scale: Position
    state: State


def warm_up(
    target: LogDensity, kernel: Callable[[Tensor, Position], Kernel], start: Position, steps: int, *, step_size: float | Tensor,
    target_acceptance: float, scale: Position | None = None, dense: bool = False,
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
        dense: learn the covariance of the last event dim of every site, such as the latent vector of a frame; ``scale`` then holds its
            Cholesky factors, (…, L, L), for :func:`whitened`: ``lambda e, f: whitened(target, f, lambda t: hmc(t, e))``.

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
    tuner = Tuner(target, steps, step_size, target_acceptance, scale, dense)
    state = kernel(tuner.step_size, tuner.scale).init(start)
    for _ in range(steps):
        state, info = kernel(tuner.step_size, tuner.scale).step(state)
        tuner.note(state.position, info)
    return Tuned(tuner.step_size, tuner.scale, state)


def tuned(
    kernel: Callable[[LogDensity, Tensor, Position], Kernel], steps: int, *, step_size: float | Tensor, target_acceptance: float,
    scale: Position | None = None, dense: bool = False,
) -> Callable[[LogDensity], Kernel]:
    """A kernel that does its :func:`warm_up` as it goes, in its first ``steps`` steps, for loops that make kernels anew, such as :func:`gibbs`.

    Returns density → kernel. What was learnt is kept from call to call, so each use needs one of its own. Until it is over, the
    draws do not follow the target.

    Args:
        kernel: density, step size and scale → kernel, e.g. ``lambda t, e, s: hmc(t, e, scale=s)``.
        steps, step_size, target_acceptance, scale, dense: as for :func:`warm_up`.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import Group, gibbs, hmc, log_density, sample
    >>> def model():
    ...     gain = pyro.sample("gain", dist.LogNormal(0.0, 1.0))
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(gain * z, 1.0), obs=torch.ones(3))
    >>> target = log_density(model, chains=2)
    >>> groups = [Group((s,), tuned(lambda t, e, s: hmc(t, e, scale=s), 50, step_size=0.3, target_acceptance=0.8)) for s in ("z", "gain")]
    >>> draws = sample(target, gibbs(target, *groups), target.init(), 10, warmup=50)
    """
    tuner: Tuner | None = None

    def make(target: LogDensity) -> Kernel:
        nonlocal tuner
        found = tuner = tuner or Tuner(target, steps, step_size, target_acceptance, scale, dense)

        def init(position: Position) -> State:
            return kernel(target, found.step_size, found.scale).init(position)

        def step(state: State) -> tuple[State, Info]:
            new, info = kernel(target, found.step_size, found.scale).step(state)
            if found.running:
                found.note(new.position, info)
            return new, info

        return Kernel(init, step)

    return make


class Tuner:
    """The adaptation of :func:`warm_up`, step by step, for loops of one's own: read step_size and scale, step, note what happened."""

    def __init__(
        self, target: LogDensity, steps: int, step_size: float | Tensor, target_acceptance: float, scale: Position | None = None, dense: bool = False,
    ) -> None:
        start = target.init()
        like = next(iter(start.values()))
        first = torch.as_tensor(step_size, dtype=like.dtype, device=like.device)
        if steps < 1 or not 0 < target_acceptance < 1 or not bool(((first > 0) & first.isfinite()).all()):
            raise ValueError(f"warm_up: {steps=}, {step_size=}, {target_acceptance=}; all must be positive, the last below 1")
        self._target, self._wanted, self._step = target, target_acceptance, 0
        self._first = first.expand(target.shape).mean(CHAINS_DIM, keepdim=True)
        self.step_size = self._first
        dims = {name: target.chains_dim(name) for name in start}
        self.scale = {
            name: torch.as_tensor((scale or {}).get(name, 1.0)).to(value).expand(value.shape).narrow(dims[name], 0, 1)
            for name, value in start.items()
        }
        self._guess, self._dims, self._dense = self.scale, dims, dense
        if dense:
            self.scale = {name: torch.diag_embed(self._rows(name, value)) for name, value in self.scale.items()}
        self._windows = _windows(steps)
        self._restart()

    @property
    def running(self) -> bool:
        """Whether the warm-up goes on; when it is over, nothing changes any more and nothing can be noted."""
        return self._step < len(self._windows)

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
                self._squares[name] = self._squares.get(name, 0.0) + self._product(name, before, value - self._mean[name])
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

    def _rows(self, name: str, value: Tensor) -> Tensor:
        """A value of a site with the coordinates of its block in the last dim."""
        return value if self._target.event_dim(name) else value.unsqueeze(-1)

    def _product(self, name: str, one: Tensor, other: Tensor) -> Tensor:
        return self._rows(name, one).unsqueeze(-1) * self._rows(name, other).unsqueeze(-2) if self._dense else one * other

    def _rescale(self) -> None:
        """The scale from what was seen in a window."""
        if self._dense:
            self.scale = {k: self._factor(k, v) for k, v in self._squares.items()}
        else:
            self._rescale_axes()

    def _factor(self, name: str, squares: Tensor) -> Tensor:
        """Cholesky factor of the covariance within chains, shrunk towards uncorrelated coordinates, by as many draws as there are of these."""
        chains = self._dims[name] - 2 + (self._target.event_dim(name) > 0)
        covariance = squares.mean(chains, keepdim=True) / max(self._count - 1, 1)
        size = covariance.shape[-1]
        weight = self._count * self._target.chains / (self._count * self._target.chains + size)
        # A coordinate that has not moved, as none does in a dead block, keeps the variance of the guess.
        guess = self._rows(name, self._guess[name]).square()
        seen = covariance.diagonal(dim1=-2, dim2=-1)
        variance = torch.where(seen > 0, seen, guess)
        shrunk = weight * covariance + torch.diag_embed(variance - weight * seen)
        factor, failed = torch.linalg.cholesky_ex(shrunk)
        return torch.where((failed == 0)[..., None, None], factor, torch.diag_embed(variance.sqrt()))

    def _rescale_axes(self) -> None:
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
