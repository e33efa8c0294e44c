"""Samplers of coupled frames: what the published acceptance of single frames gets wrong, and what windows cost and bring.

    python benchmarks/coupled.py [--chains 200] [--steps 1500] [--seconds 3] [--sweeps 30] [--windows 4 16] [--out FILE.md]

First a linear-Gaussian state-space model of 20 frames, whose posterior the Kalman smoother knows: the memory is in the prior (a chain) or in
the decoder (recurrent), the noise moderate or low. Errors are in standard deviations of the posterior. Then the bundled recording
under the chain on the codes of the VAE, with the noise as ``fast`` fits it: how far the latents move per second of the processor.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import torch

from ppse import STFT, Mixture, audio, methods, provenance
from ppse.demo import NOISY
from ppse.guides import starting_guide
from ppse.infer import (
    TARGET_ACCEPTANCE,
    Info,
    Kernel,
    LogDensity,
    Position,
    Windows,
    adapt_step_size,
    frame_windows,
    hmc,
    log_density,
    mala,
    metropolis,
    per_frame_acceptance,
    sample,
    windowed,
)
from ppse.inference import resume
from ppse.models import AutoregressiveVAESpeech, NMFNoise
from ppse.stft import level
from ppse.testing import StateSpace

Step = float | torch.Tensor
Maker = Callable[[LogDensity, Step, Position], Kernel]
KERNELS: dict[str, tuple[Maker, int]] = {"mala": (mala, 5), "hmc": (lambda target, step_size, scale: hmc(target, step_size, 10, scale), 1)}
"""With the steps that they take in a move of windows."""

FRAMES, BIN = 20, 3
"""Of the linear-Gaussian model."""


def samplers(target: LogDensity) -> dict[str, tuple[Kernel, int]]:
    """Kernels, and how many steps they take for each 100 of the published ones."""
    windows = frame_windows(target, 5)
    return {
        "HMC, utterances": (hmc(target, 0.08, 20), 20),
        "HMC, windows of 5": (windowed(target, windows, lambda t: hmc(t, 0.12, 12)), 20),
        "MHEM as published (step 0.1)": (per_frame_acceptance(target, lambda t: metropolis(t, 0.1)), 100),
        "MALAEM as published (step 0.01)": (per_frame_acceptance(target, lambda t: mala(t, 0.01)), 100),
    }


def errors(args: argparse.Namespace) -> list[str]:
    """Moments of the draws against the closed form."""
    lines = ["| memory in | noise | sampler | error of means, rms | largest | sd / true sd |", "|---|---|---|---|---|---|"]
    generator = torch.Generator().manual_seed(args.seed)
    x = torch.randn(FRAMES, BIN, generator=generator, dtype=torch.float64) * 2
    decoder = torch.randn(BIN, 2, generator=generator, dtype=torch.float64)
    for recurrent in (False, True):
        for noise in (1.0, 0.3):
            model = StateSpace(x, decoder, noise=noise, recurrent=recurrent)
            mean, covariance, _ = model.posterior()
            deviation = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
            target = log_density(model, chains=args.chains)
            for name, (kernel, share) in samplers(target).items():
                start = target.init({"z": mean}, jitter=0.1)
                steps = max(2, args.steps * share // 100)
                z = sample(target, kernel, start, max(1, steps // 20), warmup=steps // 3, thin=10).values["z"].flatten(0, 1)
                error, ratio = (z.mean(0) - mean).abs() / deviation, z.std(0) / deviation
                where = f"| {'decoder' if recurrent else 'prior'} | {noise:g} | {name} |"
                lines.append(f"{where} {error.square().mean().sqrt():.2f} | {error.max():.2f} | {ratio.min():.2f} to {ratio.max():.2f} |")
                print(lines[-1], flush=True)
    return lines


def speeds(args: argparse.Namespace) -> list[str]:
    """Squared distance that a latent moves, in variances of the encoder, per second of the processor."""
    wave = torch.from_numpy(audio.read_mono(NOISY))[: int(args.seconds * 16_000)]
    x = STFT().analysis(wave)
    x = x / level(x)
    model = Mixture(speech=AutoregressiveVAESpeech.pretrained(), noise=NMFNoise(rank=4, spacing=16))
    model.start(x)
    found = resume(model, x, methods.fast()).draws
    guide = starting_guide(model)
    assert guide is not None
    with torch.no_grad():
        scale = {site: law[1] for site, law in guide.laws(x).items()}
    target = log_density(model, x, chains=2)
    lines = [
        f"{len(wave) / 16_000:.1f} s, {len(x)} frames x {scale['speech.z'].shape[-1]} latents, 2 chains.", "",
        "| kernel | blocks | side by side | moves | step size | acceptance | squared move per sweep | CPU s per sweep | squared move per CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (kernel, steps) in KERNELS.items():
        for size in (None, *args.windows):
            windows = None if size is None else frame_windows(target, size)

            def made(e: Step, kernel: Maker = kernel, windows: Windows | None = windows, steps: int = steps) -> Kernel:
                return kernel(target, e, scale) if windows is None else windowed(target, windows, lambda t: kernel(t, e, t.local(scale)), steps)

            step_size, state = adapt_step_size(made, target.init(found), args.sweeps, 0.1, TARGET_ACCEPTANCE[name])
            before = time.process_time()
            draws = sample(target, made(step_size), state, args.sweeps)
            seconds = (time.process_time() - before) / args.sweeps
            z = draws.values["speech.z"]
            moved = float(((z[1:] - z[:-1]) / scale["speech.z"]).square().mean())
            assert isinstance(draws.stats, Info)
            blocks = ("utterance", 1, 1) if windows is None else (f"{size} frames", windows.parallel, windows.moves)
            lines.append(
                f"| {name} | {blocks[0]} | {blocks[1]} | {blocks[2]} | {float(step_size.mean()):.3f} | {float(draws.stats.acceptance.mean()):.2f} | "
                f"{moved:.4f} | {seconds:.2f} | {moved / seconds:.4f} |"
            )
            print(lines[-1], flush=True)
    return lines


def main(args: argparse.Namespace) -> None:
    """Print both tables, and write them."""
    torch.set_num_threads(args.threads)
    pyro.set_rng_seed(args.seed)
    tables = ["## Errors where the posterior is known", "", *errors(args), "", "## Moves on speech", "", *speeds(args)]
    if args.out:
        made = f"{provenance.sentence('torch', 'pyro-ppl')}. {args.threads} threads, seed {args.seed}. Command: `{provenance.command()}`"
        audio.write_text(args.out, "\n".join([*tables, "", made, ""]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=200, help="on the linear-Gaussian model")
    parser.add_argument("--steps", type=int, default=1500, help="of the published samplers on it; a fifth of the others")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the bundled recording")
    parser.add_argument("--sweeps", type=int, default=30, help="on it, after as many that tune the step size")
    parser.add_argument("--windows", type=int, nargs="+", default=[4, 16], help="frames of a window")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="Markdown file")
    main(parser.parse_args())
