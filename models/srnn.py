"""The stochastic recurrent network of clean speech: a memory of past speech, and codes that drift under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from ..distributions import power_of
from .encoders import moments, perceptron, read_ahead, scaled, take_over
from .feedback import Feedback, FeedbackVAE, forget, gaussian
from .recurrent import Layers, Recurrence, RecurrentNormal, State, before, lengths
from .vae import VAESpeech


class SRNNSpeech(FeedbackVAE):
    """h_t = LSTM(h_t-1; s_t-1), z_t ~ N(m, diag v)(h_t, z_t-1), s_t ~ CN(0, diag exp d(h_t, z_t) + POWER_FLOOR); z_0 = 0, s_0 = 0.

    Site: ``z``, one vector of L per frame. The memory h is of speech alone; the codes have theirs in their own transition. ``encoder``
    is the matching approximate posterior q(z_t | z_t-1, s_1:T) for *clean* speech.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        memory: sizes of the LSTM that h is the state of, of the dense layers before it, and of those of d behind it.
        transition: sizes of the dense layers of m and v.
        reader, skip: sizes of the :class:`SmoothingEncoder`, and whether its last layers see the present frame itself.
        log_input: whether the memory reads log-powers, or powers; for the encoder, see :class:`ppse.models.encoders.FrameEncoder`.
        relu: whether the dense layers have ReLU activations, instead of tanh.

    References:
        Fraccaro, Sønderby, Paquet & Winther (2016), Sequential neural models with stochastic layers.
    """

    feedback: SRNNGeneration
    encoder: SmoothingEncoder

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 16, *, memory: Layers | None = None, transition: Sequence[int] = (64, 32),
        reader: Layers | None = None, skip: bool = False, log_input: bool = True, relu: bool = False,
    ) -> None:
        super().__init__()
        memory = Layers(128, (256,), (256,)) if memory is None else Layers(*memory)  # a file has plain lists
        reader = Layers(128, (256,), (64, 32)) if reader is None else Layers(*reader)
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "memory": memory, "transition": list(transition), "reader": reader,
            "skip": skip, "log_input": log_input, "relu": relu,
        }
        self.n_freqs, self.n_latent = n_freqs, n_latent
        activation = nn.ReLU if relu else nn.Tanh
        self.feedback = SRNNGeneration(n_freqs, n_latent, memory, transition, log_input, activation)
        self.encoder = SmoothingEncoder(n_freqs, n_latent, memory, reader, skip=skip, log_input=log_input, activation=activation)

    @classmethod
    def around(cls, vae: VAESpeech, hidden: int = 128) -> Self:
        """An untrained memory around a trained VAE of frames, whose law, N(0, I) codes and encoder it has yet. Random in all else.

        Args:
            vae: with encoders of ours, which read log-powers; it is not changed.
            hidden: size of the LSTMs.

        Raises:
            ValueError: when the encoder of the VAE is of another kind.
        """
        sizes, relu = cls._sizes_of(vae)
        speech = cls(
            vae.n_freqs, vae.n_latent, memory=Layers(hidden, (2 * hidden,), sizes), reader=Layers(hidden, (2 * hidden,), sizes[::-1]),
            skip=True, relu=relu,
        )
        forget(speech.feedback.transition)
        take_over(speech.feedback.decoder, vae.decoder, hidden)
        take_over(speech.encoder.head, vae.encoder.network, hidden)
        return speech


class SRNNGeneration(Feedback):
    """The memory, the transition of the codes and the decoder of :class:`SRNNSpeech`."""

    def __init__(
        self, n_freqs: int, n_latent: int, memory: Layers, transition: Sequence[int], log_input: bool, activation: type[nn.Module],
    ) -> None:
        super().__init__(n_freqs, memory, 0, n_latent, log_input, activation)
        self.transition = perceptron([memory.size + n_latent, *transition, 2 * n_latent], activation)

    def told(self, past: Tensor, z: Tensor) -> Tensor:
        return z[..., :0]

    def shown(self, z: Tensor) -> Tensor:
        return z

    def prior(self, hidden: Tensor, past: Tensor) -> Normal:
        return gaussian(self.transition(torch.cat([hidden, past], -1)))


class SmoothingEncoder(nn.Module):
    """The law of z_t given z_t-1 and the clean speech of all frames: one LSTM goes forth over the speech before, another back from the end.

    Maps an STFT (…, T, F) of unit level to a :class:`RecurrentNormal` of shape (…, T, L); padding is not read. The memory of past speech
    is as in the prior, with weights of its own: that of the prior has to live with the speech that it generates, this one hears the real one.

    Args:
        n_freqs, n_latent: F and L.
        memory: sizes of the LSTM that goes forth, and of the dense layers before it.
        reader: sizes of the one that comes back, of the dense layers before it, and of those behind it that also see z_t-1.
        skip: whether the last dense layers see the present frame itself, too.
        log_input: as for :class:`ppse.models.encoders.FrameEncoder`.
        activation: class of the activations.

    References:
        Fraccaro et al. (2016), Sequential neural models with stochastic layers.
    """

    def __init__(
        self, n_freqs: int, n_latent: int, memory: Layers, reader: Layers, *, skip: bool = False, log_input: bool = True,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.n_latent, self.skip, self.log_input = n_latent, skip, log_input
        self.memory = Recurrence(n_freqs, memory, activation=activation)
        self.reader = Recurrence(memory.size + n_freqs, reader, forward=False, backward=True, activation=activation)
        self.head = perceptron([reader.size + skip * n_freqs + n_latent, *reader.after, 2 * n_latent], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> RecurrentNormal:
        """The law of the codes of a recording, or of a batch."""
        past, now = (scaled(frames) if self.log_input else frames for frames in (before(power_of(x)), power_of(x)))
        read = self.reader(torch.cat([self.memory(past), now], -1), lengths(observed, x))
        return RecurrentNormal(self._next, self.n_latent, read_ahead(self.head, torch.cat([read, now], -1) if self.skip else read))

    def _next(self, past: Tensor, read: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return *moments(self.head, read, past, self.log_input), state
