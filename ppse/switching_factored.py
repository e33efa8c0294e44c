"""The published factor r(s | m): speech independent of its latents given the regime."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .distributions import ComplexNormal, power_of
from .mixture import VARIANCE_FLOOR, Mixture, over_draws
from .switching import Regimes


class Factored(NamedTuple):
    """r(s_t | m_t = m) = CN(loc, var), of dims (M, …, 1, T, F); other sources get what is left of the mixture.

    With a_s = E[1 / v_s] and b_s = E[log v_s] over draws of the latents of the speech, and a_n, b_n likewise for all else together,
    1 / var = a_s + a_n and loc = a_n var x. ``weights`` (…, 1, T, M) is the bound on log p(x_t | m_t) but for the divergence of the latents:
    log CN(x; 0, 1 / a_s + 1 / a_n) - (b_s + log a_s) - (b_n + log a_n), where both brackets are positive, by Jensen.
    """

    loc: Tensor
    var: Tensor
    weights: Tensor

    def speech(self, x: Tensor, marginals: Tensor) -> ComplexNormal:
        """The law of the speech under r(m), (T, F) or (B, 1, T, F): its mean is the published estimate.

        Args:
            marginals: r(m_t), (…, 1, T, M).
        """
        share = _first(marginals, self.var)
        loc = (share * self.loc).sum(0)
        second = (share * (self.var + power_of(self.loc))).sum(0)
        return ComplexNormal(loc.reshape(x.shape), (second - power_of(loc)).clamp_min(0).reshape(x.shape))

    def noise_power(self, x: Tensor, marginals: Tensor) -> Tensor:
        """E|x - s|^2 under r(s, m), (T, F) or (B, 1, T, F)."""
        return (_first(marginals, self.var) * (power_of(x - self.loc) + self.var)).sum(0).reshape(x.shape)


def factored_speech(found: Regimes, x: Tensor, observed: Tensor | None) -> Factored:
    """r(s | m) and its bound, given draws of the latents; differentiable in them.

    Args:
        found: the graph at K draws.
        x, observed: as for :meth:`ppse.Mixture.forward`.

    Raises:
        ValueError: when a source has a mean, so that its power does not say all.
    """
    for name, law in found.laws.items():
        if not law.centred:
            raise ValueError(f"switching_vem: the source '{name}' has a mean; with factored=True all must have a mean of 0: use factored=False")
    speech, other = found.laws[found.source].var, sum(law.var for law in found.others.values())
    (a_s, gap_s), (a_n, gap_n) = (_inverse_over_draws(v) for v in (speech, torch.as_tensor(other, dtype=speech.dtype)))
    total = 1 / a_s + 1 / a_n
    per_bin = -math.log(math.pi) - total.log() - power_of(x) / total - gap_s - gap_n
    per_frame = (per_bin if observed is None else per_bin * observed).sum(-1).movedim(0, -1)  # (…, 1, T, M)
    var = 1 / (a_s + a_n)
    return Factored(a_n * var * x, var, per_frame if x.dim() > 2 else per_frame.reshape(per_frame.shape[-3:]))


def update_noise(model: Mixture, found: Regimes, power: Tensor, observed: Tensor | None) -> None:
    """The M-step of all sources but the one that switches, for an expected power of their sum. Changes them."""
    if found.others:
        model.update(power.sqrt().to(power.dtype.to_complex()), found.others, observed)


def shared_out(found: Regimes, speech: ComplexNormal, x: Tensor) -> dict[str, ComplexNormal]:
    """The laws of all sources, of which the speech is known to have this one: the others share the rest of the mixture by their variances."""
    others = {name: over_draws(law.var) for name, law in found.others.items()}
    total = sum(others.values(), torch.zeros(())).clamp_min(VARIANCE_FLOOR)
    laws = {found.source: speech}
    for name, var in others.items():
        gain = var / total
        laws[name] = ComplexNormal(gain * (x - speech.loc), gain.square() * speech.var + gain * (total - var))
    return {name: laws[name] for name in found.laws}


def _inverse_over_draws(var: Tensor) -> tuple[Tensor, Tensor]:
    """E[1 / v], and E[log v] + log E[1 / v], over draws."""
    var = var.clamp_min(VARIANCE_FLOOR)
    if var.dim() < 3:  # no draws: all is known
        return 1 / var, torch.zeros_like(var)
    inverse = (1 / var).mean(-3, keepdim=True)
    return inverse, var.log().mean(-3, keepdim=True) + inverse.log()


def _first(marginals: Tensor, like: Tensor) -> Tensor:
    """r(m_t) with the regimes first, as the laws have them, (M, …, 1, T, 1)."""
    share = marginals.movedim(-1, 0).unsqueeze(-1)
    return share.reshape(share.shape[0], *(1,) * (like.dim() - share.dim()), *share.shape[1:])
