"""Adaptation of a trained prior to unlabelled noisy recordings of a new domain.

Two ways to learn from them, the bound on log p(x) and what EM makes of them, and one way to decide whether it was worth it: the bound of
recordings that were held out, with the noise fitted to each (:func:`noisy_bound`). The weights are anchored to where they started. What
this is worth, and what it is not, is in docs/adaptation.md.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .corpus import Waves
from .elbo import negative_elbo
from .guides import EncoderGuide
from .mixture import Mixture
from .models import NMFNoise, VAESpeech
from .optimisation import Epoch, Phase, Report, Schedule, optimise
from .recordings import Recordings
from .semi import RANK, SPACING, heard_bound
from .simulate import unit_power
from .stft import level
from .training import Read, heard_loss, mixed
from .warm_start import fit_noise

Part = Literal["encoder", "offsets", "decoder"]
"""What is adapted: the network that hears speech in noise, only the offsets of what it says, or the network that says what speech is like."""

LEARNING_RATE: dict[Part, float] = {"encoder": 1e-4, "offsets": 1e-2, "decoder": 1e-4}
"""At first, unless one is given."""

INNER = 25
"""M-steps for the noise of a held-out recording, each given a fresh draw of the latents."""

JUDGES = 5
"""Held-out recordings that it takes to tell whether adapting helped: that all of five gain by chance happens once in 32 times."""

STRETCH = 1500
"""Frames of a held-out recording that are judged at once, which bounds the memory."""


class Adaptation(NamedTuple):
    """Settings of :func:`adapt`.

    Attributes:
        part: what is adapted.
        anchor: weight of the squared distance of the weights from where they started (L2-SP), in nats per frame; not for offsets, a
            thousand numbers that 12 recordings determine.
        learning_rate, epochs, patience, seed: as in :class:`ppse.optimisation.Schedule`; the rate, :data:`LEARNING_RATE` of the part
            if None, falls to a tenth.
        batch, frames: stretches per step, and their length.

    References:
        Li, Grandvalet & Davoine (2018), Explicit inductive bias for transfer learning with convolutional networks (L2-SP).
    """

    part: Part = "encoder"
    anchor: float = 1.0
    learning_rate: float | None = None
    epochs: int = 10
    patience: int = 3
    batch: int = 10
    frames: int = 100
    seed: int = 0


class Unlabelled(NamedTuple):
    """Noisy recordings of a domain, and what EM made of each with the prior as it was, at its scale.

    Attributes:
        noisy: the recordings, at unit level.
        speech, noise: posterior means; they add up to ``noisy``. None to learn from the bound alone.
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
        """That of the recordings."""
        return self.noisy.fingerprint


class Verdict(NamedTuple):
    """Whether adaptation helped, on recordings that were held out.

    Attributes:
        before, after: bound on log p(x) of every held-out recording, nats per bin; see :func:`noisy_bound`.
    """

    before: list[float]
    after: list[float]

    @property
    def gain(self) -> float:
        """Mean gain, nats per bin."""
        return sum(b - a for a, b in zip(self.before, self.after, strict=True)) / len(self.before)

    @property
    def helped(self) -> bool:
        """Whether :data:`JUDGES` or more recordings were held out, all but a tenth of them gained, and the mean gain is above zero.

        One that gains much tells little of others, and a few that gain tell little of the next: a higher bound is not higher quality.
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
        return f"{found}: bound of held-out recordings {mean:.4f} → {mean + self.gain:.4f} nats per bin, {self.better} of {count} better"


def adapt(
    vae: VAESpeech, training: Unlabelled, held: Unlabelled, work: Path, settings: Adaptation | None = None,
    card: dict[str, object] | None = None, report: Report | None = None,
) -> tuple[list[Epoch], Verdict]:
    """Fit the part of the prior to unlabelled recordings, in place; random from the seed of the settings.

    The encoder learns from speech and noise that EM found, mixed anew (:func:`remixed`), by the loss of
    :func:`ppse.training.train_noisy_encoder`; without them, and the decoder always, from :func:`ppse.semi.heard_bound` on the recordings
    themselves. The best weights on held-out recordings, by the same loss, are what the prior has in the end. Whether these are better
    than the first is what the verdict says; nothing is undone here.

    Args:
        vae: with a noisy encoder.
        training, held: different recordings of the domain.
        work: weights file of the best epoch so far; beside it the state of an unfinished run.
        card: what to note about the data; identifies the run when it goes on.
        report: called after each epoch.

    Returns:
        the log of all epochs, and the verdict.

    Raises:
        ValueError: when the VAE has no noisy encoder.
        WeightsError, TrainingError: as :func:`ppse.optimisation.optimise`.
    """
    settings, encoder = settings or Adaptation(), vae.noisy_encoder
    if encoder is None:
        raise ValueError("adapt: this prior has no noisy encoder to listen to the recordings with; train one with 'ppse train vae'")
    before = noisy_bound(vae, held.noisy, settings.seed)
    listener, part = encoder.listener, settings.part
    heads = listener.mask, listener.shift, listener.scale, listener.noise
    parameters = [head.bias for head in heads] if part == "offsets" else list((vae.decoder if part == "decoder" else listener).parameters())
    vae.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    first = [p.detach().clone() for p in parameters]
    count, frames, anchor = settings.batch, settings.frames, 0.0 if part == "offsets" else settings.anchor
    rate = settings.learning_rate or LEARNING_RATE[part]

    def loss(data: Unlabelled, generator: torch.Generator, phase: Phase) -> Tensor:
        if data.speech is None or data.noise is None or part == "decoder":
            # What is heard is the noise: a listener that is trained says more of it than EM on a short stretch finds.
            value = heard_bound(vae, data.noisy.stretches(count, frames, generator), phase.beta, inner=0)
        else:
            value = heard_loss(vae, encoder, *remixed(data.speech, data.noise, count, frames, generator), phase.beta)
        drift = torch.stack([(p - origin).square().sum() for p, origin in zip(parameters, first, strict=True)]).sum()
        return value / (count * frames) + anchor * drift

    schedule = Schedule(settings.epochs, rate, rate / 10, settings.patience, settings.seed)
    steps = math.ceil(training.n_frames / (count * frames))
    log = optimise(vae, parameters, loss, training, held, steps, work, schedule, {**(card or {}), "adaptation": settings._asdict()}, report)
    vae.requires_grad_(False)
    return log, Verdict(before, noisy_bound(vae, held.noisy, settings.seed))


def remixed(speech: Waves, noise: Waves, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Speech of one recording and noise of another, (count, 1, frames, F) each, at a random SNR from -10 to 15 dB and a sum of unit level.

    References:
        Tzinis, Adi, Ithapu, Xu, Smaragdis & Kumar (2022), RemixIT: continual self-training of speech enhancement models via
        bootstrapped remixing.
    """
    clean, other = speech.segments(count, frames, generator), noise.segments(count, frames, generator)
    snr = -10 + 25 * torch.rand(count, 1, 1, generator=generator)
    clean = clean / level(clean).sqrt()
    return mixed(clean, unit_power(other), snr)


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
