"""The short-time Fourier transform, as a tight frame: time-domain and STFT-domain energy agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import fold, pad


@dataclass(frozen=True)
class STFT:
    """A tight-frame STFT: ``synthesis(analysis(w), len(w)) == w``, frames before frequencies.

    The sine window is used twice, in analysis and in synthesis, and scaled so that its squared shifts
    sum to one; the FFT is orthonormal. White noise of variance s2 therefore has STFT power
    ``s2 * hop / n_fft`` in every bin, whatever the frame.

    Args:
        n_fft: window length in samples (1024 = 64 ms at 16 kHz, the setting of the speech-VAE literature).
        hop: shift between frames in samples; must divide ``n_fft`` at least twice.
        sample_rate: in Hz; kept here so that one object describes the domain of a model.

    Raises:
        ValueError: if ``hop`` does not divide ``n_fft`` at least twice.

    >>> stft = STFT()
    >>> wave = torch.sin(torch.arange(1000.0))
    >>> x = stft.analysis(wave)
    >>> tuple(x.shape)
    (7, 513)
    >>> torch.allclose(stft.synthesis(x, 1000), wave, atol=1e-5)
    True
    """

    n_fft: int = 1024
    hop: int = 256
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        if self.n_fft % self.hop or self.n_fft < 2 * self.hop:
            raise ValueError(
                f"STFT: hop={self.hop} must divide n_fft={self.n_fft} at least twice, or the sine window is no tight frame"
            )

    @classmethod
    def of_freqs(cls, n_freqs: int) -> STFT:
        """The one with ``n_freqs`` bins, its hop a quarter of the window where that is whole, else half of it.

        Raises:
            ValueError: below 2 bins, which no window has.

        >>> STFT.of_freqs(513) == STFT()
        True
        """
        if n_freqs < 2:
            raise ValueError(f"STFT: n_freqs={n_freqs}; expected 2 or more")
        n_fft = 2 * (n_freqs - 1)
        return cls(n_fft, n_fft // 2 if n_fft % 4 else n_fft // 4)

    @property
    def n_freqs(self) -> int:
        """F, the number of bins from 0 Hz to Nyquist."""
        return self.n_fft // 2 + 1

    def n_frames(self, length: int) -> int:
        """T, the number of frames of a waveform of ``length`` samples: every sample lies in ``n_fft / hop`` frames."""
        return -(-(length + self.n_fft - self.hop) // self.hop)

    def centres(self, n_frames: int) -> NDArray[np.floating]:
        """Times of the centres of the frames, (T,), in seconds; the first frame starts ``n_fft - hop`` samples before the waveform."""
        return ((np.arange(n_frames) + 1) * self.hop - self.n_fft / 2) / self.sample_rate

    @property
    def frequencies(self) -> NDArray[np.floating]:
        """Frequencies of the bins, (F,), in Hz."""
        return np.arange(self.n_freqs) * (self.sample_rate / self.n_fft)

    def window(self, like: Tensor) -> Tensor:
        """The sine window (n_fft,), scaled to a tight frame, in the real type and device of ``like``."""
        n = torch.arange(self.n_fft, dtype=like.real.dtype, device=like.device)
        return torch.sin(math.pi * (n + 0.5) / self.n_fft) * math.sqrt(2 * self.hop / self.n_fft)

    def analysis(self, wave: Tensor) -> Tensor:
        """Waveforms (…, N) to STFT (…, T, F), complex. Zeros are assumed outside of the waveform."""
        length, lead = wave.shape[-1], self.n_fft - self.hop
        total = (self.n_frames(length) - 1) * self.hop + self.n_fft
        padded = pad(wave, (lead, total - lead - length))
        frames = padded.unfold(-1, self.n_fft, self.hop)
        return torch.fft.rfft(frames * self.window(wave), norm="ortho")

    def synthesis(self, x: Tensor, length: int) -> Tensor:
        """STFT (…, T, F) to waveforms (…, length): the adjoint of :meth:`analysis`, hence its inverse."""
        frames = torch.fft.irfft(x, n=self.n_fft, norm="ortho") * self.window(x)
        n_frames = x.shape[-2]
        total = (n_frames - 1) * self.hop + self.n_fft
        columns = frames.reshape(-1, n_frames, self.n_fft).mT
        wave = fold(columns, (1, total), (1, self.n_fft), stride=(1, self.hop))
        lead = self.n_fft - self.hop
        return wave.reshape(*x.shape[:-2], total)[..., lead : lead + length]


POWER_FLOOR = 1e-4
"""Power added to every bin in training and in encoder inputs, for recordings of unit level (-40 dB re. their mean).

Corpora that went through a lossy codec have empty bins; without a floor those dominate the loss.
"""


def bandwidths(frequency: Tensor) -> Tensor:
    """Number of equivalent rectangular bandwidths of hearing below frequencies in Hz, of their shape (Glasberg & Moore 1990, eq. 4)."""
    return 21.4 * torch.log10(1 + 0.00437 * frequency)


def level(x: Tensor) -> Tensor:
    """Mean power per bin over the active frames of an STFT (…, T, F), shape (…, 1, 1). Not random.

    ``x / level(x).sqrt()`` is a recording of unit level, which is what every pretrained prior expects. A
    silent recording has level 1.
    """
    return active_mean(frame_power(x)).unsqueeze(-1)


def frame_power(x: Tensor) -> Tensor:
    """Mean power per bin of every frame: (…, T, F) -> (…, T)."""
    return (x.real.square() + x.imag.square()).mean(-1)


def active_mean(power: Tensor) -> Tensor:
    """Mean over the active frames of :func:`frame_power`, (…, T) -> (…, 1); 1 when all is silent.

    Active is a frame with more than a thousandth of the power of the loudest ones (95th percentile), so that
    pauses do not count.
    """
    loud = power.quantile(0.95, dim=-1, keepdim=True)
    active = power > 1e-3 * loud
    mean = (power * active).sum(-1, keepdim=True) / active.sum(-1, keepdim=True).clamp_min(1)
    return torch.where(mean > 1e-20, mean, torch.ones_like(mean))
