"""Ears that listen in bands as wide as those of hearing: they have less to learn from few noises, and what they learn holds for others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool1d

from ..distributions import power_of
from ..stft import bandwidths
from .coupled_normal import alternating
from .encoders import Heard, heads, remembered
from .recurrent import flattened

FLOOR = 1e-8
"""Power added to every bin of a recording of unit level."""

LOW, LOWEST = 0.4, 0.1
"""Quantiles over time that tell what is in a band all the time."""

TOP = 8000.0
"""Hz of the highest frequency, that of the shipped STFT. With another the bands are as many, their widths less like those of hearing."""

PERIODS, PITCHES = (32, 224), 24
"""Periods of a voice in samples (70 to 500 Hz at the shipped rate), and in how many groups the cepstrum of a frame tells of them."""

FINE = 3.0
"""Largest departure of a steady sound's spectrum from its bands, in nepers of power."""


class BandListener(nn.Module):
    """A :class:`ppse.models.encoders.Listener` that tells speech from noise in bands, not bins, of an STFT (…, T, F) of unit level.

    It sees the log-power of every band, how it stands to quantiles of it over the recording, how flat the spectrum is inside, and the cepstrum
    where voices have their pitch. The noise lies between the low quantile and what is there now, give or take; inside of a band it is as
    that of the low quantile of every bin.

    Args:
        n_freqs, n_latent: F and L.
        size: of the recurrent layers.
        bands: K, how many.
        couplings: as for :class:`ppse.models.encoders.Listener`.

    Raises:
        ValueError: when there are so many bands that one has no bin.

    References:
        Glasberg & Moore (1990), Derivation of auditory filter shapes from notched-noise data (widths of bands).
        Valin (2018), A hybrid DSP/deep learning approach to real-time full-band speech enhancement (bands and pitch as features).
    """

    to_bins: Tensor
    to_bands: Tensor

    def __init__(self, n_freqs: int, n_latent: int, size: int, bands: int, couplings: int = 0) -> None:
        super().__init__()
        overlapping = auditory_bands(n_freqs, bands)
        if not (overlapping.sum(0) > 0).all():
            raise ValueError(f"BandListener: bands={bands} for {n_freqs} frequencies; some would have none, use fewer")
        self.register_buffer("to_bins", overlapping.mT.contiguous(), persistent=False)
        self.register_buffer("to_bands", overlapping / overlapping.sum(0), persistent=False)
        self.now = nn.Linear(5 * bands + PITCHES, size)
        self.memory = nn.LSTM(size, size, num_layers=2, batch_first=True, bidirectional=True)
        self.mask, self.shift, self.scale, self.noise = heads(2 * size, bands, n_latent)
        self.follow = nn.Linear(2 * size, bands)
        self.couplings = alternating(couplings, n_latent, 2 * size)
        nn.init.zeros_(self.follow.weight)
        nn.init.constant_(self.follow.bias, -2.0)

    def forward(self, x: Tensor, observed: Tensor | None = None, steady: Tensor | None = None) -> Heard:
        """As :meth:`ppse.models.encoders.Listener.forward`."""
        bins, now = self._levels(x)
        steady = self._steady(bins, now, _seen(x, observed)) if steady is None else steady
        low, lowest, fine = steady.split([now.shape[-1], now.shape[-1], bins.shape[-1]], -1)
        mean = bins @ self.to_bands
        # Scaled to values of order one.
        steadiness = (low - lowest).expand_as(now)
        flatness, pitches = 2 * (now - mean) - 1, self._pitches(bins - mean @ self.to_bins)
        seen = [(now - low) / 2, (low / 4).expand_as(now), steadiness, flatness, now / 4, pitches]
        memory = remembered(self.memory, torch.relu(self.now(torch.cat(seen, -1))), x, observed)
        level = low + self.follow(memory).sigmoid() * (now - low) + self.noise(memory)
        noise = (level @ self.to_bins + fine).exp()
        return Heard(self.mask(memory).sigmoid() @ self.to_bins, self.shift(memory), self.scale(memory).sigmoid(), noise, memory)

    def steady(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """What is there all the time, (…, 1, 2 K + F): two quantiles of the bands, and the fine structure of the upper one.

        Of the frames with an observed bin.
        """
        return self._steady(*self._levels(x), _seen(x, observed))

    def _levels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-powers of the bins (…, T, F) and of the bands (…, T, K)."""
        power = power_of(x)
        return (power + FLOOR).log(), (power @ self.to_bands + FLOOR).log()

    def _steady(self, bins: Tensor, bands: Tensor, seen: Tensor | None) -> Tensor:
        low = over_time(bins, (LOW,), seen)
        fine = (low - low @ self.to_bands @ self.to_bins).clamp(-FINE, FINE)
        return torch.cat([*over_time(bands, (LOW, LOWEST), seen).split(1, -2), fine], -1)

    def _pitches(self, fine: Tensor) -> Tensor:
        last = min(PERIODS[1], fine.shape[-1])
        cepstrum = torch.fft.irfft(fine)[..., min(PERIODS[0], last // 2) : last]
        return 20 * adaptive_max_pool1d(flattened(cepstrum.clamp_min(0)), PITCHES).reshape(*fine.shape[:-1], PITCHES)


def _seen(x: Tensor, observed: Tensor | None) -> Tensor | None:
    return None if observed is None else observed.expand(x.shape).any(-1, keepdim=True)


def auditory_bands(n_freqs: int, count: int) -> Tensor:
    """Triangular bands that overlap by half and sum to one in every bin, (F, K); evenly spaced in equivalent rectangular bandwidths from 30 Hz on."""
    frequency = torch.linspace(0, TOP, n_freqs, dtype=torch.float64)
    number = bandwidths(frequency)
    first, last = bandwidths(torch.tensor([30.0, TOP], dtype=torch.float64))
    centres = torch.linspace(float(first), float(last), count, dtype=torch.float64)
    bands = (1 - (number.unsqueeze(1) - centres).abs() * (count - 1) / (last - first)).clamp_min(0)
    bands[number < first, 0] = 1
    return bands.float()


def over_time(values: Tensor, quantiles: Sequence[float], seen: Tensor | None = None) -> Tensor:
    """Quantiles over the frames that are ``seen`` (…, T, 1) of values (…, T, n) → (…, Q, n); 0 where none is."""
    if seen is None:
        seen = torch.ones_like(values[..., :1], dtype=torch.bool)
    count = seen.sum(-2, keepdim=True).clamp_min(1)
    share = torch.tensor(quantiles, dtype=torch.float64, device=values.device).unsqueeze(-1)
    index = torch.minimum((share * count).long(), count - 1)
    ordered = values.masked_fill(~seen, torch.inf).sort(-2).values
    return ordered.gather(-2, index.expand(*ordered.shape[:-2], -1, ordered.shape[-1])).nan_to_num(posinf=0.0)
