"""What it is worth to know a part of the speech: labels of silence in noise, the surroundings of a gap, a band.

    python benchmarks/partial.py labels CORPUS [--snr -5] [--count 16] [--method fast]
    python benchmarks/partial.py gaps SPEECH [--count 20] [--seed 0]
    python benchmarks/partial.py band SPEECH [--count 20] [--cutoff 4000]

CORPUS is what `ppse mix` made. The labels are the pauses of the clean speech: 0.1 s or more in which every 10 ms are 30 dB below its
loud parts. "muted" is the enhancement without labels, set to zero where they say noise: what labels give without inference.

SPEECH is a folder of clean speech, in which gaps of 40, 80 and 120 ms are cut out where there is speech (20 dB below its loud parts, or more).
Told is the log-spectral distance (dB) in the frames whose centre lies in the gap, between what was there and the guess of each frame. Guesses
are frames themselves, linear in magnitude or in decibels between the whole frames on both sides, or the mean of the prior, which hears
nothing; and the mean log power when the lost samples follow the Gaussian law of ppse.gaps, with variances from such a line,
from a line between the frames of which 30 % are left, as the posterior hears them, or from the posterior itself.

For bands, SPEECH loses all above the cut-off. Told is the log-spectral distance there, powers more than 60 dB below the level of the recording
counting as that; and pesq_wb of the whole. Guesses are silence; the mean spectrum of the prior, as loud in every frame as the band that is
left; and the posterior, of the latents alone and with what departs from what they decode to, in 24 draws, the mean of their log-powers. Then how
often the magnitude of a bin is in the central 50 and 90 % of its law.
"""

from __future__ import annotations

import argparse
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

import ppse
from ppse import STFT, audio, inpainting, metrics, mixing
from ppse.choices import METHODS
from ppse.distributions import EXPECTED_LOG, power_of
from ppse.extension import Extension, extend
from ppse.gaps import faded, fill, touching
from ppse.given import labelled
from ppse.labels import Label
from ppse.mixture import Source
from ppse.models import CodePrior, VAESpeech
from ppse.stft import level

RATE = 16_000
MIDDLE = math.exp(EXPECTED_LOG)
"""Log powers of a Gaussian lie so far below its variance."""

METRICS = {"si_sdr": ("SI-SDR (dB)", 2), "pesq_wb": ("pesq_wb", 3), "estoi": ("ESTOI", 3)}
LENGTHS = (0.04, 0.08, 0.12)
LEVELS = (0.5, 0.9)
"""Of the intervals of magnitudes in a band."""

DRAWS = 24
CONTEXT = 0.3
"""Seconds around a gap that are cut out of the recording with it."""


