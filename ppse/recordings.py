"""Noisy recordings for training, with the clean speech in them as far as it is known, and what is wrong with them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import audio
from .corpus import Waves, loudest, usable
from .labels import LabelError, file_of_labels, read_labels
from .mixing import read_manifest
from .stft import STFT, frame_power, level

LeftOut = Callable[[str], None]
"""Called with the reason for every recording that is not used."""

MISALIGNED = 16
"""By how many samples (1 ms) the best match of clean and noisy may be off: in noise its place is not exact."""

UNRELATED = 20.0
"""Height of the best match, in standard deviations of all places, below which clean speech is not what is in the recording.

Of 40 mixtures at -5 to 10 dB SNR the lowest had 71, of clean speech with other recordings the highest 13.
"""

AS_LOUD = (0.5, 2.0)
"""Between which the gain of the clean speech in the noisy recording has to lie: noise makes its estimate inexact."""

CLEAN_RANGE = 40.0
"""Range of the frame powers (5th to 95th percentile, dB) above which a recording has no noise to speak of.

About half of the clean read speech that was looked at lies above, and of mixtures at 5 dB SNR none.
"""


class Stretches(NamedTuple):
    """A batch of stretches, STFT (B, 1, T, F).

    Attributes:
        x: the noisy recording.
        clean: the speech in it where it is known; its other frames mean nothing.
        known: which frames are known, boolean (B, 1, T, 1).
    """

    x: Tensor
    clean: Tensor
    known: Tensor


class Recordings(Waves):
    """Noisy recordings in memory, each at unit level, with the clean speech where somebody knows it.

    Args:
        noisy: waveforms (N,).
        stft: the STFT of the model.
        clean: the speech in them, (N,) each, at their scale; None where none is known.
        known: boolean (N,) each, at which samples; None for all, if there is clean speech, or for none.

    Raises:
        ValueError: when the lengths of a recording, its clean speech and its mask differ.
    """

    def __init__(
        self, noisy: Sequence[Tensor], stft: STFT, clean: Sequence[Tensor] | None = None, known: Sequence[Tensor] | None = None,
    ) -> None:
        scales = [level(stft.analysis(wave)).rsqrt().squeeze() for wave in noisy]
        super().__init__([wave * scale for wave, scale in zip(noisy, scales, strict=True)], stft)
        speech = [torch.zeros_like(wave) for wave in noisy] if clean is None else [s * scale for s, scale in zip(clean, scales, strict=True)]
        masks = list(known or [torch.full(wave.shape, clean is not None) for wave in noisy])
        for i, parts in enumerate(zip(noisy, speech, masks, strict=True)):
            if len({part.shape for part in parts}) > 1:
                raise ValueError(f"recording {i}: {' / '.join(str(len(p)) for p in parts)} samples noisy / clean / mask; expected as many of each")
        self._clean, self._known = torch.cat(speech), torch.cat(masks)

    @property
    def fingerprint(self) -> int:
        """As that of the waveforms; other clean speech and other masks change it, too."""
        lengths = self._lengths.tolist()
        places = torch.stack([(mask * torch.arange(len(mask))).sum() for mask in self._known.split(lengths)])
        return zlib.crc32(torch.cat([loudest(self._clean.split(lengths)), places]).numpy().tobytes(), super().fingerprint)

    @property
    def left(self) -> list[tuple[Tensor, Tensor]]:
        """Of every recording what is left without its clean speech, (N,), and boolean (N,), at which samples that is the noise."""
        lengths = self._lengths.tolist()
        return list(zip((self._all - self._clean).split(lengths), self._known.split(lengths), strict=True))

    @property
    def known(self) -> float:
        """The share of all samples at which the clean speech is known."""
        return float(self._known.float().mean())

    def split(self, fraction: float, seed: int = 0) -> tuple[Recordings, Recordings]:
        """Training and validation: recordings in random order (from ``seed``) go to validation until they are that fraction, one at least.

        Raises:
            ValueError: when there are fewer than two.
        """
        if len(self.waves) < 2:
            raise ValueError("one recording of a kind alone: validation needs another; give two or more")
        order = np.random.default_rng(seed).permutation(len(self.waves)).tolist()
        held = 1 + int((self._lengths[order].cumsum(0) <= fraction * self._lengths.sum())[1:-1].sum())
        return self.part(order[held:]), self.part(order[:held])

    def part(self, indices: Sequence[int]) -> Recordings:
        """Some of them, by number, in that order."""
        lengths = self._lengths.tolist()
        clean, known = self._clean.split(lengths), self._known.split(lengths)
        return Recordings([self.waves[i] for i in indices], self.stft, [clean[i] for i in indices], [known[i] for i in indices])

    def stretches(self, count: int, frames: int, generator: torch.Generator) -> Stretches:
        """``count`` stretches of ``frames`` frames from random places. A frame is known when all samples in its window are."""
        index, _ = self.places(count, frames, generator)
        known = self._known[index].unfold(-1, self.stft.n_fft, self.stft.hop).all(-1, keepdim=True)
        return Stretches(*(part.unsqueeze(1) for part in (self.stft_of(self._all[index]), self.stft_of(self._clean[index]), known)))


def unlabelled(inputs: Iterable[str | os.PathLike[str]], stft: STFT, left_out: LeftOut, clean: Iterable[Path] = ()) -> Recordings:
    """Noisy recordings that nobody labelled, of files and folders.

    Left out are files that cannot be read, are silent, or look like clean speech: those with pauses as quiet as only clean
    speech has them (:data:`CLEAN_RANGE`), and those that are among the ``clean`` files.

    Raises:
        AudioError: when there is no audio, or none is left.
    """
    copies = {path.absolute().resolve() for path in clean}
    waves = []
    for path in audio.find(inputs):
        try:
            wave = _read(path, stft)
            if path.absolute().resolve() in copies:
                raise audio.AudioError(f"{path}: is given as clean speech too; left out of the noisy recordings")
            if (decibel := power_range(wave, stft)) > CLEAN_RANGE:
                raise audio.AudioError(
                    f"{path}: looks like clean speech (its pauses are {decibel:.0f} dB below the speech); left out of the noisy recordings, "
                    "give it as clean speech if it is"
                )
            waves.append(wave)
        except audio.AudioError as error:
            left_out(str(error))
    return Recordings(_some(waves, "noisy recordings"), stft)


def paired(manifests: Iterable[str | os.PathLike[str]], stft: STFT, left_out: LeftOut) -> Recordings:
    """Noisy recordings with their clean speech, of manifests ('ppse mix' writes such).

    Left out are pairs with a file that is missing or cannot be read, of unequal length, and those that do not belong together or not
    at this place (:func:`misalignment`).

    Raises:
        AudioError: when a manifest cannot be read, or no pair is left.
    """
    noisy, clean = [], []
    for manifest, name, entry in ((path, *item) for path in manifests for item in read_manifest(path).items()):
        try:
            x, s = _read(Path(entry["noisy_wav"]), stft), _read(Path(entry["clean_wav"]), stft)
            if problem := misalignment(s, x, stft.sample_rate):
                raise audio.AudioError(f"{manifest}: '{name}': {problem}")
        except audio.AudioError as error:
            left_out(str(error))
        else:
            noisy.append(x)
            clean.append(s)
    return Recordings(_some(noisy, "pairs"), stft, clean)


def labelled(inputs: Iterable[str | os.PathLike[str]], stft: STFT, left_out: LeftOut) -> Recordings:
    """Noisy recordings with a label file beside each, NAME.txt or NAME.csv (:func:`ppse.labels.read_labels`), of files and folders.

    Where a label says that there is only noise, the speech is known to be silent; where it says clean, it is the recording itself.
    Left out are files that cannot be read, and those without labels or with wrong ones.

    Raises:
        AudioError: when there is no audio, or none is left.
    """
    noisy, clean, known = [], [], []
    for path in audio.find(inputs):
        try:
            wave = _read(path, stft)
            beside = file_of_labels(path, path.parent)
            if beside is None:
                raise audio.AudioError(f"{path}: no labels beside it; expected {path.stem}.txt or {path.stem}.csv, or give it as unlabelled")
            speech, mask = torch.zeros_like(wave), torch.zeros(wave.shape, dtype=torch.bool)
            for label in read_labels(beside, wave.numel() / stft.sample_rate):
                part = slice(round(label.start * stft.sample_rate), round(label.end * stft.sample_rate))
                mask[part] = True
                if label.kind == "clean":
                    speech[part] = wave[part]
        except (LabelError, audio.AudioError) as error:
            left_out(str(error))
        else:
            noisy.append(wave)
            clean.append(speech)
            known.append(mask)
    return Recordings(_some(noisy, "labelled recordings"), stft, clean, known)


def misalignment(clean: Tensor, noisy: Tensor, rate: int) -> str | None:
    """What is wrong with a pair of waveforms (N,); None when nothing is.

    Their lengths differ; or the peak of their cross-correlation, with all frequencies of the same weight, is elsewhere than where they lie,
    by more than :data:`MISALIGNED`; or there is no peak (:data:`UNRELATED`); or the speech is not as loud in both (:data:`AS_LOUD`).

    References:
        Knapp & Carter (1976), The generalized correlation method for estimation of time delay (phase transform).
    """
    if clean.shape != noisy.shape:
        return f"{len(noisy)} noisy and {len(clean)} clean samples; expected as many"
    s, x = (torch.fft.rfft(wave, 2 * len(clean)) for wave in (clean, noisy))
    cross = x * s.conj()
    match = torch.fft.irfft(cross / cross.abs().clamp_min(1e-12))
    height, best = float(match.max() / match.std()), int(match.argmax())
    lag = best if best < len(clean) else best - len(match)
    if height < UNRELATED:
        return f"the clean speech is not in the noisy recording (best match {height:.0f} deviations above chance, expected {UNRELATED:.0f} or more)"
    if abs(lag) > MISALIGNED:
        return f"the noisy recording is {abs(lag)} samples ({abs(lag) / rate:.3f} s) {'behind' if lag > 0 else 'ahead of'} the clean one; align them"
    s, x = clean.diff(), noisy.diff()  # without the low frequencies, where hum and rumble of both go together
    gain = float(s @ x / (s @ s))
    if not AS_LOUD[0] < gain < AS_LOUD[1]:
        return f"the speech in the noisy recording is {gain:.2g} times the clean one; expected 1, as the recording is the sum of speech and noise"
    return None


def power_range(wave: Tensor, stft: STFT) -> float:
    """From the 5th to the 95th percentile of the powers of frames, in dB, of a waveform (N,); 0 where it has no frame that lies inside."""
    edge = stft.n_fft // stft.hop  # frames that reach over the ends of the recording
    power = frame_power(stft.analysis(wave))[edge:-edge]
    if not len(power):
        return 0.0
    return float(10 * (power.quantile(0.95) / power.quantile(0.05).clamp_min(1e-20)).log10())


def _read(path: str | Path, stft: STFT) -> Tensor:
    """A file, (N,), at the rate of the STFT."""
    return usable(audio.read_mono(path, stft.sample_rate), stft, str(path))


def _some(waves: list[Tensor], what: str) -> list[Tensor]:
    if not waves:
        raise audio.AudioError(f"none of the {what} can be used; the reasons were told, one by one")
    return waves
