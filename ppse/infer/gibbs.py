"""Gibbs sampling by blocks: a kernel of its own for every group of sites, in turn, each given all others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from .blocks import choose
from .density import LogDensity, Position
from .kernels import Info, Kernel, State, _without_gradient


class Group(NamedTuple):
    """Sites that move together.

    Attributes:
        sites: names of latent sites.
        kernel: makes their kernel from the density of the group given all other sites, e.g. ``lambda t: mala(t, 0.1)``.
        steps: how many steps of the kernel a sweep takes. The first costs an evaluation more than the others.
    """

    sites: tuple[str, ...]
    kernel: Callable[[LogDensity], Kernel]
    steps: int = 1


class Conditional(LogDensity):
    """The density of some sites given the others, in the finest blocks that hold for those sites.

    It is the joint density with the others held fixed, so temperature and likelihood power are those of the joint density.
    """

    def __init__(self, joint: LogDensity, sites: tuple[str, ...]) -> None:
        self.__dict__.update(vars(joint))
        start = joint.init()
        self._joint = joint
        self._held: Position = {k: v for k, v in start.items() if k not in sites}
        self._start = {name: start[name] for name in sites}
        self.plates = {name: joint.plates[name] for name in sites}
        choose(self, None)

    def given(self, held: Position) -> Conditional:
        """The same density given other values of the sites that do not move."""
        other = copy.copy(self)
        other._held = self._held | held
        return other

    def _at(self, position: Position) -> tuple[poutine.Trace, Position]:
        return self._joint._at(self._held | position)  # the joint density may be a conditional, or a whitened one, itself


def gibbs(target: LogDensity, *groups: Group) -> Kernel:
    """Blocked Gibbs, or Metropolis within Gibbs: one sweep over the groups, each moved by its own kernel given the others.

    A group is accepted in the blocks of its own conditional density: with z per frame and a gain per
    utterance, z is accepted frame by frame although the joint density has one block per utterance.
    Kernels are made anew for every sweep, as what they may cache depends on the sites of other groups.
    Info, in the blocks of ``target``: the mean acceptance of all steps, whether any was accepted, whether any was divergent. Its ``groups``
    have the same of each group in blocks of its own (of the last of its steps, where it takes several, the log density, energy and step
    size), by its sites joined by "+".

    Args:
        target: joint density of all sites.
        groups: in the order in which they move. Together they hold every latent site; a site may be in several.

    Raises:
        ValueError: without groups, when a group names a site that is not latent or takes no step, or when a site is in no
            group; the message names the site.
        BlockError: when the chains depend on one another given the other sites.

    References:
        Geman & Geman (1984), Stochastic relaxation, Gibbs distributions, and the Bayesian restoration of images;
        Tierney (1994), Markov chains for exploring posterior distributions, for kernels in place of exact conditionals.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import hmc, log_density, metropolis, sample
    >>> def model():
    ...     gain = pyro.sample("gain", dist.LogNormal(0.0, 1.0))
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(gain * z, 1.0), obs=torch.ones(3))
    >>> target = log_density(model, chains=2)
    >>> kernel = gibbs(target, Group(("z",), lambda t: hmc(t, 0.3)), Group(("gain",), lambda t: metropolis(t, 0.5), steps=3))
    >>> {name: tuple(draws.shape) for name, draws in sample(target, kernel, target.init(), 10).values.items()}
    {'gain': (10, 2, 1), 'z': (10, 2, 3)}
    """
    _check(target, groups)
    conditionals = [Conditional(target, group.sites) for group in groups]

    def init(position: Position) -> State:
        return _without_gradient(target, position)

    def step(state: State) -> tuple[State, Info]:
        position, infos = state.position, dict[str, list[Info]]()
        for group, conditional in zip(groups, conditionals, strict=True):
            kernel = group.kernel(conditional.given({k: v for k, v in position.items() if k not in group.sites}))
            inner = kernel.init({name: position[name] for name in group.sites})
            if inner.memory is not None:
                raise ValueError(
                    f"gibbs: the kernel of the sites {group.sites} has a memory, which would be lost with every sweep and the draws "
                    f"be wrong; wrap the gibbs kernel by it instead"
                )
            for _ in range(group.steps):
                inner, info = kernel.step(inner)
                infos.setdefault("+".join(group.sites), []).append(info)
            position = position | inner.position
        new = init(position)
        assert new.log_density is not None
        acceptance, accepted, divergent = (
            torch.stack([_per_block(field.to(new.log_density.dtype), target) for field in fields])
            for fields in zip(*((i.acceptance, i.accepted, i.divergent) for group in infos.values() for i in group), strict=True)
        )
        by_sites = {name: _of_steps(of_group) for name, of_group in infos.items()}
        return new, Info(acceptance.mean(0), (accepted > 0).any(0), new.log_density, (divergent > 0).any(0), groups=by_sites)

    return Kernel(init, step)


def _of_steps(infos: list[Info]) -> Info:
    acceptance, accepted, divergent = (torch.stack(field) for field in zip(*((i.acceptance, i.accepted, i.divergent) for i in infos), strict=True))
    return infos[-1]._replace(acceptance=acceptance.mean(0), accepted=accepted.any(0), divergent=divergent.any(0))


def _check(target: LogDensity, groups: tuple[Group, ...]) -> None:
    for group in groups:
        unknown = [name for name in group.sites if name not in target.sites]
        if unknown or not group.sites or group.steps < 1:
            raise ValueError(
                f"gibbs: a group of sites {group.sites} with steps={group.steps}; expected at least one step and some of the latent "
                f"sites {target.sites}" + (f", which '{unknown[0]}' is not" if unknown else "")
            )
    idle = set(target.sites) - {name for group in groups for name in group.sites}
    if idle:
        raise ValueError(f"gibbs: site '{min(idle)}' is in no group and would never move; put it into one, or condition the model on it")


def _per_block(value: Tensor, target: LogDensity) -> Tensor:
    """Mean of what a conditional density reports over the blocks that the joint one accepts as a whole."""
    dims = [dim for dim, size in enumerate(target.shape) if size == 1 and value.shape[dim] > 1]
    return (value.mean(dims, keepdim=True) if dims else value).expand(target.shape)
