"""Enhancement: a recording and a model in, the waveforms of all sources out, however long the recording."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio, methods
from .inference import Inference, resume
from .methods import Method
from .mixture import Mixture
from .models import NMFNoise, VAESpeech
from .stft import STFT, active_mean, frame_power

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOW, OVERLAP = 60.0, 4.0
"""Seconds of a recording that are inferred at once, and by which neighbouring windows overlap and are cross-faded."""

RANK = 4
"""Patterns of the NMF noise, unless a model is given."""


class Trace(NamedTuple):
    """How inference went on one window of one channel: the objective per EM iteration (nats per bin), and the mean acceptance per
    iteration (empty where nothing is accepted or rejected)."""

    channel: int
    start: float
    objective: list[float]
    acceptance: list[float]


@dataclass
class Enhancement:
    """Result of :func:`enhance`.

    Attributes:
        sample_rate: of all waveforms here, that of the input, in Hz.
        noisy: the input, (channels, N).
        estimates: posterior mean of every source by name, (channels, N), at the level of the input.
        std: posterior standard deviation of every source in the STFT domain of the model, (channels, T, F), in
            units of the waveform times ``STFT`` scaling; empty unless asked for.
        traces: per channel and window.
        seconds: processing time, model loading excluded.
        stft: the STFT of the model, at its own rate.
    """

    sample_rate: int
    noisy: NDArray[np.float32]
    estimates: dict[str, NDArray[np.float32]]
    std: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    seconds: float = 0.0
    stft: STFT = field(default_factory=STFT)

    @property
    def real_time_factor(self) -> float:
        """Processing time over duration of one channel."""
        return self.seconds * self.sample_rate / max(1, self.noisy.shape[-1])

    def save(self, path: str | os.PathLike[str], source: str = "speech") -> None:
        """Write the estimate of a source to an audio file, atomically, at the rate of the input.

        Raises:
            AudioError: when the file cannot be written.
        """
        audio.write(path, self.estimates[source], self.sample_rate)

    def plot(self, path: str | os.PathLike[str] | None = None, channel: int = 0) -> Figure:
        """Spectrograms on one scale, objective trace and acceptance; written to ``path`` when given."""
        from .plots import plot_enhancement

        return plot_enhancement(self, path, channel)


def enhance(
    recording: str | os.PathLike[str] | NDArray[np.floating] | Tensor, model: Mixture | None = None, method: Method | None = None, *,
    sample_rate: int = 16_000, seed: int | None = 0, device: str = "cpu", std: bool = False, window: float = WINDOW,
    report: Callable[[float], None] | None = None,
) -> Enhancement:
    """Separate a noisy recording into its sources by posterior inference.

    Args:
        recording: an audio file, or samples (N,) or (channels, N); channels are enhanced one by one.
        model: the mixture; ``Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=4))`` unless given. It
            is copied, never changed.
        method: how to infer, :func:`ppse.methods.default` unless given.
        sample_rate: of samples in Hz; of a file it is read.
        seed: makes the result reproducible and leaves the global generator as it was; None draws from the latter.
        device: of the computation, e.g. "cuda".
        std: also return posterior standard deviations.
        window: seconds inferred at once. A longer recording goes through in windows, the parameters of the noise
            carried over, which bounds the memory.
        report: called with the fraction done.

    Raises:
        AudioError: when the file is unreadable, or the samples are empty or not finite.

    Content above 8 kHz is not modelled by 16 kHz priors: such a band comes out silent. For recordings below
    16 kHz the missing band is marked as not observed. Digital silence comes out as it is.
    """
    if isinstance(recording, str | os.PathLike):
        samples, sample_rate = audio.read(recording)
    else:
        samples = np.atleast_2d(np.asarray(recording, dtype=np.float32))
    audio.check(samples, str(recording) if isinstance(recording, str | os.PathLike) else "the samples")
    model = model or Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(RANK))
    method, stft = method or methods.default(), STFT()
    model = copy.deepcopy(model).to(device)
    result = Enhancement(sample_rate, samples, {name: np.zeros_like(samples) for name in model.sources}, stft=stft)
    started = time.monotonic()
    scope = poutine.seed(rng_seed=seed) if seed is not None else nullcontext()
    with scope:
        for channel, wave in enumerate(samples):
            def progress(done: float, channel: int = channel) -> None:
                if report:
                    report((channel + done) / len(samples))

            _enhance_channel(result, channel, wave, model, method, device, std, window, progress)
    result.seconds = time.monotonic() - started
    return result


def _enhance_channel(
    result: Enhancement, channel: int, samples: NDArray[np.float32], model: Mixture, method: Method, device: str, std: bool, window: float,
    progress: Callable[[float], None],
) -> None:
    """Fill in one channel of the result, window by window."""
    stft = result.stft
    wave = torch.from_numpy(audio.resample(samples, result.sample_rate, stft.sample_rate))
    outputs = {name: torch.zeros_like(wave) for name in model.sources}
    scale = _scale(wave, stft)
    variances = {name: torch.zeros(stft.n_frames(len(wave)), stft.n_freqs) for name in model.sources} if std else {}
    windows = list(_windows(len(wave), int(window * stft.sample_rate), int(min(OVERLAP, window / 4) * stft.sample_rate), stft.hop))
    followed = False
    for i, (first, last) in enumerate(windows):
        piece = wave[first:last]
        if not piece.any():
            progress((i + 1) / len(windows))
            continue
        x = (stft.analysis(piece) / scale).to(device)
        observed = _band(stft, result.sample_rate, device)
        (model.follow if followed else model.start)(x, observed)
        followed = True

        def note(iteration: int, _: float, i: int = i) -> None:
            progress((i + (iteration + 1) / method.iterations) / len(windows))

        inferred = resume(model, x, method, observed, callback=note)
        result.traces.append(_trace(inferred, channel, first / stft.sample_rate))
        fade = _fade(windows, i)
        for name, law in inferred.sources.items():
            loc = law.loc if observed is None else law.loc * observed
            outputs[name][first:last] += fade * (stft.synthesis(loc, last - first) * scale).cpu()
            if std:
                _add_frames(variances[name], law.var.cpu() * scale**2, first // stft.hop, fade[:: stft.hop])
    for name, var in variances.items():
        result.std.setdefault(name, np.zeros((len(result.noisy), *var.shape), np.float32))[channel] = var.sqrt().numpy()
    for name, output in outputs.items():
        result.estimates[name][channel] = _fitted(audio.resample(output.numpy(), stft.sample_rate, result.sample_rate), samples.size)


def _windows(length: int, window: int, overlap: int, hop: int) -> list[tuple[int, int]]:
    """Stretches of equal length, starts on the frame grid, that overlap by at least ``overlap`` samples and cover all."""
    if length <= window:
        return [(0, length)]
    count = math.ceil((length - overlap) / (window - overlap))
    stride = math.ceil((length - overlap) / count / hop) * hop
    return [(i * stride, min(i * stride + stride + overlap, length)) for i in range(count)]


def _fade(windows: list[tuple[int, int]], i: int) -> Tensor:
    """Weights of window i: linear cross-fades over its overlaps; all windows sum to one."""
    first, last = windows[i]
    fade = torch.ones(last - first)
    if i > 0:
        lap = windows[i - 1][1] - first
        fade[:lap] *= (torch.arange(lap) + 0.5) / lap
    if i + 1 < len(windows):
        lap = last - windows[i + 1][0]
        fade[-lap:] *= 1 - (torch.arange(lap) + 0.5) / lap
    return fade


def _add_frames(total: Tensor, var: Tensor, first: int, fade: Tensor) -> None:
    """Cross-fade the variances (T, F) of a window, whose first frame is ``first``, into those of the recording."""
    count = min(var.shape[0], total.shape[0] - first)
    weight = torch.cat([fade, fade[-1:].expand(max(0, count - len(fade)))])[:count]
    total[first : first + count] += weight.unsqueeze(-1) * var[:count]


def _scale(wave: Tensor, stft: STFT) -> float:
    """Square root of the level of a waveform, a minute at a time so that an hour needs no more memory."""
    step = 60 * stft.sample_rate
    power = torch.cat([frame_power(stft.analysis(wave[i : i + step])) for i in range(0, len(wave), step)])
    return math.sqrt(active_mean(power).item())


def _band(stft: STFT, sample_rate: int, device: str) -> Tensor | None:
    """Bins that the recording can hold, (F,): for one below the rate of the model, those under its Nyquist frequency."""
    if sample_rate >= stft.sample_rate:
        return None
    frequency = torch.arange(stft.n_freqs, device=device) * (stft.sample_rate / stft.n_fft)
    return frequency < 0.95 * sample_rate / 2  # resampling filters fall off over the last twentieth


def _trace(inferred: Inference, channel: int, start: float) -> Trace:
    adjusted = [float(info.acceptance.mean()) for info in inferred.info]
    return Trace(channel, start, inferred.objective, adjusted)


def _fitted(wave: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Cut or zero-padded to the length: resampling there and back may be a sample off."""
    return np.pad(wave[:length], (0, max(0, length - wave.size)))
