"""Pictures of an enhanced recording, and of a training."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import audio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from .enhance import Enhancement, Trace
    from .training import Epoch

DYNAMIC_RANGE = 60.0
"""dB between the brightest and the darkest colour."""

COLUMNS = 1500
"""Most columns of a spectrogram; the frames of longer recordings are averaged."""


BAND = (0.05, 0.95)
"""Quantiles of draws between which a credible band lies."""


def plot_enhancement(result: Enhancement, path: str | os.PathLike[str] | None = None, channel: int = 0) -> Figure:
    """Spectrograms of the input and of every source on one scale, with objective and acceptance of the inference.

    Where the result has deviations, there is a spectrogram of the posterior variance of the speech, on the same scale; where it has two
    draws or more, the level of the speech along time with the band that holds 90 % of the draws.

    Args:
        result: of :func:`ppse.enhance`.
        path: where to write the figure (type by suffix), atomically; not written when None.
        channel: which channel.

    Returns:
        the figure, not shown.

    Raises:
        ValueError: when there is no such channel.
        AudioError: when the file cannot be written.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    count = len(result.noisy)
    if not 0 <= channel < count:
        raise ValueError(f"plot_enhancement: channel {channel}; the recording has channels 0 to {count - 1}")
    panels = {"noisy": result.noisy[channel]}
    panels |= {"enhanced" if name == "speech" else name: wave[channel] for name, wave in result.estimates.items()}
    spectra = {name: spectrogram(wave, result) for name, wave in panels.items()}
    top = brightest(spectra["noisy"]) if panels["noisy"].any() else 0.0
    shown = "speech" if "speech" in result.estimates else next(iter(result.estimates), "")
    if shown in result.std:
        variance = torch.from_numpy(result.std[shown][channel]).square()
        columns = variance.split(-(-len(variance) // COLUMNS))
        spectra[f"posterior variance of {shown}"] = decibel(torch.stack([column.mean(0) for column in columns]).numpy())
    banded = len(result.draws.get(shown, ())) > 1
    width = max(2, len(spectra))
    figure = Figure(figsize=(4.4 * width, 9.2 if banded else 6.6), layout="constrained")
    halves = figure.add_gridspec(2 + banded, 1, height_ratios=(1.9, 1, 1)[: 2 + banded])
    upper, lower = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1 + banded])
    row: Sequence[Axes] = upper.subplots(1, len(spectra), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (name, spectrum) in zip(row, spectra.items(), strict=True):
        image = draw_spectrogram(axes, spectrum, result, top)
        axes.set(title=name, xlabel="time (s)")
    row[0].set_ylabel("frequency (kHz)")
    upper.colorbar(image, ax=list(row), label="power (dB)", pad=0.01, fraction=0.04)
    if count > 1:
        upper.suptitle(f"channel {channel + 1} of {count}")
    if banded:
        _plot_level(figure.add_subfigure(halves[1]).subplots(), result, shown, channel)
    objective, acceptance = lower.subplots(1, 2)
    traces = [trace for trace in result.traces if trace.channel == channel]
    _plot_traces(objective, [t.objective for t in traces], traces, "nothing inferred: the recording is silent")
    _plot_traces(acceptance, [t.acceptance for t in traces], traces, "nothing is accepted or rejected by this method")
    objective.set(title="objective", ylabel="log-likelihood (nats per bin)")
    acceptance.set(title="acceptance", ylabel="mean over blocks", ylim=(-0.05, 1.05), xlim=objective.get_xlim())
    if path is not None:
        save_figure(figure, path)
    return figure


def plot_training(log: Sequence[Epoch], path: str | os.PathLike[str]) -> None:
    """Loss curves of a training log, written to ``path`` atomically."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for values, label in (([e.training for e in log], "training"), ([e.validation for e in log], "validation")):
        axes.plot([e.epoch + 1 for e in log], values, ".-", label=label)
    axes.set(xlabel="epoch", ylabel="loss (nats per frame)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def _plot_traces(axes: Axes, curves: Sequence[Sequence[float]], traces: Sequence[Trace], otherwise: str) -> None:
    """One curve per window of the recording, early to late, and model, up to the last iteration; a remark when there are none."""
    from matplotlib import colormaps

    drawn = [(curve, trace) for curve, trace in zip(curves, traces, strict=True) if curve]
    several = any(trace.model for trace in traces)
    for i, (curve, trace) in enumerate(drawn):
        name = f"from {trace.start:.0f} s" + (f", model {trace.model + 1}" if several else "") if i in (0, len(drawn) - 1) else None
        last = len(trace.objective)
        color = colormaps["viridis"](0.85 * i / max(1, len(drawn) - 1))
        axes.plot(range(last - len(curve) + 1, last + 1), curve, "x:" if trace.model else ".-", color=color, label=name)
    axes.set(xlabel="EM iteration")
    axes.grid(alpha=0.3)
    if len(drawn) > 1:
        axes.legend(frameon=False, fontsize="small")
    if not drawn:
        axes.text(0.5, 0.5, otherwise, transform=axes.transAxes, ha="center", va="center", color="0.4")
        axes.set(xticks=[], yticks=[])


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure (type by suffix), atomically. Raises AudioError when the file cannot be written."""
    kind = os.path.splitext(path)[1].lstrip(".") or "png"
    audio.atomically(path, lambda file: figure.savefig(file, format=kind, dpi=110))


def _plot_level(axes: Axes, result: Enhancement, source: str, channel: int) -> None:
    """Level of a source along time: the estimate, and the credible band of the level of its draws."""
    stft, rate = result.stft, result.sample_rate
    hop = max(1, round(stft.hop / stft.sample_rate * rate), result.noisy.shape[-1] // COLUMNS)
    levels = np.array([_level(wave[channel], 2 * hop, hop) for wave in result.draws[source]])
    low, middle, high = np.quantile(levels, (BAND[0], 0.5, BAND[1]), axis=0)
    time = (np.arange(len(middle)) * hop + hop) / rate
    axes.plot(time, _level(result.noisy[channel], 2 * hop, hop), color="0.6", linewidth=0.8, label="noisy")
    inside = f"{100 * (BAND[1] - BAND[0]):.0f} % of {len(levels)} draws of {source}"
    axes.fill_between(time, low, high, color="C0", alpha=0.4, linewidth=0, label=inside)
    axes.plot(time, middle, color="C0", linewidth=0.8, label="median of the draws")
    # The mean of what is uncertain is quieter than a draw: it lies below the band where little is known.
    axes.plot(time, _level(result.estimates[source][channel], 2 * hop, hop), color="k", linewidth=0.8, label="estimate (mean)")
    loudest = max(float(high.max()), -100.0)
    axes.set(xlabel="time (s)", ylabel="level (dB)", xlim=(0, result.noisy.shape[-1] / rate), ylim=(loudest - DYNAMIC_RANGE, loudest + 5))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _level(wave: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Mean power in dB of stretches of that length, one every hop; of all there is when it is shorter."""
    power = np.square(wave, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(power)])
    starts = np.arange(0, max(1, len(wave) - length + 1), hop)
    ends = np.minimum(starts + length, len(wave))
    return decibel((sums[ends] - sums[starts]) / (ends - starts))


def spectrogram(wave: np.ndarray, result: Enhancement) -> np.ndarray:
    """Power in dB, (columns, F), at the rate of the model; a stretch at a time, so that an hour needs little memory."""
    stft = result.stft
    resampled = torch.from_numpy(audio.resample(wave, result.sample_rate, stft.sample_rate))
    pool = -(-stft.n_frames(len(resampled)) // COLUMNS)
    step = pool * stft.hop * max(1, 4096 // pool)
    padded = torch.nn.functional.pad(resampled, (stft.n_fft - stft.hop, stft.n_fft - 1))
    columns = []
    for start in range(0, len(resampled) + stft.n_fft - stft.hop, step):
        piece = padded[start : start + step + stft.n_fft - stft.hop]
        power = (torch.fft.rfft(piece.unfold(-1, stft.n_fft, stft.hop) * stft.window(piece), norm="ortho")).abs().square()
        columns += [block.mean(0) for block in power.split(pool)]
    return decibel(torch.stack(columns).numpy())


def brightest(spectrum: np.ndarray) -> float:
    """dB of the brightest colour for a spectrogram, a multiple of 10."""
    return float(10 * np.ceil(np.quantile(spectrum, 0.9995) / 10))


def draw_spectrogram(axes: Axes, spectrum: np.ndarray, result: Enhancement, top: float) -> AxesImage:
    """A :func:`spectrogram` of the recording, or of a source, along its time in seconds; ``top`` in dB is the brightest colour."""
    duration, stft = result.noisy.shape[-1] / result.sample_rate, result.stft
    lead = (stft.n_fft - stft.hop) / stft.sample_rate
    image = axes.imshow(  # a frame starts up to `lead` before the recording; its column stands at its centre
        spectrum.T, origin="lower", aspect="auto", extent=(-lead / 2, duration + lead / 2, 0.0, stft.sample_rate / 2000),
        vmin=top - DYNAMIC_RANGE, vmax=top, cmap="magma", interpolation="nearest",
    )
    axes.set_xlim(0, duration)
    return image


def decibel(power: np.ndarray) -> np.ndarray:
    """Power in dB, of -120 dB at least."""
    found: np.ndarray = 10 * np.log10(np.maximum(power, 1e-12))
    return found
