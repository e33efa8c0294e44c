"""The low-rank family: one normal law of all latents of a recording, with a few directions in which they move together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from .joint import Joint, common_plates
from .sites import Start, latent_sites


class LowRankNormal(PyroModule):
    """Normal law of vectors (…, D), covariance diag(scale) (factor factor' + I / 2) diag(scale); ``scale`` (…, D), ``factor`` (…, D, R).

    Starts with the given variances, on average: half of them by the factor, which is random.
    """

    loc: Tensor
    scale: Tensor
    factor: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, rank: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(scale, constraints.positive)
        self.factor = nn.Parameter(torch.randn_like(scale.unsqueeze(-1).expand(*scale.shape, rank)) * (0.5 / rank) ** 0.5)

    def forward(self) -> dist.LowRankMultivariateNormal:
        """The law; batch shape (…), event (D,)."""
        return dist.LowRankMultivariateNormal(self.loc, self.scale.unsqueeze(-1) * self.factor, self.scale.square() / 2)


def low_rank(model: Callable[..., Any], *args: Any, rank: int = 8, start: Start | None = None, scale: float = 0.1) -> Joint:
    """q(z) = N(u; m, W W' + diag d), u the unconstrained values of *all* latents of one recording, W of ``rank`` columns.

    For what moves together over the whole recording: the level of a noise and all the gains against it. It cannot hold what is
    correlated within each frame on its own (that needs a rank of the order of T; use :func:`ppse.guides.per_frame`): for the latents of speech
    alone (250 frames of 32) it is worse than the mean-field law. The recordings of a batch are independent; Pyro's
    AutoLowRankMultivariateNormal would tie them together, and mix their values under a plate of chains.

    Args:
        rank: R; (R + 2) T L numbers for latents (T, L).
        model, args, start, scale: as for :func:`ppse.guides.mean_field`. Random from the global generator: W at the start.

    Raises:
        ValueError: as :func:`ppse.guides.mean_field`, and when the rank is below 1.
    """
    if rank < 1:
        raise ValueError(f"low_rank: rank={rank}; expected 1 or more (mean_field is the family without)")
    sites = latent_sites(model, args, start)
    return Joint(sites, lambda _: True, lambda loc, scale: LowRankNormal(loc, scale, rank), common_plates(sites) - {"frames"}, start, scale)
