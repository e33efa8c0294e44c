"""The feed-forward variational autoencoder of clean speech: the prior that most of the field uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ..distributions import ComplexNormal
from ..mixture import Frames
from ..stft import POWER_FLOOR
from ..weights import load


class VAESpeech(PyroModule):
    """z_t ~ N(0, I_L), s_t | z_t ~ CN(0, diag exp d(z_t) + POWER_FLOOR); frames are independent given the latents.

    Site: ``z``, one vector of L per frame. The decoder d is a perceptron; ``encoder`` is the matching
    approximate posterior for *clean* frames, and ``noisy_encoder`` (optional) one for a noisy
    recording, with all of it as context (:class:`NoisyEncoder`).

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        hidden: sizes of the tanh layers of the decoder; the encoder has them in reverse.
        context: size of the recurrent layers of the noisy encoder; 0 for none.

    References:
        Leglaive, Girin & Horaud (2018); Sadeghi et al. (2020), Audio-visual speech enhancement using
        conditional variational auto-encoders (architecture and training of the encoder and decoder).
    """

    def __init__(self, n_freqs: int = 513, n_latent: int = 32, hidden: Sequence[int] = (512,), context: int = 0) -> None:
        super().__init__()
        self.settings = {"n_freqs": n_freqs, "n_latent": n_latent, "hidden": list(hidden), "context": context}
        self.n_freqs, self.n_latent = n_freqs, n_latent
        self.decoder = _perceptron([n_latent, *hidden, n_freqs])
        self.encoder = FrameEncoder(n_freqs, n_latent, tuple(reversed(hidden)))
        self.mask = SpeechMask(n_freqs, n_latent, context) if context else None

    @classmethod
    def pretrained(cls, name: str = "vae") -> Self:
        """The prior shipped with the package under ``name``, or the one in the file of that path.

        Its networks are frozen: inference on a recording never changes them.

        Raises:
            WeightsError: when there is no such file, or it does not hold a VAESpeech.
        """
        return load(cls, name)

    @property
    def noisy_encoder(self) -> NoisyEncoder | None:
        """The approximate posterior for noisy recordings; None without ``context``."""
        return None if self.mask is None else NoisyEncoder(self.mask, self.encoder)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`)."""
        # Not self.decoder: Pyro would make a parameter site of every weight, on every evaluation of the graph.
        decoder = self._modules["decoder"]
        assert decoder is not None
        zero = next(decoder.parameters()).new_zeros(self.n_latent)
        with frames:
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
        return ComplexNormal(0j, decoder(z).exp() + POWER_FLOOR)


class FrameEncoder(nn.Module):
    """Mean and standard deviation of z_t from one frame: the encoder of a VAE, for clean speech.

    Maps an STFT (…, T, F) of unit level to a pair of (…, T, L). The input is log(|s|^2 + floor).
    """

    def __init__(self, n_freqs: int, n_latent: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.network = _perceptron([n_freqs, *hidden, 2 * n_latent])

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``observed`` is what every encoder is told; here no frame sees another, so it changes nothing."""
        loc, scale = self.network(log_power(x)).chunk(2, -1)
        return loc, scale.sigmoid()  # never wider than the prior: rare wide frames would ruin the ELBO


class SpeechMask(nn.Module):
    """How much of every bin of a noisy recording is speech, with the whole recording as context.

    A recurrent network sees log(|x|^2 + floor) and its mean over time, which tells it what is stationary. Maps
    an STFT (…, T, F) of unit level to a magnitude mask (…, T, F) in (0, 1) and to the standard deviations
    (…, T, L) of the latents of what the mask leaves.
    """

    def __init__(self, n_freqs: int, n_latent: int, size: int) -> None:
        super().__init__()
        self.now = nn.Linear(n_freqs, size)
        self.background = nn.Linear(n_freqs, size, bias=False)
        self.memory = nn.GRU(size, size, num_layers=2, batch_first=True, bidirectional=True)
        self.mask = nn.Linear(2 * size, n_freqs)
        self.scale = nn.Linear(2 * size, n_latent)
        nn.init.constant_(self.mask.bias, 2.0)  # nearly all is speech: training starts at the clean encoder

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Frames with no bin ``observed`` are no context; behind the last observed one (padding) the result means nothing."""
        features = log_power(x)
        seen = torch.ones_like(x.real[..., :1]) if observed is None else observed.expand(x.shape).any(-1, keepdim=True).to(x.real.dtype)
        average = (features * seen).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True).clamp_min(1)
        embedded = torch.relu(self.now(features) + self.background(average))
        memory = self._remember(embedded.reshape(-1, *embedded.shape[-2:]), seen.reshape(-1, x.shape[-2]))
        memory = memory.reshape(*x.shape[:-1], -1)
        return self.mask(memory).sigmoid(), self.scale(memory).sigmoid()

    def _remember(self, embedded: Tensor, seen: Tensor) -> Tensor:
        """The recurrent layers over (B, T, size); each sequence ends at its last seen frame, where the way back begins."""
        n_frames = embedded.shape[1]
        lengths = (seen * torch.arange(1, n_frames + 1, device=seen.device)).amax(-1).clamp_min(1).long().cpu()
        if int(lengths.min()) == n_frames:
            return self.memory(embedded)[0]
        packed, _ = self.memory(pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(packed, batch_first=True, total_length=n_frames)[0]


class NoisyEncoder(nn.Module):
    """Mean and standard deviation of z_t for *noisy* speech: the clean encoder reads the masked recording."""

    def __init__(self, mask: SpeechMask, encoder: FrameEncoder) -> None:
        super().__init__()
        self.mask, self.encoder = mask, encoder

    def forward(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As :class:`SpeechMask`: ``observed`` keeps the padding of a batch out of the context."""
        mask, scale = self.mask(x, observed)
        loc, _ = self.encoder(x * mask)
        return loc, scale


def log_power(x: Tensor) -> Tensor:
    """log(|x|^2 + POWER_FLOOR), scaled to values of order one: the input of the encoders."""
    return (x.real.square() + x.imag.square() + POWER_FLOOR).log() / 5


def _perceptron(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.Tanh()] if i else []
        layers += [nn.Linear(n_in, n_out)]
    return nn.Sequential(*layers)
