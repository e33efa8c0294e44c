"""Adaptation of a trained prior to unlabelled noisy recordings of a new domain.

With clean speech of whomever, the noise that EM finds in the recordings is heard again under that speech, and what is recovered of the
speech in the noise of held-out recordings tells whether it was worth it (:func:`recovered`). Without, the encoder climbs the bound on
log p(x), and that of held-out recordings, with the noise fitted to each, has to tell (:func:`noisy_bound`). The weights are anchored to where they
started. What this is worth, and what it is not, is in docs/adaptation.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .corpus import Waves
from .elbo import negative_elbo
from .enhance import random_from
from .guides import EncoderGuide
from .inference import infer
from .listening import listening_loss
from .methods import amortised
from .metrics import si_sdr
from .mixture import Mixture
from .models import HeardNoise, HeardSpeech, NMFNoise, VAESpeech
from .optimisation import Epoch, Phase, Report, Schedule, optimise
from .recordings import Recordings, Stretches
from .remixing import remix
from .semi import RANK, SPACING, heard_bound
from .training import Read
from .warm_start import fit_noise

Part = Literal["encoder", "offsets", "decoder"]
"""What is adapted: the network that hears speech in noise, only the offsets of what it says, or the network that says what speech is like."""

Using = Callable[[VAESpeech], Mixture]
"""A VAE as recordings are enhanced with it."""

LEARNING_RATE: dict[Part, float] = {"encoder": 1e-4, "offsets": 1e-2, "decoder": 1e-4}
"""At first, unless one is given, by the bound of the recordings."""

ANCHOR: dict[Part, float] = {"encoder": 1.0, "offsets": 0.0, "decoder": 1.0}
"""Unless one is given. Offsets, a thousand numbers that 12 recordings determine, are free."""

REMIXING_RATE, REMIXING_ANCHOR = 1e-3, 0.1
"""The same for an encoder that hears other speech in the noise, which is an endless supply."""

INNER = 25
"""M-steps for the noise of a held-out recording, each given a fresh draw of the latents."""

JUDGES = 5
"""Held-out recordings that it takes to tell whether adapting helped: that all of five gain by chance happens once in 32 times."""

STRETCH = 1500
"""Frames of a held-out recording that are judged at once, which bounds the memory."""


STEPS = 12
"""Steps per epoch, at least, when noise is heard under other speech: every mixture is a new one."""

REMIXES, REMIXED = 8, 200
"""Mixtures of the noise of a held-out recording to judge by, and their length in frames."""


class Adaptation(NamedTuple):
    """Settings of :func:`adapt`.

    Attributes:
        part: what is adapted.
        anchor: weight of the squared distance of the weights from where they started (L2-SP), in nats per frame; :data:`ANCHOR` of the
            part, or :data:`REMIXING_ANCHOR`, if None.
        learning_rate, epochs, patience, seed: as in :class:`ppse.optimisation.Schedule`; the rate, :data:`LEARNING_RATE` of the part, or
            :data:`REMIXING_RATE`, if None, falls to a tenth.
        batch, frames: stretches per step, and their length.

    References:
        Li, Grandvalet & Davoine (2018), Explicit inductive bias for transfer learning with convolutional networks (L2-SP).
    """

    part: Part = "encoder"
    anchor: float | None = None
    learning_rate: float | None = None
    epochs: int = 10
    patience: int = 3
    batch: int = 10
    frames: int = 100
    seed: int = 0


def own_ears(vae: VAESpeech) -> Mixture:
    """A VAE narrowed to what its ears hear of the speech, and what they hear of the noise."""
    return Mixture(speech=HeardSpeech(vae, vae), noise=HeardNoise(vae))


class Unlabelled(NamedTuple):
    """Noisy recordings of a domain, and clean speech of other recordings with what EM makes of the noise.

    Attributes:
        noisy: the recordings, at unit level.
        speech: clean speech, of anybody. None to learn from the bound alone.
        noise: of every recording a draw from the posterior of its noise; None without ``speech``.
    """

    noisy: Recordings
    speech: Waves | None = None
    noise: Waves | None = None

    @property
    def n_frames(self) -> int:
        """Of the recordings."""
        return self.noisy.n_frames

    @property
    def fingerprint(self) -> int:
        """That of the recordings, and of the speech that is heard in their noise."""
        return self.noisy.fingerprint ^ (self.speech.fingerprint << 1 if self.speech is not None else 0)


class Verdict(NamedTuple):
    """Whether adaptation helped, on recordings that were held out.

    Attributes:
        before, after: what every held-out recording says of the prior, more is better.
        measure, unit: what that is: :func:`noisy_bound`, or :func:`recovered`.
    """

    before: list[float]
    after: list[float]
    measure: str = "bound"
    unit: str = "nats per bin"

    @property
    def gain(self) -> float:
        """Mean gain."""
        return sum(b - a for a, b in zip(self.before, self.after, strict=True)) / len(self.before)

    @property
    def helped(self) -> bool:
        """Whether :data:`JUDGES` or more recordings were held out, all but a tenth of them gained, and the mean gain is above zero.

        One that gains much tells little of others, and a few that gain tell little of the next (docs/adaptation.md).
        """
        return len(self.before) >= JUDGES and self.better >= 0.9 * len(self.before) and self.gain > 0

    @property
    def better(self) -> int:
        """How many recordings gained."""
        return sum(b > a for a, b in zip(self.before, self.after, strict=True))

    @property
    def sentence(self) -> str:
        """In one line."""
        mean, count = sum(self.before) / len(self.before), len(self.before)
        found = "helped" if self.helped else "did not help" if count >= JUDGES else f"has not been shown to help, which takes {JUDGES} held out"
        return f"{found}: {self.measure} of held-out recordings {mean:.4f} → {mean + self.gain:.4f} {self.unit}, {self.better} of {count} better"


def adapt(
    vae: VAESpeech, training: Unlabelled, held: Unlabelled, work: Path, settings: Adaptation | None = None,
    card: dict[str, object] | None = None, report: Report | None = None, using: Using = own_ears,
) -> tuple[list[Epoch], Verdict]:
    """Fit the part of the prior to unlabelled recordings, in place; random from the seed of the settings.

    The encoder learns from clean speech in the noise that EM found (:func:`ppse.remixing.remix`), by the loss of
    :func:`ppse.listening.train_listener`; without clean speech, and the decoder always, from :func:`ppse.semi.heard_bound` on the recordings
    themselves. The best weights on held-out recordings, by the same loss, are what the prior has in the end. Whether these are better
    than the first is what the verdict says; nothing is undone here.

    Args:
        vae: with a noisy encoder.
        training, held: different recordings of the domain.
        work: weights file of the best epoch so far; beside it the state of an unfinished run.
        card: what to note about the data; identifies the run when it goes on.
        report: called after each epoch.
        using: how the prior will be used; so it is judged, with clean speech.

    Returns:
        the log of all epochs, and the verdict.

    Raises:
        ValueError: when the VAE has no noisy encoder.
        WeightsError, TrainingError: as :func:`ppse.optimisation.optimise`.
    """
    settings, encoder = settings or Adaptation(), vae.noisy_encoder
    if encoder is None:
        raise ValueError("adapt: this prior has no noisy encoder to listen to the recordings with; train one with 'ppse train vae'")
    remixing = training.speech is not None and settings.part != "decoder"
    judge = partial(judged, vae, held, remixing, settings.seed, using)
    before = judge()
    listener, part = encoder.listener, settings.part
    heads = listener.mask, listener.shift, listener.scale, listener.noise
    parameters = [head.bias for head in heads] if part == "offsets" else list((vae.decoder if part == "decoder" else listener).parameters())
    vae.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    first = [p.detach().clone() for p in parameters]
    count, frames = settings.batch, settings.frames
    usual = (REMIXING_RATE, REMIXING_ANCHOR) if remixing and part == "encoder" else (LEARNING_RATE[part], ANCHOR[part])
    rate, anchor = settings.learning_rate or usual[0], usual[1] if settings.anchor is None else settings.anchor

    def loss(data: Unlabelled, generator: torch.Generator, phase: Phase) -> Tensor:
        if remixing and data.speech is not None and data.noise is not None:
            x, clean, _ = remix(data.speech.segments(count, frames, generator), data.noise.segments(count, frames, generator), generator)
            x, clean = x.to(first[0].device), clean.to(first[0].device)
            value = listening_loss(vae, encoder, clean, x - clean, phase.beta)
        else:
            # What is heard is the noise: a listener that is trained says more of it than EM on a short stretch finds.
            stretches = Stretches(*(part.to(first[0].device) for part in data.noisy.stretches(count, frames, generator)))
            value = heard_bound(vae, stretches, phase.beta, inner=0)
        drift = torch.stack([(p - origin).square().sum() for p, origin in zip(parameters, first, strict=True)]).sum()
        return value / (count * frames) + anchor * drift

    schedule = Schedule(settings.epochs, rate, rate / 10, settings.patience, settings.seed)
    steps = max(math.ceil(training.n_frames / (count * frames)), STEPS if remixing else 1)
    log = optimise(vae, parameters, loss, training, held, steps, work, schedule, {**(card or {}), "adaptation": settings._asdict()}, report)
    vae.requires_grad_(False)
    return log, Verdict(before, judge(), *(("SI-SDR of other speech in the noise", "dB") if remixing else ()))


def judged(vae: VAESpeech, held: Unlabelled, remixing: bool, seed: int, using: Using) -> list[float]:
    """What every held-out recording says of a prior, :func:`recovered` or :func:`noisy_bound`: the same draws for any weights."""
    if remixing and held.speech is not None and held.noise is not None:
        return recovered(vae, held.speech, held.noise, seed, using)
    return noisy_bound(vae, held.noisy, seed)


@torch.no_grad()
def recovered(vae: VAESpeech, speech: Waves, noise: Waves, seed: int = 0, using: Using = own_ears) -> list[float]:
    """SI-SDR in dB of the one-pass estimates of clean speech in each of these noises, a mean over :data:`REMIXES` mixtures.

    Where the noises are like those of a domain, it tells how the domain fares, without anybody's labels. Random from the seed.

    Raises:
        ValueError: when the VAE has no noisy encoder.
    """
    generator, device, stft = torch.Generator().manual_seed(seed), next(vae.parameters()).device, noise.stft
    with random_from(seed):  # networks are made at random before they are read
        model = using(vae).to(device)
    length = (REMIXED - 1) * stft.hop
    found = []
    for wave in noise.waves:
        clean = speech.segments(REMIXES, REMIXED, generator)
        x, clean, _ = remix(clean, Waves([wave], stft).segments(REMIXES, REMIXED, generator), generator)
        with random_from(seed):
            estimate = infer(model, x.to(device), amortised()).sources["speech"].loc.cpu()
        pairs = zip(stft.synthesis(clean, length), stft.synthesis(estimate, length), strict=True)
        scores = torch.tensor([si_sdr(s[0].numpy(), e[0].numpy()) for s, e in pairs])
        found.append(float(scores.nanmean()))  # of a pause there is no score
    return found


@torch.no_grad()
def noisy_bound(vae: VAESpeech, recordings: Recordings, seed: int = 0) -> list[float]:
    """Bound on log p(x) of every recording under the noisy encoder, nats per bin, its noise fitted by variational EM.

    The noise is NMF that starts at what the encoder hears. Random from the seed: the same draws for any weights, and no trace in the
    global generator.

    Raises:
        ValueError: when the VAE has no noisy encoder.
    """
    encoder = vae.noisy_encoder
    if encoder is None:
        raise ValueError("noisy_bound: this prior has no noisy encoder; train one with 'ppse train vae'")
    bounds = []
    with pyro.validation_enabled(False):
        for wave in recordings.waves:
            total, bins = 0.0, 0
            for x in recordings.stft.analysis(wave.to(next(vae.parameters()).device)).split(STRETCH):
                with poutine.seed(rng_seed=seed):
                    heard = encoder.hear(x)
                    law = encoder.read(x, heard)
                    model = Mixture(speech=vae, noise=NMFNoise(RANK, spacing=SPACING))
                    model.start(x)
                    fit_noise(model, heard.noise, {"speech"})
                    for _ in range(INNER):
                        with poutine.block(), poutine.condition(data={"speech.z": law.sample()}):
                            laws = model(x)
                        model.update(x, laws)
                    total -= negative_elbo(model, EncoderGuide({"speech.z": Read(law)}), x).item()
                bins += x.numel()
            bounds.append(total / bins)
    return bounds
