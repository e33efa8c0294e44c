"""Training of a listener with recorded noise: a noise-aware encoder for a trained VAE, whose speech model stays as it is.

Beside the simulated noise of :func:`ppse.training.train_noisy_encoder` there is recorded noise, none of it that of the test.
What such an encoder helps to find is no longer unsupervised in the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import audio, simulate
from .corpus import Waves
from .distributions import power_of
from .models import VAESpeech
from .models.band_listener import BandListener
from .models.encoders import Heard, NoisyEncoder
from .optimisation import Epoch, Phase, Report, Schedule, optimise
from .simulate import unit_power
from .stft import POWER_FLOOR
from .training import heard_loss, mixed
from .workers import Alone, Workers

DISTANCE = 5.0
"""Weight of :func:`distance` in the loss, in nats."""

EXPONENT, FLOOR = 0.3, 1e-5
"""Magnitudes are compressed by this exponent in :func:`distance`, with the floor added to powers."""

FAINT = 1e-8
"""Power added to noise, heard or true, in :func:`told_in_bands`."""

RECORDED = 0.75
"""Share of :func:`mixtures` whose noise is recorded."""

NOISE_SPEEDS, SPEECH_SPEEDS = (0.6, 0.75, 0.875, 8 / 7, 4 / 3), (0.9, 0.95, 1.05, 1.1)
"""Speeds at which recordings are played again for training (:func:`at_other_speeds`)."""

QUIET = 1e-8
"""Power below which a stretch of recorded noise is a pause, which is not made loud."""


def one_pass(vae: VAESpeech, encoder: NoisyEncoder, x: Tensor, heard: Heard) -> Tensor:
    """The Wiener estimate (…, T, F) of the speech in x, with the speech that the encoder proposes and the noise that it hears."""
    speech = vae.decoder(encoder.read(x, heard).mean).exp() + POWER_FLOOR
    return speech / (speech + heard.noise + POWER_FLOOR) * x


def distance(vae: VAESpeech, encoder: NoisyEncoder, clean: Tensor, x: Tensor, heard: Heard) -> Tensor:
    """:func:`spectral_distance` between clean speech and its :func:`one_pass` estimate from x.

    Likelihoods weigh every bin by how well it can be known; this weighs it by how well it can be heard.
    """
    return spectral_distance(one_pass(vae, encoder, x, heard), clean)


def listening_loss(vae: VAESpeech, encoder: NoisyEncoder, clean: Tensor, noise: Tensor, beta: float) -> Tensor:
    """:func:`ppse.training.heard_loss` of clean speech and noise, and :data:`DISTANCE` times the :func:`distance`, in nats, summed. Random.

    A listener in bands also learns from what it says of bands by itself (:func:`told_in_bands`).
    """
    x = clean + noise
    heard = encoder.hear(x)
    loss = heard_loss(vae, encoder, clean, noise, beta, heard) + DISTANCE * distance(vae, encoder, clean, x, heard)
    return loss + told_in_bands(encoder.listener, clean, noise, heard) if isinstance(encoder.listener, BandListener) else loss


def told_in_bands(listener: BandListener, clean: Tensor, noise: Tensor, heard: Heard) -> Tensor:
    """:func:`spectral_distance` of the masked recording, and Itakura-Saito divergence of the noise, bands counting alike; in nats, summed.

    The mask and the noise alone, without what a speech prior makes of them: that is learnt first, and the rest from there.
    """
    ratio = (power_of(noise) + FAINT) / (heard.noise + FAINT)
    return spectral_distance(heard.mask * (clean + noise), clean) + ((ratio - ratio.log() - 1) @ listener.to_bands).sum()


def spectral_distance(estimate: Tensor, clean: Tensor) -> Tensor:
    """Squared distance of STFTs (…, T, F) with compressed magnitudes, once with their phases and once without, summed.

    References:
        Ephrat et al. (2018), Looking to listen at the cocktail party (power-law compression).
        Braun & Tashev (2021), A consolidated view of loss functions for supervised deep learning-based speech enhancement (both terms).
    """
    found, wanted = (power_of(s) + FLOOR for s in (estimate, clean))
    aligned = found ** ((EXPONENT - 1) / 2) * estimate - wanted ** ((EXPONENT - 1) / 2) * clean
    return (power_of(aligned) + (found ** (EXPONENT / 2) - wanted ** (EXPONENT / 2)).square()).sum()


def mixtures(speech: Waves, recorded: Waves, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean speech and noise, (count, 1, frames, F) each, at the scale at which their sum has unit level. Random from ``generator``.

    Most of the noise is recorded (:data:`RECORDED`), four in ten of it with some of another recording in it, the rest is simulated; SNR
    uniform between -10 and 20 dB. Speech and recorded noise go through random smooth equalisers.
    """
    def uniform(some: int = count) -> Tensor:
        return torch.rand(some, 1, 1, generator=generator)

    def recording(some: int) -> Tensor:
        return unit_power(equalised(recorded.segments(some, frames, generator), 0.7, generator), QUIET)

    clean = equalised(speech.segments(count, frames, generator), 0.4, generator)
    snr, some = -10 + 30 * uniform(), max(1, int(RECORDED * count))
    real = unit_power(recording(some) + (uniform(some) < 0.4) * uniform(some) * recording(some), QUIET)
    return mixed(clean, torch.cat([real, simulate.noise(speech, count - some, frames, generator)]), snr)


