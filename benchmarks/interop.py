"""One recording under an imported RVAE: the published Langevin EM, what saves time, and our methods.

    python benchmarks/interop.py --prior rvae.safetensors --noisy x.wav --clean s.wav --out interop.md

Scores are means over the seeds. Time is that of the processor, of as many threads as asked for, over the duration of the recording; that
of the published settings in the same run is the measure of the others, as other load on the machine slows both.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch

import ppse
from ppse import audio, methods, metrics, provenance
from ppse.enhance import RANK, SPACING
from ppse.methods import Method
from ppse.mixture import Source
from ppse.models import FrameGain, NMFNoise, RVAESpeech

METRICS = ("si_sdr", "pesq_wb", "estoi")


def rows(speech: RVAESpeech) -> dict[str, tuple[Method, Source, NMFNoise]]:
    """Method, speech and noise, by name."""
    published = FrameGain(speech), NMFNoise(8)
    ours = speech, NMFNoise(RANK, spacing=SPACING)
    langevin_em = partial(methods.langevin_em, step_size=0.1**0.5, persistence=0.0)  # a step of 0.1 in the terms of ld_em
    return {
        "published: 100 iterations, 10 particles": (methods.ld_em(), *published),
        "1 particle": (methods.ld_em(chains=1), *published),
        "1 particle, 30 averaged": (replace(methods.ld_em(chains=1), average=30), *published),
        "1 particle, 30 averaged, step 0.04": (replace(methods.ld_em(chains=1, step_size=0.04), average=30), *published),
        "1 particle, 20 of 40 averaged, step 0.06": (replace(methods.ld_em(40, 1, 0.06), average=20), *published),
        "tamed, 24 of 36 averaged, step 0.1, start as heard": (langevin_em(), *published),
        "the same without a gain per frame": (langevin_em(), speech, NMFNoise(8)),
        "and with the noise of default": (langevin_em(), *ours),
        "likelihood power 1": (langevin_em(likelihood_power=1.0), *ours),
        "two particles": (langevin_em(chains=2), *ours),
        "60 iterations": (langevin_em(60, average=40), *ours),
        "20 iterations": (langevin_em(20), *ours),
        "langevin_em: a momentum that lasts, step 0.2": (methods.langevin_em(), *ours),
        "default: 32 iterations of two particles, the noise settles first": (methods.default(), *ours),
        "fast: 5 iterations": (methods.fast(), *ours),
    }


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", type=Path, required=True, help="weights file of 'ppse import-dvae'")
    parser.add_argument("--noisy", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of rows")
    parser.add_argument("--out", type=Path, help="also write it to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clean, (noisy, rate) = audio.read(args.clean)[0][0], audio.read(args.noisy)
    before = metrics.score(clean, noisy[0], rate, METRICS)
    lines = ["| | SI-SDR (dB) | pesq_wb | ESTOI | real-time factor | part of the time |", "|---|---|---|---|---|---|",
             f"| noisy | {before['si_sdr']:.2f} | {before['pesq_wb']:.3f} | {before['estoi']:.3f} | | |"]
    whole = None
    for name, (method, speech, noise) in rows(RVAESpeech.pretrained(str(args.prior))).items():
        if args.only and name not in args.only:
            continue
        scores, factors = [], []
        for seed in range(args.seeds):
            started = time.process_time()
            result = ppse.enhance(args.noisy, ppse.Mixture(speech=speech, noise=noise), method, seed=seed)
            factors.append((time.process_time() - started) * rate / noisy.shape[1])
            scores.append(metrics.score(clean, result.estimates["speech"][0], rate, METRICS))
        factor = mean(factors)
        whole = whole or factor
        found = {metric: [score[metric] for score in scores] for metric in METRICS}
        spread = f" ± {stdev(found['si_sdr']):.2f}" if args.seeds > 1 else ""
        lines.append(f"| {name} | {mean(found['si_sdr']):.2f}{spread} | {mean(found['pesq_wb']):.3f} | {mean(found['estoi']):.3f} | "
                     f"{factor:.3f} | 1/{whole / factor:.1f} |")
        print(lines[-1], flush=True)
    made_by = f"{args.seeds} seeds, {args.threads} threads; {provenance.sentence('torch', 'pyro-ppl')}. Command: {provenance.command()}"
    text = "\n".join([*lines, "", made_by, ""])
    print(text)
    if args.out:
        audio.write_text(args.out, text)


if __name__ == "__main__":
    main()
