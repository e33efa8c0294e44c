"""What all dynamical variational autoencoders of clean speech share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self, cast

from pyro.nn import PyroModule
from torch import Tensor, nn

from ..weights import load
from .recurrent import Lengths, lengths
from .vae import VAESpeech


class DynamicalVAE(PyroModule):
    """Base of speech priors whose frames depend on one another: an encoder of their site ``z``, and where utterances end.

    A subclass sets the attributes below and defines ``forward``. As its frames are tied, samplers accept whole utterances.

    Attributes:
        settings: constructor arguments, as JSON has them.
        n_freqs, n_latent: F, and L, dimension of z_t.
        encoder: the matching approximate posterior for *clean* speech; see :class:`ppse.models.encoders.FrameEncoder` for its contract.
        lengths: the number of frames of every utterance of the batch that inference has started on; None when none is padded.

    References:
        Girin et al. (2021), Dynamical variational autoencoders: a comprehensive review.
    """

    settings: dict[str, Any]
    n_freqs: int
    n_latent: int
    encoder: nn.Module
    lengths: Lengths | None = None

    @classmethod
    def pretrained(cls, name: str) -> Self:
        """The prior shipped with the package under ``name``, or the one in the file of that path; its networks are frozen.

        Raises:
            WeightsError: when there is no such file, or it does not hold this class.
        """
        return load(cls, name)

    @classmethod
    def _sizes_of(cls, vae: VAESpeech) -> tuple[list[int], bool]:
        """Sizes of the hidden layers of a VAE around which a memory is put, and whether they have ReLU activations."""
        if not vae.encoder.log_input:
            raise ValueError(f"{cls.__name__}.around: the encoder of this VAE reads powers; give one of 'ppse train'")
        return cast(list[int], vae.settings["hidden"]), cast(bool, vae.settings["relu"])

    @property
    def noisy_encoder(self) -> None:
        """None: :func:`ppse.guides.starting_guide` lends it the ears of the shipped VAE."""
        return None

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Where the utterances end, so that the padding of a batch does not reach them on the way back through the frames."""
        self.lengths = lengths(observed, x)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """As :meth:`start`."""
        self.start(x, observed)

    def teach(self, s: Tensor, share: float) -> AbstractContextManager[None]:
        """For priors that listen to the past of speech (:class:`ppse.models.feedback.FeedbackVAE`); changes nothing in the others."""
        return nullcontext()
