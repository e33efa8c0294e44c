"""The disentangled sequential autoencoder of clean speech: a code of the whole utterance, say the voice, beside those of the frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import ComplexNormal, power_of
from ..mixture import Frames
from ..stft import POWER_FLOOR
from .dynamical import DynamicalVAE
from .encoders import RecurrentEncoder, log_power, perceptron, take_over
from .feedback import forget, gaussian
from .recurrent import Layers, Recurrence, RecurrentNormal, State, lengths
from .vae import VAESpeech


class DSAESpeech(DynamicalVAE):
    """v ~ N(0, I_V), z_t ~ N(m, diag s^2)(LSTM(z_<t)), s_t | v, z_t ~ CN(0, diag exp d(v, z_t) + POWER_FLOOR).

    Sites: ``v``, one vector of V per utterance, outside of the frames plate; ``z``, one of L per frame. Given both, frames are independent.
    ``utterance_encoder`` and ``encoder`` are the matching approximate posterior q(v | s_1:T) q(z_t | z_<t, s_1:T) for *clean* speech.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        n_utterance: V, dimension of v.
        hidden: sizes of the hidden layers of the decoder d.
        transition: size of the LSTM that remembers z_<t.
        reader, past: sizes of the :class:`ppse.models.encoders.RecurrentEncoder`; the utterance encoder has those of the reader.
        skip: whether its last layers see the present frame itself.
        log_input: as for :class:`ppse.models.encoders.FrameEncoder`.
        relu: whether the dense layers have ReLU activations, instead of tanh.

    References:
        Li & Mandt (2018), Disentangled sequential autoencoder; the approximate posterior is the factorised one, with memory of z_<t added.
    """

    encoder: RecurrentEncoder

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 16, n_utterance: int = 16, hidden: Sequence[int] = (32, 64, 128, 256), *, transition: int = 32,
        reader: Layers | None = None, past: Layers | None = None, skip: bool = False, log_input: bool = True, relu: bool = False,
    ) -> None:
        super().__init__()
        reader = Layers(128, (256,), (64,)) if reader is None else Layers(*reader)  # a file has plain lists
        past = Layers(32) if past is None else Layers(*past)
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "n_utterance": n_utterance, "hidden": list(hidden), "transition": transition,
            "reader": reader, "past": past, "skip": skip, "log_input": log_input, "relu": relu,
        }
        self.n_freqs, self.n_latent, self.n_utterance = n_freqs, n_latent, n_utterance
        activation = nn.ReLU if relu else nn.Tanh
        self.transition = RememberingTransition(n_latent, transition)
        self.decoder = perceptron([n_utterance + n_latent, *hidden, n_freqs], activation)
        self.encoder = RecurrentEncoder(n_freqs, n_latent, reader, past, skip=skip, log_input=log_input, activation=activation)
        self.utterance_encoder = UtteranceEncoder(n_freqs, n_utterance, reader, log_input, activation)

    @classmethod
    def around(cls, vae: VAESpeech, hidden: int = 128) -> Self:
        """An untrained utterance code and transition around a trained VAE of frames, whose law, N(0, I) codes and encoder it has yet.

        Args:
            vae: with encoders of ours, which read log-powers; it is not changed.
            hidden: size of the LSTMs of the encoders.

        Raises:
            ValueError: when the encoder of the VAE is of another kind.
        """
        sizes, relu = cls._sizes_of(vae)
        speech = cls(vae.n_freqs, vae.n_latent, hidden=sizes, reader=Layers(hidden, (2 * hidden,), sizes[::-1]), skip=True, relu=relu)
        forget(speech.transition.head)
        take_over(speech.decoder, vae.decoder, speech.n_utterance)
        take_over(speech.encoder.head, vae.encoder.network, speech.encoder.reader.n_out)
        return speech

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`)."""
        transition, decoder = self._modules["transition"], self._modules["decoder"]  # not self.decoder: see RVAESpeech
        assert transition is not None and decoder is not None
        zero = next(decoder.parameters()).new_zeros(self.n_utterance)
        v = pyro.sample("v", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
        with frames:
            z = pyro.sample("z", RecurrentNormal(transition, self.n_latent, zero.new_zeros(frames.size, 0)).to_event(1))
        shape = torch.broadcast_shapes(v.shape[:-1], z.shape[:-1])
        both = torch.cat([v.expand(*shape, -1), z.expand(*shape, -1)], -1)
        return ComplexNormal(0j, decoder(both).exp() + POWER_FLOOR)


class RememberingTransition(nn.Module):
    """Mean and standard deviation of the next code from all before: an LSTM and a linear layer; a network of :class:`RecurrentNormal`."""

    def __init__(self, n_latent: int, size: int) -> None:
        super().__init__()
        self.memory = Recurrence(n_latent, Layers(size))
        self.head = perceptron([size, 2 * n_latent])

    def forward(self, past: Tensor, _: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        hidden, state = self.memory.advance(past, state)
        law = gaussian(self.head(hidden))
        return law.loc, law.scale, state


class UtteranceEncoder(nn.Module):
    """The law of the code of an utterance given its clean speech: the average state of an LSTM that goes both ways, between dense layers.

    Maps an STFT (T, F), or (B, 1, T, F), of unit level to a Normal of shape (V,), or (B, 1, 1, V). Frames with no bin ``observed`` do not count.

    Args:
        n_freqs, n_utterance: F and V.
        reader: sizes.
        log_input: as for :class:`ppse.models.encoders.FrameEncoder`.
        activation: class of the activations.
    """

    of_utterance = True
    """Tells guides that the site is outside of the frames."""

    def __init__(self, n_freqs: int, n_utterance: int, reader: Layers, log_input: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.log_input = log_input
        self.reader = Recurrence(n_freqs, reader, backward=True, activation=activation)
        self.head = perceptron([self.reader.n_out, *reader.after, 2 * n_utterance], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dist.Normal:
        """The law of the code of a recording, or of those of a batch."""
        states = self.reader(log_power(x) if self.log_input else power_of(x), lengths(observed, x))
        seen = torch.ones_like(x.real[..., :1]) if observed is None else observed.expand(x.shape).any(-1, keepdim=True).to(x.real.dtype)
        average = (states * seen).sum(-2) / seen.sum(-2).clamp_min(1)
        loc, scale = self.head(average if x.dim() == 2 else average.unsqueeze(-2)).chunk(2, -1)
        return dist.Normal(loc, scale.sigmoid() if self.log_input else (0.5 * scale).exp())
