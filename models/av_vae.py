"""Variational autoencoders of speech that watch the lips: the video says what the latents may be, and how they sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self, cast

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..distributions import ComplexNormal
from ..lips import Lips
from ..mixture import Frames
from ..stft import POWER_FLOOR, STFT
from ..weights import load
from .encoders import FrameEncoder, log_power, perceptron
from .lip_law import LipLaw
from .lip_reader import LipReader, follow, prepared
from .vae import VAESpeech


class Told(NamedTuple):
    """What the lips tell the networks at every frame of sound.

    Attributes:
        loc, scale: of the prior of z_t, (…, T, L).
        encoding, decoding: what they add before the first activation of encoder and decoder, (…, T, H).
    """

    loc: Tensor
    scale: Tensor
    encoding: Tensor
    decoding: Tensor


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


class ToldSpeech(PyroModule):
    """:class:`AVVAESpeech` when it is known what the lips tell at every frame: the graph itself, a source. Site: ``z``, L per frame.

    Args:
        speech: the networks.
        told: what the lips tell, (…, T, …).
    """

    noisy_encoder = None
    """None: :func:`ppse.guides.starting_guide` lends it the ears of the shipped VAE."""

    def __init__(self, speech: AVVAESpeech, told: Told | None = None) -> None:
        super().__init__()
        self.speech = speech
        self.n_freqs, self.n_latent = speech.n_freqs, speech.n_latent
        self.told = told

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`).

        Raises:
            RuntimeError: before a recording was started.
            ValueError: when the lips were brought to another number of frames.
        """
        told = self._known()
        if told.loc.shape[-2] != frames.size:
            raise ValueError(
                f"WatchedSpeech: lips are known at {told.loc.shape[-2]} frames, the recording has {frames.size}; call model.start(x) with this one"
            )
        with frames:
            z = pyro.sample("z", Normal(told.loc, told.scale).to_event(1))
        return ComplexNormal(0j, networks(self).decode(z, told))

    @property
    def encoder(self) -> Reading:
        """q(z | s, v) for *clean* speech of this recording, as :class:`ppse.models.encoders.FrameEncoder`."""
        return Reading(networks(self), self._known())

    @property
    def foresight(self) -> Foresight:
        """q(z | v) before anything is heard: the law that the lips tell, as an encoder."""
        return Foresight(self._known())

    def _known(self) -> Told:
        if self.told is None:
            raise RuntimeError("WatchedSpeech: no recording yet; call model.start(x) (enhance does) before running the model")
        return self.told


class WatchedSpeech(ToldSpeech):
    """:class:`AVVAESpeech` for one recording, or batch, whose lips are seen: a source. Site: ``z``, one vector of L per frame.

    When inference starts, the embeddings of the images are brought to the frames of the recording. Where the video has not begun or has
    ended, its nearest image is held. A recording is inferred in one window, as nobody says at which second the next one starts.

    Args:
        speech: the networks, for recordings at 16 kHz.
        lips: of every utterance of a batch in turn; those of one utterance are for all.
        offset: as in :meth:`AVVAESpeech.watching`.

    Attributes:
        good: boolean (T,), or (B, 1, T), once started: whether the lips at each frame can be relied on (:meth:`Lips.align`). It changes
            nothing here.
        looks: what the lips look like at each frame, as :class:`ppse.models.lip_law.LipLaw` has it, (T, D) or (B, 1, T, D), once started.
        share: images a frame of sound has, at most 1.
    """

    def __init__(self, speech: AVVAESpeech, lips: Sequence[Lips], offset: float = 0.0) -> None:
        super().__init__(speech)
        if not lips:
            raise ValueError("AVVAESpeech.watching: no lips; give those of the recording, or use a prior of sound (VAESpeech)")
        self.lips, self.offset = tuple(lips), offset
        self.good: Tensor | None = None
        self.looks: Tensor | None = None
        self.share = 1.0
        weight = next(speech.parameters())
        with torch.no_grad():
            images = [prepared(each.frames, each.good).to(weight) for each in self.lips]
            self.seen = tuple(speech.lips.see(each) for each in images)
            self._looks = tuple(speech.law.looks(each, lips.good.to(weight.device)) for each, lips in zip(images, self.lips, strict=True))

    @torch.no_grad()
    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Bring what the lips show to the frames of the recording, or of every one of the batch.

        Raises:
            ValueError: when the batch has another number of recordings than there are lips.
        """
        count, speech = 1 if x.dim() == 2 else x.shape[0], networks(self)
        if count % len(self.lips):
            raise ValueError(f"WatchedSpeech: lips of {len(self.lips)} recordings for a batch of {count}; give one for each, in the same order")
        weight, stft = next(speech.parameters()), STFT.of_freqs(self.n_freqs)
        moments = torch.as_tensor(stft.centres(x.shape[-2]))
        brought, good, looks = [], [], []
        for seen, look, lips in zip(self.seen, self._looks, self.lips, strict=True):
            where = lips.align(moments, self.offset)
            brought.append(follow(seen.to(weight), where.place.to(weight.device)))
            looks.append(look.to(weight)[where.place.round().long().to(weight.device)])
            good.append(where.good)
        if len(self.lips) == 1:
            seen, self.good, self.looks = brought[0], good[0], looks[0]
        else:  # several starts of a recording stand side by side
            seen, self.good, self.looks = (
                torch.stack(parts).unsqueeze(1).repeat_interleave(count // len(self.lips), 0) for parts in (brought, good, looks)
            )
        self.share = min(1.0, stft.hop / stft.sample_rate / max(lips.period for lips in self.lips))
        self.told = speech.tell(seen)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Raises ValueError: where in the video the next stretch of the recording lies is not known."""
        raise ValueError(
            "WatchedSpeech: a recording with video is inferred in one window; make it as long as the recording (enhance(…, window=seconds)), "
            "or cut sound and video"
        )


class Reading(nn.Module):
    """The encoder of one recording whose lips are known, called as :class:`ppse.models.encoders.FrameEncoder`."""

    def __init__(self, speech: AVVAESpeech, told: Told) -> None:
        super().__init__()
        self.speech, self.told = speech, told

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        return self.speech.encode(x, self.told)


class Foresight(nn.Module):
    """The law of the latents that the lips tell, called as an encoder, which hears nothing."""

    def __init__(self, told: Told) -> None:
        super().__init__()
        self.law = Normal(told.loc, told.scale)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        return self.law


def networks(source: ToldSpeech) -> AVVAESpeech:
    """Not source.speech: Pyro would make a parameter site of every weight, on every evaluation of the graph."""
    speech = source._modules["speech"]
    assert isinstance(speech, AVVAESpeech)
    return speech


def _through(network: nn.Sequential, x: Tensor, added: Tensor) -> Tensor:
    """A perceptron with something added before its first activation."""
    out: Tensor = network[1:](network[0](x) + added)
    return out
