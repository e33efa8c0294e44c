"""Noise with one spectrum for the whole recording."""

from __future__ import annotations

import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ..distributions import ComplexNormal, power_of
from ..mixture import Frames
from ._multiplicative import PARAMETER_FLOOR, averages, scaled


class StationaryNoise(PyroModule):
    """Stationary Gaussian noise: n_tf ~ CN(0, v_f).

    Parameter of one recording, made by :meth:`start`: ``spectrum`` (F,), or (B, 1, 1, F) in a batch.
    """

    spectrum: Tensor

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Starts at the mean power of x over the observed frames. Not random."""
        power = power_of(x)
        seen = torch.ones_like(power) if observed is None else observed.expand(power.shape).to(power.dtype)
        mean = (power * seen).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True).clamp_min(1)
        self.spectrum = PyroParam((mean if x.dim() > 2 else mean.squeeze(-2)).clamp_min(PARAMETER_FLOOR), constraints.positive)

    def slide(self, before: int, dropped: int, after: int, power: float = 1.0) -> None:
        """The recording goes on (:meth:`NMFNoise.slide`): no frame has anything of its own, and the spectrum is multiplied by ``power``."""
        self.spectrum = (self.spectrum * power).detach().clamp_min(PARAMETER_FLOOR)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise STFT, (…, T, F), in squared STFT units."""
        if "spectrum" not in self._pyro_params:
            raise RuntimeError("StationaryNoise: no recording yet; call model.start(x) (enhance does) before running the model")
        spectrum = self.spectrum
        shape = (*spectrum.shape[:-2], frames.size, spectrum.shape[-1]) if spectrum.dim() > 1 else (frames.size, -1)
        return ComplexNormal(0j, spectrum.expand(shape))

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """One multiplicative step on the spectrum; returns the new variance. See :meth:`NMFNoise.update`."""
        a, b = (v.sum(-2, keepdim=True) for v in averages(power, others + own, observed))
        spectrum = self.spectrum
        self.spectrum = scaled(spectrum, a.reshape(spectrum.shape), b.reshape(spectrum.shape)).clamp_min(PARAMETER_FLOOR)
        return self.spectrum.expand(own.shape)
