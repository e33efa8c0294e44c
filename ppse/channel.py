"""One channel of a recording on its way through inference: in at the rate and level of the models, out stretch by stretch, put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio
from .distributions import ComplexNormal
from .narrowband import band, edge_gain, share_rest
from .stft import STFT, active_mean, frame_power
from .windows import add_frames

if TYPE_CHECKING:
    import numpy as np

    from .enhance import Enhancement


class Channel:
    """Samples at the rate of the models, and what the stretches that were inferred say of the sources. Nothing is random.

    Args:
        samples: (N,), full scale 1.
        sample_rate: in Hz.
        sources: names.
        stft: of the model.
        std, draws: whether to put together deviations, and how many draws.
        device: where inference runs.

    Attributes:
        wave: the samples at the rate of the STFT.
        observed: bins that the recording can hold, (F,); None means all.
        scale: what the samples are divided by to be of unit level.
    """

    def __init__(
        self, samples: NDArray[np.float32], sample_rate: int, sources: Iterable[str], stft: STFT, std: bool, draws: int, device: str,
    ) -> None:
        self.samples, self.sample_rate, self.stft, self._device = samples, sample_rate, stft, device
        self.wave = torch.from_numpy(audio.resample(samples, sample_rate, stft.sample_rate))
        self.observed = band(stft, sample_rate, device)
        self.scale = _scale(self.wave, stft)
        n_frames = stft.n_frames(len(self.wave))
        self._outputs = {name: torch.zeros(1 + draws, len(self.wave)) for name in sources}  # row 0 is the estimate, the others are draws
        self._variances = {name: torch.zeros(n_frames, stft.n_freqs) for name in sources} if std else {}
        self._gains = {name: torch.zeros(n_frames, 1) for name in sources} if self.observed is not None else {}

    def stretch(self, first: int, last: int) -> Tensor:
        """STFT (T, F) of the samples from first to last, at the unit level of the whole channel."""
        return (self.stft.analysis(self.wave[first:last]) / self.scale).to(self._device)

    def add(self, first: int, weight: Tensor, x: Tensor, laws: Mapping[str, ComplexNormal], drawn: Mapping[str, Tensor]) -> None:
        """Cross-fade in what is known of a stretch.

        Args:
            first: its first sample.
            weight: of its samples (:func:`ppse.windows.fade`).
            x: its STFT, (T, F).
            laws: posterior of the sources, each (T, F).
            drawn: draws of the sources, each (draws, T, F); not read without draws.
        """
        last, seen = first + len(weight), 1.0 if self.observed is None else self.observed
        for name, law in laws.items():
            loc, var = law.loc * seen, law.var * seen
            if self.observed is not None:
                add_frames(self._gains[name], edge_gain(loc, x, self.observed).cpu(), first // self.stft.hop, weight[:: self.stft.hop])
            rows = torch.cat([loc[None], drawn[name] * seen]) if len(self._outputs[name]) > 1 else loc[None]
            self._outputs[name][:, first:last] += weight * (self.stft.synthesis(rows, last - first) * self.scale).cpu()
            if self._variances:
                add_frames(self._variances[name], var.cpu() * self.scale**2, first // self.stft.hop, weight[:: self.stft.hop])

    def write(self, result: Enhancement, channel: int) -> None:
        """Fill in the channel of that number of a result, at the rate and length of the samples."""
        for name, var in self._variances.items():
            blank = torch.zeros(len(result.noisy), *var.shape).numpy()
            result.std.setdefault(name, blank)[channel] = var.sqrt().numpy()
        for row in range(len(next(iter(self._outputs.values())))):
            waves = {
                name: audio.fitted(audio.resample(output[row].numpy(), self.stft.sample_rate, self.sample_rate), self.samples.size)
                for name, output in self._outputs.items()
            }
            if self._gains:
                share_rest(self.samples, waves, self._gains, self.stft, self.sample_rate)
            for name, finished in waves.items():
                (result.draws[name][row - 1] if row else result.estimates[name])[channel] = finished


def _scale(wave: Tensor, stft: STFT) -> float:
    """Square root of the level of a waveform, a minute at a time so that an hour needs no more memory."""
    step = 60 * stft.sample_rate
    power = torch.cat([frame_power(stft.analysis(wave[i : i + step])) for i in range(0, len(wave), step)])
    return math.sqrt(active_mean(power).item())
