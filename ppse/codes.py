"""Learning a prior over codes: what the encoder of a VAE finds in clean speech, and the chain fitted to that in closed form."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from . import weights
from .corpus import Speech
from .models import CodeChain, VAESpeech
from .training import at_random_level, floored

STRETCH = 60.0
"""Seconds of a recording that are encoded at once, and at one level."""


@torch.no_grad()
def codes(vae: VAESpeech, speech: Speech, seed: int = 0) -> Iterator[Tensor]:
    """Draws from the encoder's law of the codes of clean speech, (T, L) for every minute of every file. Random from ``seed``.

    Draws and not means, since it is their law that the prior over codes must match for the ELBO to be best (the aggregate posterior).
    Levels are those at which the VAE was trained (:data:`ppse.training.LEVEL_RANGE`). Frames at both ends that reach beyond the
    recording are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    stft, length = speech.stft, int(STRETCH * speech.stft.sample_rate)
    edge = stft.n_fft // stft.hop - 1
    for wave in speech.waves:
        for piece in wave.split(length):
            if len(piece) < stft.n_fft:
                continue
            inside = (len(piece) - stft.n_fft) // stft.hop + 1
            s = stft.analysis(piece)[None, edge : edge + inside]
            law = vae.encoder(floored(at_random_level(s, generator)[0]))
            yield law.mean + law.stddev * torch.randn(law.mean.shape, generator=generator)


def train_codes(
    vae: VAESpeech, training: Speech, validation: Speech, out: str | os.PathLike[str], seed: int = 0, card: dict[str, object] | None = None,
) -> CodeChain:
    """Fit a chain to the codes of clean speech and write it to ``out``: seconds of work, of which nearly all is encoding.

    Its card gets ``frames``, the frames that it was fitted to, and two log densities in nats per frame of the codes of the validation
    speech: ``validation`` under the chain, and ``independent`` under N(0, I).

    Args:
        vae: its encoder is used, and stays as it is.
        training, validation: clean speech of different speakers.
        seed: of the levels and the draws.
        card: what to note about the data (model card).

    Raises:
        ValueError: when there is too little speech.
        WeightsError: when the file cannot be written.
    """
    fitted_to, held = list(codes(vae, training, seed)), list(codes(vae, validation, seed))
    chain = CodeChain(vae.n_latent)

    def density() -> float:
        return float(torch.cat([chain.law(len(z)).log_prob(z) for z in held]).mean())

    independent = density()  # which a chain is before it is fitted
    chain.fit(fitted_to)
    scores = {"frames": sum(map(len, fitted_to)), "independent": round(independent, 2), "validation": round(density(), 2)}
    weights.write(chain, out, {**(card or {}), **scores})
    return chain
