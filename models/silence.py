"""Knowledge of where a source is silent, such as before the first word."""

from __future__ import annotations

import torch
from torch import Tensor

from ..distributions import ComplexNormal
from ..mixture import Frames, Source, Updatable
from ._wrapper import Wrapper


class KnownSilence(Wrapper):
    """Another source, known to be silent in some frames: there its mean and variance are 0, and so is its estimate.

    In those frames the other sources explain the recording alone, and the latents of the wrapped source follow their prior.

    Args:
        source: any source, e.g. ``KnownSilence(VAESpeech.pretrained(), silent)``.
        silent: boolean (T,), or (B, 1, T) for a batch; one for every frame of the recording, which is to be inferred in one window.

    Raises:
        ValueError: when ``silent`` is not boolean; when the model runs on a recording that has another number of frames.
    """

    silent: Tensor

    def __init__(self, source: Source, silent: Tensor) -> None:
        super().__init__(source)
        if silent.dtype != torch.bool or silent.dim() not in (1, 3):
            raise ValueError(
                f"KnownSilence: silent is a {silent.dtype} tensor of shape {tuple(silent.shape)}; expected a boolean one, (T,) or (B, 1, T)"
            )
        self.register_buffer("silent", silent)

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Starts the wrapped source on the frames in which it may sound."""
        super().start(x, self._heard(x, observed))

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """The wrapped source goes on with the next stretch of the recording, whose frames must be those of ``silent``."""
        super().follow(x, self._heard(x, observed))

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the source, (…, T, F), exactly 0 in the silent frames."""
        law: ComplexNormal = self.source(frames)
        sounds = self._sounds(frames.size)
        return law.scaled(sounds)

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """The M-step of the wrapped source, which the silent frames tell nothing; returns the new variance. See :meth:`NMFNoise.update`."""
        if not isinstance(self.source, Updatable):
            return own
        return self.source.update(power, own, others, self._heard(power, observed)) * self._sounds(power.shape[-2])

    def _sounds(self, n_frames: int) -> Tensor:
        if self.silent.shape[-1] != n_frames:
            raise ValueError(
                f"KnownSilence: {self.silent.shape[-1]} frames are marked, and the recording, or this window of it, has {n_frames}; mark every "
                f"frame (STFT().n_frames(samples)), and infer in one window (enhance(…, window=…))"
            )
        return ~self.silent.unsqueeze(-1)

    def _heard(self, x: Tensor, observed: Tensor | None) -> Tensor | None:
        """Which bins tell of the wrapped source."""
        if self.silent.shape[-1] != x.shape[-2]:
            return observed  # a source can be started on any recording; that this one has other frames is told when the model runs
        sounds = ~self.silent.unsqueeze(-1)
        return (sounds if observed is None else sounds & observed).expand(x.shape)
