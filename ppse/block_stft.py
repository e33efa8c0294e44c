"""The STFT of a waveform that is still coming in: frames as they become complete, samples as soon as no later frame touches them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .stft import STFT


class Analyser:
    """:meth:`STFT.analysis` piece by piece: the same frames, however the waveform is cut.

    Args:
        stft: says window and hop.
    """

    def __init__(self, stft: STFT) -> None:
        self._stft = stft
        self._rest = torch.zeros(stft.n_fft - stft.hop)

    def __call__(self, samples: Tensor) -> Tensor:
        """The frames (T, F) that the next samples (N,) complete, T = 0 if none. Less than a window is kept."""
        wave = torch.cat([self._rest, samples])
        stft, count = self._stft, max(0, (len(wave) - self._stft.n_fft) // self._stft.hop + 1)
        self._rest = wave[count * stft.hop :]
        if not count:
            return torch.zeros(0, stft.n_freqs, dtype=torch.complex64)
        return torch.fft.rfft(wave.unfold(0, stft.n_fft, stft.hop)[:count] * stft.window(wave), norm="ortho")


class Synthesiser:
    """:meth:`STFT.synthesis` piece by piece: overlap-add that keeps what later frames will still be added to.

    Args:
        stft: says window and hop.
    """

    def __init__(self, stft: STFT) -> None:
        self._stft = stft
        self._tail = torch.zeros(stft.n_fft - stft.hop)
        self._lead = stft.n_fft - stft.hop

    def __call__(self, frames: Tensor) -> Tensor:
        """The samples (N,) that the next frames (T, F) finish: T hops of them, fewer at first, where frames start before the waveform."""
        stft = self._stft
        if not len(frames):
            return self._tail[:0]
        total = pad(self._tail, (0, len(frames) * stft.hop))
        for t, piece in enumerate(torch.fft.irfft(frames, n=stft.n_fft, norm="ortho") * stft.window(frames)):
            total[t * stft.hop : t * stft.hop + stft.n_fft] += piece
        done = len(frames) * stft.hop
        self._tail = total[done:]
        early = min(self._lead, done)
        self._lead -= early
        return total[early:done]
