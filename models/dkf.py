"""The deep Kalman filter of clean speech: codes that drift from frame to frame, and a decoder that sees one frame alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, cast

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..distributions import ComplexNormal, power_of
from ..memo import Memo
from ..mixture import Frames
from ..stft import POWER_FLOOR
from .dynamical import DynamicalVAE
from .encoders import log_power, moments, perceptron, read_ahead, take_over
from .recurrent import Layers, Recurrence, RecurrentNormal, State, dense, lengths
from .vae import VAESpeech


class DKFSpeech(DynamicalVAE):
    """z_t | z_t-1 ~ N(m(z_t-1), diag v(z_t-1)), z_0 = 0, s_t | z_t ~ CN(0, diag exp d(z_t) + POWER_FLOOR).

    Site: ``z``, one vector of L per frame: a Markov chain with the :class:`GatedTransition` for m and v. Speech frames are independent
    given the codes. ``encoder`` is the matching approximate posterior q(z_t | z_t-1, s_t:T), or s_1:T, for *clean* speech.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        hidden: sizes of the hidden layers of the decoder.
        reader, past, backward, skip: sizes of the :class:`StructuredEncoder`, which way it reads, and whether it sees the present frame itself.
        log_input: as for :class:`ppse.models.encoders.FrameEncoder`.
        relu: whether the dense layers have ReLU activations, instead of tanh.
        bounded: of the :class:`GatedTransition`.

    References:
        Krishnan, Shalit & Sontag (2017), Structured inference networks for nonlinear state space models (the deep Markov model).
    """

    encoder: StructuredEncoder

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 16, hidden: Sequence[int] = (32, 64, 128, 256), *, reader: Layers | None = None,
        past: Sequence[int] = (32,), backward: bool = True, skip: bool = False, log_input: bool = True, relu: bool = False,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        reader = Layers(128, (256,), (32,)) if reader is None else Layers(*reader)  # a file has plain lists
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "hidden": list(hidden), "reader": reader, "past": list(past), "backward": backward,
            "skip": skip, "log_input": log_input, "relu": relu, "bounded": bounded,
        }
        self.n_freqs, self.n_latent = n_freqs, n_latent
        activation = nn.ReLU if relu else nn.Tanh
        self.transition = GatedTransition(n_latent, bounded)
        self.decoder = perceptron([n_latent, *hidden, n_freqs], activation)
        self.encoder = StructuredEncoder(
            n_freqs, n_latent, reader, past, backward=backward, skip=skip, log_input=log_input, activation=activation,
        )
        self._decoded = Memo()

    @classmethod
    def around(cls, vae: VAESpeech, hidden: int = 128) -> Self:
        """An untrained transition of the codes of a trained VAE of frames: they are N(0, I) yet, and its encoder is theirs. Random in all else.

        Args:
            vae: with encoders of ours, which read log-powers; it is not changed.
            hidden: size of the LSTM of the encoder.

        Raises:
            ValueError: when the encoder of the VAE is of another kind.
        """
        sizes, relu = cls._sizes_of(vae)
        speech = cls(vae.n_freqs, vae.n_latent, sizes, reader=Layers(hidden, (2 * hidden,), sizes[::-1]), skip=True, relu=relu)
        speech.transition.forget()
        speech.decoder.load_state_dict(vae.decoder.state_dict())
        take_over(speech.encoder.head, vae.encoder.network, 0)
        return speech

    @classmethod
    def pretrained(cls, name: str = "dkf") -> Self:
        """As :meth:`DynamicalVAE.pretrained`; shipped is "dkf"."""
        return super().pretrained(name)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`)."""
        transition, decoder = self._modules["transition"], self._modules["decoder"]  # not self.decoder: see RVAESpeech
        assert transition is not None and decoder is not None
        nothing = next(decoder.parameters()).new_zeros(frames.size, 0)
        with frames:
            z = pyro.sample("z", RecurrentNormal(transition, self.n_latent, nothing).to_event(1))
        return ComplexNormal(0j, self._decoded(lambda z: decoder(z).exp() + POWER_FLOOR, z, [decoder]))


