"""The variational recurrent network of clean speech: one memory of past speech and past codes, behind all that comes next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from ..distributions import power_of
from .encoders import log_power, moments, perceptron, read_ahead, take_over
from .feedback import Feedback, FeedbackVAE, forget, gaussian
from .recurrent import Layers, Recurrence, RecurrentNormal, State, before, dense
from .vae import VAESpeech


class VRNNSpeech(FeedbackVAE):
    """h_t = LSTM(h_t-1; s_t-1, z_t-1), z_t ~ N(m, diag v)(h_t), s_t ~ CN(0, diag exp d(h_t, z_t) + POWER_FLOOR); z_0 = 0, s_0 = 0.

    Site: ``z``, one vector of L per frame. All memory is in h, and all depends on it. ``encoder`` is the matching approximate posterior
    q(z_t | z_<t, s_1:t) for *clean* speech, which looks at no later frame.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        memory: sizes of the LSTM that h is the state of, of the dense layers on the power before it, and of those of d behind it.
        codes: sizes of the dense layers through which memory and d see z.
        transition: sizes of the dense layers of m and v.
        inference: sizes of the last dense layers of the encoder.
        log_input: whether the memory reads log-powers, or powers; for the encoder, see :class:`ppse.models.encoders.FrameEncoder`.
        relu: whether the dense layers have ReLU activations, instead of tanh.

    References:
        Chung, Kastner, Dinh, Goel, Courville & Bengio (2015), A recurrent latent variable model for sequential data.
    """

    feedback: VRNNGeneration
    encoder: FilteringEncoder

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 16, *, memory: Layers | None = None, codes: Sequence[int] = (32, 64),
        transition: Sequence[int] = (64, 32), inference: Sequence[int] = (64, 32), log_input: bool = True, relu: bool = False,
    ) -> None:
        super().__init__()
        memory = Layers(128, (256,), (256,)) if memory is None else Layers(*memory)  # a file has plain lists
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "memory": memory, "codes": list(codes), "transition": list(transition),
            "inference": list(inference), "log_input": log_input, "relu": relu,
        }
        self.n_freqs, self.n_latent = n_freqs, n_latent
        activation = nn.ReLU if relu else nn.Tanh
        self.feedback = VRNNGeneration(n_freqs, n_latent, memory, codes, transition, log_input, activation)
        self.encoder = FilteringEncoder(n_freqs, n_latent, memory, codes, inference, log_input, activation)

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
        speech = cls(vae.n_freqs, vae.n_latent, memory=Layers(hidden, (), sizes), codes=(), inference=sizes[::-1], relu=relu)
        forget(speech.feedback.transition)
        take_over(speech.feedback.decoder, vae.decoder, hidden)
        take_over(speech.encoder.head, vae.encoder.network, 0)
        return speech


class VRNNGeneration(Feedback):
    """Memory, transition and decoder of :class:`VRNNSpeech`."""

    def __init__(
        self, n_freqs: int, n_latent: int, memory: Layers, codes: Sequence[int], transition: Sequence[int], log_input: bool,
        activation: type[nn.Module],
    ) -> None:
        n_code = [n_latent, *codes][-1]
        super().__init__(n_freqs, memory, n_code, n_code, log_input, activation)
        self.codes = dense([n_latent, *codes], activation)
        self.transition = perceptron([memory.size, *transition, 2 * n_latent], activation)

    def told(self, past: Tensor, z: Tensor) -> Tensor:
        told: Tensor = self.codes(past)
        return told

    def shown(self, z: Tensor) -> Tensor:
        shown: Tensor = self.codes(z)
        return shown

    def prior(self, hidden: Tensor, past: Tensor) -> Normal:
        return gaussian(self.transition(hidden))


class FilteringEncoder(nn.Module):
    """The law of z_t given z_<t and the clean speech up to now: a memory as that of the prior, with weights of its own, and the present frame.

    Maps an STFT (…, T, F) of unit level to a :class:`RecurrentNormal` of shape (…, T, L).

    Args:
        n_freqs, n_latent, memory, codes, log_input: as for :class:`VRNNSpeech`.
        hidden: sizes of the dense layers behind the memory.
        activation: class of the activations.
    """

    def __init__(
        self, n_freqs: int, n_latent: int, memory: Layers, codes: Sequence[int], hidden: Sequence[int], log_input: bool,
        activation: type[nn.Module],
    ) -> None:
        super().__init__()
        self.n_latent, self.log_input, self.n_heard = n_latent, log_input, [n_freqs, *memory.before][-1]
        self.listen = dense([n_freqs, *memory.before], activation)
        self.codes = dense([n_latent, *codes], activation)
        self.memory = Recurrence(self.n_heard + [n_latent, *codes][-1], Layers(memory.size, depth=memory.depth))
        self.head = perceptron([self.n_heard + memory.size, *hidden, 2 * n_latent], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> RecurrentNormal:
        """The law of the codes of a recording, or of a batch; ``observed`` changes nothing, as no frame sees a later one."""
        heard = self.listen(log_power(x) if self.log_input else power_of(x))
        return RecurrentNormal(self._next, self.n_latent, torch.cat([before(heard), read_ahead(self.head, heard)], -1))

    def _next(self, past: Tensor, context: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        heard, ahead = context[..., : self.n_heard], context[..., self.n_heard :]
        hidden, state = self.memory.advance(torch.cat([heard, self.codes(past)], -1), state)
        return *moments(self.head, ahead, hidden, self.log_input), state
