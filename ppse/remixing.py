"""The noise of recordings heard again under other clean speech: few labelled recordings become an endless supply of mixtures in real noise.

Where the speech in a recording is known, so is the noise. Elsewhere it is drawn from its posterior, given what the encoder makes of the
recording, or once beforehand, given what EM makes of it (:mod:`ppse.found_noise`): unlike its mean, a draw has no holes where the speech was.

References:
    Tzinis et al. (2022), RemixIT: continual self-training of speech enhancement models via bootstrapped remixing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .listening import QUIET, equalised
from .models import VAESpeech
from .models.encoders import Heard, NoisyEncoder
from .recordings import Recordings, Stretches
from .simulate import unit_power
from .stft import POWER_FLOOR
from .training import mixed


@torch.no_grad()
def noise_of(vae: VAESpeech, encoder: NoisyEncoder, data: Stretches, heard: Heard | None = None) -> Tensor:
    """Noise (B, 1, T, F) of stretches: x less the speech where that is known, and elsewhere a draw from p(n | x, z), z from the encoder. Random.

    ``heard`` is what the listener makes of them, if that is known already.
    """
    left = data.x - data.clean
    if bool(data.known.all()):
        return left
    heard = heard or encoder.hear(data.x)
    latents = encoder.read(data.x, heard).sample()
    v_s, v_n = vae.decoder(latents).exp() + POWER_FLOOR, heard.noise + POWER_FLOOR
    share = v_n / (v_s + v_n)
    drawn = share * data.x + (share * v_s).sqrt() * torch.randn_like(data.x)
    return torch.where(data.known, left, drawn)


def recorded_noise(
    vae: VAESpeech, encoder: NoisyEncoder, kinds: Sequence[Recordings], count: int, frames: int, generator: torch.Generator, device: torch.device,
) -> Tensor:
    """Noise of stretches of recordings, (count, frames, F) on the processor, of every kind as often as of any other.

    Random from ``generator``, and globally.
    """
    chosen = torch.randint(len(kinds), (count,), generator=generator).bincount(minlength=len(kinds)).tolist()
    parts = []
    for data, some in zip(kinds, chosen, strict=True):
        if some:
            stretches = Stretches(*(part.to(device) for part in data.stretches(some, frames, generator)))
            parts.append(noise_of(vae, encoder, stretches).squeeze(1).cpu())
    return torch.cat(parts)[torch.randperm(count, generator=generator)]


def remix(speech: Tensor, noise: Tensor, generator: torch.Generator) -> Stretches:
    """Speech in noise, STFTs (B, T, F) each, as mixtures of unit level of which all is known.

    Both go through random smooth equalisers; the SNR is uniform between -10 and 15 dB, as that of simulated noise, unless a stretch is a pause.
    Random from ``generator``, on the processor.
    """
    snr = -10 + 25 * torch.rand(len(speech), 1, 1, generator=generator)
    clean = unit_power(equalised(speech, 0.25, generator), QUIET)
    clean, noise = mixed(clean, unit_power(equalised(noise, 0.5, generator), QUIET), snr)
    return Stretches(clean + noise, clean, torch.ones_like(clean.real[..., :1], dtype=torch.bool))
