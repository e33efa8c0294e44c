"""Speech as a mix of spectral patterns that were learnt from clean speech: the baseline before neural priors."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor

from ..distributions import ComplexNormal
from ..mixture import Frames
from ._multiplicative import PARAMETER_FLOOR
from .nmf import NMFNoise, learn_dictionary


class NMFSpeech(PyroModule):
    """Supervised NMF with random activations: h_tk ~ Gamma(shape_k, rate_k), s_tf | h ~ CN(0, sum_k h_tk W_fk).

    Site: ``h``, K activations per frame. Frames are independent given them. No parameters: all is learnt beforehand, by :meth:`learn`.

    Args:
        dictionary: W (F, K), non-negative, as :func:`learn_dictionary` makes it.
        shape: (K,) positive; small for patterns that are seldom active.
        rate: (K,) positive; shape / rate is the mean activation.

    Raises:
        ValueError: when the shapes do not fit or a value is out of range.

    References:
        Smaragdis, Raj & Shashanka (2007), Supervised and semi-supervised separation of sounds from single-channel mixtures.
        Cemgil (2009), Bayesian inference for nonnegative matrix factorisation models (Gamma activations).
    """

    dictionary: Tensor
    shape: Tensor
    rate: Tensor

    def __init__(self, dictionary: Tensor, shape: Tensor, rate: Tensor) -> None:
        super().__init__()
        if dictionary.dim() != 2 or not (dictionary >= 0).all():
            raise ValueError(f"NMFSpeech: dictionary must be a non-negative (F, K) matrix, found shape {tuple(dictionary.shape)}")
        for name, value in (("shape", shape), ("rate", rate)):
            if value.shape != dictionary.shape[1:] or not (value > 0).all():
                raise ValueError(
                    f"NMFSpeech: {name} must be positive, one value for each of {dictionary.shape[1]} patterns, found shape {tuple(value.shape)}"
                )
        for name, value in (("dictionary", dictionary), ("shape", shape), ("rate", rate)):
            self.register_buffer(name, value)

    @classmethod
    def learn(cls, power: Tensor, rank: int = 32, iterations: int = 200, seed: int = 0) -> Self:
        """The prior of clean speech with the power spectrogram (T, F), of unit level (:func:`ppse.stft.level`).

        The patterns by IS-NMF; the activations of each get the Gamma law with the mean and variance of their estimates, which scatter
        a little more than the activations themselves. Random start, drawn from ``seed``; the global generator is left as it was.
        """
        dictionary = learn_dictionary(power, rank, iterations, seed)
        fit = NMFNoise(0, dictionary)
        with poutine.seed(rng_seed=seed), torch.no_grad():
            fit.start(power.sqrt().to(power.dtype.to_complex()))
            own = fit.H @ dictionary.mT
            for _ in range(iterations):
                own = fit.update(power, own, torch.full_like(power, PARAMETER_FLOOR))
            mean, var = fit.H.mean(0), fit.H.var(0).clamp_min(PARAMETER_FLOOR**2)
        return cls(dictionary, mean.square() / var, mean / var)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F)."""
        with frames:
            h = pyro.sample("h", dist.Gamma(self.shape, self.rate).to_event(1))
        return ComplexNormal(0j, h @ self.dictionary.mT)
