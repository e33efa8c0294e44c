"""A normal law bent by affine couplings: a posterior of latents that need not be normal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

STEEPEST = 2.0
"""Bound of the log-scale of a coupling, so that no draw runs away."""


class Coupling(nn.Module):
    """v → v exp(a) + b in every other coordinate, with a and b a function of the coordinates between and of a context; at first the identity.

    Args:
        n_latent: L, two or more.
        n_context: size of the context.
        hidden: size of the hidden layer.
        odd: whether the odd coordinates change, or the even ones.
    """

    changed: Tensor

    def __init__(self, n_latent: int, n_context: int, hidden: int, odd: bool) -> None:
        super().__init__()
        if n_latent < 2:
            raise ValueError(f"Coupling: {n_latent} latents; expected two or more, as one half changes by the other")
        self.register_buffer("changed", torch.arange(n_latent) % 2 == int(odd), persistent=False)
        self.ahead = nn.Linear(n_context, hidden)
        self.between = nn.Linear(n_latent, hidden, bias=False)
        self.out = nn.Linear(hidden, 2 * n_latent)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, value: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-scale, 0 where nothing changes: (…, L) each. They are the same before and after the change."""
        kept = value.masked_fill(self.changed, 0.0)
        shift, log_scale = self.out(torch.tanh(self.ahead(context) + self.between(kept))).chunk(2, -1)
        return shift * self.changed, STEEPEST * torch.tanh(log_scale / STEEPEST) * self.changed


def alternating(count: int, n_latent: int, n_context: int) -> nn.ModuleList:
    """Couplings for that context, of which every other one changes the odd coordinates."""
    return nn.ModuleList(Coupling(n_latent, n_context, 2 * n_latent, odd=bool(i % 2)) for i in range(count))


class CoupledNormal(TorchDistribution):
    """z = the couplings, in turn, of v ~ N(loc, diag scale^2).

    As :class:`ppse.models.encoders.FrameEncoder` wants laws of latents, it has no event dims: its log-probability, of shape (…, T, L), is that of
    the coordinates, whose sum is that of z_t. ``mean`` and ``variance`` are the place to which the couplings take loc, and the scales there:
    where to start and how far to go, not the moments.

    Args:
        loc, scale: of shape (…, T, L).
        couplings: in the order in which they are applied.
        context: of all couplings, (…, T, C).

    References:
        Dinh, Sohl-Dickstein & Bengio (2017), Density estimation using Real NVP.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, couplings: Sequence[Coupling], context: Tensor, validate_args: bool | None = None) -> None:
        self.base, self.couplings, self.context = Normal(loc, scale, validate_args=False), couplings, context
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(loc.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> CoupledNormal:
        shape = torch.Size(batch_shape)
        context = self.context.expand(*shape[:-1], self.context.shape[-1])
        return CoupledNormal(self.base.loc.expand(shape), self.base.scale.expand(shape), self.couplings, context, validate_args=False)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        start = self.base.rsample(torch.Size(sample_shape))
        value, log_scale = self._bent(start)
        self._drawn = value, self.base.log_prob(start) - log_scale  # the density of what was just drawn costs nothing
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        total = torch.zeros_like(value)
        for coupling in reversed(self.couplings):
            shift, log_scale = coupling(value, self._context(value))
            value, total = (value - shift) * (-log_scale).exp(), total + log_scale
        return cast(Tensor, self.base.log_prob(value) - total)

    @property
    def mean(self) -> Tensor:
        return self._bent(self.base.loc)[0]

    @property
    def variance(self) -> Tensor:
        return cast(Tensor, (self.base.scale * self._bent(self.base.loc)[1].exp()).square())

    def _bent(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The value after all couplings, and the log-scales that every coordinate went through."""
        total = torch.zeros_like(value)
        for coupling in self.couplings:
            shift, log_scale = coupling(value, self._context(value))
            value, total = value * log_scale.exp() + shift, total + log_scale
        return value, total

    def _context(self, value: Tensor) -> Tensor:
        return self.context.expand(*torch.broadcast_shapes(value.shape[:-1], self.context.shape[:-1]), -1)
