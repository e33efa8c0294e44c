"""Pictures of an enhanced recording."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import audio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .enhance import Enhancement

DYNAMIC_RANGE = 70.0
"""dB between the loudest bin and the darkest colour."""


def plot_enhancement(result: Enhancement, path: str | os.PathLike[str] | None = None, channel: int = 0) -> Figure:
    """Spectrograms of the input and of every source on one scale, with objective and acceptance of the inference.

    Args:
        result: of :func:`ppse.enhance`.
        path: where to write the figure (type by suffix), atomically; not written when None.
        channel: which channel.

    Returns:
        the figure, not shown.
    """
    from matplotlib.figure import Figure

    panels = {"noisy": result.noisy[channel]} | {
        {"speech": "enhanced"}.get(name, name): wave[channel] for name, wave in result.estimates.items()
    }
    spectra = {name: _decibel(wave, result) for name, wave in panels.items()}
    top = spectra["noisy"].max()
    figure = Figure(figsize=(4.2 * len(panels), 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 2 * len(panels), height_ratios=(2.2, 1))
    image, first = None, None
    for i, (name, spectrum) in enumerate(spectra.items()):
        axes = figure.add_subplot(grid[0, 2 * i : 2 * i + 2], sharex=first, sharey=first)
        first = first or axes
        extent = (0.0, result.noisy.shape[-1] / result.sample_rate, 0.0, result.stft.sample_rate / 2000)
        image = axes.imshow(spectrum.T, origin="lower", aspect="auto", extent=extent, vmin=top - DYNAMIC_RANGE, vmax=top, cmap="magma")
        axes.set(title=name, xlabel="time (s)", ylabel="frequency (kHz)" if i == 0 else "")
    assert image is not None and first is not None
    figure.colorbar(image, ax=[a for a in figure.axes], label="power (dB)", pad=0.01)
    half = len(panels)
    objective, acceptance = figure.add_subplot(grid[1, :half]), figure.add_subplot(grid[1, half:])
    for trace in (t for t in result.traces if t.channel == channel):
        label = f"from {trace.start:.0f} s"
        objective.plot(trace.objective, label=label)
        acceptance.plot(trace.acceptance, label=label)
    objective.set(xlabel="EM iteration", ylabel="nats per bin", title="objective")
    acceptance.set(xlabel="EM iteration", ylabel="mean acceptance", title="acceptance", ylim=(-0.05, 1.05))
    if len(result.traces) > 1:
        objective.legend(fontsize="small", ncols=2)
    if path is not None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=os.path.splitext(path)[1].lstrip(".") or "png", dpi=110)
        audio.write_bytes(path, buffer.getvalue())
    return figure


def plot_training(log: list[tuple[float, ...]], path: str | os.PathLike[str]) -> None:
    """Loss curves of a training log (epoch, training, validation, …), written to ``path`` atomically."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    epochs = [row[0] for row in log]
    axes.plot(epochs, [row[1] for row in log], label="training")
    axes.plot(epochs, [row[2] for row in log], label="validation (other speakers)")
    axes.set(xlabel="epoch", ylabel="negative ELBO (nats per frame)")
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    audio.write_bytes(path, buffer.getvalue())


def _decibel(wave: np.ndarray, result: Enhancement) -> np.ndarray:
    stft = result.stft
    x = stft.analysis(torch.from_numpy(audio.resample(wave, result.sample_rate, stft.sample_rate)))
    decibel: np.ndarray = 10 * np.log10(x.abs().square().numpy() + 1e-12)
    return decibel