class GatedTransition(nn.Module):
    """Mean and standard deviation of the next code from the last one, each a vector of L; a network of :class:`RecurrentNormal`.

    The mean is linear where the gate is shut and a network where it is open; the variance is a softplus of that network.

    Args:
        n_latent: L.
        bounded: whether that network gives values from 0 to 1 only.

    References:
        Krishnan, Shalit & Sontag (2017), Structured inference networks for nonlinear state space models; Golmakani, Sadeghi &
        Serizel (2023), Audio-visual speech enhancement with a deep Kalman filter generative model (bounded).
    """

    def __init__(self, n_latent: int, bounded: bool = False) -> None:
        super().__init__()
        self.bounded = bounded
        self.gate = perceptron([n_latent] * 3, nn.ReLU)
        self.proposed = perceptron([n_latent] * 3, nn.ReLU)
        self.linear = nn.Linear(n_latent, n_latent)
        self.variance = nn.Linear(n_latent, n_latent)

    @torch.no_grad()
    def forget(self) -> None:
        """Become N(0, I), whatever the last code; not for one that is bounded."""
        for layer in (self.linear, cast(nn.Linear, self.proposed[-1]), self.variance):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.variance.bias, math.log(math.e - 1))  # of which softplus is 1

    def forward(self, past: Tensor, _: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        proposed = self.proposed(past).sigmoid() if self.bounded else self.proposed(past)
        loc = torch.lerp(self.linear(past), proposed, self.gate(past).sigmoid())
        return loc, softplus(self.variance(proposed.relu())).sqrt(), state


class StructuredEncoder(nn.Module):
    """The law of z_t given z_t-1 and the clean speech of this frame and those to come, or of all frames.

    The state of the LSTM that reads the recording, and a dense layer of z_t-1 of that size, are averaged; dense layers make mean and
    deviation of the average. Maps an STFT (…, T, F) of unit level to a :class:`RecurrentNormal` of shape (…, T, L); padding is not read.

    Args:
        n_freqs, n_latent: F and L.
        reader: sizes of the network that reads the recording; its ``after`` are the dense layers behind the average.
        past: sizes of the dense layers on z_t-1 before the one that is averaged.
        backward: whether the reader goes from the end to the present frame only, instead of both ways.
        skip: whether the dense layers see the present frame itself, too.
        log_input: as for :class:`ppse.models.encoders.FrameEncoder`.
        activation: class of the activation.

    References:
        Krishnan, Shalit & Sontag (2017): the structured networks called DKS (backward) and ST-LR (both ways).
    """

    def __init__(
        self, n_freqs: int, n_latent: int, reader: Layers, past: Sequence[int], *, backward: bool = True, skip: bool = False,
        log_input: bool = True, activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.n_latent, self.skip, self.log_input = n_latent, skip, log_input
        self.reader = Recurrence(n_freqs, reader, forward=not backward, backward=True, activation=activation)
        self.n_states = self.reader.n_out // reader.size + 1  # that are averaged
        self.past = dense([n_latent, *past, reader.size], activation)
        self.head = perceptron([skip * n_freqs + reader.size, *reader.after, 2 * n_latent], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> RecurrentNormal:
        """The law of the codes of a recording, or of a batch."""
        features = log_power(x) if self.log_input else power_of(x)
        states = self.reader(features, lengths(observed, x)).unflatten(-1, (self.n_states - 1, -1))
        average = states.sum(-2) / self.n_states
        return RecurrentNormal(self._next, self.n_latent, read_ahead(self.head, torch.cat([features, average], -1) if self.skip else average))

    def _next(self, past: Tensor, read: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        return *moments(self.head, read, self.past(past) / self.n_states, self.log_input), state
