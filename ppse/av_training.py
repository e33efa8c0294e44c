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
from .models import AVVAESpeech
from .models.lip_reader import follow
from .models.watched_speech import Told, ToldSpeech
from .optimisation import Epoch, Phase, Report, Schedule, optimise
from .training import at_random_level, floored

MOVED = 3
"""Pixels (of images at half size) by which the mouth is moved at most, either way."""


def train_av(
    speech: AVVAESpeech, training: WatchedWaves, validation: WatchedWaves, out: str | Path, schedule: Schedule | None = None,
    batch: int = 12, frames: int = 60, card: dict[str, object] | None = None, report: Report | None = None, *, lips_alone: bool = False,
    foresight: float = 0.0,
) -> list[Epoch]:
    """Fit an audio-visual prior and its encoder to clean speech with video; see :func:`ppse.training.train`.

    Images are moved, mirrored, and changed in brightness and contrast at random (:func:`varied`), in validation too; none are corrupted,
    since this prior is to trust its lips: that they are wrong is for a switching prior to find out.

    Args:
        batch, frames: stretches per step, and their length.
        lips_alone: whether only what the lips tell the prior of z is learnt, encoder and decoder staying as they are: the first thing to do
            around a trained VAE (:meth:`AVVAESpeech.around`), whose bound can but rise by it.
        foresight: as in :func:`av_loss`.
        speech, training, validation, out, schedule, card, report: as there.
    """

    def loss(data: WatchedWaves, generator: torch.Generator, phase: Phase) -> Tensor:
        stretches = data.watched(batch, frames, generator)
        s = floored(at_random_level(stretches.s, generator)).unsqueeze(1)
        seen = follow(speech.lips.see(varied(stretches.images, generator)), stretches.where.place)
        return av_loss(speech, s, speech.tell(seen.unsqueeze(1)), phase.beta, foresight) / (batch * frames)

    steps = math.ceil(training.n_frames / (batch * frames))
    parameters = [*speech.lips.parameters(), *speech.prior.parameters()] if lips_alone else list(speech.parameters())
    speech.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return optimise(speech, parameters, loss, training, validation, steps, out, schedule or Schedule(), card or {}, report)


def av_loss(speech: AVVAESpeech, s: Tensor, told: Told, beta: float = 1.0, foresight: float = 0.0) -> Tensor:
    """(1 - foresight) E_q[-log p(s | z, v)] + beta KL(q(z | s, v) || p(z | v)) + foresight E_p(z | v)[-log p(s | z, v)]. Random.

    Args:
        s: clean speech, (B, 1, T, F).
        told: by its lips.
        beta: weight of the KL divergence.
        foresight: of what codes sound like that the lips tell before any sound is heard. Sadeghi et al. (2020) have 0.1 in place of 0;
            see docs/audiovisual.md for what that costs here.

    Returns:
        the loss in nats, summed over frames.
    """
    source = ToldSpeech(speech, told)
    model, share = Mixture(speech=source), 1 - foresight
    posterior = share * negative_elbo(model, EncoderGuide({"speech.z": source.encoder}), s, beta=beta / share)
    return posterior + foresight * negative_elbo(model, EncoderGuide({"speech.z": source.foresight}), s) if foresight else posterior


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Stretches of prepared images (B, V, H, W), each moved, mirrored, brighter or darker, as another camera would have it. Random."""
    count, size = images.shape[0], images.shape[-1]
    wide = pad(images, (MOVED,) * 4, mode="replicate")
    corner = torch.randint(2 * MOVED + 1, (count, 2), generator=generator).tolist()
    moved = torch.stack([each[:, top : top + size, left : left + size] for each, (top, left) in zip(wide, corner, strict=True)])
    mirrored = torch.where(torch.rand(count, 1, 1, 1, generator=generator) < 0.5, moved.flip(-1), moved)
    contrast, brightness = (0.2 * torch.randn(count, 1, 1, 1, generator=generator) for _ in range(2))
    return mirrored * (1 + contrast) + brightness
