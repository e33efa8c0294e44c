"""Training of audio-visual speech priors on clean speech with video of the mouth."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from .av_corpus import WatchedWaves
from .elbo import negative_elbo
from .guides import EncoderGuide
from .mixture import Mixture
from .models.av_vae import AVVAESpeech, Told, ToldSpeech
from .models.lip_reader import follow
from .optimisation import Epoch, Phase, Report, Schedule, optimise
from .training import at_random_level, floored

FORESIGHT = 0.1
"""Weight 1 - beta of the reconstruction from the lips alone in the loss; Sadeghi et al. (2020) use the same."""

MOVED = 3
"""Pixels (of images at half size) by which the mouth is moved at most, either way."""


def train_av(
    speech: AVVAESpeech, training: WatchedWaves, validation: WatchedWaves, out: str | Path, schedule: Schedule | None = None,
    batch: int = 12, frames: int = 60, card: dict[str, object] | None = None, report: Report | None = None,
) -> list[Epoch]:
    """Fit an audio-visual prior and its encoder to clean speech with video; see :func:`ppse.training.train`.

    The loss is beta E_q[-log p(s | z, v)] + KL(q(z | s, v) || p(z | v)) + (1 - beta) E_p(z | v)[-log p(s | z, v)]: the last term
    (:data:`FORESIGHT`) has the prior find codes that sound right before any sound was heard. Images are moved, mirrored, and changed
    in brightness and contrast at random (:func:`varied`), in validation too; none are corrupted, since this prior is to trust its lips: that
    they are wrong is for a switching prior to find out.

    Args:
        batch, frames: stretches per step, and their length.
        speech, training, validation, out, schedule, card, report: as there.
    """

    def loss(data: WatchedWaves, generator: torch.Generator, phase: Phase) -> Tensor:
        stretches = data.watched(batch, frames, generator)
        s = floored(at_random_level(stretches.s, generator)).unsqueeze(1)
        seen = follow(speech.lips.see(varied(stretches.images, generator)), stretches.where.place)
        return av_loss(speech, s, speech.tell(seen.unsqueeze(1)), phase.beta) / (batch * frames)

    steps = math.ceil(training.n_frames / (batch * frames))
    return optimise(speech, list(speech.parameters()), loss, training, validation, steps, out, schedule or Schedule(), card or {}, report)


def av_loss(speech: AVVAESpeech, s: Tensor, told: Told, beta: float = 1.0) -> Tensor:
    """The loss of :func:`train_av` for clean speech (B, 1, T, F) in nats, summed over frames; ``beta`` weighs the KL divergence. Random."""
    source = ToldSpeech(speech, told)
    model, share = Mixture(speech=source), 1 - FORESIGHT
    posterior = negative_elbo(model, EncoderGuide({"speech.z": source.encoder}), s, beta=beta / share)
    prior = negative_elbo(model, EncoderGuide({"speech.z": source.foresight}), s)
    return share * posterior + FORESIGHT * prior


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Stretches of prepared images (B, V, H, W), each moved, mirrored, brighter or darker, as another camera would have it. Random."""
    count, size = images.shape[0], images.shape[-1]
    wide = pad(images, (MOVED,) * 4, mode="replicate")
    corner = torch.randint(2 * MOVED + 1, (count, 2), generator=generator).tolist()
    moved = torch.stack([each[:, top : top + size, left : left + size] for each, (top, left) in zip(wide, corner, strict=True)])
    mirrored = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, moved.flip(-1), moved)
    contrast, brightness = (0.2 * torch.randn(count, 1, 1, 1, generator=generator) for _ in range(2))
    return mirrored * (1 + contrast) + brightness
