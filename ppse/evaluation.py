"""Scores of enhanced files against their clean references: per file, per SNR, per kind of noise."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import audio, metrics

TABLE = ("si_sdr", "pesq_wb", "estoi")
"""The metrics of the printed tables; the files hold all of them."""


class Item(NamedTuple):
    """One file to judge: waveform files of the reference, the noisy input and the estimate; what is known of the noise."""

    name: str
    clean: Path
    noisy: Path
    enhanced: Path
    snr: float | None = None
    noise_type: str | None = None


class Score(NamedTuple):
    """Metrics of one file, by name: of the noisy input and of the estimate."""

    name: str
    snr: float | None
    noise_type: str | None
    noisy: dict[str, float]
    enhanced: dict[str, float]


def items_from_manifest(manifest: str | os.PathLike[str], enhanced: str | os.PathLike[str]) -> list[Item]:
    """Pair the entries of a manifest with the files of the same stem in a folder of enhanced files.

    Raises:
        AudioError: when an entry has no enhanced file; the message gives the first.
    """
    from .mixing import read_manifest

    found = {path.stem: path for path in audio.find([enhanced])}
    items = []
    for name, entry in read_manifest(manifest).items():
        stem = Path(entry["noisy_wav"]).stem
        if stem not in found:
            raise audio.AudioError(f"{enhanced}: no enhanced file for '{stem}'; enhance the whole corpus first")
        items.append(Item(name, Path(entry["clean_wav"]), Path(entry["noisy_wav"]), found[stem], entry.get("snr"), entry.get("noise_type")))
    return items


def items_from_folders(clean: str | os.PathLike[str], noisy: str | os.PathLike[str], enhanced: str | os.PathLike[str]) -> list[Item]:
    """Pair the files of three folders by stem.

    Raises:
        AudioError: when an enhanced file has no partner.
    """
    folders = [{path.stem: path for path in audio.find([folder])} for folder in (clean, noisy, enhanced)]
    for stem, path in folders[2].items():
        if stem not in folders[0] or stem not in folders[1]:
            raise audio.AudioError(f"{path}: no file '{stem}' among the {'clean' if stem not in folders[0] else 'noisy'} ones")
    return [Item(stem, folders[0][stem], folders[1][stem], path) for stem, path in folders[2].items()]


def evaluate(items: Sequence[Item], report: Callable[[int, int], None] | None = None) -> list[Score]:
    """Score every item at 16 kHz, channels averaged; files are cut to the shortest of the three.

    Raises:
        AudioError: a file cannot be read or holds NaN, or lengths differ by more than a tenth of a second: no estimate of this recording.
    """
    scores = []
    for i, item in enumerate(items):
        clean, noisy, enhanced = (audio.read_mono(path, metrics.RATE) for path in (item.clean, item.noisy, item.enhanced))
        sizes = (clean.size, noisy.size, enhanced.size)
        n = min(sizes)
        if n == 0 or max(sizes) - n > metrics.RATE // 10:
            raise audio.AudioError(
                f"{item.enhanced}: the reference, noisy and enhanced file have {sizes} samples at {metrics.RATE} Hz; expected one length for all"
            )
        for path, wave in zip((item.clean, item.noisy, item.enhanced), (clean, noisy, enhanced), strict=True):
            audio.check(wave[None], str(path))
        scores.append(Score(item.name, item.snr, item.noise_type, metrics.score(clean[:n], noisy[:n]), metrics.score(clean[:n], enhanced[:n])))
        if report:
            report(i + 1, len(items))
    return scores


def summarise(scores: Sequence[Score], seed: int = 0) -> list[dict[str, Any]]:
    """Rows over all files, per SNR and per kind of noise: mean and median of input, estimate and gain, and the 95 % interval of the mean gain."""
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
            gain = after - before
            low, high = metrics.bootstrap_interval(list(gain), seed)
            row[metric] = {
                "noisy_mean": _mean(before), "enhanced_mean": _mean(after), "enhanced_median": _median(after),
                "gain_mean": _mean(gain), "gain_median": _median(gain), "gain_low": low, "gain_high": high,
            }
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as a table: mean of the noisy input, and mean gain with its 95 % interval."""
    lines = ["| | files | " + " | ".join(f"{m}: noisy | gain" for m in TABLE) + " |", "|---" * (2 + 2 * len(TABLE)) + "|"]
    for row in rows:
        cells = []
        for metric in TABLE:
            r, digits = row[metric], 2 if metric != "estoi" else 3
            cells.append(f"{r['noisy_mean']:.{digits}f} | {r['gain_mean']:+.{digits}f} [{r['gain_low']:+.{digits}f}, {r['gain_high']:+.{digits}f}]")
        lines.append(f"| {row['group']} | {row['files']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def to_json(scores: Sequence[Score], rows: Sequence[dict[str, Any]], seed: int, real_time_factor: float | None = None) -> str:
    """Results with what is needed to reproduce them: versions, seed, RTF where known, scores per file. What is not finite is null."""
    packages = ("ppse", "torch", "pyro-ppl", "numpy", "pesq", "pystoi")
    content = {
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "seed": seed, "real_time_factor": real_time_factor, "summary": list(rows), "files": [s._asdict() for s in scores],
    }
    return json.dumps(_finite(content), indent=1, allow_nan=False)


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
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")
