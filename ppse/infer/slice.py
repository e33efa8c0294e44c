"""Elliptical slice sampling: for latents that are normal a priori, without a step size to tune."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from .density import LogDensity, Position
from .kernels import Info, Kernel, State, StepSize, _choose, _dead_if_nan, _per_site, _without_gradient

MAX_SHRINKS = 64
"""Angles tried per move. A block that has found none by then stays where it is, which keeps the target invariant."""


def elliptical_slice(target: LogDensity, width: StepSize = 2 * math.pi) -> Kernel:
    """Elliptical slice sampling: z' = m + (z - m) cos a + (v - m) sin a, with v from the prior N(m, s^2).

    The angle a is uniform on a bracket around 0 that shrinks towards 0 until the likelihood at z' exceeds
    that at z times a uniform number. Every block of every chain has a bracket, a v and a threshold of its own; one evaluation of
    the target serves all, and the move ends when the slowest block has found its place. Cost: about a dozen
    evaluations without gradient for 80 frames and chains under a VAE, more the further the posterior is from the prior.

    m and s are read from the graph once, when the kernel is made. Should they change later, as parameters do in EM, the draws stay
    right, for what divides the target is the law that v comes from; they only mix more slowly. At a temperature t, v
    has the variance t s^2. Info.acceptance is 1 where a block moved; one that found no place is called divergent.

    Args:
        width: of the first bracket, in radians, a number or one per block. All of the ellipse unless given;
            less saves evaluations, but the chains then take small steps.

    Raises:
        ValueError: when a latent site is not Normal(loc, scale) a priori, when its loc or scale depends on
            a latent site, or when the width is not in (0, 2 pi]. The message names the site.

    References:
        Murray, Adams & MacKay (2010), Elliptical slice sampling; Neal (2003), Slice sampling, for brackets that are not the whole.
    """
    widths = torch.as_tensor(width)
    if not bool(((widths > 0) & (widths <= 2 * math.pi)).all()):
        raise ValueError(f"elliptical_slice: width={width}; expected an angle in (0, 2 pi], such as the whole ellipse, 2 pi")
    prior = _prior(target)

    def likelihood(log_density: Tensor, position: Position) -> Tensor:
        """What the target has beyond the (tempered) prior, up to a constant."""
        return _dead_if_nan(log_density + target.block_sum({k: 0.5 * ((v - prior[k][0]) / prior[k][1]).square() for k, v in position.items()}))

    def init(position: Position) -> State:
        return _without_gradient(target, position)

    @torch.no_grad()
    def step(state: State) -> tuple[State, Info]:
        assert state.log_density is not None
        origin = {k: v - prior[k][0] for k, v in state.position.items()}
        other = {k: prior[k][1] * torch.randn_like(v) for k, v in state.position.items()}
        # All random numbers are drawn at the start, so that what a block gets does not depend on how long others search.
        threshold = likelihood(state.log_density, state.position) + torch.rand_like(state.log_density).log()
        first, *uniform = torch.rand(MAX_SHRINKS + 1, *target.shape, dtype=threshold.dtype, device=threshold.device)
        low = -first * widths.to(first)
        high = low + widths.to(first)
        position, log_density, searching = state.position, state.log_density, torch.ones_like(threshold, dtype=torch.bool)
        for u in uniform:
            angle = low + u * (high - low)
            cos, sin = angle.cos(), angle.sin()
            proposal = {k: prior[k][0] + target.spread(cos, k) * v + target.spread(sin, k) * other[k] for k, v in origin.items()}
            value = _dead_if_nan(target(proposal))
            found = searching & (likelihood(value, proposal) > threshold)
            position = _choose(target, found, proposal, position)
            log_density = torch.where(found, value, log_density)
            searching = searching & ~found
            if not bool(searching.any()):
                break
            low, high = torch.where(angle < 0, angle, low), torch.where(angle < 0, high, angle)
        moved = ~searching
        return State(position, log_density, None), Info(moved.to(log_density.dtype), moved, log_density, searching)

    return Kernel(init, step)


def _prior(target: LogDensity) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and (tempered) standard deviation of every latent site, shaped like its position; refuses what is not normal."""
    start = target.init()
    with torch.no_grad():
        here, there = (target.trace(position).nodes for position in (start, {k: v + 1 for k, v in start.items()}))
    prior = {}
    for name in target.sites:
        law, moved = (_normal(nodes[name]["fn"], name) for nodes in (here, there))
        if not (torch.equal(law.loc, moved.loc) and torch.equal(law.scale, moved.scale)):
            raise ValueError(
                f"elliptical_slice: the prior of site '{name}' depends on the latent sites; expected a Normal(loc, scale) that does not. "
                f"Use hmc or mala, or alternate kernels over '{name}' and what it depends on with gibbs."
            )
        spread = _per_site(target, target.temperature**0.5, None)[name]
        prior[name] = target.shaped(name, law.loc.detach()), spread * target.shaped(name, law.scale.detach())
    return prior


def _normal(law: object, name: str) -> Normal:
    base = law
    while isinstance(base, Independent):
        base = base.base_dist
    if not isinstance(base, Normal):
        raise ValueError(
            f"elliptical_slice: site '{name}' is {type(base).__name__} a priori; expected Normal(loc, scale). Use hmc or mala, or give "
            f"the sites that are normal a group of their own in gibbs."
        )
    return base
