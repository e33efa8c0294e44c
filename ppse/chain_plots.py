"""Figures of chains: traces, ranks, autocorrelations, energies, and pairs of coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .convergence import Convergence, bfmi, by_group

if TYPE_CHECKING:
    from arviz import InferenceData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAIRED = 4
"""Coordinates of the worst frame that are plotted against one another."""

POINTS = 300
"""About as many draws of a chain are in a pair plot: more would hide one another."""

RANK_BINS = 20
"""Most bins of a rank histogram; fewer where each would hold fewer than five draws of a chain."""

LAGS = 100
"""Most lags of an autocorrelation."""


class Coordinate(NamedTuple):
    """One number of one site: where it is, its R-hat, and its draws (chain, draw)."""

    site: str
    at: dict[str, int]
    label: str
    rhat: float
    draws: NDArray[np.floating]


def coordinate(idata: InferenceData, name: str, index: dict[str, int], rhat: float) -> Coordinate:
    """The draws of one number of a site, and words for where it is (seconds and Hz, where these are known)."""
    draws = idata["posterior"][name].isel(index).transpose("chain", "draw").values.astype(float)
    return Coordinate(name, index, f"{name}{_place(idata, name, index)}", rhat, draws)


def _place(idata: InferenceData, site: str, index: dict[str, int]) -> str:
    """Where a coordinate of a site is: "[3, 1] at 1.23 s, latent 4"; in brackets the dims without a name of their own."""
    constants: Any = idata.get("constant_data", {})
    unnamed, words = list[str](), list[str]()
    for dim, i in index.items():
        if dim == "frame" and "time" in constants:
            words.append(f"at {float(constants['time'][i]):.2f} s")
        elif dim == "freq" and np.issubdtype(idata["posterior"]["freq"].dtype, np.floating):  # Hz, of a known STFT
            words.append(f"at {float(idata['posterior']['freq'][i]):.0f} Hz")
        elif dim.startswith((f"{site}_event_", f"{site}_batch_")):
            unnamed.append(str(i))
        else:
            words.append(f"{dim.removeprefix(f'{site}_')} {i}")
    return (f"[{', '.join(unnamed)}]" if unnamed else "") + (f" {', '.join(words)}" if words else "")


def _titles(chosen: Sequence[Coordinate]) -> list[str]:
    return [f"{c.label} (R-hat {c.rhat:.3f})" if np.isfinite(c.rhat) else f"{c.label} (stands still, or is not finite)" for c in chosen]


def _panels(chosen: Sequence[Coordinate]) -> tuple[Figure, NDArray[Any]]:
    """A figure with a panel for every coordinate: the worst on the left, typical ones on the right."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    rows = -(-len(chosen) // 2)
    figure = Figure(figsize=(11, 0.6 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False, sharex=True).T.ravel()
    for left in axes[len(chosen) :]:
        left.set_visible(False)
    return figure, axes[: len(chosen)]


def plot_trace(chosen: Sequence[Coordinate]) -> Figure:
    """What every chain did, and the density that each found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.6 + 1.7 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), 2, squeeze=False, width_ratios=(1, 2.2))
    for (density, trace), shown, title in zip(axes, chosen, _titles(chosen), strict=True):
        for chain in shown.draws:
            _density(density, chain)
            trace.plot(chain, linewidth=0.6, alpha=0.8)
        trace.set_title(title, fontsize="medium")
        trace.set_xlim(0, shown.draws.shape[1] - 1)
        density.set_yticks([])
    axes[0, 0].set_title("density per chain", fontsize="medium")
    axes[-1, 0].set_xlabel("value")
    axes[-1, 1].set_xlabel("draw")
    return figure


def plot_rank(chosen: Sequence[Coordinate]) -> Figure:
    """Ranks among the draws of all chains: flat for every chain when they agree (Vehtari et al. 2021)."""
    from scipy.stats import rankdata

    figure, axes = _panels(chosen)
    n_draws, total = chosen[0].draws.shape[1], chosen[0].draws.size
    bins = min(RANK_BINS, max(2, n_draws // 5))
    edges = np.linspace(0.5, total + 0.5, bins + 1)
    expected, spread = n_draws / bins, 1.96 * (n_draws / bins * (1 - 1 / bins)) ** 0.5
    for panel, shown, title in zip(axes, chosen, _titles(chosen), strict=True):
        panel.axhspan(max(0.0, expected - spread), expected + spread, color="0.9", label="of independent draws (95 %)")
        for i, ranks in enumerate(rankdata(shown.draws).reshape(shown.draws.shape)):
            panel.stairs(np.histogram(ranks, edges)[0], edges, linewidth=1.2, label=f"chain {i}")
        panel.set_title(title, fontsize="medium")
        panel.set(ylabel="draws", xlim=(edges[0], edges[-1]))
    _finish(figure, axes, chosen, "rank among the draws of all chains")
    return figure


def plot_autocorrelation(chosen: Sequence[Coordinate]) -> Figure:
    """How long every chain remembers where it was."""
    import arviz as az

    figure, axes = _panels(chosen)
    n_draws = chosen[0].draws.shape[1]
    for panel, shown, title in zip(axes, chosen, _titles(chosen), strict=True):
        with np.errstate(all="ignore"):  # a chain that stands still has none
            curves = az.autocorr(shown.draws, axis=1)[:, :LAGS]
        panel.axhspan(-1.96 / n_draws**0.5, 1.96 / n_draws**0.5, color="0.9", label="of independent draws (95 %)")
        for i, curve in enumerate(curves):
            panel.plot(curve, linewidth=1, label=f"chain {i}")
        panel.set_title(title, fontsize="medium")
        panel.set(ylim=(-0.4, 1.05), ylabel="autocorrelation")
        panel.grid(alpha=0.3)
    _finish(figure, axes, chosen, "lag (draws)")
    return figure


def _finish(figure: Figure, axes: NDArray[Any], chosen: Sequence[Coordinate], label: str) -> None:
    """What all panels have in common: the label below, and what the colours mean."""
    figure.supxlabel(label, fontsize="medium")
    if len(chosen[0].draws) <= 8:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize="small")


def plot_energy(idata: InferenceData) -> Figure | str:
    """Energies and their changes, of the block whose E-BFMI is smallest and of a typical one, of every group; or why there is none."""
    from matplotlib.figure import Figure

    stats: Any = idata.get("sample_stats", {})
    energies = {group: (of_group["energy"], bfmi(of_group).min("chain")) for group, of_group in by_group(stats).items() if "energy" in of_group}
    if not energies:
        return "only kernels with a momentum have an energy"
    if stats.sizes["draw"] < 4:
        return "needs four draws or more"
    shown = []
    for group, (energy, worst) in energies.items():
        if np.isfinite(worst).any():
            order = np.argsort(np.nan_to_num(worst.values, nan=-np.inf), axis=None)
            of = f"{group}, " if group else ""
            shown += [(f"{of}smallest E-BFMI", energy, worst, order[0])]
            shown += [(f"{of}median E-BFMI", energy, worst, order[len(order) // 2])] if len(order) > 1 else []
    if not shown:
        return "no energy is finite, or none changes"
    figure = Figure(figsize=(5.2 * len(shown), 3.6), layout="constrained")
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for panel, (name, energy, worst, i) in zip(axes, shown, strict=True):
        index = {str(dim): int(k) for dim, k in zip(worst.dims, np.unravel_index(i, worst.shape), strict=True)}
        values = energy.isel(index).transpose("chain", "draw").values.astype(float)
        with np.errstate(invalid="ignore"):  # infinite after a divergence
            centred, changes = values - values[np.isfinite(values)].mean(), np.diff(values)
        _density(panel, centred.ravel(), label="energy, less its mean", fill=True)
        _density(panel, changes.ravel(), label="its change from draw to draw", fill=True)
        panel.set_title(f"{name}: {float(worst.isel(index)):.2f}{',' if index else ''}{_place(idata, '', index)}", fontsize="medium")
        panel.set(xlabel="nats", yticks=[], ylabel="density")
        panel.legend(frameon=False, fontsize="small")
    return figure


def plot_pair(idata: InferenceData, found: Convergence, worst: Coordinate) -> Figure | str:
    """Coordinates of largest R-hat, among those that share a frame with the worst one, against one another; with the divergences of the frame."""
    from matplotlib.figure import Figure

    event = [dim for dim in worst.at if dim not in ("frame", "utterance", "window")]
    if not event or idata["posterior"].sizes[event[-1]] < 2:
        return f"{worst.site}, of largest R-hat, is one number{' per frame' if 'frame' in worst.at else ''}"
    dim, rest = event[-1], {d: i for d, i in worst.at.items() if d != event[-1]}
    order = np.argsort(-np.nan_to_num(found.rhat[worst.site].isel(rest).values, nan=np.inf), kind="stable")
    axis = "entry" if dim.startswith((f"{worst.site}_event_", f"{worst.site}_batch_")) else dim.removeprefix(f"{worst.site}_")
    data = {f"{axis} {k}": coordinate(idata, worst.site, rest | {dim: int(k)}, np.nan).draws for k in sorted(order[:PAIRED])}
    diverging, thin = _diverging(idata, worst.site, rest), max(1, worst.draws.shape[1] // POINTS)
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes = figure.subplots(len(data), len(data), sharex="col")
    for (row, (down, ys)), (column, (along, xs)) in product(enumerate(data.items()), repeat=2):
        panel = axes[row, column]
        panel.set_visible(column <= row)
        for x, y in zip(xs, ys, strict=True):
            if row == column:
                _density(panel, x)
            else:
                panel.plot(x[::thin], y[::thin], ".", markersize=2.5, alpha=0.5, zorder=3)
        if row == column:
            panel.set_yticks([])
        else:
            panel.plot(xs[diverging], ys[diverging], "kx", markersize=4, alpha=0.6)
        panel.set(xlabel=along if row == len(data) - 1 else "", ylabel=down if column == 0 < row else "")
    note = f"; crosses: {diverging.sum()} divergent steps" if diverging.any() else ""
    figure.suptitle(f"{worst.site}{_place(idata, worst.site, rest)}, where R-hat is largest; one colour per chain{note}", fontsize="medium")
    return figure


def _diverging(idata: InferenceData, site: str, place: dict[str, int]) -> NDArray[np.bool_]:
    """Which draws of the site diverged there, (chain, draw); none where this was not noted for the place."""
    joint: Any = idata.get("sample_stats", {})
    stats = next((of_group for group, of_group in by_group(joint).items() if site in group.split("+")), joint)
    sizes = idata["posterior"].sizes
    nowhere = np.zeros((sizes["chain"], sizes["draw"]), bool)
    if "diverging" not in stats:
        return nowhere
    found = stats["diverging"].isel(place, missing_dims="ignore").transpose("chain", "draw", ...).values
    return found if found.ndim == 2 else nowhere


def _density(panel: Axes, values: NDArray[np.floating], label: str | None = None, fill: bool = False) -> None:
    """Density of the values that are finite, where they differ from one another, as ArviZ estimates it."""
    import arviz as az

    finite = values[np.isfinite(values)]
    if finite.size < 2 or np.ptp(finite) <= 1e-9 * np.abs(finite).max():
        panel.plot([], [], label=label)  # keeps the colours of the others
        return
    grid, density = az.kde(finite)
    line, = panel.plot(grid, density, linewidth=1, label=label)
    if fill:
        panel.fill_between(grid, density, color=line.get_color(), alpha=0.3, linewidth=0)
