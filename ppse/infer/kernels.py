"""Markov kernels, each a pair ``init(position) -> State`` and ``step(State) -> (State, Info)``.

A kernel moves all blocks of all chains at once and accepts each block of each chain on its own. State holds
what the next step needs; Info is for people and diagnostics. A step size is one number, or a tensor that
broadcasts against the blocks (``target.shape``). ``scale`` (site → tensor that broadcasts against its position) is a
guess of the posterior standard deviations; the kernel then moves as if the target had been whitened by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .density import LogDensity, Position

StepSize = float | Tensor


class State(NamedTuple):
    """Where the chains are. ``log_density`` per block and ``gradient`` are those at ``position``; None where a kernel needs none.

    ``memory`` is what a kernel keeps beyond them, such as the state of hotter replicas, or a momentum in the place of a position; None for most.
    """

    position: Position
    log_density: Tensor | None
    gradient: Position | None
    memory: State | None = None


class Info(NamedTuple):
    """What happened in a step, per block: acceptance probability, decision, log density reached, and numerical failure.

    ``energy``, of kernels with a momentum, is the Hamiltonian of the state that the step ended in: its kinetic energy minus its
    log density. From its changes ArviZ makes E-BFMI (Betancourt 2016). ``swap``, of parallel tempering, is the probability with
    which neighbouring temperatures exchanged their places, on average over those that were asked. ``step_size`` is the one used, of
    kernels that have one. ``groups``, of Gibbs sweeps, has the infos of the groups by their sites, each in blocks of its own.
    All four None for other kernels.
    """

    acceptance: Tensor
    accepted: Tensor
    log_density: Tensor
    divergent: Tensor
    energy: Tensor | None = None
    swap: Tensor | None = None
    step_size: Tensor | None = None
    groups: dict[str, Info] | None = None


def combined(infos: Sequence[Info], how: Callable[[list[Tensor]], Tensor]) -> Info:
    """One info from many, field by field, e.g. by ``torch.stack``, and group by group; what a kernel does not report stays None."""
    *columns, of_groups = zip(*infos, strict=True)
    fields = (None if column[0] is None else how(list(column)) for column in columns)
    groups = of_groups[0] and {name: combined([info[name] for info in of_groups], how) for name in of_groups[0]}
    return Info(*fields)._replace(groups=groups)  # type: ignore[arg-type]  # only those may be None that may be None in a step


class Kernel(NamedTuple):
    """``step`` leaves the target invariant (:func:`langevin`, :func:`kinetic_langevin`: up to their steps). Random from the global generator."""

    init: Callable[[Position], State]
    step: Callable[[State], tuple[State, Info]]


def metropolis(target: LogDensity, step_size: StepSize = 0.1, scale: Position | None = None) -> Kernel:
    """Random-walk Metropolis: z' ~ N(z, step_size^2 I), accepted with min(1, p(z') / p(z)) per block.

    References:
        Metropolis et al. (1953). As the E-step of the Monte Carlo EM of Leglaive et al. (2018): step_size 0.1.
    """

    def init(position: Position) -> State:
        return _without_gradient(target, position)

    def step(state: State) -> tuple[State, Info]:
        assert state.log_density is not None
        width = _per_site(target, step_size, scale)
        proposal = {k: v + width[k] * torch.randn_like(v) for k, v in state.position.items()}
        new = _without_gradient(target, proposal)
        assert new.log_density is not None
        return _decide(target, state, new, new.log_density - state.log_density, step_size)

    return Kernel(init, step)


def langevin(target: LogDensity, step_size: StepSize = 0.01, scale: Position | None = None, *, tamed: bool = False) -> Kernel:
    """Unadjusted Langevin: z' = z + (step_size / 2) grad log p(z) + sqrt(step_size) xi, always accepted.

    Biased: the law it leaves invariant is wider than the target by order ``step_size``. One gradient a step.
    A block whose gradient is not finite stays where it is and is reported as divergent. Info reports the
    log density of the position that the step started from.

    Args:
        tamed: whether a drift d becomes d / (1 + |d| / sqrt(step_size)), coordinate by coordinate, less than the deviation of the noise.
            Without, a step above 4 over the largest curvature goes astray; with it, no step does. What is steep then comes out too wide.

    References:
        Sadeghi & Serizel (2024), Posterior sampling algorithms for unsupervised speech enhancement with
        recurrent variational autoencoder (as an E-step); Brosse, Durmus, Moulines & Sabanis (2019), The tamed unadjusted
        Langevin algorithm.
    """

    def init(position: Position) -> State:
        return State(position, None, None)

    def step(state: State) -> tuple[State, Info]:
        log_density, gradient = target.value_and_grad(state.position)
        here = _detached(state.position)
        deviation = _per_site(target, _root(step_size), scale)
        drift = {k: 0.5 * e * e * gradient[k] for k, e in deviation.items()}
        if tamed:
            drift = {k: d / (1 + d.abs() / deviation[k]) for k, d in drift.items()}
        proposal = {k: v + drift[k] + deviation[k] * torch.randn_like(v) for k, v in here.items()}
        info = _unadjusted(target, proposal, log_density, step_size)
        return State(_choose(target, info.accepted, proposal, here), None, None), info

    return Kernel(init, step)


def kinetic_langevin(
    target: LogDensity, step_size: StepSize = 0.1, persistence: float = 0.8, scale: Position | None = None, *, tamed: bool = False,
) -> Kernel:
    """Unadjusted Langevin with a momentum that lasts: half a kick, p' = a p + sqrt(1 - a^2) xi, half a kick, z' = z + step_size p'. Never rejects.

    A kick is step_size times the gradient. Where the momentum is forgotten at every step, a = 0, this is :func:`langevin` of step
    step_size^2; the longer it lasts, the farther go the chains for the same number of gradients, one a step. The law that it leaves
    invariant is too wide by order step_size^2, as that of :func:`langevin`, and does not depend on a for normal targets. ``State.memory``
    holds the momentum, in the units of ``scale``. A block whose gradient is not finite stays where it is, is reported as divergent and
    loses its momentum, and so do all where a Gibbs sweep or a window starts the kernel anew. Info reports the log density of the position
    that the step started from.

    Args:
        persistence: a, from 0 to below 1.
        tamed: whether half a kick k becomes k / (1 + |k|), coordinate by coordinate, less than the deviation of the momentum.

    References:
        Horowitz (1991), A generalized guided Monte Carlo algorithm; Bussi & Parrinello (2007), Accurate sampling using Langevin dynamics
        (the splitting).

    Raises:
        ValueError: when the persistence is not from 0 to below 1.
    """
    if not 0 <= persistence < 1:
        raise ValueError(f"kinetic_langevin: persistence={persistence}; expected 0 <= persistence < 1")
    renewed = (1 - persistence**2) ** 0.5

    def init(position: Position) -> State:
        return State(position, None, None, State({}, None, None))  # no momentum yet: the first step draws one

    def step(state: State) -> tuple[State, Info]:
        log_density, gradient = target.value_and_grad(state.position)
        here = _detached(state.position)
        size = _per_site(target, step_size, scale)
        kick = {k: 0.5 * e * gradient[k] for k, e in size.items()}
        if tamed:
            kick = {k: half / (1 + half.abs()) for k, half in kick.items()}
        momentum = {k: torch.randn_like(v) for k, v in here.items()}
        if state.memory is not None and state.memory.position:
            momentum = {k: persistence * (state.memory.position[k] + kick[k]) + renewed * xi for k, xi in momentum.items()}
        momentum = {k: p + kick[k] for k, p in momentum.items()}
        proposal = {k: v + size[k] * momentum[k] for k, v in here.items()}
        info = _unadjusted(target, proposal, log_density, step_size)
        kept = _choose(target, info.accepted, momentum, {k: torch.zeros_like(p) for k, p in momentum.items()})
        return State(_choose(target, info.accepted, proposal, here), None, None, State(kept, None, None)), info

    return Kernel(init, step)


def mala(target: LogDensity, step_size: StepSize = 0.01, scale: Position | None = None) -> Kernel:
    """Metropolis-adjusted Langevin: the proposal of :func:`langevin`, accepted with p(z') q(z | z') / (p(z) q(z' | z)) per block.

    References:
        Roberts & Tweedie (1996), Exponential convergence of Langevin distributions and their discrete approximations.
    """

    def init(position: Position) -> State:
        return _with_gradient(target, position)

    def step(state: State) -> tuple[State, Info]:
        assert state.log_density is not None and state.gradient is not None
        eta = {k: e * e for k, e in _per_site(target, _root(step_size), scale).items()}
        noise = {k: torch.randn_like(v) for k, v in state.position.items()}
        proposal = {
            k: v + 0.5 * eta[k] * state.gradient[k] + _root(eta[k]) * noise[k] for k, v in state.position.items()
        }
        new = _with_gradient(target, proposal)
        assert new.log_density is not None and new.gradient is not None
        # log q(z | z') - log q(z' | z), per coordinate; the normalising constants cancel.
        way_back = {
            k: 0.5 * noise[k].square() - 0.5 * (v - proposal[k] - 0.5 * eta[k] * new.gradient[k]).square() / eta[k]
            for k, v in state.position.items()
        }
        log_ratio = new.log_density - state.log_density + target.block_sum(way_back)
        return _decide(target, state, new, log_ratio, step_size)

    return Kernel(init, step)


def hmc(target: LogDensity, step_size: StepSize = 0.05, steps: int = 10, scale: Position | None = None) -> Kernel:
    """Hamiltonian Monte Carlo: ``steps`` leapfrog steps of size ``step_size`` with unit mass, accepted per block.

    The number of steps is drawn uniformly from 1 to ``steps`` at every move, so that no orbit of the target
    can trap the chains. Cost: that many gradients.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics.
    """
    if steps < 1:
        raise ValueError(f"hmc: steps={steps}; at least one leapfrog step is needed")

    def init(position: Position) -> State:
        return _with_gradient(target, position)

    def step(state: State) -> tuple[State, Info]:
        assert state.log_density is not None and state.gradient is not None
        eps = _per_site(target, step_size, scale)
        start = {k: torch.randn_like(v) for k, v in state.position.items()}
        momentum, now = start, state
        for _ in range(int(torch.randint(1, steps + 1, ()))):
            assert now.gradient is not None
            half = {k: p + 0.5 * eps[k] * now.gradient[k] for k, p in momentum.items()}
            now = _with_gradient(target, {k: v + eps[k] * half[k] for k, v in now.position.items()})
            assert now.gradient is not None
            momentum = {k: p + 0.5 * eps[k] * now.gradient[k] for k, p in half.items()}
        assert now.log_density is not None
        before, after = (target.block_sum({k: 0.5 * p.square() for k, p in at.items()}) for at in (start, momentum))
        reached, info = _decide(target, state, now, now.log_density - state.log_density + before - after, step_size)
        return reached, info._replace(energy=torch.where(info.accepted, after, before) - info.log_density)

    return Kernel(init, step)


def _without_gradient(target: LogDensity, position: Position) -> State:
    with torch.no_grad():
        return State(_detached(position), _dead_if_nan(target(position)), None)


def _with_gradient(target: LogDensity, position: Position) -> State:
    log_density, gradient = target.value_and_grad(position)
    # A dead point has no direction: without this one NaN would spread through the arithmetic of its block.
    gradient = {k: torch.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for k, g in gradient.items()}
    return State(_detached(position), _dead_if_nan(log_density), gradient)


def _unadjusted(target: LogDensity, proposal: Position, log_density: Tensor, step_size: StepSize) -> Info:
    """Of a kernel that accepts every step: all is accepted that is finite, at the log density of where the step started from."""
    finite = target.block_sum(proposal).isfinite() & log_density.isfinite()
    return Info(finite.to(log_density.dtype), finite, log_density, ~finite, step_size=_in_every_block(log_density, step_size))


def _decide(target: LogDensity, old: State, new: State, log_ratio: Tensor, step_size: StepSize) -> tuple[State, Info]:
    """Accept or reject every block. A proposal whose ratio is NaN is rejected; from a dead point any live one is accepted."""
    assert old.log_density is not None and new.log_density is not None
    escaped = old.log_density.isneginf() & new.log_density.isfinite()
    log_ratio = torch.where(escaped, torch.zeros_like(log_ratio), log_ratio.nan_to_num(nan=-torch.inf, posinf=0.0, neginf=-torch.inf))
    acceptance = log_ratio.clamp_max(0.0).exp()
    accepted = torch.rand_like(log_ratio).log() < log_ratio
    gradient = None
    if old.gradient is not None and new.gradient is not None:
        gradient = _choose(target, accepted, new.gradient, old.gradient)
    log_density = torch.where(accepted, new.log_density, old.log_density)
    state = State(_choose(target, accepted, new.position, old.position), log_density, gradient)
    return state, Info(acceptance, accepted, log_density, log_ratio < -1000.0, step_size=_in_every_block(log_density, step_size))


def _in_every_block(log_density: Tensor, step_size: StepSize) -> Tensor:
    return torch.as_tensor(step_size).to(log_density).expand(log_density.shape)


def _choose(target: LogDensity, where: Tensor, new: Position, old: Position) -> Position:
    return {k: torch.where(target.spread(where, k), new[k], old[k]) for k in old}


def _per_site(target: LogDensity, step_size: StepSize, scale: Position | None) -> dict[str, StepSize]:
    """The step of every coordinate: that of its block, times its scale where one is given."""
    if not isinstance(step_size, Tensor) or step_size.dim() == 0:
        steps: dict[str, StepSize] = dict.fromkeys(target.sites, step_size)
    else:
        full = step_size.expand(target.shape)
        steps = {name: target.spread(full, name) for name in target.sites}
    return steps if scale is None else {name: step * scale.get(name, 1.0) for name, step in steps.items()}


def _root(value: StepSize) -> StepSize:
    return value.sqrt() if isinstance(value, Tensor) else value**0.5


def _dead_if_nan(log_density: Tensor) -> Tensor:
    return log_density.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)


def _detached(position: Position) -> Position:
    return {k: v.detach() for k, v in position.items()}
