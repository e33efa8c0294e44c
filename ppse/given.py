"""What is known of a recording beside its samples: each piece of knowledge changes the model of every stretch that it is inferred in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio, narrowband
from .labels import Kind, Label, LabelError, check_labels, file_of_labels, read_labels
from .mixture import Mixture, Source
from .models import KnownSilence, PartiallyObserved
from .stft import STFT


class Stretch(NamedTuple):
    """The part of a channel of a recording that is inferred at once.

    Attributes:
        x: its STFT at unit level, (T, F).
        first, last: its samples, last excluded, at the rate of the STFT.
        length: how many the whole channel has.
        scale: what the samples were divided by.
        stft: of the model.
    """

    x: Tensor
    first: int
    last: int
    length: int
    scale: float
    stft: STFT


Given: TypeAlias = Callable[[Mixture, Stretch], Mixture]
"""Knowledge of one recording: the model of a stretch → the same with what is known. Its sources wrap those of the model, so that the
parameters of the recording stay where they are from stretch to stretch."""


def told(model: Mixture, given: Sequence[Given], stretch: Stretch) -> Mixture:
    """The model of a stretch with all that is known of it."""
    for knowledge in given:
        model = knowledge(model, stretch)
    return model


def labelled(labels: Sequence[Label], speech: str = "speech") -> Given:
    """Where there is only noise, speech is known to be zero; where there is only speech, all other sources are known to be silent.

    Frames count that lie in a label as a whole (64 ms): a label should reach as far as it is true.

    Args:
        labels: of the recording (:func:`ppse.labels.read_labels`).
        speech: name of the source that speaks.

    Raises:
        LabelError: of the result, when labels do not fit the recording or hold no frame; at once, when they overlap.

    >>> model = labelled([Label(0.0, 0.4)])
    """
    check_labels(labels)

    def knowledge(model: Mixture, stretch: Stretch) -> Mixture:
        rate = stretch.stft.sample_rate
        known = check_labels(labels, stretch.length / rate)
        longest, least = max((label.end - label.start for label in known), default=math.inf), min(stretch.stft.n_fft, stretch.length) / rate
        if longest < least:
            raise LabelError(f"the longest label lasts {longest:g} s, and would change nothing; expected {least:g} s or more, as a frame lasts")
        silent, clean = (_frames(known, kind, stretch) for kind in ("noise", "clean"))

        def of(name: str, source: Source) -> Source:
            if name != speech:
                return KnownSilence(source, clean) if clean.any() else source
            zero = stretch.x.new_zeros(silent.shape[-1], 1)
            return PartiallyObserved(source, zero, silent.unsqueeze(-1)) if silent.any() else source

        return wrapped(model, of, speech)

    return knowledge


def labels_of(recording: Path, labels: Path) -> list[Given]:
    """What the labels of a recording say: those in a file, or in the file of its name, ``.txt`` or ``.csv``, in a folder.

    A recording without such a file has no labels.

    Raises:
        LabelError: when there are two, or one cannot be used; when nothing is there.
    """
    if not labels.is_dir():
        return [labelled(read_labels(labels))]
    file = file_of_labels(recording, labels)
    return [labelled(read_labels(file))] if file else []


def referenced(
    reference: NDArray[Any] | Tensor, sample_rate: int = 16_000, *, low: float = 0.0, high: float = float("inf"), source: str = "speech",
) -> Given:
    """A source is known in a band: speech of a contact microphone on the throat, or of a narrow-band channel. The rest is inferred.

    Args:
        reference: samples (N,) of the source alone, in time with the recording and as loud as in it.
        sample_rate: of the reference in Hz.
        low, high: the band in Hz in which it is the source itself; what it has elsewhere is not read.
        source: name of the source that it is of.

    Raises:
        ValueError: when the band holds no bin of the model; of the result, when the reference is not as long as the recording.
    """
    samples = np.asarray(torch.as_tensor(reference).detach().cpu(), np.float32)
    audio.check(np.atleast_2d(samples), "the reference")
    if samples.ndim != 1 or not 0 <= low < high:
        raise ValueError(f"referenced: samples {samples.shape} in a band from {low:g} to {high:g} Hz; expected (N,), and 0 <= low < high")

    def knowledge(model: Mixture, stretch: Stretch) -> Mixture:
        stft = stretch.stft
        wave = torch.from_numpy(audio.resample(samples, sample_rate, stft.sample_rate))
        if abs(len(wave) - stretch.length) > 1:
            raise ValueError(
                f"referenced: the reference lasts {len(wave) / stft.sample_rate:g} s, the recording {stretch.length / stft.sample_rate:g} s; "
                f"expected the same, in time with one another (sample_rate={sample_rate} is that of the reference)"
            )
        band = torch.from_numpy((stft.frequencies >= low) & (stft.frequencies < high))
        if (held := narrowband.band(stft, sample_rate, "cpu")) is not None:
            band &= held
        if not band.any():
            raise ValueError(f"referenced: no bin of the model from {low:g} to {high:g} Hz; expected a band that the reference can hold")
        wave = torch.from_numpy(audio.fitted(wave.numpy(), stretch.length))
        clean = (stft.analysis(wave[stretch.first : stretch.last]) / stretch.scale).to(stretch.x)
        return wrapped(model, lambda name, s: PartiallyObserved(s, clean, band.to(clean.device)) if name == source else s, source)

    return knowledge


def wrapped(model: Mixture, wrap: Callable[[str, Source], Source], needed: str) -> Mixture:
    """The model with every source under ``wrap(name, source)``.

    Args:
        needed: name of the source that something is known of.

    Raises:
        ValueError: when the model has no such source.
    """
    if needed not in model.sources:
        raise ValueError(f"the model has no source '{needed}' to know something of; it has {', '.join(model.sources)}")
    return Mixture(**{name: wrap(name, source) for name, source in model.sources.items()}).train(model.training)


def _frames(labels: Sequence[Label], kind: Kind, stretch: Stretch) -> Tensor:
    """Which frames lie in labels of a kind, (T,): all their samples do, but for those outside of the recording."""
    stft, count = stretch.stft, stretch.last - stretch.first
    inside = torch.zeros(count, dtype=torch.bool)
    for label in labels:
        start, end = (max(0, round(second * stft.sample_rate) - stretch.first) for second in (label.start, label.end))
        if label.kind == kind:
            inside[start:end] = True
    before = torch.cat([torch.zeros(1, dtype=torch.long), (~inside).cumsum(0)])  # samples outside of the labels before each
    first = torch.arange(len(stretch.x)) * stft.hop - (stft.n_fft - stft.hop)
    outside = before[(first + stft.n_fft).clamp(0, count)] - before[first.clamp(0, count)]
    return (outside == 0).to(stretch.x.device)
