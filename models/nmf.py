"""Non-negative matrix factorisation of the noise spectrogram, free, with a fixed dictionary, or with both."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ..distributions import ComplexNormal, power_of
from ..mixture import Frames
from ._multiplicative import PARAMETER_FLOOR, averages, scaled


class NMFNoise(PyroModule):
    """Itakura-Saito NMF noise: n_tf ~ CN(0, sum_k H_tk W_fk).

    Parameters of one recording, made by :meth:`start`: ``W`` (F, K) and ``H`` (T, K), both positive. No
    sample sites; ``poutine.lift`` over "noise.W" and "noise.H" makes it Bayesian. In a batch every
    utterance has its own, (B, 1, 1, F, K) and (B, 1, T, K).

    With ``spacing`` above 1 the activations are linear between knots and ``H`` (J, K) has their values there: noise
    that changes more slowly than speech cannot take its place. Knots are spread evenly from the first frame to the last, which
    in a padded batch are those of the longest utterance.

    Args:
        rank: K, number of spectral patterns that are estimated from the recording.
        dictionary: (F, K0) fixed patterns from :func:`learn_dictionary`, kept as they are beside the free
            ones (semi-supervised NMF); ``rank`` may then be 0.
        spacing: frames from knot to knot at most; 1 lets the activations of every frame be what they like.

    Raises:
        ValueError: when there is no pattern at all, the dictionary is not a non-negative matrix, or spacing is below 1.

    References:
        Fevotte, Bertin & Durrieu (2009), Nonnegative matrix factorization with the Itakura-Saito divergence.
    """

    dictionary: Tensor | None
    W: Tensor
    H: Tensor

    def __init__(self, rank: int = 8, dictionary: Tensor | None = None, spacing: int = 1) -> None:
        super().__init__()
        if rank < 0 or (rank == 0 and dictionary is None):
            raise ValueError(f"NMFNoise: rank={rank} without a dictionary leaves no pattern; use rank >= 1 or give a dictionary")
        if dictionary is not None and (dictionary.dim() != 2 or not (dictionary >= 0).all()):
            raise ValueError(f"NMFNoise: dictionary must be a non-negative (F, K) matrix, found shape {tuple(dictionary.shape)}")
        if spacing != int(spacing) or spacing < 1:
            raise ValueError(f"NMFNoise: spacing={spacing}; expected a whole number of frames from knot to knot, 1 or more")
        self.rank, self.spacing = rank, spacing
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
        power = power_of(x)
        seen = torch.ones_like(power) if observed is None else observed.expand(power.shape).to(power.dtype)
        mean = (power * seen).sum((-2, -1), keepdim=True) / seen.sum((-2, -1), keepdim=True).clamp_min(1)
        count = self.rank + (0 if self.dictionary is None else self.dictionary.shape[-1])
        shape: tuple[int, ...] = x.shape[:-1]
        if self.spacing > 1:
            shape = *x.shape[:-2], *((1,) if x.dim() > 2 else ()), len(_tents(x.shape[-2], self.spacing))
        h = torch.rand(*shape, count, dtype=power.dtype, device=x.device) * (2 * x.shape[-1] / count)
        h = h * mean.reshape(*mean.shape[:-2], *(1,) * (h.dim() - mean.dim() + 2))
        self.H = PyroParam(h.clamp_min(PARAMETER_FLOOR), constraints.positive)

    def slide(self, before: int, dropped: int, after: int, power: float = 1.0) -> None:
        """Activations of ``after`` frames from those of ``before``, of one recording that goes on: the first ``dropped`` are gone, and what
        is new begins as the last one was. All are multiplied by ``power``, when the unit of the recording has changed. Not random.
        """
        index = (torch.arange(after, device=self.H.device) + dropped).clamp_max(before - 1)
        h = self._at_frames(self.H, before)[index] * power
        if self.spacing > 1:
            h = h[torch.linspace(0, after - 1, len(_tents(after, self.spacing))).round().long()]
        self.H = PyroParam(h.detach().clamp_min(PARAMETER_FLOOR), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise STFT, (…, T, F), in squared STFT units."""
        w = self._patterns()
        if self.spacing == 1:
            with frames:
                h = self.H
        else:
            h = self.H  # shared by frames, so outside of their plate, with a slot for it as W has
        return ComplexNormal(0j, _product(self._at_frames(self._aligned(h), frames.size), w))

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
        w, n_frames = self._patterns(), own.shape[-2]
        knots = self._aligned(self.H)
        h = self._at_frames(knots, n_frames)
        if self.rank:
            a, b = averages(power, others + own, observed)
            free = w[..., -self.rank :]
            h_free = h[..., -self.rank :]
            new = scaled(_flat(free), (h_free.mT @ a).mT, (h_free.mT @ b).mT)  # a third of the time of a.mT @ h_free
            w = torch.cat([w[..., : -self.rank], new.reshape(free.shape)], -1)
            own = _product(h, w)
        a, b = averages(power, others + own, observed)
        knots = scaled(knots, self._at_knots(a @ _flat(w)), self._at_knots(b @ _flat(w)))
        if self.rank:
            scale = w.sum(-2, keepdim=True)
            scale[..., : -self.rank] = 1  # the dictionary stays as it is
            w, knots = w / scale, knots * scale.squeeze(-2)
            self.W = w[..., -self.rank :].clamp_min(PARAMETER_FLOOR)
        self.H = knots.reshape(self.H.shape).clamp_min(PARAMETER_FLOOR)
        return _product(self._at_frames(knots, n_frames), w)

    def _aligned(self, h: Tensor) -> Tensor:
        """H as (…, T, K) or (…, J, K): at knots it has a slot for the frames plate to drop."""
        return h if self.spacing == 1 else _flat(h)

    def _at_frames(self, h: Tensor, n_frames: int) -> Tensor:
        """Values at the knots (…, J, K) -> at the frames (…, T, K)."""
        return h if self.spacing == 1 else _tents(n_frames, self.spacing).to(h).mT @ h

    def _at_knots(self, value: Tensor) -> Tensor:
        """The transpose: what the frames (…, T, K) say to the knots that they lie between, (…, J, K)."""
        return value if self.spacing == 1 else _tents(value.shape[-2], self.spacing).to(value) @ value

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


@lru_cache(maxsize=16)
def _tents(n_frames: int, spacing: int) -> Tensor:
    """Linear interpolation as a matrix (J, T): knots ``spacing`` frames apart or a little less, the first and the last frame among them."""
    if n_frames == 1:
        return torch.ones(1, 1)
    intervals = math.ceil((n_frames - 1) / spacing)
    with torch.inference_mode(False):  # what is kept must also serve where gradients are wanted
        knots = torch.linspace(0, n_frames - 1, intervals + 1)
        return (1 - (torch.arange(n_frames) - knots.unsqueeze(-1)).abs() * intervals / (n_frames - 1)).clamp_min(0)


def _flat(w: Tensor) -> Tensor:
    """A global parameter (…, 1, F, K) without the slot of the frames plate, to multiply with (…, T, F)."""
    return w.squeeze(-3) if w.dim() > 2 else w


def _product(h: Tensor, w: Tensor) -> Tensor:
    """(…, T, K) and (F, K) or (…, 1, F, K) -> (…, T, F), plates aligned."""
    return h @ _flat(w).mT
