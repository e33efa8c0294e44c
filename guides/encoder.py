"""Amortised guides: an encoder network proposes the latents of a speech prior from the observed STFT."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..mixture import Mixture, utterances
from ..models import FrameGain, KnownSilence, VAESpeech
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
        return self.listen(x, observed)[0]

    def listen(self, x: Tensor, observed: Tensor | None = None) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None]:
        """Mean and standard deviation of every site, and the power (…, T, F) of all that is not speech as the noisy encoder hears it.

        The latter is None unless there is exactly one noisy encoder: to each of two, the speech of the other would be noise.
        """
        if observed is not None:
            x = torch.where(observed, x, torch.zeros_like(x))  # silence where nothing is observed, whatever x has there
        given = (x,) if observed is None else (x, observed)
        laws: dict[str, tuple[Tensor, Tensor]] = {}
        noise = []
        for site, module in zip(self.sites, self._modules.values(), strict=True):  # not getattr: Pyro would make a parameter site of every weight
            if isinstance(module, NoisyEncoder):
                heard = module.hear(*given)
                laws[site] = module.read(x, heard)
                noise.append(heard.noise)
            elif module is not None:
                laws[site] = module(*given)
        return laws, noise[0] if len(noise) == 1 else None


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
        while isinstance(source, FrameGain | KnownSilence):
            source = source.source
        if isinstance(source, VAESpeech):
            encoders[f"{name}.z"] = encoder(source)
    return EncoderGuide(encoders) if encoders else None
