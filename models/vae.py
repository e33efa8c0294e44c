"""The feed-forward variational autoencoder of clean speech: the prior that most of the field uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import nn

from ..distributions import ComplexNormal
from ..memo import Memo
from ..mixture import Frames
from ..stft import POWER_FLOOR
from ..weights import load
from .band_listener import BandListener
from .encoders import FrameEncoder, Listener, NoisyEncoder, perceptron


class VAESpeech(PyroModule):
    """z_t ~ N(0, I_L), s_t | z_t ~ CN(0, diag exp d(z_t) + POWER_FLOOR); frames are independent given the latents.

    Site: ``z``, one vector of L per frame. The decoder d is a perceptron; ``encoder`` is the matching
    approximate posterior for *clean* frames, and ``noisy_encoder`` (optional) one for a noisy
    recording, with all of it as context (:class:`NoisyEncoder`).

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        hidden: sizes of the hidden layers of the decoder; the encoder has them in reverse.
        context: size of the recurrent layers of the noisy encoder; 0 for none.
        log_input: whether the encoder is ours, or as published (:class:`ppse.models.encoders.FrameEncoder`).
        relu: whether the hidden layers have ReLU activations, instead of tanh.
        bands: how many the noisy encoder listens in (:class:`ppse.models.band_listener.BandListener`); 0 to listen in bins.
        couplings: how many bend the law of the noisy encoder, which is normal without (:class:`ppse.models.coupled_normal.CoupledNormal`).

    References:
        Leglaive, Girin & Horaud (2018); Sadeghi et al. (2020), Audio-visual speech enhancement using
        conditional variational auto-encoders (architecture and training of the encoder and decoder).
    """

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 32, hidden: Sequence[int] = (512,), context: int = 0, *, log_input: bool = True, relu: bool = False,
        couplings: int = 0, bands: int = 0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "n_freqs": n_freqs, "n_latent": n_latent, "hidden": list(hidden), "context": context, "log_input": log_input, "relu": relu,
            "couplings": couplings, "bands": bands,
        }
        self.n_freqs, self.n_latent = n_freqs, n_latent
        activation = nn.ReLU if relu else nn.Tanh
        self.decoder = perceptron([n_latent, *hidden, n_freqs], activation)
        self.encoder = FrameEncoder(n_freqs, n_latent, tuple(reversed(hidden)), log_input=log_input, activation=activation)
        self.listener: Listener | BandListener | None = None
        if context:
            self.listener = BandListener(n_freqs, n_latent, context, bands, couplings) if bands else Listener(n_freqs, n_latent, context, couplings)
        self._decoded = Memo()

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
        return None if self.listener is None else NoisyEncoder(self.listener, self.encoder)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`)."""
        # Not self.decoder: Pyro would make a parameter site of every weight, on every evaluation of the graph.
        decoder = self._modules["decoder"]
        assert decoder is not None
        zero = next(decoder.parameters()).new_zeros(self.n_latent)
        with frames:
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
        return ComplexNormal(0j, self._decoded(lambda z: decoder(z).exp() + POWER_FLOOR, z, [decoder]))
