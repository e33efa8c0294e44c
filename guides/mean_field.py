"""The mean-field family: every coordinate of every latent has a normal law of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from .sites import LatentSite, Plates, Start, latent_sites


class DiagonalNormal(PyroModule):
    """Normal laws with ``loc`` and ``scale`` as parameters, of the shape that they are given in."""

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(scale, constraints.positive)

    def forward(self) -> dist.Normal:
        """The laws, each coordinate on its own."""
        return dist.Normal(self.loc, self.scale)


class MeanField(PyroModule):
    """Independent normal laws in unconstrained space. Made by :func:`mean_field`; called as the model is, but the arguments do not matter."""

    def __init__(self, sites: list[LatentSite], start: Start | None, scale: float) -> None:
        super().__init__()
        self.sites = sites
        self.laws = PyroModule[nn.ModuleList](DiagonalNormal(*site.start(start, scale)) for site in sites)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, in its own support; shapes as in the model."""
        inside = Plates()
        return {site.name: self.draw(i, inside) for i, site in enumerate(self.sites)}

    def draw(self, index: int, inside: Plates) -> Tensor:
        """Draw one of the sites, in plates that the guides of a run share."""
        site = self.sites[index]
        normal = self.laws[index]().to_event(len(site.event))
        with inside(site.plates):
            value: Tensor = pyro.sample(site.name, dist.TransformedDistribution(normal, [site.transform]) if site.constrained else normal)
        return value


def mean_field(model: Callable[..., Any], *args: Any, start: Start | None = None, scale: float = 0.1) -> MeanField:
    """q(z) = product over coordinates of N(u; m, s^2), u the unconstrained value: log-normal for positive sites.

    For every latent site of the model, in the plates that it has there; works for one recording, a batch, and under a plate of
    chains or particles. Its parameters belong to the recording that it is made for.

    Other than Pyro's AutoNormal it draws the sites themselves and not by way of auxiliary ones, so that
    :class:`pyro.infer.TraceMeanField_ELBO` has the divergence from a normal prior in closed form (of AutoNormal it has it nowhere, and
    for positive sites it loses the Jacobian); and every coordinate may start with a scale of its own.

    Args:
        model, args: the model runs once, to read off its latents; it is not kept.
        start: where to start, by site; 0 in unconstrained space (1 for a positive site) and ``scale`` for the others.
        scale: standard deviation at the start, in unconstrained space.

    Raises:
        ValueError: when the model has no latent site or a discrete one, or ``start`` does not fit it.

    >>> import torch
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Gamma(torch.ones(2), 1.0).to_event(1))
    >>> tuple(mean_field(model)()["z"].shape)
    (3, 2)
    """
    return MeanField(latent_sites(model, args, start), start, scale)
