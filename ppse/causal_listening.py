"""Training of ears for streams: a listener that remembers hears a recording as a stream does, at the level that is known so far."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from .corpus import Waves
from .listening import Material, listening_loss, mixtures
from .models import VAESpeech
from .models.causal_listener import CausalListener
from .models.encoders import NoisyEncoder
from .optimisation import Epoch, Phase, Report, Schedule, optimise
from .stft import active_mean, frame_power
from .workers import Alone, Workers

BLOCK = 5
"""Frames that a stream infers at once, which have one level (:class:`ppse.streaming.Stream`)."""

LEVEL = 625
"""Frames that its level goes over, 10 s of the shipped STFT."""


def train_causal_listener(
    listener: CausalListener, vae: VAESpeech, training: tuple[Waves, Waves], validation: tuple[Waves, Waves], out: str | Path,
    schedule: Schedule | None = None, batch: int = 12, frames: int = 250, card: dict[str, object] | None = None, report: Report | None = None,
    team: Workers | None = None,
) -> list[Epoch]:
    """Fit a listener for streams to clean speech plus simulated or recorded noise, in place, and write the best weights to ``out``.

    The loss is that of :func:`ppse.listening.train_listener`.

    Args:
        vae: trained; its latents are what the listener tells of, and it stays as it is.
        training, validation: clean speech, and recordings of noise; nothing of one is in the other.
        out, schedule, card, report, team: as for :func:`ppse.training.train`.
        batch, frames: segments per step, and their length; every one is heard as the beginning of a stream.

    Raises:
        WeightsError, TrainingError: as for :func:`ppse.training.train`.
    """
    team = team or Alone()
    vae.requires_grad_(False).to(team.device)
    encoder = NoisyEncoder(listener, vae.encoder)

    def loss(data: Material, generator: torch.Generator, phase: Phase) -> Tensor:
        clean, noise = mixtures(data, data.noise, batch, frames, generator)
        scale = running_level(clean + noise).rsqrt()
        clean, noise = (clean * scale).to(team.device), (noise * scale).to(team.device)
        return listening_loss(vae, encoder, clean, noise, phase.beta) / (batch * frames)

    steps = math.ceil(training[0].n_frames / (batch * frames))
    parameters = list(listener.requires_grad_(True).parameters())
    schedule = schedule or Schedule()
    return optimise(listener, parameters, loss, Material(*training), Material(*validation), steps, out, schedule, card or {}, report, team)


def running_level(x: Tensor, block: int = BLOCK, span: int = LEVEL) -> Tensor:
    """The level (:func:`ppse.stft.active_mean`) of an STFT (…, T, F) that is known at the end of the block of every frame, (…, T, 1)."""
    power = frame_power(x)
    ends = range(block, power.shape[-1] + block, block)
    levels = torch.cat([active_mean(power[..., max(0, end - span) : end]) for end in ends], -1)
    return levels.repeat_interleave(block, -1)[..., : power.shape[-1]].unsqueeze(-1)
