"""Is the guide good enough? How far its importance weights are from constant, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .run import Draws, Proposal

GOOD, USABLE = 0.5, 0.7
"""Below the first, importance weights have a finite variance; above the second, no number of draws repairs the guide (Yao et al. 2018)."""

FEWEST = 100
"""Draws below which the tail of the weights cannot be told."""


@dataclass(frozen=True)
class GuideQuality:
    """What the importance weights of a guide say; ``print`` it for a verdict in words.

    Attributes:
        elbo: mean log weight, summed over the blocks, in nats.
        bound: importance-weighted bound of log p(x) with all draws, summed over the blocks; never below the ELBO.
        num_draws: K of that bound.
        k_hat: Pareto shape of the tail of the weights for every block, (…, frames); 0 where all weights are equal.
        blocks: names of the dims of ``k_hat``, "" for one that is summed.
    """

    elbo: float
    bound: float
    num_draws: int
    k_hat: Tensor
    blocks: tuple[str, ...]

    @property
    def gap(self) -> float:
        """What the weights recover of KL(q || p(z | x)), in nats: at most that divergence, up to chance."""
        return self.bound - self.elbo

    def __str__(self) -> str:
        k = self.k_hat.flatten()
        worst = int(k.argmax())
        good, usable = int((k < GOOD).sum()), int(((k >= GOOD) & (k < USABLE)).sum())
        bad = len(k) - good - usable
        index = torch.unravel_index(torch.tensor(worst), self.k_hat.shape)
        where = ", ".join(f"{name.removesuffix('s')} {int(i)}" for name, i in zip(self.blocks, index, strict=True) if name)
        lines = [
            f"ELBO {self.elbo:.2f} nats, importance-weighted bound {self.bound:.2f} with {self.num_draws} draws: gap {self.gap:.2f}, "
            f"{self.gap / len(k):.3f} a block.",
            f"Pareto k-hat: median {k.median():.2f}, worst {k[worst]:.2f}{f' ({where})' if where else ''}. "
            f"Of {len(k)} blocks {good} good (below {GOOD}), {usable} usable (below {USABLE}), {bad} not.",
        ]
        if bad:
            lines.append("Where it is not, the guide is too narrow or in the wrong place: fit longer, take a richer family, or use MCMC.")
        elif usable:
            lines.append("The guide is usable; importance weights correct what it lacks.")
        else:
            lines.append("The guide is good.")
        return "\n".join(lines)


def guide_quality(draws: Draws) -> GuideQuality:
    """The gap between ELBO and importance-weighted bound, and Pareto k-hat, of draws of a guide. Nothing is random. Imports ArviZ.

    Args:
        draws: from :func:`ppse.infer.guide_draws`, 100 or more in all; 1000 or more for a k-hat within about 0.1.

    Raises:
        ValueError: when the draws are of a kernel, too few, or have weights that are not finite.

    References:
        Yao, Vehtari, Simpson & Gelman (2018), Yes, but did it work? Evaluating variational inference.
        Burda, Grosse & Salakhutdinov (2016), Importance weighted autoencoders.
    """
    if not isinstance(draws.stats, Proposal):
        raise ValueError("guide_quality: these are draws of a kernel; expected those of a guide, from guide_draws (ppse.verdict reads MCMC)")
    log_p, log_q = (value.double() for value in draws.stats)
    weights = (log_p - log_q).movedim(0, -2).flatten(-3, -2) if log_p.dim() > 3 else (log_p - log_q).flatten(0, 1)
    count = weights.shape[-2]
    if count < FEWEST:
        raise ValueError(f"guide_quality: {count} draws; expected {FEWEST} or more")
    if not bool(weights.isfinite().all()):
        raise ValueError(f"guide_quality: {int((~weights.isfinite()).sum())} of {weights.numel()} log weights are not finite; the guide draws where "
                         f"the model has no density, or its parameters have gone astray")
    weights = weights.movedim(-2, -1)
    rounding = float(16 * torch.finfo(draws.stats.log_density.dtype).eps * log_p.abs().max())
    return GuideQuality(
        elbo=float(weights.mean(-1).sum()),
        bound=float((weights.logsumexp(-1) - math.log(count)).sum()),
        num_draws=count,
        k_hat=torch.as_tensor(pareto_shapes(weights.cpu().numpy(), rounding)),
        blocks=(*draws.blocks[:-2], draws.blocks[-1]),
    )


def pareto_shapes(log_weights: NDArray[np.float64], rounding: float) -> NDArray[np.float64]:
    """Pareto shape of the tail of importance weights (…, draws), by ArviZ; NaN where some weight is not finite.

    Of an exact guide all weights are equal, but for rounding: there is no tail to fit, and the shape is 0.
    """
    import arviz as az

    with np.errstate(all="ignore"):  # where ArviZ tries shapes that do not fit
        _, shapes = az.psislw(log_weights)
        shapes = np.where(np.ptp(log_weights, axis=-1) <= rounding, 0.0, shapes)
    return np.where(np.isfinite(log_weights).all(-1), shapes, np.nan)
