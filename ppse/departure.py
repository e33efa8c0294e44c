"""Departure: how far speech lies from what a prior decodes, above a band that its latents were fitted to.

A decoder has heard the microphones and voices of its training, and its latents are those that explain the lower band. So the truth above is
off by a gain that varies with frequency and time. Here this is a Gaussian process of the log-power: in frequency it sets out from what is seen
at the cut-off and wanders, as an Ornstein-Uhlenbeck process of the equivalent rectangular bandwidths (Glasberg & Moore 1990), once for the
recording and once for its frames.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .distributions import EXPECTED_LOG, power_of
from .stft import STFT, bandwidths

NEAR = 1.0
"""Bandwidths below the cut-off in which the departure is seen."""

SILENCE = 1e-12
"""Power, in a recording of unit level, that is taken for none."""


class Wander(NamedTuple):
    """Ornstein-Uhlenbeck process over frequency that is 0 at the cut-off.

    Attributes:
        deviation: far from there, in nepers of power.
        reach: in bandwidths, after which a correlation of 1 has become 1/e.
    """

    deviation: float
    reach: float

    def covariance(self, distance: Tensor) -> Tensor:
        """Covariances (F, F) at distances (F,) from the cut-off, in bandwidths."""
        apart, around = (distance.unsqueeze(1) - distance).abs(), distance.unsqueeze(1) + distance
        return self.deviation**2 * ((-apart / self.reach).exp() - (-around / self.reach).exp())


class Departure(NamedTuple):
    """Law of the departure, in nepers of power.

    Attributes:
        recording: what the frames of a recording share, such as the microphone.
        frame: what is of a frame.
        memory: seconds after which a correlation of 1 between frames has become 1/e.
    """

    recording: Wander
    frame: Wander
    memory: float

    def draw(self, x: Tensor, var: Tensor, known: Tensor, stft: STFT) -> Tensor:
        """Draws of the departure in all bins, (draws, T, F); 0 in those that are known. It is random in all others.

        Args:
            x: STFT (T, F) of unit level.
            var: variances (draws, T, F) that latents decode to.
            known: (F,), the bins below the cut-off, the same in all frames; some are, and some are not.
            stft: of these.
        """
        distance = above(known, stft)[~known]
        recording, frame = (torch.linalg.cholesky(law.covariance(distance)).to(var) for law in (self.recording, self.frame))
        wandering = torch.randn(*var.shape[:-1], len(distance), device=var.device)
        memory = math.exp(-stft.hop / stft.sample_rate / self.memory)
        for t in range(1, len(x)):
            wandering[:, t] = memory * wandering[:, t - 1] + math.sqrt(1 - memory**2) * wandering[:, t]
        shared = torch.randn(len(var), 1, len(distance), device=var.device)
        departure = torch.zeros_like(var)
        departure[..., ~known] = seen(x, var, known, stft).unsqueeze(-1) + shared @ recording.mT + wandering @ frame.mT
        return departure


SPEECH = Departure(recording=Wander(1.79, 5.03), frame=Wander(3.27, 10.1), memory=0.075)
"""Of speakers that the shipped VAE was not trained on: ``python benchmarks/departure.py speech/train speech/train_extra`` (docs/partial.md)."""


def above(known: Tensor, stft: STFT) -> Tensor:
    """How far all bins (F,) lie above the last one that is known, in :func:`ppse.stft.bandwidths`."""
    number = bandwidths(torch.from_numpy(stft.frequencies))
    return number - number[known].max()


def seen(x: Tensor, var: Tensor, known: Tensor, stft: STFT) -> Tensor:
    """Departure that is seen at the cut-off, (draws, T); arguments as for :meth:`Departure.draw`.

    It is 0 in the mean over frames, weighted by their power: what is missing in loud frames, too, is where the filter of a telephone ends.
    """
    near = known & (above(known, stft) >= -NEAR)
    departure, loudness = unexplained(x, var)[..., near].mean(-1), power_of(x)[..., known].sum(-1)
    return departure - (departure * loudness).sum(-1, keepdim=True) / loudness.sum().clamp_min(SILENCE)


def unexplained(x: Tensor, var: Tensor) -> Tensor:
    """Nepers by which the power of bins x is above what is expected of a Gaussian of variance var; of their broadcast shape."""
    return (power_of(x) + SILENCE).log() - var.log() - EXPECTED_LOG