def equalised(x: Tensor, depth: float, generator: torch.Generator) -> Tensor:
    """STFTs (B, T, F), each under a gain that is smooth in frequency: a few cosines, their amplitudes of standard deviation ``depth`` nepers."""
    place = torch.linspace(0, 1, x.shape[-1])
    log_gain = torch.zeros(len(x), 1, x.shape[-1])
    for order in range(1, 5):
        amplitude = depth / order * torch.randn(len(x), 1, 1, generator=generator)
        log_gain += amplitude * torch.cos(math.pi * order * place + 2 * math.pi * torch.rand(len(x), 1, 1, generator=generator))
    return x * log_gain.exp()


def at_other_speeds(data: Waves, speeds: Sequence[float], each: bool) -> Waves:
    """Recordings as they are and played at other speeds, higher or lower in pitch: each at all of them, or at the next of them in turn.

    They are held in memory beside the others.
    """
    waves = list(data.waves)
    for index, wave in enumerate(data.waves):
        for speed in speeds if each else [speeds[index % len(speeds)]]:
            rate = data.stft.sample_rate
            waves.append(torch.from_numpy(audio.resample(wave.numpy(), round(speed * rate), rate)))
    return Waves([wave for wave in waves if len(wave) >= data.stft.n_fft], data.stft)


class Material(Waves):
    """Speech, and recordings of noise beside it."""

    def __init__(self, speech: Waves, noise: Waves) -> None:
        super().__init__(speech.waves, speech.stft)
        self.noise = noise

    @property
    def fingerprint(self) -> int:
        return super().fingerprint ^ self.noise.fingerprint


def train_listener(
    vae: VAESpeech, training: tuple[Waves, Waves], validation: tuple[Waves, Waves], out: str | Path, schedule: Schedule | None = None,
    batch: int = 16, frames: int = 150, card: dict[str, object] | None = None, report: Report | None = None, team: Workers | None = None,
) -> list[Epoch]:
    """Fit the listener of a VAE to clean speech plus simulated or recorded noise, in place, and write the best weights to ``out``.

    The loss is :func:`listening_loss`: that of :func:`ppse.training.train_noisy_encoder`, plus :data:`DISTANCE` times the :func:`distance` of the
    one-pass estimate, plus :func:`told_in_bands` of a listener in bands.

    Args:
        vae: trained, with a listener; only the latter changes.
        training, validation: clean speech, and recordings of noise; nothing of one is in the other.
        out, schedule, card, report, team: as for :func:`ppse.training.train`.
        batch, frames: segments per step, and their length.

    Raises:
        ValueError: when the VAE was built without a noisy encoder.
        WeightsError, TrainingError: as for :func:`ppse.training.train`.
    """
    encoder = vae.noisy_encoder
    if encoder is None:
        raise ValueError("train_listener: this VAE has no noisy encoder; build it with VAESpeech(context=…)")
    team = team or Alone()
    vae.requires_grad_(False)
    parameters = list(encoder.listener.requires_grad_(True).parameters())

    def loss(data: Material, generator: torch.Generator, phase: Phase) -> Tensor:
        clean, noise = (part.to(team.device) for part in mixtures(data, data.noise, batch, frames, generator))
        return listening_loss(vae, encoder, clean, noise, phase.beta) / (batch * frames)

    steps = math.ceil(training[0].n_frames / (batch * frames))
    return optimise(
        vae, parameters, loss, Material(*training), Material(*validation), steps, out, schedule or Schedule(), card or {}, report, team,
    )
