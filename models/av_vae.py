"""Variational autoencoders of speech that watch the lips: the video says what the latents may be, and how they sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

from pyro.distributions import Normal
from torch import Tensor, nn

from ..distributions import ComplexNormal
from ..lips import Lips
from ..mixture import Frames
from ..stft import POWER_FLOOR
from ..weights import load
from .encoders import FrameEncoder, log_power, perceptron
from .lip_law import LipLaw
from .lip_reader import LipReader
from .vae import VAESpeech
from .watched_speech import Told, WatchedSpeech


class AVVAESpeech(nn.Module):
    """z_t | v_t ~ N(m(v_t), diag S(v_t)), s_t | z_t, v_t ~ CN(0, diag exp d(z_t, v_t) + POWER_FLOOR); v_t is what the lips show around frame t.

    The lips are those of one recording, so this is no source yet: :meth:`watching` makes one, ``Mixture(speech=speech.watching(lips), …)``.
    Frames are independent given the latents, as for :class:`VAESpeech`, whose networks these are, but for what the lips add.

    Args:
        n_freqs: F.
        n_latent: L, dimension of z.
        hidden: sizes of the hidden layers of the decoder; the encoder has them in reverse.
        n_seen: size of the embedding v_t.
        reach: how many frames of sound before and behind the lips are read (:class:`ppse.models.lip_reader.LipReader`).
        heard_lips: whether encoder and decoder are told of the lips, too. Without, they tell the prior of z alone (V-VAE), and encoder and
            decoder can be those of a :class:`VAESpeech`.

    References:
        Sadeghi, Leglaive, Alameda-Pineda, Girin & Horaud (2020), Audio-visual speech enhancement using conditional variational
        auto-encoders (the model, and the lips added before the first activation). Their lip network is dense; this one is convolutional.
    """

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 32, hidden: Sequence[int] = (256,), n_seen: int = 64, reach: int = 6, *, heard_lips: bool = True,
    ) -> None:
        super().__init__()
        self.settings = {
            "n_freqs": n_freqs, "n_latent": n_latent, "hidden": list(hidden), "n_seen": n_seen, "reach": reach, "heard_lips": heard_lips,
        }
        self.n_freqs, self.n_latent = n_freqs, n_latent
        self.lips, self.law = LipReader(n_seen, reach), LipLaw()
        self.prior = perceptron([n_seen, 2 * n_seen, 2 * n_latent])
        self.encoder = FrameEncoder(n_freqs, n_latent, tuple(reversed(hidden)))
        self.decoder = perceptron([n_latent, *hidden, n_freqs])
        self.to_encoder = nn.Linear(n_seen, hidden[-1], bias=False) if heard_lips else None
        self.to_decoder = nn.Linear(n_seen, hidden[0], bias=False) if heard_lips else None

    @classmethod
    def around(cls, vae: VAESpeech, n_seen: int = 64, reach: int = 6, *, heard_lips: bool = True) -> Self:
        """An untrained lip network around a trained VAE, to whose law it adds nothing yet. Random in the weights of the lip network.

        Args:
            vae: with an encoder of ours, which reads log-powers, and tanh activations; it is not changed.
            n_seen, reach, heard_lips: as above.

        Raises:
            ValueError: when the VAE is of another kind.
        """
        if not vae.settings["log_input"] or vae.settings["relu"]:
            raise ValueError("AVVAESpeech.around: the encoder of this VAE reads powers, or has ReLU activations; give one of 'ppse train vae'")
        speech = cls(vae.n_freqs, vae.n_latent, cast(list[int], vae.settings["hidden"]), n_seen, reach, heard_lips=heard_lips)
        speech.encoder.load_state_dict(vae.encoder.state_dict())
        speech.decoder.load_state_dict(vae.decoder.state_dict())
        for layer in (speech.prior[-1], speech.to_encoder, speech.to_decoder):
            for parameter in layer.parameters() if layer is not None else ():
                nn.init.zeros_(parameter)
        return speech

    @classmethod
    def pretrained(cls, name: str = "av_vae") -> Self:
        """The prior shipped with the package under ``name``, or the one in the file of that path; its networks are frozen.

        Raises:
            WeightsError: when there is no such file, or it does not hold this class.
        """
        return load(cls, name)

    def watching(self, lips: Lips | Sequence[Lips], offset: float = 0.0) -> WatchedSpeech:
        """The source for one recording whose speaker is seen, or for a batch of them.

        Args:
            lips: of the recording, or one for each of the batch.
            offset: seconds by which the picture is late (:meth:`Lips.align`).
        """
        return WatchedSpeech(self, [lips] if isinstance(lips, Lips) else list(lips), offset)

    def tell(self, seen: Tensor) -> Told:
        """What lips tell, given embeddings at the frames of sound, (…, T, E)."""
        read = self.lips.read(seen)
        loc, scale = self.prior(read).chunk(2, -1)
        encoding, decoding = (to(read) if to is not None else read.new_zeros(1) for to in (self.to_encoder, self.to_decoder))
        return Told(loc, 2 * scale.sigmoid(), encoding, decoding)

    def encode(self, s: Tensor, told: Told) -> Normal:
        """The law of z given clean speech (…, T, F) and the lips; never wider than about the prior, as that of :class:`FrameEncoder`."""
        loc, scale = _through(self.encoder.network, log_power(s), told.encoding).chunk(2, -1)
        return Normal(loc, scale.sigmoid())

    def decode(self, z: Tensor, told: Told) -> Tensor:
        """Variances of speech, (…, T, F)."""
        return _through(self.decoder, z, told.decoding).exp() + POWER_FLOOR

    def forward(self, frames: Frames) -> ComplexNormal:
        """Raises ValueError: without lips this is no source."""
        raise ValueError("AVVAESpeech: it has no lips to watch; give Mixture speech.watching(lips), or without video a prior of sound (VAESpeech)")


def _through(network: nn.Sequential, x: Tensor, added: Tensor) -> Tensor:
    """A perceptron with something added before its first activation."""
    out: Tensor = network[1:](network[0](x) + added)
    return out
