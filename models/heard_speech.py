"""A prior of speech narrowed to what trained ears propose for the recording at hand."""

from __future__ import annotations

import copy
from typing import Any, Protocol, cast

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ..distributions import ComplexNormal
from ..mixture import Frames, Source
from ._wrapper import Wrapper
from .encoders import CleanedEncoder, NoisyEncoder
from .vae import VAESpeech

WEIGHT = 0.2
"""Weight of what is heard; chosen on held-out noise, and with ears that misjudge the noise (docs/amortised.md)."""


class WithEncoder(Protocol):
    """A speech prior with a site ``z`` and an encoder of it for clean speech."""

    n_freqs: int
    encoder: nn.Module

    def __call__(self, frames: Frames) -> ComplexNormal: ...


class HeardSpeech(Wrapper):
    """p(z) q(z | x)^w of another prior p, up to a constant: q is the law of the latents that ears propose, w its weight.

    The prior of a frame knows nothing of the frames around it; ears that heard the whole recording do. As they heard this frame, too, its
    evidence counts twice where w is 1, and ears are too sure of themselves in noise that is new to them; a small w, and methods whose
    target is flattened (:func:`ppse.methods.hmc_em` with a temperature), make up for that. The posterior under it is no posterior
    under p: full Bayes and coverage are for the prior alone.

    Sites: those of the source, and the factor ``heard``. The law q is taken once, at :meth:`start`.

    Args:
        source: a speech prior with a site ``z`` and an encoder for clean speech: any VAE, with memory or without.
        ears: a VAE with a listener, for the same STFT, e.g. ``VAESpeech.pretrained("vae_aware")``; a copy is kept.
        weight: w, positive.

    Raises:
        ValueError: when the VAE has no listener or is for another STFT, or the weight is not positive.
    """

    def __init__(self, source: WithEncoder, ears: VAESpeech, weight: float = WEIGHT) -> None:
        super().__init__(cast(Source, source))
        hearing = heard_by(copy.deepcopy(ears), source.encoder, source.n_freqs)
        if not weight > 0:
            raise ValueError(f"HeardSpeech: weight={weight}; expected a positive number")
        self.n_freqs, self.weight = source.n_freqs, weight
        self.noisy_encoder = hearing
        self.law: TorchDistribution | None = None

    @property
    def encoder(self) -> nn.Module:
        """That of the source, for clean speech."""
        return cast(WithEncoder, self.source).encoder

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Hears the recording; starts the wrapped source too."""
        super().start(x, observed)
        self._hear(x, observed)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Hears the next stretch of the recording."""
        super().follow(x, observed)
        self._hear(x, observed)

    @torch.no_grad()
    def _hear(self, x: Tensor, observed: Tensor | None) -> None:
        self.law = self.noisy_encoder(x, observed)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the wrapped source, (…, T, F); scores its latents under what is heard."""
        if self.law is None:
            raise RuntimeError("HeardSpeech: no recording yet; call model.start(x) (enhance does) before running the model")
        with _Seen("z") as seen:
            law: ComplexNormal = self.source(frames)
        with frames:
            pyro.factor("heard", self.weight * self.law.to_event(1).log_prob(seen.message["value"]))
        return law


class _Seen(Messenger):
    """Keeps hold of the message of a site, which others rename and fill in."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site
        self.message: dict[str, Any] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:
            self.message = msg


def heard_by(ears: VAESpeech, encoder: nn.Module, n_freqs: int) -> NoisyEncoder | CleanedEncoder:
    """The encoder of noisy recordings that a VAE with a listener makes of an encoder for clean speech; its own, where they are the same.

    Raises:
        ValueError: when the VAE has no listener, or is for another STFT.
    """
    if ears.noisy_encoder is None:
        raise ValueError("these ears are a VAE without a listener; give 'vae_aware' (VAESpeech.pretrained), or train one: ppse train listener")
    if ears.n_freqs != n_freqs:
        raise ValueError(f"these ears are for STFTs of {ears.n_freqs} frequencies, the prior for {n_freqs}; give ears for its STFT")
    if same_weights(encoder, ears.encoder):
        return ears.noisy_encoder
    weight = next(encoder.parameters())
    return CleanedEncoder(ears.noisy_encoder, ears.decoder, encoder).to(weight.device, weight.dtype)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are the same, wherever and in whatever precision they are."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        ours[key].shape == theirs[key].shape and bool((ours[key] == theirs[key].to(ours[key])).all()) for key in ours
    )
