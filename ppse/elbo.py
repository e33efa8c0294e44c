"""The evidence lower bound of training: one draw of the latents, with the KL divergence in closed form and weighted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions import Distribution, Independent
from torch import Tensor
from torch.distributions import kl_divergence

from .infer.density import is_latent, plate_dims
from .models.recurrent import RecurrentNormal


def negative_elbo(
    model: Callable[..., Any], guide: Callable[..., Any], x: Tensor, observed: Tensor | None = None, beta: float = 1.0,
) -> Tensor:
    """-E_q[log p(x | z)] + beta KL(q(z | x) || p(z)) by one draw from the guide, in nats, summed over frames and utterances. Random.

    With beta = 1 its negative is the ELBO. The KL divergence of laws with memory over frames is, at every frame, that of the laws given
    the draw of the frames before: unbiased, and of less variance than log q - log p. Frames that nobody observed do not count.

    Args:
        model, guide: of the same signature, (x, observed); laws of the latents have no event dims but the last.
        x, observed: as in :meth:`ppse.Mixture.forward`.
        beta: weight of the KL divergence.

    References:
        Higgins et al. (2017), beta-VAE: Learning basic visual concepts with a constrained variational framework.
    """
    proposed: Any = poutine.trace(guide).get_trace(x, observed)
    trace: Any = poutine.trace(poutine.replay(model, trace=proposed)).get_trace(x, observed)
    seen = None if observed is None else observed.expand(x.shape).any(-1)
    loss = torch.zeros((), device=x.device)
    for name, site in trace.nodes.items():
        if is_latent(site):
            law, prior = (_given(fn, site["value"]) for fn in (proposed.nodes[name]["fn"], site["fn"]))
            divergence = divergence_of(law, prior, site["value"]).sum(-1)
            if seen is not None and "frames" in plate_dims(site):
                divergence = torch.where(seen, divergence, 0.0)
            loss = loss + beta * divergence.sum()
        elif site["type"] == "sample" and site["is_observed"]:
            loss = loss - site["fn"].log_prob(site["value"]).sum()
    return loss


def divergence_of(law: Distribution, prior: Distribution, value: Tensor) -> Tensor:
    """KL(law || prior), or its estimate log law - log prior by a draw from the law where there is no closed form."""
    try:
        divergence: Tensor = kl_divergence(law, prior)
        return divergence
    except NotImplementedError:
        return law.log_prob(value) - prior.log_prob(value)


def _given(law: Distribution, value: Tensor) -> Distribution:
    """The law of every coordinate, given the frames before where it has memory."""
    base = law.base_dist if isinstance(law, Independent) else law
    return base.given(value) if isinstance(base, RecurrentNormal) else base
