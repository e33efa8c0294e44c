"""The stochastic recurrent network that came first: codes without memory, driving one that listens to past speech."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from ..distributions import power_of
from .encoders import log_power, perceptron
from .feedback import Feedback, FeedbackVAE, Recursion
from .recurrent import Layers, Recurrence, dense


class STORNSpeech(FeedbackVAE):
    """z_t ~ N(0, I_L), h_t = LSTM(h_t-1; s_t-1, z_t), s_t | h_t ~ CN(0, diag exp d(h_t) + POWER_FLOOR); s_0 = 0.

    Site: ``z``, one vector of L per frame, independent a priori. ``encoder`` is the approximate posterior q(z_t | s_1:t) for *clean* speech.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        memory: sizes of the LSTM that h is the state of, of the dense layers on the power before it, and of those of d behind it.
        codes: sizes of the dense layers through which the memory sees z.
        reader: sizes of the LSTM of the encoder, and of the dense layers before and behind it.
        log_input: whether the memory reads log-powers, or powers; for the encoder, see :class:`ppse.models.encoders.FrameEncoder`.
        relu: whether the dense layers have ReLU activations, instead of tanh.

    References:
        Bayer & Osendorfer (2015), Learning stochastic recurrent networks; there the encoder sees s_1:t-1, here the present frame, too.
    """

    feedback: STORNGeneration
    encoder: CausalEncoder

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 16, *, memory: Layers | None = None, codes: Sequence[int] = (32, 64),
        reader: Layers | None = None, log_input: bool = True, relu: bool = False,
    ) -> None:
        super().__init__()
        memory = Layers(128, (256,), (256,)) if memory is None else Layers(*memory)  # a file has plain lists
        reader = Layers(128, (256,), (64, 32)) if reader is None else Layers(*reader)
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "memory": memory, "codes": list(codes), "reader": reader, "log_input": log_input, "relu": relu,
        }
        self.n_freqs, self.n_latent = n_freqs, n_latent
        activation = nn.ReLU if relu else nn.Tanh
        self.feedback = STORNGeneration(n_freqs, n_latent, memory, codes, log_input, activation)
        self.encoder = CausalEncoder(n_freqs, n_latent, reader, log_input, activation)

    def latent_law(self, recursion: Recursion, n_frames: int) -> TorchDistribution:
        """N(0, I) in every frame."""
        zero = next(recursion.networks.parameters()).new_zeros(self.n_latent)
        return Normal(zero, torch.ones_like(zero))


class STORNGeneration(Feedback):
    """Memory and decoder of :class:`STORNSpeech`."""

    def __init__(self, n_freqs: int, n_latent: int, memory: Layers, codes: Sequence[int], log_input: bool, activation: type[nn.Module]) -> None:
        super().__init__(n_freqs, memory, [n_latent, *codes][-1], 0, log_input, activation)
        self.codes = dense([n_latent, *codes], activation)

    def told(self, past: Tensor, z: Tensor) -> Tensor:
        told: Tensor = self.codes(z)
        return told

    def shown(self, z: Tensor) -> Tensor:
        return z[..., :0]


class CausalEncoder(nn.Module):
    """The law of z_t given the clean speech up to now: an LSTM between dense layers. Maps an STFT (…, T, F) of unit level to a Normal (…, T, L).

    Args:
        n_freqs, n_latent, reader, log_input: as for :class:`STORNSpeech`.
        activation: class of the activations.
    """

    def __init__(self, n_freqs: int, n_latent: int, reader: Layers, log_input: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.log_input = log_input
        self.reader = Recurrence(n_freqs, reader, activation=activation)
        self.head = perceptron([reader.size, *reader.after, 2 * n_latent], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        """The law of the codes of a recording, or of a batch; ``observed`` changes nothing, as no frame sees a later one."""
        loc, scale = self.head(self.reader(log_power(x) if self.log_input else power_of(x))).chunk(2, -1)
        return Normal(loc, scale.sigmoid() if self.log_input else (0.5 * scale).exp())
