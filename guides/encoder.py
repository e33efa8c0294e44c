"""Amortised guides: an encoder network proposes the latents of a speech prior from the observed STFT."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..mixture import Mixture, Source, utterances
from ..models import CodePrior, FrameGain, HeardNoise, HeardSpeech, KnownSilence, PartiallyObserved, SwitchingSpeech, VAESpeech
from ..models.encoders import CleanedEncoder, NoisyEncoder
from ..models.heard_speech import heard_by


@runtime_checkable
class Encoded(Protocol):
    """A source with an encoder of its site ``z`` for clean speech, and perhaps one for noisy speech."""

    n_freqs: int
    encoder: nn.Module

    @property
    def noisy_encoder(self) -> nn.Module | None: ...


@runtime_checkable
class UtteranceEncoded(Encoded, Protocol):
    """A source with a site ``v``, too, that is one code of the whole utterance, and an encoder of it for clean speech."""

    utterance_encoder: nn.Module


class EncoderGuide(PyroModule):
    """q(z | x), the law that an encoder returns. Same signature as :class:`Mixture`.

    Args:
        encoders: site name → encoder, e.g. ``EncoderGuide({"speech.z": vae.encoder})``. Called with an STFT (…, T, F) and,
            where not all bins count, with silence in the others and ``observed`` as in :meth:`Mixture.forward`, so that padding
            is no context to it; returns a law of shape (…, T, L) with ``mean`` and ``stddev``: a Normal, or one with memory over frames.
            With an attribute ``of_utterance`` that is true, of shape (L,) or (B, 1, 1, L), for a site outside of the frames.
    """

    def __init__(self, encoders: dict[str, nn.Module]) -> None:
        super().__init__()
        self.sites = tuple(encoders)
        for i, encoder in enumerate(encoders.values()):
            setattr(self, f"encoder{i}", encoder)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dict[str, Tensor]:
        """Draw the latents; shapes (…, T, L)."""
        laws, frames = self._read(x, observed)[0], pyro.plate("frames", x.shape[-2], dim=-1)
        drawn = {}
        with utterances(x):
            for (site, law), encoder in zip(laws.items(), self._modules.values(), strict=True):
                with nullcontext() if _of_utterance(encoder) else frames:
                    drawn[site] = pyro.sample(site, law.to_event(1))
        return drawn

    def laws(self, x: Tensor, observed: Tensor | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard deviation of every site, without drawing; under an encoder with memory, along the path of means."""
        return self.listen(x, observed)[0]

    def listen(self, x: Tensor, observed: Tensor | None = None) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None]:
        """Mean and standard deviation of every site, and the power (…, T, F) of all that is not speech as the noisy encoder hears it.

        The latter is None unless exactly one source has noisy encoders: to each of two, the speech of the other would be noise.
        """
        laws, noise = self._read(x, observed)
        return {site: _moments(law) for site, law in laws.items()}, noise

    def _read(self, x: Tensor, observed: Tensor | None) -> tuple[dict[str, TorchDistribution], Tensor | None]:
        if observed is not None:
            x = torch.where(observed, x, torch.zeros_like(x))  # silence where nothing is observed, whatever x has there
        given = (x,) if observed is None else (x, observed)
        laws: dict[str, TorchDistribution] = {}
        noise: dict[str, Tensor] = {}
        for site, module in zip(self.sites, self._modules.values(), strict=True):  # not getattr: Pyro would make a parameter site of every weight
            if isinstance(module, NoisyEncoder | CleanedEncoder):
                heard = module.hear(*given)
                laws[site] = module.read(x, heard, observed)
                if not _of_utterance(module):
                    noise.setdefault(site.split(".")[0], heard.noise)  # experts of one source hear the same noise
            elif module is not None:
                laws[site] = module(*given)
        return laws, next(iter(noise.values())) if len(noise) == 1 else None


def starting_guide(model: Mixture) -> EncoderGuide | None:
    """The guide from which inference starts on a noisy recording: the noisy encoder of every source that has encoders.

    To a source with none for noisy speech, the shipped VAE lends its own where the STFT is the same (:class:`CleanedEncoder`); failing
    that, the encoder for clean speech reads the noisy recording. Where the noise of the mixture is heard by ears of its own
    (:class:`ppse.models.HeardNoise`), sources start at what these propose, but for one that is narrowed to what others hear
    (:class:`ppse.models.HeardSpeech`), which starts at that. None when no source of the mixture has an encoder;
    inference then starts at a draw from the prior.
    """
    ears = next((source.ears for _, source in _unwrapped(model.sources) if isinstance(source, HeardNoise)), None)

    def hearing(source: Encoded, encoder: nn.Module) -> nn.Module:
        own = source.noisy_encoder if encoder is source.encoder and (ears is None or isinstance(source, HeardSpeech)) else None
        return own or _cleaned(source, encoder, ears or _ears()) or encoder

    return _guide(model, hearing)


def clean_guide(model: Mixture) -> EncoderGuide | None:
    """The encoder for clean speech of every source that has one, applied to the noisy recording: the published start. None as above."""
    return _guide(model, lambda _, encoder: encoder)


def _guide(model: Mixture, reader: Callable[[Encoded, nn.Module], nn.Module]) -> EncoderGuide | None:
    encoders: dict[str, nn.Module] = {}
    for name, source in _unwrapped(model.sources):
        if isinstance(source, Encoded):
            encoders[f"{name}.z"] = reader(source, source.encoder)
        if isinstance(source, UtteranceEncoded):
            encoders[f"{name}.v"] = reader(source, source.utterance_encoder)
    return EncoderGuide(encoders) if encoders else None


def _unwrapped(sources: Mapping[str, Source]) -> Iterator[tuple[str, Source]]:
    """The sources without what is around them, and in place of one that switches its experts, each with what the names of its sites begin with."""
    for name, source in sources.items():
        while isinstance(source, CodePrior | FrameGain | KnownSilence | PartiallyObserved):
            source = source.source
        if isinstance(source, SwitchingSpeech):
            yield from _unwrapped({f"{name}.{expert}": inside for expert, inside in source.experts.items()})
        else:
            yield name, source


@functools.cache
def _ears() -> VAESpeech:
    """The shipped VAE, read once, and as if its networks had not been drawn before. Who moves it takes a copy."""
    with torch.random.fork_rng():
        return VAESpeech.pretrained()


def _cleaned(source: Encoded, encoder: nn.Module, ears: VAESpeech) -> nn.Module | None:
    return heard_by(copy.deepcopy(ears), encoder, source.n_freqs) if source.n_freqs == ears.n_freqs and ears.noisy_encoder else None


def _of_utterance(encoder: nn.Module | None) -> bool:
    return bool(getattr(encoder.encoder if isinstance(encoder, CleanedEncoder) else encoder, "of_utterance", False))


def _moments(law: TorchDistribution) -> tuple[Tensor, Tensor]:
    return law.mean, law.stddev
