"""The recurrent variational autoencoder of clean speech: what a frame sounds like depends on the latents of others too."""

from __future__ import annotations

from typing import Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..distributions import ComplexNormal
from ..memo import Memo
from ..mixture import Frames
from ..stft import POWER_FLOOR
from .dynamical import DynamicalVAE
from .encoders import RecurrentEncoder, perceptron, take_over
from .recurrent import Layers, Recurrence
from .vae import VAESpeech


class RVAESpeech(DynamicalVAE):
    """z_t ~ N(0, I_L), s_t | z ~ CN(0, diag exp d(h_t) + POWER_FLOOR), h an LSTM over z_1:T, or over z_1:t when causal.

    Site: ``z``, one vector of L per frame, independent a priori. ``encoder`` is the matching approximate posterior q(z_t | z_<t, s_1:T),
    or q(z_t | z_<t, s_t:T) when causal, for *clean* speech.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        hidden: size of the LSTMs that are not given below.
        causal: whether h_t depends on no later z.
        decoder: sizes of the network that makes d of z: ``Layers(size=128, before=(32,), after=(128,))`` has a dense layer on either side.
        reader, past: sizes of those of :class:`ppse.models.encoders.RecurrentEncoder`.
        skip: whether d sees z_t beside h_t, and the encoder the present frame beside what its LSTMs say: memory then corrects a VAE of frames.
        backward: whether the encoder reads from the end to the present frame only; as ``causal`` unless given.
        log_input: as for :class:`ppse.models.encoders.FrameEncoder`.
        relu: whether the dense layers have ReLU activations, instead of tanh.

    References:
        Leglaive, Alameda-Pineda, Girin & Horaud (2020), A recurrent variational autoencoder for speech enhancement.
    """

    encoder: RecurrentEncoder

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 16, hidden: int = 128, causal: bool = False, *, decoder: Layers | None = None,
        reader: Layers | None = None, past: Layers | None = None, skip: bool = False, backward: bool | None = None, log_input: bool = True,
        relu: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"decoder": decoder, "reader": reader, "past": past}
        layers = {name: Layers(hidden) if given is None else Layers(*given) for name, given in sizes.items()}  # a file has plain lists
        backward = causal if backward is None else backward
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "hidden": hidden, "causal": causal, **layers, "skip": skip, "backward": backward,
            "log_input": log_input, "relu": relu,
        }
        self.n_freqs, self.n_latent, self.causal, self.skip = n_freqs, n_latent, causal, skip
        activation = nn.ReLU if relu else nn.Tanh
        self.memory = Recurrence(n_latent, layers["decoder"], backward=not causal, activation=activation)
        self.decoder = perceptron([self.memory.n_out + skip * n_latent, *layers["decoder"].after, n_freqs], activation)
        self.encoder = RecurrentEncoder(
            n_freqs, n_latent, layers["reader"], layers["past"], backward=backward, skip=skip, log_input=log_input,
            activation=activation,
        )
        self._decoded = Memo()

    @classmethod
    def around(cls, vae: VAESpeech, hidden: int = 128, causal: bool = False) -> Self:
        """An untrained memory around a trained VAE of frames, to whose law and codes it adds nothing yet. Random in the weights of the LSTMs.

        Args:
            vae: with encoders of ours, which read log-powers; it is not changed.
            hidden: size of the LSTMs.
            causal: as above.

        Raises:
            ValueError: when the encoder of the VAE is of another kind.
        """
        sizes, relu = cls._sizes_of(vae)
        speech = cls(
            vae.n_freqs, vae.n_latent, hidden, causal, decoder=Layers(hidden, (), sizes), reader=Layers(hidden, (2 * hidden,), sizes[::-1]),
            skip=True, relu=relu,
        )
        take_over(speech.decoder, vae.decoder, speech.memory.n_out)
        take_over(speech.encoder.head, vae.encoder.network, speech.encoder.reader.n_out)
        return speech

    @classmethod
    def pretrained(cls, name: str = "rvae") -> Self:
        """As :meth:`DynamicalVAE.pretrained`; shipped are "rvae" and "rvae_causal"."""
        return super().pretrained(name)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`)."""
        # Not self.decoder: Pyro would make a parameter site of every weight, on every evaluation of the graph.
        memory, decoder = self._modules["memory"], self._modules["decoder"]
        assert memory is not None and decoder is not None
        zero = next(decoder.parameters()).new_zeros(self.n_latent)
        with frames:
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))

        def decode(z: Tensor) -> Tensor:
            hidden = memory(z, self.lengths)
            power: Tensor = decoder(torch.cat([hidden, z], -1) if self.skip else hidden).exp()
            return power + POWER_FLOOR

        return ComplexNormal(0j, self._decoded(decode, z, [memory, decoder], self.lengths))
