"""Amortised guides: an encoder network proposes the latents of a speech prior from the observed STFT."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..mixture import Mixture, utterances
from ..models import FrameGain, VAESpeech
from ..models.encoders import NoisyEncoder


class EncoderGuide(PyroModule):
    """q(z_t | x) = N(m_t(x), diag s_t(x)^2), with m and s from an encoder. Same signature as :class:`Mixture`.

    Args:
        encoders: site name → encoder, e.g. ``EncoderGuide({"speech.z": vae.encoder})``. Called with an STFT (…, T, F) and,
            where not all bins count, with silence in the others and ``observed`` as in :meth:`Mixture.forward`, so that padding
            is no context to it; returns mean and standard deviation (…, T, L).
    """

    def __init__(self, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.sites = tuple(encoders)
        for i, encoder in enumerate(encoders.values()):
            setattr(self, f"encoder{i}", encoder)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dict[str, Tensor]:
        """Draw the latents; shapes (…, T, L)."""
        frames = pyro.plate("frames", x.shape[-2], dim=-1)
        draws = {}
        with utterances(x), frames:
            for site, (loc, scale) in self.laws(x, observed).items():
                draws[site] = pyro.sample(site, dist.Normal(loc, scale).to_event(1))
        return draws

    def laws(self, x: Tensor, observed: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of every site, without drawing."""
        modules = self._modules.values()  # not getattr: Pyro would make a parameter site of every weight
        given = (x,) if observed is None else (_heard(x, observed), observed)
        return {site: module(*given) for site, module in zip(self.sites, modules, strict=True) if module is not None}

    def noise(self, x: Tensor, observed: Tensor | None = None) -> Tensor | None:
        """Power of all that is not speech, (…, T, F), as the noisy encoder hears it.

        None unless there is exactly one noisy encoder: to each of two, the speech of the other would be noise.
        """
        noisy = [module for module in self._modules.values() if isinstance(module, NoisyEncoder)]
        if len(noisy) != 1:
            return None
        return noisy[0].noise(x) if observed is None else noisy[0].noise(_heard(x, observed), observed)


def _heard(x: Tensor, observed: Tensor) -> Tensor:
    """Silence where nothing is observed, whatever x has there."""
    return torch.where(observed, x, torch.zeros_like(x))


def starting_guide(model: Mixture) -> EncoderGuide | None:
    """The guide from which inference starts on a noisy recording: the noisy encoder of every VAE source, or else the clean one.

    None when no source of the mixture has an encoder; inference then starts at a draw from the prior.
    """
    return _guide(model, lambda vae: vae.noisy_encoder or vae.encoder)


def clean_guide(model: Mixture) -> EncoderGuide | None:
    """The encoder for clean speech of every VAE source, applied to the noisy recording: the published start. None as above."""
    return _guide(model, lambda vae: vae.encoder)


def _guide(model: Mixture, encoder: Callable[[VAESpeech], nn.Module]) -> EncoderGuide | None:
    encoders: dict[str, nn.Module] = {}
    for name, source in model.sources.items():
        while isinstance(source, FrameGain):
            source = source.source
        if isinstance(source, VAESpeech):
            encoders[f"{name}.z"] = encoder(source)
    return EncoderGuide(encoders) if encoders else None
