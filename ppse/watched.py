"""A speaker who is seen: a prior that hears, and one that watches the lips; which of them speaks in a frame is inferred."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyro
import torch
from pyro.distributions import Bernoulli
from torch import Tensor

from . import media
from .given import Given, Stretch, wrapped
from .lips import Lips
from .method import Method
from .mixture import Mixture, Source
from .models import AVVAESpeech, SwitchingSpeech
from .models.lip_law import Looks
from .models.watched_speech import WatchedSpeech, networks
from .mouth import find_lips
from .switching_vem import switching_vem
from .video import VideoError

BLIND = 1e4
"""Nats by which it is less likely that a frame follows lips that cannot be relied on: more than any sound can make up for."""

MOSTLY_RIGHT = ((0.95, 0.05), (0.01, 0.99))
"""Transition between what is heard alone and lips: these are wrong for 20 frames, 1/3 s, and right for five times as long, on average."""

MARGIN = 1.0
"""Seconds of lips before and after a stretch of sound, which the networks may look at."""


class SeenSpeech(SwitchingSpeech):
    """Speech that follows what is heard alone (expert 0), or the lips as well (expert 1), by a Markov chain.

    The video is observed as well as the sound. Frames without reliable lips (:attr:`Lips.good`) are so as what they are, site ``blind``,
    which excludes expert 1. Of all others it is what the lips look like, site ``looks``: as right ones do where expert 1 is chosen, or as
    anything (:class:`ppse.models.lip_law.LipLaw`).

    Args:
        heard: a prior of sound.
        seen: a prior that watches the lips of this recording.
        transition, initial, learn: of the chain, as in :class:`ppse.models.SwitchingSpeech`.
    """

    def __init__(
        self, heard: Source, seen: WatchedSpeech, transition: Sequence[Sequence[float]] | float = MOSTLY_RIGHT,
        initial: Sequence[float] | None = None, *, learn: bool = False,
    ) -> None:
        super().__init__([heard, seen], transition, initial, learn=learn)

    def show(self, regime: Tensor) -> None:
        """Observes the video, sites ``looks`` and ``blind``."""
        seen = self.experts["expert1"]
        assert isinstance(seen, WatchedSpeech)
        if seen.good is None or seen.looks is None:
            return
        good = seen.good.to(regime.device)
        pyro.sample("looks", Looks(networks(seen).law, regime == 1, seen.share).mask(good), obs=seen.looks)
        if not good.all():
            # In log-odds, as a probability is not taken to be less than what rounding leaves of 1, however small it is given.
            odds = torch.tensor([BLIND, -BLIND], device=regime.device)[regime]
            pyro.sample("blind", Bernoulli(logits=odds).mask(~good), obs=torch.ones_like(odds))


class StretchOfLips(WatchedSpeech):
    """Lips of one stretch of a recording, at its times."""

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """As :meth:`start`: its lips are those of the stretch."""
        self.start(x, observed)


def watched(lips: Lips, seeing: AVVAESpeech, offset: float = 0.0, source: str = "speech") -> Given:
    """The speaker of a recording is seen: its speech switches between the prior of the model and one that watches the lips.

    Args:
        lips: of the recording (:func:`ppse.mouth.find_lips`).
        seeing: the prior that watches, of the STFT of the model.
        offset: seconds by which the picture is late.
        source: name of the source that speaks.

    Raises:
        ValueError: of the result, when the model has no such source.
    """
    def knowledge(model: Mixture, stretch: Stretch) -> Mixture:
        rate = stretch.stft.sample_rate
        begin, end = stretch.first / rate, stretch.last / rate
        part = lips.between(begin + offset - MARGIN, end + offset + MARGIN)
        # Times count from the start of the margin; it is added to the offset, by which the picture is late.
        seen = StretchOfLips(seeing.to(stretch.x.device), [part], MARGIN)
        return wrapped(model, lambda name, prior: SeenSpeech(prior, seen) if name == source else prior, source)

    return knowledge


def lips_of(recording: Path, seeing: AVVAESpeech, offset: float = 0.0, note: Callable[[str], None] | None = None) -> list[Given]:
    """What the video of a recording shows, itself or the one beside it; nothing, with a note, where there is none or no mouth is found.

    Args:
        seeing, offset: as for :func:`watched`.
        note: called with what the user should know.
    """
    say = note or (lambda _: None)
    pictures = media.pictures_of(recording)
    if pictures is None:
        say(f"{recording}: no video, so only the prior of sound is used")
        return []
    try:
        lips = find_lips(pictures, note=lambda text: say(f"{pictures}: {text}"))
    except VideoError as error:
        say(f"{error}; only the prior of sound is used")
        return []
    if not seeing.law.power:
        say(f"{recording}: this prior has not learnt what right lips look like ('ppse train av-vae' does), so all that are sharp are followed")
    bad = 1 - lips.good.float().mean().item()
    if bad > 0.5:
        say(f"{pictures}: {bad:.0%} of the frames show no mouth to rely on; there the prior of sound is used")
    return [watched(lips, seeing, offset)]


def watching(method: Method) -> Method:
    """The method for sound alone, in whose place variational EM runs where a speaker is seen.

    Whether to follow the lips is told by the video alone: what the sound says of them is a few nats, less than the bounds of two experts
    miss by (docs/audiovisual.md).
    """
    return replace(method, tied=switching_vem(hearing=0.0))
