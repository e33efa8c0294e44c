"""Training of speech priors on clean speech, by the ELBO of the very graph that inference uses.

Two stages. :func:`train` fits the VAE to clean frames. :func:`train_noisy_encoder` then fits an encoder for
noisy recordings to the frozen VAE, on clean speech plus simulated noise. Both keep the best weights on
held-out speakers, stop early, and go on where an interrupted run stopped.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from . import simulate
from .corpus import Speech, Waves
from .distributions import ComplexNormal, power_of
from .elbo import negative_elbo
from .guides import EncoderGuide, clean_guide
from .mixture import Mixture
from .models import VAESpeech
from .models.coupled_normal import CoupledNormal
from .models.dynamical import DynamicalVAE
from .models.encoders import Heard, NoisyEncoder
from .optimisation import Epoch, Phase, Report, Schedule, TrainingError, optimise
from .stft import POWER_FLOOR, level
from .workers import Alone, Workers

__all__ = ["Epoch", "Schedule", "TrainingError", "train", "train_noisy_encoder"]

LEVEL_RANGE = (-12.0, 3.0)
"""Levels (dB) at which training speech is shown: in a noisy recording of unit level, speech has less than unit level."""


def floored(s: Tensor) -> Tensor:
    """The STFT with :data:`POWER_FLOOR` added to the power of every bin, phases at zero."""
    return _circular(power_of(s) + POWER_FLOOR)


def _circular(power: Tensor) -> Tensor:
    """An STFT of the power; phases are zero, since priors are circular."""
    return torch.complex(power.sqrt(), torch.zeros_like(power))


def at_random_level(s: Tensor, generator: torch.Generator) -> Tensor:
    """Segments (B, T, F) at levels drawn uniformly, in dB, from :data:`LEVEL_RANGE`."""
    low, high = LEVEL_RANGE
    decibel = low + (high - low) * torch.rand(s.shape[0], 1, 1, generator=generator)
    return s * 10 ** (decibel / 20)


def train(
    vae: VAESpeech, training: Waves, validation: Waves, out: str | Path, schedule: Schedule | None = None,
    batch: int = 512, card: dict[str, object] | None = None, report: Report | None = None,
    team: Workers | None = None,
) -> list[Epoch]:
    """Fit encoder and decoder of a VAE to clean speech, in place, and write the best weights to ``out``.

    Args:
        vae: untrained, or trained so far.
        training, validation: clean speech of different speakers.
        out: weights file; ``out`` with suffix ``.resume`` holds the state of an unfinished run, and is
            taken up if it is there and of this very training.
        batch: frames per step.
        card: what to note about the data (model card).
        report: called after each epoch.
        team: who trains, side by side; this process alone unless given. Each worker draws batches of its own.

    Returns:
        the log of all epochs. Random from ``schedule.seed``; the same on any run, interrupted or not.

    Raises:
        WeightsError: when the state of an unfinished run is damaged, or of other data, settings or schedule.
        TrainingError: when a loss or gradient is not finite; the best weights so far stay.
    """
    team = team or Alone()
    model = Mixture(speech=vae)
    guide = EncoderGuide({"speech.z": vae.encoder})

    def loss(speech: Waves, generator: torch.Generator, phase: Phase) -> Tensor:
        s = at_random_level(speech.segments(batch // 16, 16, generator), generator).flatten(0, 1).to(team.device)
        return negative_elbo(model, guide, floored(s), beta=phase.beta) / s.shape[-2]

    steps = math.ceil(training.n_frames / batch)
    parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    return optimise(vae, parameters, loss, training, validation, steps, out, schedule or Schedule(), card or {}, report, team)


def train_sequences(
    prior: DynamicalVAE, training: Speech, validation: Speech, out: str | Path, schedule: Schedule | None = None,
    batch: int = 64, frames: int = 50, card: dict[str, object] | None = None, report: Report | None = None,
    team: Workers | None = None,
) -> list[Epoch]:
    """Fit a prior with memory over frames, and its encoder, to stretches of clean speech; see :func:`train`.

    Recordings shorter than a stretch are masked behind their end.

    Args:
        batch, frames: stretches per step, and their length; that of the longest recording, at most.
    """
    team, frames = team or Alone(), min(frames, training.longest)
    model = Mixture(speech=prior)
    guide = clean_guide(model)
    assert guide is not None  # as every dynamical VAE has an encoder

    def loss(speech: Speech, generator: torch.Generator, phase: Phase) -> Tensor:
        s, whole = speech.sequences(batch, frames, generator)
        s, whole = (part.unsqueeze(1).to(team.device) for part in (floored(at_random_level(s, generator)), whole))
        observed = None if bool(whole.all()) else whole
        model.start(s, observed)
        with prior.teach(s, phase.taught):
            return negative_elbo(model, guide, s, observed, phase.beta) / int(whole.sum())

    steps = math.ceil(training.n_frames / (batch * frames))
    return optimise(prior, list(prior.parameters()), loss, training, validation, steps, out, schedule or Schedule(), card or {}, report, team)


def train_noisy_encoder(
    vae: VAESpeech, training: Speech, validation: Speech, out: str | Path, schedule: Schedule | None = None,
    batch: int = 10, frames: int = 100, card: dict[str, object] | None = None, report: Report | None = None,
    team: Workers | None = None,
) -> list[Epoch]:
    """Fit ``vae.noisy_encoder`` to the frozen VAE on clean speech plus simulated noise; see :func:`train`.

    The loss is the ELBO of the noisy recording on the mixture graph with the noise law known, which a simulation
    offers: amortised inference of the very posterior that EM is after. The power of the mixture enters by its
    expectation given speech and noise law, |s|^2 + v_n, which takes the chance of the phases out of the gradient. To it comes
    the negative log-likelihood of the noise under the power that the encoder hears. SNR uniform between -10 and 15 dB; the
    noise is from :mod:`ppse.simulate`, nobody recorded it.

    Args:
        batch, frames: segments per step, and their length.

    Raises:
        ValueError: when the VAE was built without a noisy encoder.
    """
    encoder = vae.noisy_encoder
    if encoder is None:
        raise ValueError("train_noisy_encoder: this VAE has no noisy encoder; build it with VAESpeech(context=…)")
    team = team or Alone()
    vae.requires_grad_(False)
    parameters = list(encoder.listener.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)

    def loss(speech: Speech, generator: torch.Generator, phase: Phase) -> Tensor:
        clean, noise = (part.to(team.device) for part in noisy_segments(speech, batch, frames, generator))
        return heard_loss(vae, encoder, clean, noise, phase.beta) / (batch * frames)

    steps = math.ceil(training.n_frames / (batch * frames))
    return optimise(vae, parameters, loss, training, validation, steps, out, schedule or Schedule(), card or {}, report, team)


def heard_loss(
    vae: VAESpeech, encoder: NoisyEncoder, clean: Tensor, noise: Tensor, beta: float = 1.0, heard: Heard | None = None,
) -> Tensor:
    """The loss of :func:`train_noisy_encoder` on clean speech and noise, STFTs (B, 1, T, F) whose sum has unit level, in nats, summed. Random.

    ``heard`` is what the listener makes of the sum, if it is known already.
    """
    law = ComplexNormal(0j, local_power(noise))
    model = Mixture(speech=vae, noise=lambda _: law)
    heard = heard or encoder.hear(clean + noise)
    guide = EncoderGuide({"speech.z": Read(encoder.read(clean + noise, heard))})
    expected = _circular(clean.abs().square() + law.var + POWER_FLOOR)
    unheard = -ComplexNormal(0j, heard.noise + POWER_FLOOR).log_prob(_circular(law.var + POWER_FLOOR)).sum()
    return negative_elbo(model, guide, expected, beta=beta) + unheard


class Read(nn.Module):
    """An encoder that has read already."""

    def __init__(self, law: Normal | CoupledNormal) -> None:
        super().__init__()
        self.law = law

    def forward(self, _: Tensor) -> Normal | CoupledNormal:
        return self.law


def noisy_segments(speech: Speech, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean speech and noise, (count, 1, frames, F) each, at the scale at which their sum has unit level. Random from ``generator``."""
    clean = speech.segments(count, frames, generator)
    snr = -10 + 25 * torch.rand(count, 1, 1, generator=generator)
    return mixed(clean, simulate.noise(speech, count, frames, generator), snr)


def mixed(clean: Tensor, noise: Tensor, snr: Tensor) -> tuple[Tensor, Tensor]:
    """Speech and noise of unit power, (B, T, F) each, as parts of mixtures of that SNR (B, 1, 1) in dB and of unit level: (B, 1, T, F) each."""
    noise = noise * 10 ** (-snr / 20)
    scale = level(clean + noise).rsqrt()
    return (clean * scale).unsqueeze(1), (noise * scale).unsqueeze(1)


def local_power(x: Tensor) -> Tensor:
    """|x|^2 of an STFT (B, 1, T, F), smoothed over five frames and three bins: the variance of one known noise."""
    return avg_pool2d(power_of(x), (5, 3), stride=1, padding=(2, 1), count_include_pad=False)
