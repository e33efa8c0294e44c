"""Speed: real-time factor per method, chains and batch size, peak memory, and what a Pyro trace costs against raw torch.

    python benchmarks/speed.py [--seconds 8] [--threads 2]

The input is made here (modulated noise); speed does not depend on what is said. Compare numbers within one run only.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ppse
from ppse import STFT, methods
from ppse.distributions import ComplexNormal
from ppse.infer import log_density
from ppse.inference import infer
from ppse.methods import Method
from ppse.models import NMFNoise, VAESpeech
from ppse.stft import level


def recording(seconds: float, batch: int = 0) -> Tensor:
    """STFT (T, F), or (batch, 1, T, F), of modulated noise at unit level."""
    n = int(seconds * 16_000)
    wave = torch.randn(*((batch, 1) if batch else ()), n) * (1.2 + torch.sin(torch.arange(n) * 2 * math.pi * 4 / 16_000))
    x = STFT().analysis(wave)
    return x / level(x).sqrt()


def timed(run: Callable[[], object], repeat: int = 3) -> float:
    """Fastest of several runs, in seconds, after one that does not count."""
    run()
    best = math.inf
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def row(name: str, seconds: float, audio: float) -> None:
    """Print one line of the table."""
    print(f"| {name} | {seconds:.2f} | {seconds / audio:.3f} |", flush=True)


def trace_overhead(model: ppse.Mixture, x: Tensor, chains: int) -> tuple[float, float]:
    """Seconds for one value and gradient: by the Pyro graph, and by the same formula in raw torch."""
    target = log_density(model, x, chains=chains)
    position = target.init()
    noise, decoder = model.sources["noise"], model.sources["speech"].decoder
    variance = (noise.H @ noise.W.mT).detach()
    z0 = position["speech.z"]

    def raw() -> None:
        z = z0.detach().requires_grad_()
        law = ComplexNormal(0j, decoder(z).exp() + variance, validate_args=False)
        (law.log_prob(x).sum() - 0.5 * z.square().sum()).backward()

    return timed(lambda: target.value_and_grad(position)), timed(raw)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of the recording")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = ppse.Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=8))

    print(f"{args.seconds:g} s of audio, {args.threads} threads\n\n| method | seconds | RTF |\n|---|---|---|")
    x = recording(args.seconds)
    table: list[Method] = [methods.fast(), methods.default(), methods.peem(), methods.vem(), methods.ld_em(), methods.mala_em(), methods.mcem()]
    for method in table:
        row(method.name, timed(lambda m=method: infer(model, x, m), repeat=1), args.seconds)

    print("\n| ld_em, chains | seconds | RTF |\n|---|---|---|")
    for chains in (1, 4, 10):
        row(str(chains), timed(lambda c=chains: infer(model, x, methods.ld_em(chains=c)), repeat=1), args.seconds)

    print("\n| fast, recordings per batch | seconds | RTF |\n|---|---|---|")
    for batch in (1, 4, 16):
        x_batch = recording(args.seconds, batch)
        row(str(batch), timed(lambda x=x_batch: infer(model, x, methods.fast()), repeat=1), args.seconds * batch)

    print("\n| value and gradient, chains | graph (ms) | raw torch (ms) | ratio |\n|---|---|---|---|")
    model.requires_grad_(False)
    model.start(x)
    for chains in (1, 4):
        graph, raw = trace_overhead(model, x, chains)
        print(f"| {chains} | {1e3 * graph:.1f} | {1e3 * raw:.1f} | {graph / raw:.2f} |")
    print(f"\npeak memory of the whole run: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
