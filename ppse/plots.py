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

    from .enhance import Enhancement, Trace
    from .training import Epoch

DYNAMIC_RANGE = 60.0
"""dB between the brightest and the darkest colour."""

COLUMNS = 1500
"""Most columns of a spectrogram; the frames of longer recordings are averaged."""


def plot_enhancement(result: Enhancement, path: str | os.PathLike[str] | None = None, channel: int = 0) -> Figure:
    """Spectrograms of the input and of every source on one scale, with objective and acceptance of the inference.

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
    spectra = {name: _spectrogram(wave, result) for name, wave in panels.items()}
    top = 10 * np.ceil(np.quantile(spectra["noisy"], 0.9995) / 10) if panels["noisy"].any() else 0.0
    width = max(2, len(panels))
    figure = Figure(figsize=(4.4 * width, 6.6), layout="constrained")
    halves = figure.add_gridspec(2, 1, height_ratios=(1.9, 1))
    upper, lower = figure.add_subfigure(halves[0]), figure.add_subfigure(halves[1])
    row: Sequence[Axes] = upper.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
    duration, lead = result.noisy.shape[-1] / result.sample_rate, (result.stft.n_fft - result.stft.hop) / result.stft.sample_rate
    for axes, (name, spectrum) in zip(row, spectra.items(), strict=True):
        # A frame starts up to `lead` before the recording; its column stands at its centre.
        extent = (-lead / 2, duration + lead / 2, 0.0, result.stft.sample_rate / 2000)
        image = axes.imshow(
            spectrum.T, origin="lower", aspect="auto", extent=extent, vmin=top - DYNAMIC_RANGE, vmax=top, cmap="magma", interpolation="nearest",
        )
        axes.set(title=name, xlabel="time (s)", xlim=(0, duration))
    row[0].set_ylabel("frequency (kHz)")
    upper.colorbar(image, ax=list(row), label="power (dB)", pad=0.01, fraction=0.04)
    if count > 1:
        upper.suptitle(f"channel {channel + 1} of {count}")
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
    for values, label in (([e.training for e in log], "training"), ([e.validation for e in log], "validation (other speakers)")):
        axes.plot([e.epoch + 1 for e in log], values, ".-", label=label)
    axes.set(xlabel="epoch", ylabel="negative ELBO (nats per frame)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)


def _plot_traces(axes: Axes, curves: Sequence[Sequence[float]], traces: Sequence[Trace], otherwise: str) -> None:
    """One curve per window of the recording, early to late, up to the last iteration; a remark when there are none."""
    from matplotlib import colormaps

    drawn = [(curve, trace) for curve, trace in zip(curves, traces, strict=True) if curve]
    for i, (curve, trace) in enumerate(drawn):
        name = f"from {trace.start:.0f} s" if i in (0, len(drawn) - 1) else None
        last = len(trace.objective)
        color = colormaps["viridis"](0.85 * i / max(1, len(drawn) - 1))
        axes.plot(range(last - len(curve) + 1, last + 1), curve, ".-", color=color, label=name)
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


def _spectrogram(wave: np.ndarray, result: Enhancement) -> np.ndarray:
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
    decibel: np.ndarray = 10 * torch.stack(columns).clamp_min(1e-12).log10().numpy()
    return decibel
