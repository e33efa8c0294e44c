"""Speech whose lips are known: the source that an audio-visual prior is for one recording, and its encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import pyro
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ..distributions import ComplexNormal
from ..lips import Lips
from ..mixture import Frames
from ..stft import STFT
from .lip_reader import follow, prepared

if TYPE_CHECKING:
    from .av_vae import AVVAESpeech


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


class ToldSpeech(PyroModule):
    """:class:`ppse.models.AVVAESpeech` when it is known what the lips tell at every frame: the graph itself, a source. Site: ``z``, L per frame.

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
    """:class:`ppse.models.AVVAESpeech` for one recording, or batch, whose lips are seen: a source. Site: ``z``, one vector of L per frame.

    When inference starts, the embeddings of the images are brought to the frames of the recording. Where the video has not begun or has
    ended, its nearest image is held. A recording is inferred in one window, as nobody says at which second the next one starts.

    Args:
        speech: the networks, for recordings at 16 kHz.
        lips: of every utterance of a batch in turn; those of one utterance are for all.
        offset: as in :meth:`ppse.models.AVVAESpeech.watching`.

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
    return cast("AVVAESpeech", source._modules["speech"])
