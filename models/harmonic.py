"""Speech as harmonics of a pitch under a smooth envelope: a prior with no network and a dozen numbers."""

from __future__ import annotations

import math
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from ..distributions import EXPECTED_LOG, ComplexNormal
from ..mixture import Frames
from ..stft import POWER_FLOOR


class HarmonicSpeech(PyroModule):
    """Harmonic plus noise: s_tf ~ CN(0, exp(e_tf) (w_t comb(f / f0_t) + 1 - w_t) + POWER_FLOOR); frames are independent given the latents.

    comb(p) = exp(k cos(2 pi p)) / I0(k) has a peak at every whole p and mean 1, so that pitch and voicing do not change the loudness.
    The peaks blur into noise towards high harmonics, as a pitch that moves within the frame makes them:
    1 / k = 1 / sharpness + (2 pi jitter f / f0)^2.

    Sites, all in the frames plate: ``pitch`` f0 in Hz, log-normal; ``voicing`` w, uniform on (0, 1); ``envelope`` c, J standard normal
    values that make e_tf = sum_j (location_j + spread_j c_tj) cos(pi j (f + 1/2) / F). The posterior of the pitch has a mode at every
    octave that fits: run several chains, started apart.

    Args:
        location, spread: (J,) mean and standard deviation of the coefficients of the cosines, for speech of unit level; :meth:`learn` finds them.
        n_freqs: F.
        sample_rate: in Hz.
        pitch: median of f0 in Hz; pitch_spread: standard deviation of log f0.
        sharpness: of the first peaks, whose standard deviation is about f0 / (2 pi sqrt(sharpness)).
        jitter: standard deviation of the log-pitch within a frame; 0 for peaks that are equally sharp up to the highest.

    Raises:
        ValueError: when the shapes do not fit or a value is out of range.

    References:
        Stylianou (2001), Applying the harmonic plus noise model in concatenative speech synthesis.
    """

    location: Tensor
    spread: Tensor
    cosines: Tensor
    frequencies: Tensor

    def __init__(
        self, location: Tensor, spread: Tensor, n_freqs: int = 513, sample_rate: int = 16_000, pitch: float = 150.0, pitch_spread: float = 0.35,
        sharpness: float = 4.0, jitter: float = 0.01,
    ) -> None:
        super().__init__()
        if location.dim() != 1 or spread.shape != location.shape or not (spread > 0).all():
            raise ValueError(
                f"HarmonicSpeech: location and spread have shapes {tuple(location.shape)} and {tuple(spread.shape)}; expected J numbers each, "
                f"the spread above 0"
            )
        if not min(n_freqs - 1, sample_rate, pitch, pitch_spread, sharpness) > 0 or not jitter >= 0:
            raise ValueError(
                f"HarmonicSpeech: n_freqs={n_freqs}, sample_rate={sample_rate}, pitch={pitch}, pitch_spread={pitch_spread}, "
                f"sharpness={sharpness}, jitter={jitter}; expected 2 frequencies at least, a jitter of 0 or more, and the others above 0"
            )
        self.pitch, self.pitch_spread, self.sharpness, self.jitter = pitch, pitch_spread, sharpness, jitter
        self.register_buffer("location", location)
        self.register_buffer("spread", spread)
        self.register_buffer("cosines", _cosines(n_freqs, len(location)).to(location))
        self.register_buffer("frequencies", torch.linspace(0, sample_rate / 2, n_freqs).to(location))

    @classmethod
    def learn(cls, power: Tensor, n_cosines: int = 12, sample_rate: int = 16_000) -> Self:
        """The prior of clean speech with the power spectrogram (T, F), of unit level (:func:`ppse.stft.level`). Not random.

        Location and spread are those of the cosine transform of the log-powers, whose mean is the log-variance less Euler's constant.
        """
        cosines = _cosines(power.shape[-1], n_cosines).to(power)
        log_variance = (power + POWER_FLOOR).log() - EXPECTED_LOG
        coefficients = log_variance @ cosines / cosines.square().sum(0)  # the columns are orthogonal
        return cls(coefficients.mean(0), coefficients.std(0), power.shape[-1], sample_rate)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F)."""
        one = self.location.new_ones(())
        with frames:
            pitch = pyro.sample("pitch", dist.LogNormal(math.log(self.pitch) * one, self.pitch_spread * one)).unsqueeze(-1)
            voicing = pyro.sample("voicing", dist.Uniform(0 * one, one)).unsqueeze(-1)
            envelope = pyro.sample("envelope", dist.Normal(torch.zeros_like(self.location), 1.0).to_event(1))
        phase = 2 * math.pi * self.frequencies / pitch
        sharpness = 1 / (1 / self.sharpness + (self.jitter * phase).square())
        comb = (sharpness * (phase.cos() - 1)).exp() / torch.special.i0e(sharpness)
        smooth = ((self.location + self.spread * envelope) @ self.cosines.mT).exp()
        return ComplexNormal(0j, smooth * (voicing * comb + 1 - voicing) + POWER_FLOOR)


def _cosines(n_freqs: int, count: int) -> Tensor:
    """The first cosines over frequency, (F, count)."""
    places = (torch.arange(n_freqs, dtype=torch.float64) + 0.5) / n_freqs
    return (math.pi * places.unsqueeze(-1) * torch.arange(count)).cos()
