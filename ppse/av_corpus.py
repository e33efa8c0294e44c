"""Corpora of clean speech with video of the mouth: stretches of sound, and the images that go with each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import audio, media, video
from .corpus import Waves, at_unit_level, speaker, split
from .lips import Alignment, Lips
from .models.lip_reader import prepared
from .mouth import find_lips
from .stft import STFT


class Clip(NamedTuple):
    """A video of a face, or of ready-made crops of a mouth, and the file with its sound: the same, or one beside it."""

    video: Path
    sound: Path

    def read(self, stft: STFT) -> tuple[Tensor, Lips]:
        """Sound at unit level, (N,), and lips.

        Raises:
            AudioError: when either cannot be used; the message says why.
        """
        samples, rate = media.read(self.sound)
        wave = at_unit_level(audio.resample(samples.mean(0), rate, stft.sample_rate), stft, str(self.sound))
        return wave, find_lips(self.video)


def find_clips(inputs: Iterable[str]) -> list[Clip]:
    """Videos among files, folders (searched recursively) and glob patterns, each with an audio file of the same stem as its sound, or its own.

    Raises:
        AudioError: when an input does not exist, or a folder or pattern has no video.
    """
    return [Clip(path, media.sound_of(path)) for path in audio.find(inputs, list(video.CONTAINERS), "video")]


def split_clips(clips: Sequence[Clip], fraction: float = 0.05, seed: int = 0) -> tuple[list[Clip], list[Clip]]:
    """Clips for training and for validation: of different speakers where there are several (:func:`ppse.corpus.split`), else other clips.

    Raises:
        ValueError: for fewer than two clips.
    """
    if len(clips) < 2:
        raise ValueError(f"{len(clips)} clip(s); expected two or more, of which some are held out for validation")
    if len({speaker(clip.video) for clip in clips}) > 1:
        held = set(split([clip.video for clip in clips], fraction, seed)[1])
    else:
        order = np.random.default_rng(seed).permutation(len(clips))
        held = {clips[i].video for i in order[: max(1, int(fraction * len(clips)))]}
    return [clip for clip in clips if clip.video not in held], [clip for clip in clips if clip.video in held]


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

    Attributes:
        images: of every one, as :func:`ppse.models.lip_reader.prepared` makes them, (V, 44, 44) in half precision.

    Raises:
        ValueError: when there are more or fewer lips than waves.
    """

    def __init__(self, waves: Sequence[Tensor], lips: Sequence[Lips], stft: STFT) -> None:
        super().__init__(waves, stft)
        if len(lips) != len(self.waves):
            raise ValueError(f"WatchedWaves: {len(self.waves)} recordings and lips of {len(lips)}; expected the same number")
        self.images = [prepared(each.frames, each.good).to(torch.float16) for each in lips]
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
            images.append(self.images[number][low : high + 1])
            where.append(Alignment(place - low, good))
        longest = max(len(each) for each in images)
        padded = [torch.cat([each, each[-1:].expand(longest - len(each), -1, -1)]) for each in images]
        both = Alignment(torch.stack([a.place for a in where]), torch.stack([a.good for a in where]))
        return Stretches(self.stft_of(self._all[index]), torch.stack(padded).float(), both)


def read_clips(
    clips: Sequence[Clip], stft: STFT, frames: int = 1, report: Callable[[int, int], None] | None = None,
) -> tuple[WatchedWaves, dict[Path, str]]:
    """Clips in memory, and why others were left out, by path: unreadable, silent, no mouth in it, or shorter than so many frames of sound.

    Args:
        report: called with (clips read, clips in all) after every one.

    Raises:
        AudioError: when no clip is left; the message gives the reason for the first.
    """
    waves, lips, left_out = [], [], dict[Path, str]()
    for i, clip in enumerate(clips):
        try:
            wave, seen = clip.read(stft)
            if wave.numel() < (frames - 1) * stft.hop + stft.n_fft:
                raise audio.AudioError(f"{clip.sound}: {wave.numel() / stft.sample_rate:.2f} s are shorter than a stretch of {frames} frames")
            waves.append(wave)
            lips.append(seen)
        except audio.AudioError as error:
            left_out[clip.video] = str(error)
        if report:
            report(i + 1, len(clips))
    if not waves:
        raise audio.AudioError(f"none of the {len(clips)} clips can be used; {next(iter(left_out.values()), 'no clip was given')}")
    return WatchedWaves(waves, lips, stft), left_out
