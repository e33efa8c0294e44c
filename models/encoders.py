"""Networks that read a recording: what the latents of speech are, frame by frame or heard through noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..stft import POWER_FLOOR


class FrameEncoder(nn.Module):
    """Mean and standard deviation of z_t from one frame: the encoder of a VAE, for clean speech.

    Maps an STFT (…, T, F) of unit level to a pair of (…, T, L). The input is log(|s|^2 + floor).
    """

    def __init__(self, n_freqs: int, n_latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = perceptron([n_freqs, *hidden, 2 * n_latent])

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``observed`` is what every encoder is told; here no frame sees another, so it changes nothing."""
        loc, scale = self.network(log_power(x)).chunk(2, -1)
        return loc, scale.sigmoid()  # never wider than the prior: rare wide frames would ruin the ELBO


class Heard(NamedTuple):
    """What a :class:`Listener` makes of a noisy recording.

    Attributes:
        mask: magnitude mask (…, T, F) in (0, 1) that leaves the speech.
        shift: what to add to the means of the latents of the masked recording, (…, T, L).
        scale: standard deviations of the latents, (…, T, L).
        noise: power of what is not speech, (…, T, F).
    """

    mask: Tensor
    shift: Tensor
    scale: Tensor
    noise: Tensor


class Listener(nn.Module):
    """Tells speech from noise in an STFT (…, T, F) of unit level, with the whole recording as context.

    A recurrent network sees log(|x|^2 + floor) and its mean over time, which tells it what is stationary.
    """

    def __init__(self, n_freqs: int, n_latent: int, size: int) -> None:
        super().__init__()
        self.now = nn.Linear(n_freqs, size)
        self.background = nn.Linear(n_freqs, size, bias=False)
        self.memory = nn.GRU(size, size, num_layers=2, batch_first=True, bidirectional=True)
        self.mask = nn.Linear(2 * size, n_freqs)
        self.shift = nn.Linear(2 * size, n_latent)
        self.scale = nn.Linear(2 * size, n_latent)
        self.noise = nn.Linear(2 * size, n_freqs)
        # Training starts at: nearly all is speech, read as the clean encoder reads it, and the noise is the average spectrum.
        nn.init.constant_(self.mask.bias, 2.0)
        for head in (self.shift, self.noise):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Heard:
        """Frames with no bin ``observed`` do not count in the average; behind the last observed one (padding) the result means nothing."""
        features = log_power(x)
        seen = torch.ones_like(x.real[..., :1]) if observed is None else observed.expand(x.shape).any(-1, keepdim=True).to(x.real.dtype)
        average = (features * seen).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True).clamp_min(1)
        embedded = torch.relu(self.now(features) + self.background(average))
        memory = self._remember(embedded.reshape(-1, *embedded.shape[-2:]), seen.reshape(-1, x.shape[-2]))
        memory = memory.reshape(*x.shape[:-1], -1)
        noise = (average / LOG_SCALE + self.noise(memory)).exp()
        return Heard(self.mask(memory).sigmoid(), self.shift(memory), self.scale(memory).sigmoid(), noise)

    def _remember(self, embedded: Tensor, seen: Tensor) -> Tensor:
        """The recurrent layers over (B, T, size); each sequence ends at its last seen frame, where the way back begins."""
        n_frames = embedded.shape[1]
        lengths = (seen * torch.arange(1, n_frames + 1, device=seen.device)).amax(-1).clamp_min(1).long().cpu()
        if int(lengths.min()) == n_frames:
            return self.memory(embedded)[0]
        packed, _ = self.memory(pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(packed, batch_first=True, total_length=n_frames)[0]


class NoisyEncoder(nn.Module):
    """Mean and standard deviation of z_t for *noisy* speech: the clean encoder reads the masked recording.

    Called as :class:`FrameEncoder`; ``observed`` keeps the padding of a batch out of the context.
    """

    def __init__(self, listener: Listener, encoder: FrameEncoder) -> None:
        super().__init__()
        self.listener, self.encoder = listener, encoder

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.read(x, self.hear(x, observed))

    def hear(self, x: Tensor, observed: Tensor | None = None) -> Heard:
        """What the listener makes of the recording."""
        heard: Heard = self.listener(x, observed)
        return heard

    def read(self, x: Tensor, heard: Heard) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, (…, T, L), given what was heard."""
        loc, _ = self.encoder(x * heard.mask)
        return loc + heard.shift, heard.scale


LOG_SCALE = 0.2
"""Factor that makes log-powers of recordings values of order one."""


def log_power(x: Tensor) -> Tensor:
    """log(|x|^2 + POWER_FLOOR), scaled to values of order one: the input of the encoders."""
    return (x.real.square() + x.imag.square() + POWER_FLOOR).log() * LOG_SCALE


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of the sizes with tanh between them."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Tanh()] if i else []
        layers += [nn.Linear(n_in, n_out)]
    return nn.Sequential(*layers)