def pauses(clean: NDArray[np.float32], shortest: float = 0.1) -> list[Label]:
    """The pauses of clean speech (N,): every 10 ms of them are 30 dB below the 95th percentile."""
    size = RATE // 100
    power = np.square(clean[: clean.size // size * size].reshape(-1, size)).mean(-1)
    quiet = np.concatenate([[False], power < 1e-3 * np.quantile(power, 0.95), [False]])
    edges = np.flatnonzero(np.diff(quiet.astype(int))).reshape(-1, 2) * size
    return [Label(start / RATE, end / RATE) for start, end in edges if end - start >= shortest * RATE]


def labels(args: argparse.Namespace) -> list[str]:
    """Mean gains over the noisy input, with labels, without, and muted."""
    entries = mixing.read_manifest(args.folder / "manifest.json").values()
    rows, seconds = defaultdict(list), 0.0
    for entry in (e for e in entries if e["snr"] == args.snr):
        clean, noisy = (audio.read_mono(entry[key]) for key in ("clean_wav", "noisy_wav"))
        known = pauses(clean)
        if not known or len(rows["labels"]) == args.count:
            continue
        plain, told = (
            ppse.enhance(noisy, method=METHODS[args.method](), seed=args.seed, given=given).estimates["speech"][0]
            for given in ([], [labelled(known)])
        )
        muted = plain.copy()
        for start, end, _ in known:
            muted[round(start * RATE) : round(end * RATE)] = 0
        before = metrics.score(clean, noisy, names=list(METRICS))
        for name, estimate in {"no labels": plain, "muted": muted, "labels": told}.items():
            scores = metrics.score(clean, estimate, names=list(METRICS))
            rows[name].append([scores[m] - before[m] for m in METRICS])
        seconds += sum(end - start for start, end, _ in known)
        print(f"{entry['utt_name']}: SI-SDR {rows['no labels'][-1][0]:+.1f} dB, with labels {rows['labels'][-1][0]:+.1f} dB", flush=True)
    count = len(rows["labels"])
    lines = [f"{count} mixtures at {args.snr:g} dB, {seconds / count:.1f} s of pauses each; mean gain over the noisy input, `{args.method}`.", ""]
    lines += ["| | " + " | ".join(label for label, _ in METRICS.values()) + " |", "|---" * 4 + "|"]
    for name, values in rows.items():
        cells = [f"{value:+.{digits}f}" for value, (_, digits) in zip(np.nanmean(values, 0), METRICS.values(), strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    told_gain = [a[0] - b[0] for a, b in zip(rows["labels"], rows["no labels"], strict=True)]
    low, high = metrics.bootstrap_interval(told_gain, args.seed)
    return [*lines, "", f"SI-SDR of labels over none: {np.mean(told_gain):+.2f} [{low:+.2f}, {high:+.2f}] dB."]


def prior_mean(prior: Source, draws: int = 200) -> Tensor:
    """Geometric mean of the variance of one frame under the prior, (F,)."""
    with torch.no_grad(), poutine.seed(rng_seed=0), pyro.plate("draws", draws, dim=-2):
        return prior(pyro.plate("frames", 1, dim=-1)).var.log().mean((0, 1)).exp()


def guesses(wave: Tensor, start: int, end: int, var: Tensor, stft: STFT, draws: int = 10) -> Tensor:
    """Mean log power (dB) of the frames when the gap follows its law under these variances, (T, F)."""
    found = []
    for drawn in fill(wave, start, end, var, stft, draws)[1]:
        found.append(_decibels(stft.analysis(torch.cat([wave[:start], drawn, wave[end:]]))))
    return torch.stack(found).mean(0)


def gaps(args: argparse.Namespace) -> list[str]:
    """Mean log-spectral distances."""
    random, stft, prior = np.random.default_rng(args.seed), STFT(), CodePrior.pretrained()
    mean_var = prior_mean(VAESpeech.pretrained())
    rows: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    files = audio.find([args.folder])
    started = time.monotonic()
    for number in random.permutation(len(files)):
        whole, margin = audio.read_mono(files[number]), round((CONTEXT + 0.2) * RATE)
        loud = np.convolve(whole**2, np.ones(640) / 640, "same")[margin:-margin]
        if whole.size < 3 * margin or len(rows["posterior, filled"][LENGTHS[0]]) == args.count:
            continue
        for length in LENGTHS:
            centre = margin + random.choice(np.flatnonzero(loud > 1e-2 * np.quantile(loud, 0.95)))
            low = centre - round((CONTEXT + length / 2) * RATE)
            wave = torch.from_numpy(whole[low : low + round((2 * CONTEXT + length) * RATE)])
            start, end = round(CONTEXT * RATE), round((CONTEXT + length) * RATE)
            truth = stft.analysis(wave)
            centres = torch.from_numpy(stft.centres(len(truth)) * RATE)
            inside, lost = (centres >= start) & (centres < end), touching(stft, len(truth), start, end)
            scale = level(truth[~lost])
            x, share = faded(wave, [(start, end)], stft)
            line = _between(truth.abs(), ~lost).square()
            found = {
                "line of magnitudes": line,
                "line of decibels": (2 * _between((truth.abs() + 1e-9).log(), ~lost)).exp(),
                "mean of the prior": mean_var.expand(truth.shape) * scale * MIDDLE,
            }
            given = {"line, filled": line, "line of what is left, filled": _between(x.abs(), share > inpainting.SHARE).square()}
            found = {name: 10 * (power + 1e-12).log10() for name, power in found.items()}
            with poutine.seed(rng_seed=args.seed):
                found |= {name: guesses(wave, start, end, var + 1e-4 * scale, stft) for name, var in given.items()}
            made = inpainting.inpaint(wave, [(start / RATE, end / RATE)], prior, seed=args.seed)
            found["posterior, filled"] = _decibels(stft.analysis(torch.from_numpy(made.draws[:, 0]))).mean(0)
            for name, guess in found.items():
                rows[name][length].append(float((guess - _decibels(truth))[inside].square().mean(-1).sqrt().mean()))
        print(f"{len(rows['posterior, filled'][LENGTHS[0]])} files, {time.monotonic() - started:.0f} s", flush=True)
    lines = [f"{len(rows['posterior, filled'][LENGTHS[0]])} gaps of each length; mean log-spectral distance in the gap (dB).", ""]
    rows = {name: rows[name] for name in sorted(rows, key=lambda name: name.startswith("posterior"))}
    lines += ["| | " + " | ".join(f"{1000 * length:.0f} ms" for length in LENGTHS) + " |", "|---" * 4 + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{np.mean(values):.2f}" for values in row.values()) + " |" for name, row in rows.items()]


def upper_band(args: argparse.Namespace) -> list[str]:
    """Mean log-spectral distances above the cut-off, and pesq_wb."""
    stft, mean_var = STFT(), prior_mean(VAESpeech.pretrained())
    known = torch.from_numpy(stft.frequencies < args.cutoff)
    rows = defaultdict(list)
    for file in np.random.default_rng(args.seed).permutation(audio.find([args.folder]))[: args.count]:
        clean = torch.from_numpy(audio.read_mono(file, RATE))
        truth = stft.analysis(clean)
        floor = 1e-6 * level(truth)
        narrow = stft.synthesis(truth * known, clean.numel())
        made = extend(narrow, args.cutoff, draws=DRAWS, seed=args.seed)
        sure = extend(narrow, args.cutoff, draws=DRAWS, departure=None, seed=args.seed)
        loudness = (power_of(truth) * known).sum(-1, keepdim=True) / (mean_var * known).sum()
        shaped = mean_var * loudness * ~known
        noise = stft.analysis(torch.randn(clean.shape, generator=torch.Generator().manual_seed(args.seed))) * math.sqrt(stft.n_fft / stft.hop)
        wave = (narrow + stft.synthesis(shaped.sqrt() * noise, clean.numel())).numpy()
        told = {
            "silence": Extension(RATE, narrow[None].numpy(), narrow[None, None].numpy(), torch.zeros_like(shaped)[None, None].numpy()),
            "mean of the prior, as loud as the lower band": Extension(RATE, wave[None], wave[None, None], shaped[None, None].numpy()),
            "posterior of the latents": sure,
            "posterior": made,
        }
        for name, law in told.items():
            middle = (torch.from_numpy(law.variances[:, 0]) * MIDDLE + floor).log10().mean(0)
            error = (middle - (power_of(truth) + floor).log10())[:, ~known]
            magnitude = truth.abs().numpy()
            inside = [((low[0] < magnitude) & (magnitude < high[0]))[:, ~known].mean() for low, high in map(law.interval, LEVELS)]
            rows[name].append((10 * float(error.square().mean(-1).sqrt().mean()), metrics.pesq_wb(clean.numpy(), law.estimate[0], RATE), *inside))
    lines = [f"{len(rows['posterior'])} recordings, above {args.cutoff:g} Hz.", ""]
    lines += ["| | distance (dB) | pesq_wb | in 50 % (%) | in 90 % (%) |", "|---|---|---|---|---|"]
    means = {name: np.nanmean(values, 0) for name, values in rows.items()}
    return lines + [f"| {name} | {d:.2f} | {q:.2f} | {100 * half:.0f} | {100 * most:.0f} |" for name, (d, q, half, most) in means.items()]


def _between(values: Tensor, known: Tensor) -> Tensor:
    """Values (T, F) of the known frames, and a straight line from the last one before the gap to the first one after it."""
    first, last = (~known).nonzero()[0] - 1, (~known).nonzero()[-1] + 1
    way = ((torch.arange(len(values)) - first) / (last - first)).unsqueeze(-1)
    return torch.where(known.unsqueeze(-1), values, values[first].lerp(values[last], way))


def _decibels(x: Tensor) -> Tensor:
    return 20 * (x.abs() + 1e-6).log10()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what: dict[str, Any] = {"labels": labels, "gaps": gaps, "band": upper_band}
    parser.add_argument("what", choices=what)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--snr", type=float, default=-5.0, help="dB, of the mixtures with labels")
    parser.add_argument("--count", type=int, default=16, help="mixtures, gaps of each length, or recordings")
    parser.add_argument("--cutoff", type=float, default=4000.0, help="Hz, below which a band is left")
    parser.add_argument("--method", default="fast", choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("\n".join(what[args.what](args)))


if __name__ == "__main__":
    main()
