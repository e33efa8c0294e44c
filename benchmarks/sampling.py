"""Samplers: effective draws per second of the latents of speech, under full Bayes, and whether chains agree.

    python benchmarks/sampling.py [--wav FILE] [--seconds 4] [--kernels hmc mala slice nuts] [--draws 300 300 300 30] [--warmup 300 300 300 30]
        [--out FILE.md]

One recording (the bundled one unless given), the VAE prior, and Bayesian NMF: W and H have weak Gamma priors. EM finds where all
chains start. ``hmc``, ``mala`` and ``slice`` are kernels for the latents of the frames, in turn (gibbs) with HMC for W and H, chains side by
side. ``nuts`` is Pyro's, on the same graph, with the same number of chains, one after another. Seconds are those of the processor;
compare them within one run only.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import ppse
from ppse import STFT, audio, methods, provenance
from ppse.convergence import convergence
from ppse.demo import NOISY
from ppse.infer import (
    Draws,
    Group,
    Kernel,
    LogDensity,
    Position,
    elliptical_slice,
    gibbs,
    hmc,
    log_density,
    mala,
    nuts,
    sample,
    tuned,
    whitened,
)
from ppse.inference import resume
from ppse.models import NMFNoise, VAESpeech
from ppse.priors import parameters_of, weak_priors
from ppse.stft import level

SITE = "speech.z"
RANK, SPACING = 2, 16
"""Of the Bayesian NMF."""

Factory = Callable[[LogDensity], Kernel]


class Problem(NamedTuple):
    """What all samplers get: the graph, its data, and the positions at which the chains start."""

    graph: ppse.priors.Graph
    x: Tensor
    start: Position
    scale: Position


def problem(wave: Tensor, chains: int) -> Problem:
    """Full Bayes of one recording; the chains start at what EM found for the noise, and at draws of the encoder."""
    x = STFT().analysis(wave)
    x = x / level(x).sqrt()
    model = ppse.Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(RANK, spacing=SPACING))
    model.start(x)
    guide = methods.starting_guide(model)
    assert guide is not None
    resume(model, x, methods.fast())
    graph = ppse.with_priors(model, weak_priors(model, x), x)
    target = log_density(graph, x, chains=chains)
    with torch.no_grad():
        loc, scale = guide.laws(x)[SITE]
    start = target.init(parameters_of(model, x) | {SITE: loc})
    start = {k: v + (scale if k == SITE else methods.START_SPREAD) * torch.randn_like(v) for k, v in start.items()}
    return Problem(graph, x, start, {SITE: scale})


def sweeps(of_frames: Factory, steps: int, warmup: int) -> Callable[[LogDensity], Kernel]:
    """Sweeps of so many steps of a kernel for the frames, and one of HMC for what they share."""
    shared = tuned(lambda t, e, f: whitened(t, f, lambda w: hmc(w, e, 15)), warmup, step_size=0.1, target_acceptance=0.8, dense=True)
    return lambda target: gibbs(target, Group((SITE,), of_frames, steps), Group(tuple(s for s in target.sites if s != SITE), shared))


def kernels(scale: Position, warmup: int) -> dict[str, Callable[[LogDensity], Kernel]]:
    """The in-plate samplers by name, with so many sweeps to adapt in."""

    def adapted(kernel: Callable[[LogDensity, Tensor], Kernel], steps: int, acceptance: float) -> Factory:
        def white(target: LogDensity, step_size: Tensor, factor: Position) -> Kernel:
            return whitened(target, factor, lambda t: kernel(t, step_size))

        return tuned(white, steps * warmup, step_size=0.3, target_acceptance=acceptance, scale=scale, dense=True)

    return {
        "hmc": sweeps(adapted(lambda t, e: hmc(t, e, 20), 1, 0.8), 1, warmup),
        "mala": sweeps(adapted(mala, 8, 0.574), 8, warmup),
        "slice": sweeps(elliptical_slice, 2, warmup),
    }


def measure(run: Callable[[Callable[[], None]], Draws], warmup: int) -> tuple[Draws, float, float]:
    """Draws, and processor seconds of the warm-up and of the draws, which others on the machine do not change.

    ``run`` gets what to call after every step, of one chain after another or of all at once.
    """
    times = [time.process_time()]
    draws = run(lambda: times.append(time.process_time()))
    steps = np.diff(times)
    chains = len(steps) // (warmup + len(draws.values[SITE]))
    per_chain = steps.reshape(chains, -1)
    return draws, float(per_chain[:, :warmup].sum()), float(per_chain[:, warmup:].sum())


def row(name: str, draws: Draws, warm: float, seconds: float) -> tuple[str, float]:
    """A line of the table, and the median effective sample size per second."""
    found = convergence(ppse.to_arviz(draws))
    assert found is not None
    rhat, ess = found.rhat[SITE].values, found.bulk[SITE].values
    rest = max(float(found.rhat[s].median()) for s in found.rhat.data_vars if s != SITE)
    rate = float(np.median(ess)) / seconds
    cells = [
        name, f"{draws.values[SITE].shape[1]} x {len(draws.values[SITE])}", f"{warm:.0f}", f"{seconds:.0f}", f"{(rhat <= 1.01).mean():.1%}",
        f"{np.quantile(rhat, 0.95):.3f}", f"{np.median(ess):.0f}", f"{np.quantile(ess, 0.05):.0f}", f"{rate:.3g}",
        f"{np.quantile(ess, 0.05) / seconds:.2g}", f"{rest:.2f}",
    ]
    return "| " + " | ".join(cells) + " |", rate


def main(args: argparse.Namespace) -> None:
    """Run all samplers, print the table as it grows, and write it."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    wave = torch.from_numpy(audio.read_mono(args.wav or NOISY))[: int(args.seconds * 16_000)]
    graph, x, start, scale = problem(wave, args.chains)
    lines = [
        f"{len(wave) / 16_000:.1f} s, {x.shape[0]} frames x {start[SITE].shape[-1]} latents, NMF of rank {RANK} with knots every {SPACING} frames.",
        "",
        "| kernel | chains x draws | warm-up (CPU s) | draws (CPU s) | latents with R-hat <= 1.01 | 95 % of R-hat | ESS, median | "
        "ESS, 5 % | ESS/s, median | ESS/s, 5 % | R-hat of W, H, median |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    rates = {}
    for name, count, warmup in zip(args.kernels, args.draws, args.warmup, strict=True):
        if name == "nuts":
            def run(note: Callable[[], None], count: int = count, warmup: int = warmup) -> Draws:
                return nuts(graph, x, num_samples=count, warmup=warmup, chains=args.chains, start=start, callback=lambda *_: note())
        else:
            target = log_density(graph, x, chains=args.chains)
            kernel = kernels(scale, warmup)[name](target)

            def run(
                note: Callable[[], None], count: int = count, warmup: int = warmup, target: LogDensity = target, kernel: Kernel = kernel,
            ) -> Draws:
                return sample(target, kernel, start, count, warmup=warmup, callback=lambda *_: note())

        line, rates[name] = row(name, *measure(run, warmup))
        lines.append(line)
        print(line, flush=True)
    if "nuts" in rates:
        ratios = ", ".join(f"{name} {rate / rates['nuts']:.0f}" for name, rate in rates.items() if name != "nuts")
        lines += ["", f"ESS/s, median over the latents, as multiples of that of NUTS: {ratios}."]
        print(lines[-1])
    if args.out:
        made = f"{provenance.sentence()} {args.threads} threads, seed {args.seed}. Command: `{provenance.command()}`"
        audio.write_text(args.out, "\n".join(["# Samplers", "", __doc__.split("\n\n")[2].strip(), "", *lines, "", made, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", help="noisy recording")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--kernels", nargs="+", default=["hmc", "mala", "slice", "nuts"], choices=["hmc", "mala", "slice", "nuts"])
    parser.add_argument("--draws", type=int, nargs="+", default=[300, 300, 300, 30], help="per chain, one number for each kernel")
    parser.add_argument("--warmup", type=int, nargs="+", default=[300, 300, 300, 30], help="steps to adapt in, one number for each kernel")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file")
    given = parser.parse_args()
    if not len(given.kernels) == len(given.draws) == len(given.warmup):
        parser.error("--kernels, --draws and --warmup need as many values each")
    main(given)
