"""All figures of a run: how chains moved, where in time they fail, and whether the model could have made the data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .chain_plots import Coordinate, coordinate, plot_autocorrelation, plot_energy, plot_pair, plot_rank, plot_trace
from .convergence import Convergence, convergence, of_guide
from .frame_plots import plot_frames, plot_predictive
from .plots import save_figure

if TYPE_CHECKING:
    from arviz import InferenceData
    from matplotlib.figure import Figure

WORST, TYPICAL = 3, 3
"""Coordinates that are shown: those of largest R-hat, and those of median R-hat."""


def write_figures(idata: InferenceData, folder: str | os.PathLike[str], found: Convergence | None = None) -> tuple[list[Path], dict[str, str]]:
    """Draw all figures that a run has the data for, and write them to a folder as PNG. Opens no window.

    Of a batch of recordings, the figures along time show the first.

    Args:
        idata: from :func:`ppse.to_arviz`, or read back with :func:`ppse.runs.load_run`.
        found: of :func:`ppse.convergence.convergence`, when it is there already.

    Returns:
        the files written; and for every figure that was left out, why.

    Raises:
        AudioError: when a figure cannot be written.
    """
    found = found or convergence(idata)
    no_chains = "draws of a guide do not depend on one another" if of_guide(idata) else "needs two chains or more, with four draws or more each"
    chosen = _chosen(idata, found) if found else []
    figures: dict[str, Callable[[], Figure | str]] = {
        "trace": lambda: plot_trace(chosen) if chosen else no_chains,
        "rank": lambda: plot_rank(chosen) if chosen else no_chains,
        "autocorrelation": lambda: plot_autocorrelation(chosen) if chosen else no_chains,
        "pair": lambda: plot_pair(idata, found, chosen[0]) if found else no_chains,
        "energy": lambda: plot_energy(idata),
        "frames": lambda: plot_frames(idata, found),
        "predictive": lambda: plot_predictive(idata),
    }
    written, left_out = list[Path](), dict[str, str]()
    for name, draw in figures.items():
        figure = draw()
        if isinstance(figure, str):
            left_out[name] = figure
        else:
            written.append(Path(folder) / f"{name}.png")
            save_figure(figure, written[-1])
    return written, left_out


def _chosen(idata: InferenceData, found: Convergence) -> list[Coordinate]:
    """The coordinates to show, worst first. Those that stand still are worst."""
    names = list(found.rhat.data_vars)
    values = [found.rhat[name].values for name in names]
    flat = np.concatenate([value.ravel() for value in values])
    order = np.argsort(-np.nan_to_num(flat, nan=np.inf), kind="stable")
    middle = max(0, (len(order) - TYPICAL) // 2)
    starts = np.cumsum([0, *(value.size for value in values)])
    result = []
    for i in dict.fromkeys([*order[:WORST], *order[middle : middle + TYPICAL]]):
        site = int(np.searchsorted(starts, i, side="right")) - 1
        name, place = names[site], np.unravel_index(i - starts[site], values[site].shape)
        index = {str(dim): int(k) for dim, k in zip(found.rhat[name].dims, place, strict=True)}
        result.append(coordinate(idata, str(name), index, float(flat[i])))
    return result
