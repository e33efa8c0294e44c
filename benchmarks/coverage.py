"""Coverage: how often posterior intervals of speech hold the truth, on mixtures and on data from the model; and what recalibration mends.

    ppse mix --clean speech/train --noise noise/train --out fitted --count 24 --seed 2
    ppse mix --clean speech/dev --noise noise/dev --out held --count 24 --seed 1
    python benchmarks/coverage.py held/manifest.json --fit fitted/manifest.json --out coverage.md --save recalibration.json

Without ``--fit``, the recalibration that ships with the package is judged. The two corpora must have no speaker and no noise in common.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.special import ndtr

import ppse
from ppse import audio, methods, metrics, mixing, provenance, recalibration, uncertainty
from ppse.distributions import ComplexNormal
from ppse.inference import Keep, infer
from ppse.methods import Method
from ppse.mixture import Frames, draw_sources
from ppse.models import VAESpeech
from ppse.recalibration import Recalibration
from ppse.uncertainty import coverage, draws_pit, magnitude_pit, stft_law

DRAWS = 39
"""Ranks among 39 draws have the ends of all intervals on draws."""

ADAPT = 150
"""Iterations in which step sizes are tuned on data from the model. With 30, as in EM, some frames keep a step at which they hardly move."""

SPEECH = 0.1
"""A bin carries speech when its posterior mean power is more than this share of the mean over the recording: the truth has no say in it."""

PACKAGES = ("torch", "pyro-ppl", "numpy", "scipy")


class Case(NamedTuple):
    """One enhanced mixture: law and truth of its STFT (T, F), and of its waveform draws (DRAWS, N), estimate and truth (N,)."""

    law: ComplexNormal
    truth: torch.Tensor
    draws: NDArray[np.float32]
    estimate: NDArray[np.float32]
    clean: NDArray[np.float32]

    @property
    def deviation(self) -> NDArray[np.float32]:
        """Of the samples, (N,)."""
        found: NDArray[np.float32] = self.draws.std(0, ddof=1)
        return found


def enhanced(manifest: Path, method: Method, seconds: float, kept: Path | None, count: int | None = None) -> list[Case]:
    """The first seconds of the first mixtures, enhanced; read from the folder ``kept`` when it has them."""
    cases = []
    for key, entry in track(list(mixing.read_manifest(manifest).items())[:count], f"{method.name:12}"):
        file = kept / f"{manifest.parent.name}-{method.name}-{key}.npz" if kept else None
        noisy, clean = (audio.read_mono(entry[part])[: int(seconds * mixing.RATE)] for part in ("noisy_wav", "clean_wav"))
        if file is not None and file.exists():
            with np.load(file) as stored:
                law = ComplexNormal(torch.from_numpy(stored["loc"]), torch.from_numpy(stored["var"]))
                draws, estimate = stored["draws"], stored["estimate"]
        else:
            result = ppse.enhance(noisy, method=method, std=True, draws=DRAWS)
            law, draws, estimate = stft_law(result), result.draws["speech"][:, 0], result.estimates["speech"][0]
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                np.savez(file, loc=law.loc, var=law.var, draws=draws, estimate=estimate)
        cases.append(Case(law, ppse.STFT().analysis(torch.from_numpy(clean)), draws, estimate, clean))
    return cases


def fitted(cases: Sequence[Case], words: str) -> Recalibration:
    """What these cases teach."""
    return recalibration.fit([case[:2] for case in cases], [case.deviation for case in cases], [case.clean - case.estimate for case in cases], words)


def rows(name: str, cases: Sequence[Case], mended: Recalibration) -> list[str]:
    """Lines of the table of one method, before and after recalibration."""
    measured: dict[str, list[list[float]]] = {name: [], "… by STFT of draws": [], "… recalibrated": []}
    for case in cases:
        power = case.law.loc.abs().square() + case.law.var
        carries = (power > SPEECH * power.mean()).numpy()
        error, sample_error = (case.truth - case.law.loc).abs().numpy(), case.clean - case.estimate
        law_error = (case.law.sample() - case.law.loc).abs()
        drawn = ppse.STFT().analysis(torch.from_numpy(case.draws))
        wave = draws_pit(case.draws, case.clean)
        widened = ndtr(sample_error / (mended.waveform * np.maximum(case.deviation, 1e-12)))
        for row, (pit, std, samples) in zip(measured, (
            (magnitude_pit(case.law, case.truth), case.law.var.sqrt().numpy(), wave),
            (draws_pit(drawn.abs(), case.truth.abs()), drawn.std(0).numpy(), wave),
            (mended.pit(case.law, case.truth), mended.std(case.law), widened),
        ), strict=True):
            shares = [share for values, where in ((pit, None), (pit, carries), (samples, None)) for share in coverage(values, where=where).values()]
            ratio = float(np.sqrt(np.square(error).mean() / np.square(std).mean()))
            measured[row].append([*shares, ratio, uncertainty.error_correlation(std, error), uncertainty.error_correlation(case.law.var, law_error)])
    return [_row(row, np.array(values)) for row, values in measured.items()]


def _row(name: str, values: NDArray[np.floating]) -> str:
    """A line of the table: means over the recordings, (recordings, columns)."""
    mean = values.mean(0)
    groups = [" / ".join(f"{100 * share:.0f}" for share in mean[i : i + 3]) for i in (0, 3, 6)]
    low, high = metrics.bootstrap_interval(values[:, 1])
    return f"| {name} | {' | '.join(groups)} | [{100 * low:.0f}, {100 * high:.0f}] | {mean[9]:.2f} | {mean[10]:.2f} | {mean[11]:.2f} |"


HEAD = """| | all bins | bins with speech | samples | 80 % of all bins | RMS error / deviation | correlation | if the law held |
|---|---|---|---|---|---|---|---|"""


def simulated(replicates: int, n_frames: int, seed: int) -> str:
    """Lines of the table for data from the model itself: the shipped prior of speech in known noise, sampled by ``hmc_em`` at temperature 1."""
    stft = ppse.STFT()
    with poutine.seed(rng_seed=seed), torch.no_grad():
        noise = 1 / (1 + torch.arange(stft.n_freqs) / 32)

        def known(frames: Frames) -> ComplexNormal:
            return ComplexNormal(0j, noise.expand(frames.size, -1))

        model = ppse.Mixture(speech=VAESpeech.pretrained(), noise=known)
        like = torch.ones(replicates, 1, n_frames, stft.n_freqs, dtype=torch.complex64)
        trace = poutine.trace(poutine.uncondition(model)).get_trace(like)
        x, laws = trace.nodes["x"]["value"], trace.nodes["_RETURN"]["value"]
        truth = draw_sources(laws, x)["speech"]
        found = infer(model, x, methods.hmc_em(iterations=ADAPT + DRAWS * 10, adapt=ADAPT, average=DRAWS * 10), keep=Keep(DRAWS))
    law, draws = found.sources["speech"], found.source_draws["speech"]
    ranks, rice = draws_pit(draws.abs().numpy(), truth.abs().numpy()), magnitude_pit(law, truth)
    lines = ["| | all bins | 80 % interval, over replicates |", "|---|---|---|"]
    for name, pit in (("intervals of draws", ranks), ("intervals of the law CN(mean, variance)", rice)):
        per_replicate = np.array([list(coverage(values).values()) for values in pit])
        low, high = metrics.bootstrap_interval(per_replicate[:, 1])
        shares = " / ".join(f"{100 * share:.1f}" for share in per_replicate.mean(0))
        lines.append(f"| {name} | {shares} | [{100 * low:.1f}, {100 * high:.1f}] |")
    return "\n".join(lines)


def main() -> None:
    """Enhance, fit, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path, help="of the mixtures to judge by, from 'ppse mix'")
    parser.add_argument("--fit", type=Path, help="manifest of mixtures of other speakers and noises to fit the recalibration on")
    parser.add_argument("--methods", nargs="+", default=["fast", "default", "hmc_em", "full_bayes"], choices=[m.__name__ for m in methods.ALL])
    parser.add_argument("--count", type=int, help="of mixtures to judge by, the first of the manifest; all unless given")
    parser.add_argument("--seconds", type=float, default=3.0, help="of every mixture")
    parser.add_argument("--replicates", type=int, default=20, help="of the simulation from the model; 0 for none")
    parser.add_argument("--kept", type=Path, help="folder to keep results of mixtures in, which a later run reads")
    parser.add_argument("--save", type=Path, help="where to write the recalibration that was fitted; other methods in that file stay")
    parser.add_argument("--out", type=Path, help="where to write the page")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = []
    if args.replicates:
        parts = [f"Data from the model, {args.replicates} replicates of 50 frames:", "", simulated(args.replicates, 50, seed=0), ""]
    table, learnt = [HEAD], dict[str, Recalibration]()
    for name in args.methods:
        method = getattr(methods, name)()
        if args.fit:
            words = f"{len(mixing.read_manifest(args.fit))} mixtures, the first {args.seconds:g} s of each; {provenance.sentence(*PACKAGES)}"
            learnt[name] = fitted(enhanced(args.fit, method, args.seconds, args.kept), words)
        mended = learnt[name] if args.fit else recalibration.shipped(name)
        with poutine.seed(rng_seed=0):
            cases = enhanced(args.manifest, method, args.seconds, args.kept, args.count)
            table += rows(name, cases, mended)
    if args.save:
        stored = json.loads(args.save.read_text()) if args.save.exists() else {}
        audio.write_text(args.save, json.dumps(stored | {name: found._asdict() for name, found in learnt.items()}, indent=1) + "\n")
    parts += [f"{len(cases)} mixtures, the first {args.seconds:g} s of each:", "", *table, ""]
    parts += [f"Made by `python benchmarks/{provenance.command()}`; {provenance.sentence(*PACKAGES)}.", ""]
    page = "\n".join(parts)
    if args.out:
        audio.write_text(args.out, page)
    print(page, end="")


if __name__ == "__main__":
    main()
