"""Figures of a run along time and frequency: which frames fail, under the spectrogram, and replicated power against that of the data."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .convergence import Convergence, bfmi, by_group, max_pareto_k, pareto_k
from .diagnostics import MAX_RHAT, MIN_ACCEPTANCE, MIN_BFMI, MIN_ESS
from .plots import DYNAMIC_RANGE, decibel

if TYPE_CHECKING:
    from arviz import InferenceData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND = (0.05, 0.5, 0.95)
"""Quantiles of replicated data that are shown."""


def plot_frames(idata: InferenceData, found: Convergence | None) -> Figure | str:
    """Effective sample size, R-hat, acceptance, E-BFMI, or Pareto k-hat, of every frame under the spectrogram; or why there is none."""
    from matplotlib.figure import Figure

    curves = _curves(idata, found)
    if not curves:
        return "nothing that was noted is per frame"
    time, unit = _time(idata)
    power = _power(idata)
    heights = ([2.0] if power is not None else []) + [1.0] * len(curves)
    figure = Figure(figsize=(11, 1.2 + 1.6 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    if power is not None:
        step = (time[1] - time[0]) / 2 if len(time) > 1 else 0.5
        top = 10 * np.ceil(np.quantile(power, 0.9995) / 10)
        high, name = _nyquist(idata, power.shape[1])
        image = axes[0].imshow(
            power.T, origin="lower", aspect="auto", extent=(time[0] - step, time[-1] + step, 0, high), vmin=top - DYNAMIC_RANGE, vmax=top,
            cmap="magma", interpolation="nearest",
        )
        axes[0].set(ylabel=name, title="mixture")
        figure.colorbar(image, cax=axes[0].inset_axes((1.01, 0.0, 0.012, 1.0)), label="power (dB)")
    for panel, (title, (lines, limit)) in zip(axes[-len(curves) :], curves.items(), strict=True):
        _draw(panel, time, title, lines, limit)
    axes[-1].set(xlabel=unit, xlim=(time[0], time[-1]))
    return figure


def plot_predictive(idata: InferenceData) -> Figure | str:
    """Mean power per frequency and per frame of the data, and of data replicated under the draws and under the prior; or why there is none."""
    from matplotlib.figure import Figure

    replicated, observed, prior = (_of_all_windows(idata.get(group)) for group in ("posterior_predictive", "observed_data", "prior_predictive"))
    if replicated is None or observed is None:
        return "no data were replicated: ask to_arviz for predictive draws"
    names = [str(name) for name in replicated.data_vars if str(name).endswith((".spectrum", ".envelope")) and name in observed]
    if not names:
        return "the replicated data are no STFT"
    figure = Figure(figsize=(11, 0.4 + 3.0 * len(names)), layout="constrained")
    for panel, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names, strict=True):
        dim = replicated[name].dims[-1]
        if dim == "freq":
            at, label = observed[dim].values, "frequency (bin)"
            if np.issubdtype(at.dtype, np.floating):  # Hz, of a known STFT
                at, label = at / 1000, "frequency (kHz)"
        else:
            at, label = _time(idata)
        values = observed[name].values
        low, middle, high = _bands(replicated[name])
        seen = np.isfinite(values)  # but for bins that were not observed
        inside = float(np.mean(((values >= low) & (values <= high))[seen]))
        if prior is not None and name in prior:
            below, _, above = _bands(prior[name])
            panel.fill_between(at, decibel(below), decibel(above), color="0.85", linewidth=0, label="90 % under the prior of the latents")
        panel.fill_between(at, decibel(low), decibel(high), color="C0", alpha=0.45, linewidth=0, label="90 % under the posterior")
        panel.plot(at, decibel(middle), color="C0", linewidth=0.8)
        panel.plot(at, decibel(values), color="k", linewidth=0.8, label="data")
        over = "frames" if name.endswith(".spectrum") else "frequencies"
        panel.set(xlabel=label, ylabel="mean power (dB)", xlim=(at[0], at[-1]))
        share = f"{100 * inside:.0f} % of the data lie in the 90 % band of the posterior"
        panel.set_title(f"{name.rpartition('.')[0]}, mean over {over}: {share}", fontsize="medium")
        shown = decibel(values[np.isfinite(values) & (values > 0)])
        if shown.size:  # silence at an edge, and priors that allow anything, would squeeze the rest
            panel.set_ylim(np.quantile(shown, 0.02) - 15, shown.max() + 25)
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize="small", loc="upper right", ncols=3)
    return figure


_Curves = dict[str, tuple[dict[str, NDArray[Any]], float]]


def _curves(idata: InferenceData, found: Convergence | None) -> _Curves:
    """Panel → what to draw per frame, by label, and the limit that it should keep."""
    stats: Any = _first(idata.get("sample_stats"))
    curves: _Curves = {}
    if found is not None:
        bulk, tail, rhat = (_per_frame(values) for values in (found.bulk, found.tail, found.rhat))
        if bulk is not None and tail is not None and rhat is not None:
            sizes = {"bulk, smallest": bulk.min(0), "tail, smallest": tail.min(0), "bulk, median": np.median(bulk, 0)}
            curves["effective\nsample size"] = sizes, MIN_ESS
            curves["R-hat"] = {"largest": rhat.max(0), "median": np.median(rhat, 0)}, MAX_RHAT
    if stats is None:
        return curves
    for group, moves in by_group(stats).items():
        if "acceptance_rate" in moves and "frame" in moves["acceptance_rate"].dims:
            accepted = moves["acceptance_rate"].mean(("chain", "draw")).values
            curves.setdefault("acceptance", ({}, MIN_ACCEPTANCE))[0][group or "mean over chains"] = accepted
        if "energy" in moves and "frame" in moves["energy"].dims and stats.sizes["draw"] > 1:
            curves.setdefault("E-BFMI", ({}, MIN_BFMI))[0][group or "smallest of the chains"] = bfmi(moves).min("chain").values
    if "log_proposal" in stats and "frame" in stats["log_proposal"].dims:
        limit = max_pareto_k(stats.sizes["chain"] * stats.sizes["draw"])
        curves["Pareto k-hat"] = {"importance weights": pareto_k(stats).values}, limit
    return curves


def _per_frame(values: Any) -> NDArray[Any] | None:
    """Values of all coordinates that lie in frames, (coordinates, T)."""
    inside = [v.transpose(..., "frame").values for v in _first(values).data_vars.values() if "frame" in v.dims]
    return np.concatenate([v.reshape(-1, v.shape[-1]) for v in inside]) if inside else None


def _draw(panel: Axes, time: NDArray[Any], title: str, lines: dict[str, NDArray[Any]], limit: float) -> None:
    for label, values in lines.items():
        panel.plot(time, values, linewidth=0.9, label=label)
    panel.axhline(limit, color="k", linestyle="--", linewidth=0.8, label=f"limit {limit:.3g}")
    if "sample size" in title:
        panel.set_yscale("log")
    if title == "acceptance":
        panel.set_ylim(-0.03, 1.03)
    panel.set_ylabel(title)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def _first(data: Any) -> Any:
    """The first recording of a batch."""
    return data.isel(utterance=0) if data is not None and "utterance" in data.dims else data


def _of_all_windows(data: Any) -> Any:
    """The first recording of a batch, its windows averaged where they have a value each, as spectra have, which are means over frames."""
    first = _first(data)
    return first.mean("window") if first is not None and "window" in first.dims else first


def _power(idata: InferenceData) -> NDArray[Any] | None:
    """Power of the mixture in dB, (T, F), when it was kept."""
    observed = _first(idata.get("observed_data"))
    if observed is None or "x" not in observed or set(observed["x"].dims) != {"frame", "freq", "part"}:
        return None
    power: NDArray[Any] = (observed["x"] ** 2).sum("part").transpose("frame", "freq").values
    return decibel(power)


def _time(idata: InferenceData) -> tuple[NDArray[Any], str]:
    """Where the frames are, (T,), and what to call it."""
    constants: Any = idata.get("constant_data", {})
    if "time" in constants:
        return constants["time"].values, "time (s)"
    n_frames = next(idata[group].sizes["frame"] for group in idata.groups() if "frame" in idata[group].sizes)
    return np.arange(n_frames), "frame"


def _nyquist(idata: InferenceData, n_freqs: int) -> tuple[float, str]:
    constants: Any = idata.get("constant_data", {})
    if "sample_rate" in constants:
        return float(constants["sample_rate"]) / 2000, "frequency (kHz)"
    return float(n_freqs), "frequency (bin)"


def _bands(values: Any) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of bins that were not observed, which have no value at all
        found: NDArray[Any] = values.quantile(BAND, ("chain", "draw"), skipna=True).values
    return found
