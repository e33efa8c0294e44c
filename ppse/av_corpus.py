"""Corpora of clean speech with video of the mouth: stretches of sound, and the images that go with each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .corpus import Waves
from .lips import Alignment, Lips
from .models.lip_reader import prepared
from .stft import STFT


class Clip(NamedTuple):
    """A file with crops of a mouth, or a whole face, and the file with its sound, perhaps the same."""

    video: Path
    sound: Path


class Stretches(NamedTuple):
    """A batch of stretches of speech and what the mouth shows meanwhile.

    Attributes:
        s: STFT of clean speech at unit level of the clip, (B, T, F).
        images: as :func:`ppse.models.lip_reader.prepared` makes them, (B, V, 44, 44).
        where: at which of these images every frame of sound lies, ``place`` and ``good`` (B, T).
    """

    s: Tensor
    images: Tensor
    where: Alignment


class WatchedWaves(Waves):
    """Clips in memory, sound at unit level and images at half the size of the crops (350 MB an hour at 25 a second).

    Args:
        waves: (N,) each, as :class:`ppse.corpus.Speech` has them.
        lips: of every one.
        stft: the STFT of the model.

    Raises:
        ValueError: when there are more or fewer lips than waves.
    """

    def __init__(self, waves: Sequence[Tensor], lips: Sequence[Lips], stft: STFT) -> None:
        super().__init__(waves, stft)
        if len(lips) != len(self.waves):
            raise ValueError(f"WatchedWaves: {len(self.waves)} recordings and lips of {len(lips)}; expected the same number")
        self._images = [prepared(each.frames, each.good).to(torch.float16) for each in lips]
        # Without the crops, which would take eight times as much memory as the images: one grey value that looks like all of them.
        self._lips = [replace(each, frames=each.frames.new_zeros(1, 1, 1).expand(each.frames.shape)) for each in lips]

    def watched(self, count: int, frames: int, generator: torch.Generator) -> Stretches:
        """``count`` stretches of so many frames of sound from random places, a clip chosen by its length.

        Raises:
            ValueError: when one is drawn from a clip that is shorter.
        """
        index, whole = self.places(count, frames, generator)
        if not whole.all():
            raise ValueError(f"WatchedWaves: a clip is shorter than {frames} frames; ask for fewer, or leave it out")
        clip = torch.searchsorted(self._starts, index[:, 0].contiguous(), right=True) - 1
        first = index[:, :1] - self._starts[clip].unsqueeze(1)
        moments = (first + torch.arange(frames) * self.stft.hop + self.stft.n_fft / 2) / self.stft.sample_rate
        images, where = [], []
        for number, at in zip(clip.tolist(), moments, strict=True):
            place, good = self._lips[number].align(at)
            low, high = int(place[0]), int(place[-1]) + 1
            images.append(self._images[number][low : high + 1])
            where.append(Alignment(place - low, good))
        longest = max(len(each) for each in images)
        padded = [torch.cat([each, each[-1:].expand(longest - len(each), -1, -1)]) for each in images]
        both = Alignment(torch.stack([a.place for a in where]), torch.stack([a.good for a in where]))
        return Stretches(self.stft_of(self._all[index]), torch.stack(padded).float(), both)
