"""Listen to a prior: draw latents, decode, find phases."""

from __future__ import annotations

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .models import VAESpeech
from .stft import STFT


def sample_speech(vae: VAESpeech, seconds: float = 4.0, seed: int = 0, smoothness: float = 0.9, iterations: int = 60) -> Tensor:
    """A waveform (N,) at 16 kHz, peak 0.9, from the prior. Random from ``seed``.

    Frames of this prior are independent, which sounds like rustling; ``smoothness`` puts the latents on a path
    (:func:`latent_path`), which is more than the prior knows. 0 is the prior itself.

    Raises:
        ValueError: when a number is out of range.
    """
    if not seconds > 0:
        raise ValueError(f"sample_speech: seconds={seconds}; expected more than 0")
    stft = STFT()
    length = max(1, int(seconds * stft.sample_rate))
    frames = stft.n_frames(length)
    with poutine.seed(rng_seed=seed), torch.no_grad():
        z = latent_path(frames, vae.n_latent, smoothness)
        law = poutine.condition(vae, data={"z": z})(pyro.plate("frames", frames, dim=-1))
        wave = griffin_lim(law.rsample().abs(), stft, length, iterations)
    return 0.9 * wave / wave.abs().max().clamp_min(1e-12)


def latent_path(frames: int, n_latent: int, smoothness: float) -> Tensor:
    """Latents (frames, n_latent) along z_t = a z_{t-1} + sqrt(1 - a^2) e_t: every z_t is N(0, I). Random from the global generator.

    Args:
        smoothness: a, the correlation of neighbours, in [0, 1).

    Raises:
        ValueError: when it is out of range.
    """
    if not 0 <= smoothness < 1:
        raise ValueError(f"latent_path: smoothness={smoothness}; expected a correlation in [0, 1)")
    z = torch.randn(frames, n_latent)
    for t in range(1, frames):
        z[t] = smoothness * z[t - 1] + (1 - smoothness**2) ** 0.5 * z[t]
    return z


def griffin_lim(magnitude: Tensor, stft: STFT, length: int, iterations: int = 60) -> Tensor:
    """A waveform (length,) whose STFT magnitude is near the given one (T, F). Starts at random phases.

    References:
        Griffin & Lim (1984); with the momentum 0.99 of Perraudin, Balazs & Sondergaard (2013).
    """
    x = torch.polar(magnitude, 2 * torch.pi * torch.rand_like(magnitude))
    previous = torch.zeros_like(x)
    for _ in range(iterations):
        consistent = stft.analysis(stft.synthesis(x, length))
        push = consistent + 0.99 * (consistent - previous)
        previous = consistent
        x = torch.polar(magnitude, push.angle())
    return stft.synthesis(x, length)
