"""What the closed-form M-steps share: the two averages of majorisation-minimisation for a sum of variances.

The expected log-likelihood -E[log v + P / v] of a variance v = v_others + theta * a is raised (never lowered)
by theta <- theta * sqrt(sum(a A) / sum(a B)) with A = P E[v^-2] and B = E[v^-1], the mean being over draws
of v_others (Fevotte & Idier 2011, IS divergence, majorisation-minimisation).
"""

from __future__ import annotations

import torch
from torch import Tensor

PARAMETER_FLOOR = 1e-10
"""Smallest value of a multiplicative parameter: keeps denormal numbers and 0 / 0 out of the M-steps."""


def per_draw_averages(power: Tensor, variance: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """A = P v^-2 and B = v^-1 of every draw, zero in bins that are not observed. Shapes (…, T, F)."""
    inverse = variance.reciprocal()
    ratio = power * inverse.square()
    if observed is not None:
        inverse, ratio = inverse * observed, ratio * observed
    return ratio, inverse


def over_draws(value: Tensor) -> Tensor:
    """Mean over the chains (dim -3), kept as a dim for a batch: (C, T, F) -> (T, F), (B, C, T, F) -> (B, 1, T, F)."""
    if value.dim() == 2:
        return value
    return value.mean(-3) if value.dim() == 3 else value.mean(-3, keepdim=True)


def scaled(parameter: Tensor, raise_: Tensor, lower: Tensor) -> Tensor:
    """The multiplicative step, floored. Where nothing is observed (0 / 0) the parameter stays."""
    ratio = (raise_ / lower).sqrt()
    return (parameter * torch.where(lower > 0, ratio, torch.ones_like(ratio))).clamp_min(PARAMETER_FLOOR)
