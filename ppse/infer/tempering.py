"""Ways between modes: replicas of the chains at flatter versions of the target, and a start that cools down."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .density import CHAINS_DIM, LogDensity, Position
from .kernels import Info, Kernel, State, _choose, combined


def replicas(target: LogDensity, powers: Sequence[float], joint: bool = False) -> LogDensity:
    """Every chain of a target at several powers, side by side in the dim of chains: what :func:`parallel_tempering` moves.

    As a rule the likelihood alone is tempered: the hot end is the prior, where chains move freely, and a decoder is
    asked nowhere that it was not trained for. Modes that the prior itself has need ``joint=True``. Random: one trace of the model.

    Args:
        target: density of the chains to be kept; its own temperature and likelihood power are multiplied.
        powers: decreasing from 1, e.g. ``(1, 0.5, 0.25, 0.1)``. All chains at the first power come first.
        joint: flatten prior and likelihood alike, to p(z, x)^power.

    Raises:
        ValueError: when the powers do not decrease from 1, or the target is tempered chain by chain already, or no density of :func:`log_density`.
    """
    if len(powers) < 2 or powers[0] != 1 or any(low >= high for high, low in zip(powers, powers[1:], strict=False)) or not powers[-1] > 0:
        raise ValueError(f"replicas: powers={powers}; expected at least two, decreasing from 1 to above 0, e.g. (1, 0.5, 0.25)")
    if isinstance(target.temperature, Tensor) or isinstance(target.likelihood_power, Tensor):
        raise ValueError("replicas: the temperature or likelihood power of the target is a tensor; expected numbers, the same for all its chains")
    start = next(iter(target.init().values()))
    power = torch.tensor(powers, dtype=start.dtype, device=start.device).repeat_interleave(target.chains).unsqueeze(-1)
    hot = target.replicated(len(powers))
    if joint:
        return hot.tempered(target.temperature / power, target.likelihood_power)
    return hot.tempered(target.temperature, target.likelihood_power * power)


def parallel_tempering(target: LogDensity, hot: LogDensity, kernel: Kernel) -> Kernel:
    """Parallel tempering: replicas at flatter targets cross between modes and hand what they find down to the chains that are kept.

    A step first offers neighbouring powers, of half of all pairs, to swap their positions, each block on its own: blocks
    are independent given what is fixed, so that every block has its own ladder. With log densities l_i and positions z_i the
    swap of i and j is accepted with exp(l_i(z_j) + l_j(z_i) - l_i(z_i) - l_j(z_j)). Then the kernel moves all replicas at
    once. Cost: its own for all replicas, and one more evaluation of them. Info is that of the kept chains, with the rates of
    swaps; neighbours should swap in 20 to 60 % of the steps, or be closer.

    Args:
        target: density of the chains that are kept.
        hot: ``replicas(target, powers)``.
        kernel: made for ``hot``, e.g. ``hmc(hot, 0.1)``, or ``hmc(hot, 0.1 * hot.likelihood_power**-0.5)`` with longer
            steps for flatter targets. It must keep the log density in its state, as all but ``langevin`` do.

    Raises:
        ValueError: when ``hot`` does not hold whole replicas of the target.

    References:
        Geyer (1991), Markov chain Monte Carlo maximum likelihood; Earl & Deem (2005), Parallel tempering: theory,
        applications, and new perspectives.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import hmc, log_density, sample
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 2.0))
    ...         pyro.sample("x", dist.Normal(z.abs(), 0.2), obs=torch.full((3,), 2.0))
    >>> target = log_density(model, chains=2)
    >>> hot = replicas(target, (1, 0.3, 0.1, 0.03))
    >>> kernel = parallel_tempering(target, hot, hmc(hot, 0.1 * hot.likelihood_power**-0.5))
    >>> tuple(sample(target, kernel, target.init(), 10).values["z"].shape)
    (10, 2, 3)
    """
    chains, rungs = target.chains, hot.chains // target.chains
    if hot.chains != rungs * chains or rungs < 2 or hot.block != target.block or hot.sites != target.sites:
        raise ValueError(f"parallel_tempering: {hot.chains} chains in 'hot' for {chains} in the target; make it by replicas(target, powers)")
    index = torch.arange(hot.chains)
    level = index // chains
    # Even pairs are (0, 1), (2, 3), …, odd ones (1, 2), (3, 4), …; who has no partner is its own.
    pairs = [torch.where((level - first) % 2 == 0, index + chains, index - chains) for first in (0, 1)]
    pairs = [torch.where((other >= 0) & (other < hot.chains), other, index) for other in pairs][: rungs - 1]

    def along(values: Position, at: Tensor) -> Position:
        return {k: v.index_select(hot.chains_dim(k), at.to(v.device)) for k, v in values.items()}

    def kept(values: Tensor) -> Tensor:
        return values.narrow(CHAINS_DIM, 0, chains)

    def outer(inner: State) -> State:
        assert inner.log_density is not None
        cold = index[:chains]
        gradient = None if inner.gradient is None else along(inner.gradient, cold)
        return State(along(inner.position, cold), kept(inner.log_density), gradient, inner)

    def init(position: Position) -> State:
        inner = kernel.init(along(position, index % chains))
        if inner.log_density is None or inner.memory is not None:
            raise ValueError("parallel_tempering: expected a kernel that keeps the log density, and no memory, in its state, such as hmc or mala")
        return outer(inner)

    def swap(old: State) -> tuple[State, Tensor]:
        other = pairs[int(torch.randint(len(pairs), ()))]
        new = kernel.init(along(old.position, other))
        assert old.log_density is not None and new.log_density is not None
        other = other.to(old.log_density.device)
        gain = new.log_density - old.log_density
        log_ratio = (gain + gain.index_select(CHAINS_DIM, other)).nan_to_num(nan=-torch.inf, neginf=-torch.inf).clamp_max(0)
        lower = torch.minimum(other, index.to(other.device))  # both of a pair take the random number of its lower member
        swapped = torch.rand_like(gain).index_select(CHAINS_DIM, lower).log() < log_ratio
        gradient = None if new.gradient is None or old.gradient is None else _choose(hot, swapped, new.gradient, old.gradient)
        log_density = torch.where(swapped, new.log_density, old.log_density)
        asked = (other != index.to(other.device)).unsqueeze(-1).to(gain)
        by_level = (log_ratio.exp() * asked).unflatten(CHAINS_DIM, (rungs, chains)).sum(CHAINS_DIM - 1)
        rate = by_level / asked.unflatten(0, (rungs, chains)).sum(0)
        return State(_choose(hot, swapped, new.position, old.position), log_density, gradient), rate

    def step(state: State) -> tuple[State, Info]:
        ready, rate = swap(state.memory or kernel.init(along(state.position, index % chains)))  # none in a state of another kernel
        inner, info = kernel.step(ready)
        return outer(inner), combined([info], lambda fields: kept(fields[0]))._replace(swap=rate)

    return Kernel(init, step)


def annealed(
    target: LogDensity, kernel: Callable[[LogDensity], Kernel], start: Position, powers: Sequence[float], *, steps: int = 10, joint: bool = False,
) -> Position:
    """Run a kernel on flatter versions of the target that cool down to it; a start for the chains, spread over its modes. Random.

    What is drawn on the way follows no target and is not kept. Modes get some of the chains, wide ones more than their share: what the
    kernel does from here on, or parallel tempering, must put that right.

    Args:
        target: what to cool down to; its own temperature and likelihood power are multiplied.
        kernel: makes the kernel of each temperature, e.g. ``lambda t: hmc(t, 0.1)``.
        start: unconstrained position of the chains.
        powers: of the likelihood (of the joint density if ``joint``), one after another, e.g. ``torch.logspace(-3, 0, 20).tolist()``.
        steps: of the kernel, at every power.

    Raises:
        ValueError: when a power is not positive, or steps is not.

    References:
        Kirkpatrick, Gelatt & Vecchi (1983), Optimization by simulated annealing, stopped at temperature 1.
    """
    if steps < 1 or not len(powers) or not all(p > 0 for p in powers):
        raise ValueError(f"annealed: {steps=}, {powers=}; expected steps >= 1 and powers above 0, as a rule increasing to 1")
    position = start
    for power in powers:
        joint_power, likelihood_power = (power, 1.0) if joint else (1.0, power)
        flatter = kernel(target.tempered(target.temperature / joint_power, target.likelihood_power * likelihood_power))
        state = flatter.init(position)
        for _ in range(steps):
            state, _ = flatter.step(state)
        position = state.position
    return position
