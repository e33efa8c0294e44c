"""Enhancement in one pass of a VAE that was trained with its noisy encoder: a Wiener filter of what it decodes and what it hears."""

from __future__ import annotations

import torch
from torch import Tensor

from .distributions import ComplexNormal
from .mixture import posterior
from .models import VAESpeech
from .stft import POWER_FLOOR, STFT, level


@torch.no_grad()
def one_pass(vae: VAESpeech, wave: Tensor) -> Tensor:
    """The speech in a noisy waveform (N,) of any level: E[s | x] at the mean of the latents, with the noise that is heard. Not random.

    Nothing is fitted to the recording. :func:`ppse.methods.amortised` is as fast, and has NMF for the noise; this trusts every bin of
    what is heard, which pays where noise like it was in training pairs (docs/semi.md).

    Raises:
        ValueError: when the VAE was built without a noisy encoder.
    """
    encoder = vae.noisy_encoder
    if encoder is None:
        raise ValueError("one_pass: this VAE has no noisy encoder; build it with VAESpeech(context=…)")
    stft = STFT.of_freqs(vae.n_freqs)
    x = stft.analysis(wave)
    scale = level(x).sqrt()
    x = x / scale
    heard = encoder.hear(x)
    speech = vae.decoder(encoder.read(x, heard).mean).exp() + POWER_FLOOR
    laws = {"speech": ComplexNormal(0j, speech), "noise": ComplexNormal(0j, heard.noise)}
    return stft.synthesis(posterior(laws, x)["speech"].loc * scale, wave.numel())
