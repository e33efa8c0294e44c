"""Tables and curves of benchmarks/semi.py, with 95 % bootstrap bands over the test files, averaged over the seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppse.audio import write_text
from ppse.metrics import bootstrap_interval

Row = dict[str, Any]
METRICS = {"si_sdr": "SI-SDR (dB)", "pesq_wb": "pesq_wb", "estoi": "ESTOI"}
NOISES = ("matched", "mismatched")
UNSUPERVISED = {"arm": "unsupervised", "by": "one pass"}


def gains(rows: Sequence[Row], metric: str, noise: str, **cell: Any) -> dict[tuple[str, float], float]:
    """(file, seed) → by how much a cell is better than the noisy recording."""
    noisy = {row["file"]: row[metric] for row in rows if row["arm"] == "noisy" and row["noise"] == noise}
    chosen = [row for row in rows if row["noise"] == noise and all(row[key] == value for key, value in cell.items())]
    return {(row["file"], row["seed"]): row[metric] - noisy[row["file"]] for row in chosen}


def band(found: dict[tuple[str, float], float]) -> tuple[float, float, float]:
    """Mean of (file, seed) → value, and the ends of its 95 % bootstrap interval over files; values that are not defined are left out."""
    values = over(found, 0)
    return float(values.mean()), *bootstrap_interval(values)


def over(found: dict[tuple[str, float], float], key: int) -> NDArray[np.floating]:
    """Means of (file, seed) → value for every file (key 0), or for every seed (key 1)."""
    groups: dict[str | float, list[float]] = {}
    for place, value in found.items():
        if np.isfinite(value):
            groups.setdefault(place[key], []).append(value)
    return np.array([np.mean(group) for group in groups.values()])


def write(rows: Sequence[Row], out: Path) -> None:
    """``semi.md`` and ``semi.png`` in the folder, of the scores so far."""
    seen = list(dict.fromkeys((row["arm"], row["labelled"], row["unlabelled"], row["by"]) for row in rows if row["arm"] != "noisy"))
    if not seen:
        return
    lines = _head("trained", "labelled", "unlabelled", "by", "seeds")
    for arm, labelled, unlabelled, by in seen:
        cell = {"arm": arm, "labelled": labelled, "unlabelled": unlabelled, "by": by}
        entries = [_entry(gains(rows, m, noise, **cell)) for noise in NOISES for m in METRICS]
        seeds = len({row["seed"] for row in rows if all(row[key] == value for key, value in cell.items())})
        lines.append(f"| {arm} | {100 * labelled:g} % | {100 * unlabelled:g} % | {by} | {seeds} | " + " | ".join(entries) + " |")
    lines += ["", "Semi-supervised with 5 % labelled and all else unlabelled, better by (one pass, same files and seeds; in brackets by seed):", ""]
    ours = {"arm": "semi", "labelled": 0.05, "unlabelled": 1.0, "by": "one pass"}
    lines += _differences(rows, "than", {name: (ours, other) for name, other in {
        "unsupervised, one pass": UNSUPERVISED,
        "unsupervised, fast": {"arm": "unsupervised", "by": "fast"},
        "supervised on the same 5 %": {"arm": "supervised", "labelled": 0.05},
        "supervised on 100 %": {"arm": "supervised", "labelled": 1.0},
        "the same without labels": {**ours, "labelled": 0.0},
        "the same without unlabelled recordings": {**ours, "unlabelled": 0.0},
    }.items()})
    lines += ["", "Semi-supervised, better than unsupervised by (one pass, same files and seeds):", ""]
    mixes = sorted({(row["labelled"], row["unlabelled"]) for row in rows if row["arm"] == "semi"})
    lines += _differences(rows, "labelled, unlabelled", {
        f"{100 * labelled:g} %, {100 * unlabelled:g} %": ({**ours, "labelled": labelled, "unlabelled": unlabelled}, UNSUPERVISED)
        for labelled, unlabelled in mixes
    })
    rows = of_shared_seeds(rows)
    lines += ["", "The labelled share from which the mean of supervised is that of semi-supervised with the same labels, or better:", ""]
    lines += [f"* {METRICS[m]}, {noise}: {crossing(rows, m, noise)}" for noise in NOISES for m in METRICS]
    write_text(out / "semi.md", "\n".join(lines) + "\n")
    _plot(rows, out / "semi.png")


def of_shared_seeds(rows: Sequence[Row]) -> list[Row]:
    """Those in one pass of the seeds that every training was done with, and the noisy recordings: what curves may be drawn through."""
    seeds: dict[tuple[Any, ...], set[float]] = {}
    for row in rows:
        if row["by"] == "one pass":
            seeds.setdefault((row["arm"], row["labelled"], row["unlabelled"]), set()).add(row["seed"])
    shared = set.intersection(*seeds.values())
    return [row for row in rows if row["arm"] == "noisy" or (row["by"] == "one pass" and row["seed"] in shared)]


def _head(*titles: str) -> list[str]:
    columns = [*titles, *(f"{METRICS[m]}, {noise}" for noise in NOISES for m in METRICS)]
    return ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]


def _differences(rows: Sequence[Row], title: str, pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """A table of the means of one cell less another, by name; of those that were measured."""
    lines = _head(title)
    for name, (ours, other) in pairs.items():
        entries = []
        for noise in NOISES:
            for m in METRICS:
                a, b = gains(rows, m, noise, **ours), gains(rows, m, noise, **other)
                entries.append(_entry({key: a[key] - b[key] for key in a if key in b}, seeds=True))
        if any(entries):
            lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return lines


def crossing(rows: Sequence[Row], metric: str, noise: str) -> str:
    """Where the line of the supervised network reaches that of the semi-supervised, over the labelled shares of both."""
    def line(**cell: Any) -> dict[float, float]:
        found = {x: gains(rows, metric, noise, labelled=x, **cell) for x in sorted({row["labelled"] for row in rows})}
        return {x: band(values)[0] for x, values in found.items() if values}

    ours, theirs = line(arm="semi", unlabelled=1.0, by="one pass"), line(arm="supervised")
    both = [x for x in ours if x in theirs]
    reached = [x for x in both if theirs[x] >= ours[x]]
    return f"{100 * reached[0]:g} %" if reached else f"none of {', '.join(f'{100 * x:g} %' for x in both)}"


def _entry(found: dict[tuple[str, float], float], seeds: bool = False) -> str:
    if not found:
        return ""
    mean, low, high = band(found)
    means = over(found, 1)
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" + (f" ({', '.join(f'{x:.2f}' for x in means)})" if seeds and len(means) > 1 else "")


def _plot(rows: Sequence[Row], path: Path) -> None:
    """Gain against the labelled fraction, and against the amount of unlabelled speech, in both kinds of noise."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fractions = sorted({row["labelled"] for row in rows})
    amounts = sorted({row["unlabelled"] for row in rows if row["arm"] == "semi"})
    columns = 2 if len(amounts) > 1 else 1  # for each kind of noise
    figure, axes = plt.subplots(2, 2 * columns, figsize=(8 * columns, 7), squeeze=False)
    for i, metric in enumerate(("si_sdr", "pesq_wb")):
        for j, noise in enumerate(NOISES):
            left = axes[i][columns * j]

            def draw(axis: Any, arm: str, key: str, keep: Callable[[Row], bool], at: Sequence[float], m: str = metric, n: str = noise) -> None:
                kept = [row for row in rows if row["arm"] in ("noisy", arm) and (row["arm"] == "noisy" or (row["by"] == "one pass" and keep(row)))]
                points = [(x, band(found)) for x in at if (found := gains(kept, m, n, arm=arm, **{key: x}))]
                if points:
                    places = [list(at).index(x) for x, _ in points]
                    mean, low, high = zip(*(b for _, b in points), strict=True)
                    axis.errorbar(places, mean, [np.subtract(mean, low), np.subtract(high, mean)], fmt="o-", capsize=3, label=arm)

            draw(left, "semi", "labelled", lambda row: row["unlabelled"] == 1.0, fractions)
            draw(left, "supervised", "labelled", lambda _: True, fractions)
            if none := gains(rows, metric, noise, arm="unsupervised", by="one pass"):
                mean, low, high = band(none)
                left.axhline(mean, color="k", label="unsupervised")
                left.axhspan(low, high, color="k", alpha=0.1)
            left.set(xticks=range(len(fractions)), xticklabels=[f"{100 * f:g} %" for f in fractions], xlabel="labelled", title=f"{noise} noise")
            if columns > 1:
                right = axes[i][columns * j + 1]
                draw(right, "semi", "unlabelled", lambda row: row["labelled"] == 0.05, amounts)
                right.set(xticks=range(len(amounts)), xticklabels=[f"{100 * a:g} %" for a in amounts], xlabel="unlabelled, at 5 % labelled")
            left.set_ylabel(f"gain in {METRICS[metric]}")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="upper center", ncols=3)
    figure.tight_layout(rect=(0, 0, 1, 0.95))
    figure.savefig(path, dpi=120)
    plt.close(figure)
