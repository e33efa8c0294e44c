"""Noise as trained ears hear it, corrected by a noise model of the recording."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from ..distributions import ComplexNormal
from ..mixture import Frames, Source, Updatable
from ..stft import POWER_FLOOR
from ._wrapper import Wrapper
from .nmf import NMFNoise
from .vae import VAESpeech

RANK, SPACING = 4, 1
"""Patterns of the correction and frames from knot to knot of its activations (docs/amortised.md). It begins near what is heard, so it can
follow faster than noise that begins at random, and speech still does not take its place."""


class HeardNoise(Wrapper):
    """n_tf ~ CN(0, a_tf c_tf): the power a that a :class:`ppse.models.encoders.Listener` hears, and a correction c, another noise model.

    Where noise is like that which the listener was trained with, it tells apart in every bin what NMF, a sum of a few patterns,
    cannot. What it hears is taken once, at :meth:`start`; EM then fits the correction, which begins at whatever the wrapped model does
    (inference methods that hear begin near one, by :func:`ppse.warm_start.fit_noise`: with patterns that begin at random, off by 0.2 dB on
    average and by some dB in single bins). The latents of speech start at what the same ears
    propose (:func:`ppse.guides.starting_guide`), whatever its prior is; beside :class:`ppse.models.HeardSpeech`, whose ears are others, at what
    those propose, and the correction starts where the noise is as those hear it.

    Args:
        ears: a VAE with a listener, for the STFT of the recording, e.g. ``VAESpeech.pretrained()``, and better one that listens in
            bins than in bands (docs/amortised.md); a copy is kept.
        correction: noise model of the recording divided by what is heard; NMF of :data:`RANK` and :data:`SPACING` unless given.

    Raises:
        ValueError: when the VAE has no listener, or the correction no closed-form M-step.
    """

    heard: Tensor | None

    def __init__(self, ears: VAESpeech, correction: Source | None = None) -> None:
        super().__init__(correction or NMFNoise(RANK, spacing=SPACING))
        if not isinstance(self.source, Updatable):
            found = type(self.source).__name__
            raise ValueError(f"HeardNoise: the correction is {found}, which has no closed-form M-step; use NMFNoise or StationaryNoise")
        if ears.listener is None:
            raise ValueError("HeardNoise: this VAE has no listener; give VAESpeech.pretrained(), or train one with VAESpeech(context=…)")
        self.ears = copy.deepcopy(ears).requires_grad_(False)
        self.register_buffer("heard", None, persistent=False)  # of one recording

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Hears the recording (of unit level), and starts the correction on x divided by that. Random as the correction is."""
        super().start(self._divided(x, observed), observed)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Hears the next stretch of the recording; the correction goes on."""
        super().follow(self._divided(x, observed), observed)

    @torch.no_grad()
    def _divided(self, x: Tensor, observed: Tensor | None) -> Tensor:
        assert self.ears.noisy_encoder is not None
        self.heard = self.ears.noisy_encoder.hear(x, observed).noise + POWER_FLOOR
        return x / self.heard.sqrt()

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise STFT, (…, T, F)."""
        heard, law = self._heard(), self.source(frames)
        return law.scaled(heard)

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """The update of the correction, for the mixture divided by what is heard; returns the new variance. See :meth:`NMFNoise.update`."""
        heard = self._heard()
        assert isinstance(self.source, Updatable)
        return heard * self.source.update(power / heard, own / heard, others / heard, observed)

    def _heard(self) -> Tensor:
        if self.heard is None:
            raise RuntimeError("HeardNoise: no recording yet; call model.start(x) (enhance does) before running the model")
        return self.heard
