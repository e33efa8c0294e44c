"""Corpora of clean speech: who speaks, who is held out, and frames of it for training."""

from __future__ import annotations

import os
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio
from .stft import STFT, level


def speaker(path: Path) -> str:
    """Who speaks, by the habit of speech corpora: the file name up to the first '-' or '_', or without one, the folder.

    >>> speaker(Path("103/1240/103-1240-0000.flac")), speaker(Path("p225/p225_001.wav")), speaker(Path("DR1/FCJF0/SA1.WAV"))
    ('103', 'p225', 'FCJF0')
    """
    name, *rest = re.split(r"[-_]", path.stem.strip("-_"), maxsplit=1)
    return name if rest else path.absolute().parent.name


def split(files: Sequence[Path], fraction: float = 0.05, seed: int = 0) -> tuple[list[Path], list[Path]]:
    """Training and validation files with no speaker in common.

    Speakers are taken in random order (from ``seed``) into validation as long as it stays within ``fraction``
    of all bytes, so that a speaker with hours of speech stays in training.

    Raises:
        ValueError: when there are fewer than two speakers.
    """
    by_speaker: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        by_speaker[speaker(file)].append(file)
    if len(by_speaker) < 2:
        raise ValueError(f"{len(files)} files of one speaker ('{next(iter(by_speaker), '')}'): validation by speaker needs at least two. "
                         "The speaker is the file name up to the first '-' or '_', or without one, the name of the folder")
    sizes = {name: sum(f.stat().st_size for f in group) for name, group in by_speaker.items()}
    budget = fraction * sum(sizes.values())
    order = np.random.default_rng(seed).permutation(sorted(by_speaker))
    held: list[str] = []
    for name in order:
        if sum(sizes[h] for h in held) + sizes[name] <= budget:
            held.append(name)
    held = held or [min(sizes, key=lambda name: (sizes[name], name))]
    validation = sorted(f for name in held for f in by_speaker[name])
    return sorted(set(files) - set(validation)), validation


def split_recordings(
    files: Sequence[Path], fraction: float = 0.05, seed: int = 0, unusable: Collection[Path] = (),
) -> tuple[list[Path], list[Path]]:
    """As :func:`split`, but what its header says to have no sound is left to training, where it is told: it would always fit into validation.

    So is what is ``unusable``.

    Raises:
        ValueError: as :func:`split`.
    """
    candidates = [file for file in files if file not in unusable]
    _, validation = split([file for file in candidates if has_sound(file)] or candidates, fraction, seed)
    return sorted(set(files) - set(validation)), validation


def has_sound(file: Path) -> bool:
    """Whether the header of a file says that it has samples."""
    try:
        return audio.extent(file)[0] > 0
    except audio.AudioError:
        return False


