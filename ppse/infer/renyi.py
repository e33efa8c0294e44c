"""Bounds of the evidence by several draws: importance-weighted (IWAE), Renyi, and the ELBO, per independent block."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from .proposals import Proposals


class RenyiBound:
    """sum over blocks of log(mean_k w_k^(1 - alpha)) / (1 - alpha), w_k = p(x, z_k) / q(z_k), for :func:`ppse.infer.fit`.

    ``alpha=0`` is the importance-weighted bound (IWAE), ``alpha=1`` the ELBO, to which the others go as alpha goes to 1. Blocks are what
    the model and the guide draw independently, frames as a rule: a few weights of a frame say something, while of those of a whole
    recording one would outweigh all others.

    Pyro's own RenyiELBO weighs the plate members that all sites of the *model* share. With a guide that draws frames jointly, or frames
    that a recurrent network couples, it counts wrongly; and it does not train plain modules, such as encoders. So ``fit`` does not take it.

    Args:
        particles: K, draws side by side, in the dim of chains (-2).
        alpha: order, not below 0.

    Raises:
        ValueError: when a number is out of its range.

    References:
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders.
        Li & Turner (2016), Renyi divergence variational inference.
    """

    def __init__(self, particles: int = 10, alpha: float = 0.0) -> None:
        if particles < 1 or alpha < 0:
            raise ValueError(f"RenyiBound: particles={particles}, alpha={alpha}; expected 1 or more, and not below 0")
        self.particles, self.alpha = particles, alpha
        self._proposals: Proposals | None = None

    def differentiable_loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor:
        """-bound in nats, a scalar; its gradient needs a guide that is reparametrised (those of :mod:`ppse.guides` are)."""
        propose, wanted = self._proposals, (model, guide, *args)
        if propose is None or any(a is not b for a, b in zip_longest(wanted, (propose.model, propose.guide, *propose.args))):
            propose = self._proposals = Proposals(model, guide, args, self.particles)  # finds the blocks, which costs a few traces
        _, (log_p, log_q) = propose()
        power, weights = 1 - self.alpha, log_p - log_q
        if power == 0:
            return -weights.mean(-2).sum()
        return -(torch.logsumexp(power * weights, -2) - math.log(self.particles)).sum() / power
