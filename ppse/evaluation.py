"""Scores of enhanced files against their clean references: per file, per SNR, per kind of noise."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import audio, metrics, provenance
from .pairing import Item

TABLE = ("si_sdr", "pesq_wb", "estoi")
"""The metrics of the printed tables; the files hold all of them."""

PACKAGES = ("torch", "pyro-ppl", "numpy", "pesq", "pystoi")
"""The packages whose versions are noted."""


class Score(NamedTuple):
    """Metrics of one file, by name: of the noisy input and of the estimate."""

    name: str
    snr: float | None
    noise_type: str | None
    noisy: dict[str, float]
    enhanced: dict[str, float]


def evaluate(items: Sequence[Item], report: Callable[[int, int], None] | None = None) -> tuple[list[Score], list[str]]:
    """Score every item; one that cannot be scored does not stop the others.

    Returns:
        the scores, and for every item without, the reason.
    """
    scores, problems = [], []
    for i, item in enumerate(items):
        try:
            scores.append(judge(item))
        except Exception as error:  # whatever befalls one file, the results of the others stay
            problems.append(audio.failure(error, item.enhanced))
        if report:
            report(i + 1, len(items))
    return scores, problems


def judge(item: Item) -> Score:
    """Scores of an item at 16 kHz, channels averaged; files are cut to the shortest of the three.

    Raises:
        AudioError: a file cannot be read or holds NaN, or lengths differ by more than a tenth of a second: no estimate of this recording.
    """
    clean, noisy, enhanced = (audio.read_mono(path, metrics.RATE) for path in (item.clean, item.noisy, item.enhanced))
    sizes = (clean.size, noisy.size, enhanced.size)
    n = min(sizes)
    if n == 0 or max(sizes) - n > metrics.RATE // 10:
        raise audio.AudioError(
            f"{item.enhanced}: the reference, noisy and enhanced file have {sizes} samples at {metrics.RATE} Hz; expected one length for all"
        )
    for path, wave in zip((item.clean, item.noisy, item.enhanced), (clean, noisy, enhanced), strict=True):
        audio.check(wave[None], str(path))
    return Score(item.name, item.snr, item.noise_type, metrics.score(clean[:n], noisy[:n]), metrics.score(clean[:n], enhanced[:n]))


def summarise(scores: Sequence[Score], seed: int = 0) -> list[dict[str, Any]]:
    """Rows over all files, per SNR and per kind of noise: mean and median of input, estimate and gain, and the 95 % interval of the mean gain.

    Gains that are not defined are left out of these, and counted ("undefined").
    """
    groups: dict[str, list[Score]] = {"all": list(scores)}
    by_snr: dict[float, list[Score]] = defaultdict(list)
    by_noise: dict[str, list[Score]] = defaultdict(list)
    for s in scores:
        if s.snr is not None:
            by_snr[s.snr].append(s)
        if s.noise_type is not None:
            by_noise[s.noise_type].append(s)
    groups |= {f"{snr:+g} dB": by_snr[snr] for snr in sorted(by_snr)} | {kind: by_noise[kind] for kind in sorted(by_noise)}
    rows = []
    for group, members in groups.items():
        row: dict[str, Any] = {"group": group, "files": len(members)}
        for metric in metrics.METRICS:
            before, after = (np.array([getattr(s, side)[metric] for s in members]) for side in ("noisy", "enhanced"))
            with np.errstate(invalid="ignore"):  # inf - inf
                gain = after - before
                low, high = metrics.bootstrap_interval(list(gain), seed)
                row[metric] = {
                    "noisy_mean": _mean(before), "enhanced_mean": _mean(after), "enhanced_median": _median(after),
                    "gain_mean": _mean(gain), "gain_median": _median(gain), "gain_low": low, "gain_high": high,
                    "undefined": int(np.isnan(gain).sum()),
                }
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as a table: mean of the noisy input, and mean gain with its 95 % interval; below, how many gains are not defined."""
    lines = ["| | files | " + " | ".join(f"{m}: noisy | gain" for m in TABLE) + " |", "|---" * (2 + 2 * len(TABLE)) + "|"]
    for row in rows:
        cells = []
        for metric in TABLE:
            r, digits = row[metric], 2 if metric != "estoi" else 3
            cells.append(f"{r['noisy_mean']:.{digits}f} | {r['gain_mean']:+.{digits}f} [{r['gain_low']:+.{digits}f}, {r['gain_high']:+.{digits}f}]")
        lines.append(f"| {row['group']} | {row['files']} | " + " | ".join(cells) + " |")
    missing = [f"{metric} of {rows[0][metric]['undefined']}" for metric in TABLE if rows[0][metric]["undefined"]]
    if missing:
        lines += ["", f"Not defined, and left out: {', '.join(missing)} of {rows[0]['files']} files."]
    return "\n".join(lines)


def to_json(
    scores: Sequence[Score], rows: Sequence[dict[str, Any]], seed: int, real_time_factor: float | None = None, problems: Sequence[str] = (),
) -> str:
    """Results with what is needed to reproduce them: command, versions, seed, RTF where known, scores per file. What is not finite is null."""
    content = {
        "command": provenance.command(), "versions": provenance.versions(*PACKAGES), "seed": seed, "real_time_factor": real_time_factor,
        "summary": list(rows), "files": [s._asdict() for s in scores], "left_out": list(problems),
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False)


def timing(path: str | os.PathLike[str]) -> float | None:
    """The real-time factor in the results of 'ppse enhance --json'.

    Raises:
        AudioError: when the file is none of these.
    """
    try:
        factor: float | None = json.loads(Path(path).read_text())["real_time_factor"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise audio.AudioError(f"{path}: no results of 'ppse enhance --json' ({type(error).__name__}: {error})") from error
    return factor


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the row over all files what a model card should say: mean of the noisy input, mean gain and its 95 % interval."""
    picked = {metric: {key: rows[0][metric][key] for key in ("noisy_mean", "gain_mean", "gain_low", "gain_high")} for metric in TABLE}
    result: dict[str, Any] = _finite({"files": rows[0]["files"], **picked})
    return result


def to_csv(scores: Sequence[Score]) -> str:
    """One line per file: noisy and enhanced value of every metric."""
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["name", "snr", "noise_type", *(f"{side}_{m}" for m in metrics.METRICS for side in ("noisy", "enhanced"))])
    for s in scores:
        writer.writerow([s.name, s.snr, s.noise_type, *(getattr(s, side)[m] for m in metrics.METRICS for side in ("noisy", "enhanced"))])
    return out.getvalue()


def _finite(value: Any) -> Any:
    """The same content with None in place of NaN and infinities, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if not np.isnan(values).all() else float("nan")