class Waves:
    """Recordings in memory, on one axis after the other, and stretches of frames from random places in them.

    Args:
        waves: of shape (N,) each, N at least a window of the STFT.
        stft: the STFT of the model.
    """

    def __init__(self, waves: Sequence[Tensor], stft: STFT) -> None:
        sizes = [wave.numel() for wave in waves]
        self.stft, self._all = stft, torch.cat(list(waves))
        self.waves = list(self._all.split(sizes))  # views: no second copy
        self._lengths = torch.tensor(sizes)
        self._starts = self._lengths.cumsum(0) - self._lengths

    @property
    def fingerprint(self) -> int:
        """A number that other recordings would change: a checksum of their lengths, and where each is loudest, the same on every machine."""
        return zlib.crc32(torch.cat([self._lengths, loudest(self.waves)]).numpy().tobytes())

    @property
    def hours(self) -> float:
        """How much there is."""
        return self._all.numel() / self.stft.sample_rate / 3600

    @property
    def n_frames(self) -> int:
        """How many frames there are, without overlap into the next file."""
        return int(self._frames.sum())

    @property
    def longest(self) -> int:
        """How many frames the longest recording has."""
        return int(self._frames.max())

    @property
    def _frames(self) -> Tensor:
        return (self._lengths - self.stft.n_fft) // self.stft.hop + 1

    def segments(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        """``count`` stretches of consecutive frames from random places, STFT (count, frames, F) complex.

        A file is chosen by its length; one that is too short is repeated.
        """
        return self.sequences(count, frames, generator)[0]

    def sequences(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As :meth:`segments`, and which frames are of one piece, boolean (count, frames, 1): those before a file that is too short repeats."""
        index, whole = self.places(count, frames, generator)
        return self.stft_of(self._all[index]), whole

    def places(self, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Where the stretches of :meth:`sequences` are: samples on the axis of all recordings (count, N), and which frames are of one piece."""
        stft = self.stft
        samples = (frames - 1) * stft.hop + stft.n_fft
        middle = torch.randint(self._all.numel(), (count,), generator=generator)
        file = torch.searchsorted(self._starts, middle, right=True) - 1
        start, length = self._starts[file], self._lengths[file]
        spare = (length - samples).clamp_min(0)
        first = ((middle - start).to(torch.float64) / length * (spare + 1)).long().clamp_max(spare)
        index = start.unsqueeze(1) + (first.unsqueeze(1) + torch.arange(samples)) % length.unsqueeze(1)
        whole = torch.arange(frames) < ((length - stft.n_fft) // stft.hop + 1).unsqueeze(1)
        return index, whole.unsqueeze(-1)

    def stft_of(self, waves: Tensor) -> Tensor:
        """STFT (…, T, F) of stretches (…, N), of those frames that lie in them whole."""
        return torch.fft.rfft(waves.unfold(-1, self.stft.n_fft, self.stft.hop) * self.stft.window(waves), norm="ortho")


class Speech(Waves):
    """Clean speech in memory, every file at unit level (230 MB an hour): batches of frames and of segments.

    Args:
        files: audio files of any rate and number of channels.
        stft: the STFT of the model.
        report: called with (files read, files in all) after every file.

    Attributes:
        left_out: why a file was not used, by path: unreadable, not finite, silent, or shorter than a frame.

    Raises:
        AudioError: when no file is left; the message gives the reason for the first.
    """

    def __init__(self, files: Iterable[str | os.PathLike[str]], stft: STFT, report: Callable[[int, int], None] | None = None) -> None:
        paths = list(files)
        waves: list[Tensor] = []
        self.left_out: dict[Path, str] = {}
        for i, path in enumerate(paths):
            try:
                waves.append(at_unit_level(audio.read_mono(path, stft.sample_rate), stft, str(path)))
            except audio.AudioError as error:
                self.left_out[Path(path)] = str(error)
            if report:
                report(i + 1, len(paths))
        if not waves:
            first = next(iter(self.left_out.values()), "no file was given")
            raise audio.AudioError(f"none of the {len(paths)} files can be used; {first}")
        super().__init__(waves, stft)


def split_speech(
    files: Sequence[Path], stft: STFT, fraction: float = 0.05, seed: int = 0, report: Callable[[int, int], None] | None = None,
) -> tuple[Speech, Speech]:
    """Speech for training and, of other speakers, for validation (:func:`split_recordings`). Speakers of whom nothing can be used are not held out.

    Args:
        files, stft, report: as for :class:`Speech`.

    Raises:
        AudioError: when no file is left to train on.
        ValueError: as :func:`split`, of the speakers of whom something can be used.
    """
    def read(part: list[Path], before: int = 0) -> Speech:
        return Speech(part, stft, lambda i, _: report(before + i, len(files)) if report else None)

    unusable, reason = set[Path](), ""
    while True:
        try:
            training, held = split_recordings(files, fraction, seed, unusable)
        except ValueError as error:
            raise ValueError(f"{reason}; and {error}" if reason else str(error)) from None
        try:
            validation = read(held)
        except audio.AudioError as error:
            unusable.update(held)
            reason = str(error)
        else:
            return read(training, len(held)), validation


def loudest(waves: Sequence[Tensor]) -> Tensor:
    """Number of the sample of largest magnitude of each waveform (N,)."""
    return torch.stack([wave.abs().argmax() for wave in waves])


def usable(samples: NDArray[np.float32], stft: STFT, where: str) -> Tensor:
    """A recording (N,) at the rate of the STFT, as it is.

    Raises:
        AudioError: when it is not finite, silent, or shorter than a frame; the message begins with ``where``.
    """
    audio.check(samples[None], where)
    if samples.size < stft.n_fft:
        raise audio.AudioError(f"{where}: {samples.size} samples at {stft.sample_rate} Hz are less than a frame ({stft.n_fft})")
    if not samples.any():
        raise audio.AudioError(f"{where}: is silent")
    return torch.from_numpy(samples)


def at_unit_level(samples: NDArray[np.float32], stft: STFT, where: str) -> Tensor:
    """A recording (N,) at the rate of the STFT, scaled to unit level (:func:`ppse.stft.level`).

    Raises:
        AudioError: as :func:`usable`.
    """
    wave = usable(samples, stft, where)
    return wave / level(stft.analysis(wave)).sqrt().squeeze()
