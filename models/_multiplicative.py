"""What the closed-form M-steps share: the two averages of majorisation-minimisation for a sum of variances.

The expected log-likelihood -E[log v + P / v] of a variance v = v_others + theta * a is raised (never lowered)
by theta <- theta * sqrt(sum(a A) / sum(a B)) with A = P E[v^-2] and B = E[v^-1], the mean being over draws
of v_others (Fevotte & Idier 2011, IS divergence, majorisation-minimisation).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..mixture import over_draws

PARAMETER_FLOOR = 1e-10
"""Smallest value of a multiplicative parameter: keeps denormal numbers and 0 / 0 out of the M-steps."""


def per_draw_averages(power: Tensor, variance: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """A = P v^-2 and B = v^-1 of every draw, zero in bins that are not observed. Shapes (…, T, F)."""
    inverse = variance.reciprocal()
    ratio = power * inverse.square()
    if observed is not None:
        inverse, ratio = inverse * observed, ratio * observed
    return ratio, inverse


def averages(power: Tensor, variance: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """A and B of :func:`per_draw_averages`, their means over the draws. A power that all draws share is multiplied once."""
    inverse = variance.reciprocal()
    square = inverse.square()
    ratio = over_draws(power * square) if power.dim() > 2 and power.shape[-3] > 1 else over_draws(square) * over_draws(power)
    inverse = over_draws(inverse)
    if observed is not None:
        seen = over_draws(observed.to(ratio.dtype)) if observed.dim() > 2 else observed  # which is the same in all draws
        inverse, ratio = inverse * seen, ratio * seen
    return ratio, inverse


def scaled(parameter: Tensor, raise_: Tensor, lower: Tensor) -> Tensor:
    """The multiplicative step, floored. Where nothing is observed (0 / 0) the parameter stays."""
    ratio = (raise_ / lower).sqrt()
    return (parameter * torch.where(lower > 0, ratio, torch.ones_like(ratio))).clamp_min(PARAMETER_FLOOR)
