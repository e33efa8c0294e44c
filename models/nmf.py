"""Non-negative matrix factorisation of the noise spectrogram, free, with a fixed dictionary, or with both."""

from __future__ import annotations

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ..distributions import ComplexNormal
from ..mixture import Frames
from ._multiplicative import PARAMETER_FLOOR, over_draws, per_draw_averages, scaled


class NMFNoise(PyroModule):
    """Itakura-Saito NMF noise: n_tf ~ CN(0, sum_k H_tk W_fk).

    Parameters of one recording, made by :meth:`start`: ``W`` (F, K) and ``H`` (T, K), both positive. No
    sample sites; ``poutine.lift`` over "noise.W" and "noise.H" makes it Bayesian. In a batch every
    utterance has its own, (B, 1, 1, F, K) and (B, 1, T, K).

    Args:
        rank: K, number of spectral patterns that are estimated from the recording.
        dictionary: (F, K0) fixed patterns from :func:`learn_dictionary`, kept as they are beside the free
            ones (semi-supervised NMF); ``rank`` may then be 0.

    Raises:
        ValueError: when there is no pattern at all, or the dictionary is not a non-negative matrix.

    References:
        Fevotte, Bertin & Durrieu (2009), Nonnegative matrix factorization with the Itakura-Saito divergence.
    """

    dictionary: Tensor | None
    W: Tensor
    H: Tensor

    def __init__(self, rank: int = 8, dictionary: Tensor | None = None) -> None:
        super().__init__()
        if rank < 0 or (rank == 0 and dictionary is None):
            raise ValueError(f"NMFNoise: rank={rank} without a dictionary leaves no pattern; use rank >= 1 or give a dictionary")
        if dictionary is not None and (dictionary.dim() != 2 or not (dictionary >= 0).all()):
            raise ValueError(f"NMFNoise: dictionary must be a non-negative (F, K) matrix, found shape {tuple(dictionary.shape)}")
        self.rank = rank
        self.register_buffer("dictionary", dictionary)

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """W, H ~ U(0, 1), W to unit columns, H scaled so that the mean of W H is about the mean power of x. Random."""
        lead, n_freqs = x.shape[:-2], x.shape[-1]
        if self.rank:
            w = torch.rand(*lead, *((1,) if lead else ()), n_freqs, self.rank, dtype=x.real.dtype, device=x.device)
            w = w / w.sum(-2, keepdim=True)
            self.W = PyroParam(w.clamp_min(PARAMETER_FLOOR), constraints.positive)
        self.follow(x, observed)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """New activations for the next stretch of the recording; the patterns stay. Random."""
        power = x.real.square() + x.imag.square()
        seen = torch.ones_like(power) if observed is None else observed.expand(power.shape).to(power.dtype)
        mean = (power * seen).sum((-2, -1), keepdim=True) / seen.sum((-2, -1), keepdim=True).clamp_min(1)
        count = self.rank + (0 if self.dictionary is None else self.dictionary.shape[-1])
        h = torch.rand(*x.shape[:-1], count, dtype=power.dtype, device=x.device) * (2 * x.shape[-1] / count) * mean
        self.H = PyroParam(h.clamp_min(PARAMETER_FLOOR), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise STFT, (…, T, F), in squared STFT units."""
        w = self._patterns()
        with frames:
            h = self.H
        return ComplexNormal(0j, _product(h, w))

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """One multiplicative step on W, then on H, each with fresh variances; then W to unit columns.

        Args:
            power: |x|^2, (…, T, F).
            own: present variance of the noise, (…, T, F).
            others: variance of the other sources under each draw, (…, C, T, F) or (T, F).
            observed: boolean, which bins count.

        Returns:
            the new variance of the noise. The expected log-likelihood of x has not fallen.
        """
        h, w = self.H, self._patterns()
        if self.rank:
            a, b = (over_draws(v) for v in per_draw_averages(power, others + own, observed))
            free = w[..., -self.rank :]
            h_free = h[..., -self.rank :]
            new = scaled(_flat(free), a.mT @ h_free, b.mT @ h_free)
            w = torch.cat([w[..., : -self.rank], new.reshape(free.shape)], -1)
            own = _product(h, w)
        a, b = (over_draws(v) for v in per_draw_averages(power, others + own, observed))
        h = scaled(h, a @ _flat(w), b @ _flat(w))
        if self.rank:
            scale = w.sum(-2, keepdim=True)
            scale[..., : -self.rank] = 1  # the dictionary stays as it is
            w, h = w / scale, h * scale.squeeze(-2)
            self.W = w[..., -self.rank :].clamp_min(PARAMETER_FLOOR)
        self.H = h.clamp_min(PARAMETER_FLOOR)
        return _product(h, w)

    def _patterns(self) -> Tensor:
        # Not hasattr: that reads H outside of the frames plate, where a handler such as lift would then see it.
        if "H" not in self._pyro_params:
            raise RuntimeError("NMFNoise: no recording yet; call model.start(x) (enhance does) before running the model")
        if self.rank == 0:
            assert self.dictionary is not None
            return self.dictionary
        if self.dictionary is None:
            return self.W
        fixed = self.dictionary.expand(*self.W.shape[:-1], -1)
        return torch.cat([fixed, self.W], -1)


def learn_dictionary(power: Tensor, rank: int = 16, iterations: int = 200, seed: int = 0) -> Tensor:
    """Spectral patterns (F, rank), columns of unit sum, of the noise power spectrogram (T, F): IS-NMF.

    Random start, drawn from ``seed``; the global generator is left as it was.
    """
    import pyro.poutine as poutine

    with poutine.seed(rng_seed=seed), torch.no_grad():
        x = power.sqrt().to(power.dtype.to_complex())
        noise = NMFNoise(rank)
        noise.start(x)
        own = _product(noise.H, noise.W)
        for _ in range(iterations):
            own = noise.update(power, own, torch.full_like(own, PARAMETER_FLOOR))
        return noise.W.detach().clone()


def _flat(w: Tensor) -> Tensor:
    """A global parameter (…, 1, F, K) without the slot of the frames plate, to multiply with (…, T, F)."""
    return w.squeeze(-3) if w.dim() > 2 else w


def _product(h: Tensor, w: Tensor) -> Tensor:
    """(…, T, K) and (F, K) or (…, 1, F, K) -> (…, T, F), plates aligned."""
    return h @ _flat(w).mT
