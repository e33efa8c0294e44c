"""Bandwidth extension: the upper band of clean narrow-band speech, inferred under a prior of speech from the lower one."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio
from .departure import SPEECH, Departure
from .enhance import opened, random_from, stft_of
from .guides import clean_guide
from .inpainting import variances_given
from .methods import Method, hmc_em
from .mixture import Source
from .models import VAESpeech
from .narrowband import band
from .stft import level
from .uncertainty import check_level

HALVINGS = 40
"""Of the interval in which a quantile is sought."""

FRAMES = 500
"""That are sought at a time."""


@dataclass
class Extension:
    """Result of :func:`extend`.

    Attributes:
        sample_rate: that of the prior, in Hz.
        estimate: the recording with an upper band to listen to, (channels, N): in every bin as loud as in the middle of the draws (the geometric
            mean of their variances), with phases at random. The mean of that band would be 0, as nothing tells of its phases.
        draws: the recording with its upper band drawn from the posterior, (draws, channels, N).
        variances: of every bin in each draw, (draws, channels, T, F), at the level of the recording: 0 in the band that is known.
    """

    sample_rate: int
    estimate: NDArray[np.float32]
    draws: NDArray[np.float32]
    variances: NDArray[np.float32]

    def interval(self, level: float = 0.9) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Ends of the central interval that holds the magnitude of a bin with that probability, each (channels, T, F); 0 where speech is known.

        Each draw has a variance of its own, so the more draws, the smoother the ends: take 16 or more.

        Raises:
            ValueError: when the level is not between 0 and 1.
        """
        check_level(level)
        low, high = (_magnitude(self.variances, (1 + sign * level) / 2) for sign in (-1, 1))
        return low, high

    def save(self, path: str | os.PathLike[str], draw: int | None = None) -> None:
        """Write the estimate, or a draw, to an audio file, atomically.

        Raises:
            AudioError: when the file cannot be written.
        """
        samples = self.estimate if draw is None else self.draws[draw]
        audio.write(path, samples, self.sample_rate, audio.unclipped(path, samples))


def extend(
    recording: str | os.PathLike[str] | NDArray[Any] | Tensor, cutoff: float | None = None, prior: Source | None = None, method: Method | None = None,
    *, sample_rate: int = 16_000, draws: int = 16, departure: Departure | None = SPEECH, seed: int | None = 0,
) -> Extension:
    """Give clean narrow-band speech an upper band: speech is known below the cut-off, its latents are inferred from that, and decode to all of it.

    Random are the latents, how far speech departs from what they decode to, and the upper band itself.

    Args:
        recording: as for :func:`ppse.enhance`.
        cutoff: Hz up to which the recording has sound; all that its rate can hold (:func:`ppse.narrowband.band`) unless given.
        prior: ``VAESpeech.pretrained()`` unless given.
        method: :func:`upper_band` unless given.
        sample_rate: of samples, in Hz.
        draws: how many; the estimate, too, is better of many. A minute of sound takes 11 MB for each.
        departure: law of what the prior does not know; None for a prior that is the truth.
        seed: as for :func:`ppse.enhance`.

    Raises:
        AudioError: when the recording cannot be used.
        ValueError: when the cut-off is missing or leaves nothing to know, or nothing to infer; there are no draws, or the prior has no latents.
    """
    samples, sample_rate = opened(recording, sample_rate)
    prior = prior or VAESpeech.pretrained()
    stft = stft_of(prior)
    held = band(stft, sample_rate, "cpu")
    if cutoff is None and held is None:
        raise ValueError(f"extend: a recording at {sample_rate} Hz can hold all that the prior has; give the cutoff above which it has no sound")
    known = torch.ones(stft.n_freqs, dtype=torch.bool) if held is None else held
    if cutoff is not None:
        known = known & torch.from_numpy(stft.frequencies < cutoff)
    if not known.any() or known.all():
        raise ValueError(f"extend: cutoff={cutoff:g} Hz; expected one above 0 and below {stft.sample_rate / 2:g} Hz, where the prior ends")
    if type(draws) is not int or draws < 1:
        raise ValueError(f"extend: draws={draws}; expected a whole number, 1 or more")
    method = method or upper_band()
    waves = torch.from_numpy(np.stack([audio.resample(wave, sample_rate, stft.sample_rate) for wave in samples]))
    estimates, drawn, variances = [], [], []
    for wave in waves:
        x = stft.analysis(wave) * known
        if not x.any():  # digital silence comes out as it is
            estimates.append(torch.zeros_like(wave))
            drawn.append(wave.new_zeros(draws, wave.numel()))
            variances.append(wave.new_zeros(draws, *x.shape))
            continue
        scale = level(x).sqrt()
        with random_from(seed):
            var = variances_given(prior, x / scale, known, method, draws)
            if departure is not None:
                var = var * departure.draw(x / scale, var, known, stft).exp()
            var = var * scale.square() * ~known
            # White noise, shaped: overlapping bins that were drawn each by itself would cancel in part.
            noise = stft.analysis(torch.randn(1 + draws, wave.numel())) * math.sqrt(stft.n_fft / stft.hop)
            middle = var.log().mean(0, keepdim=True).exp()
            shaped = stft.synthesis(x + torch.cat([middle, var]).sqrt() * noise, wave.numel())
            estimates.append(shaped[0])
            drawn.append(shaped[1:])
        variances.append(var)
    return Extension(stft.sample_rate, torch.stack(estimates).numpy(), torch.stack(drawn, 1).numpy(), torch.stack(variances, 1).numpy())


def upper_band() -> Method:
    """Hamiltonian Monte Carlo under the posterior of clean speech: nothing to settle, as there is no noise."""
    return replace(hmc_em(30, settle=0, adapt=15, average=15), guide=clean_guide)


def _magnitude(variances: NDArray[np.float32], probability: float) -> NDArray[np.float64]:
    """Quantile of the magnitude of a mixture of circular Gaussians of variances (draws, …, T, F), each as likely as any other."""
    result = np.zeros(variances.shape[1:])
    for first in range(0, variances.shape[-2], FRAMES):  # a stretch at a time, to need little memory
        stretch = (..., slice(first, first + FRAMES), slice(None))
        result[stretch] = np.sqrt(_mixture_quantile(variances[stretch], probability))
    return result


def _mixture_quantile(means: NDArray[np.float32], probability: float) -> NDArray[np.float64]:
    """Quantile of a mixture of exponential variables of means (draws, …)."""
    result, unknown = np.zeros(means.shape[1:]), means.any(0)
    parts = means[:, unknown].astype(np.float64)
    ends = -math.log1p(-probability) * np.stack([parts.min(0), parts.max(0)])  # the quantile of a mixture lies between those of its parts
    with np.errstate(divide="ignore"):
        rate = 1 / parts
    for _ in range(HALVINGS):
        middle = ends.mean(0)
        below = 1 - np.exp(-middle * rate).mean(0) < probability
        ends = np.where(np.stack([below, ~below]), middle, ends)
    result[unknown] = ends[1]
    return result
