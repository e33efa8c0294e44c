"""Speed: real-time factor and peak memory per method and chains, batches of recordings, and what a Pyro trace costs against raw torch.

    python benchmarks/speed.py [--seconds 8] [--threads 2] [--out docs/speed.md]

The input is made here (modulated noise); speed does not depend on what is said. Every row is measured in a process of its own,
so its peak memory is that of the whole process: Python and torch, the model, the recording, the inference. Compare numbers
within one run only.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

import ppse
from ppse import STFT, audio, methods, provenance
from ppse.allocation import keep_freed_memory
from ppse.distributions import ComplexNormal
from ppse.enhance import RANK, SPACING
from ppse.infer import log_density
from ppse.inference import infer
from ppse.mixture import Source
from ppse.models import DKFSpeech, DSAESpeech, NMFNoise, RVAESpeech, SRNNSpeech, STORNSpeech, VAESpeech, VRNNSpeech
from ppse.stft import level

Row = tuple[str, Callable[[], str]]
"""Its name, and what measures the other cells."""
Prior = Callable[[], Source]
PRIORS: dict[str, Prior] = {  # as they are shipped, or else of the default sizes and never trained: speed does not depend on the weights
    "vae": VAESpeech.pretrained, "rvae": RVAESpeech.pretrained, "dkf": partial(DKFSpeech.pretrained, "dkf"),
    "dsae": DSAESpeech, "storn": STORNSpeech, "vrnn": VRNNSpeech, "srnn": SRNNSpeech,
}


def recording(seconds: float, batch: int = 0) -> Tensor:
    """STFT (T, F), or (batch, 1, T, F), of modulated noise at unit level."""
    n = int(seconds * 16_000)
    wave = torch.randn(*((batch, 1) if batch else ()), n) * (1.2 + torch.sin(torch.arange(n) * 2 * math.pi * 4 / 16_000))
    x = STFT().analysis(wave)
    return x / level(x).sqrt()


def problem(seconds: float, threads: int, batch: int = 0, prior: Prior = VAESpeech.pretrained) -> tuple[ppse.Mixture, Tensor]:
    """The default noise under a prior, and a recording; sets the number of threads and the seed, and what becomes of freed memory."""
    keep_freed_memory()  # as the command line does
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return ppse.Mixture(speech=prior(), noise=NMFNoise(RANK, spacing=SPACING)), recording(seconds, batch)


def timed(run: Callable[[], object], repeat: int) -> float:
    """Fastest of several runs, in seconds, after one that does not count."""
    run()
    best = math.inf
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def inference(name: str, options: dict[str, Any], seconds: float, threads: int, prior: Prior = VAESpeech.pretrained) -> str:
    """Cells of one method: seconds, RTF, peak memory."""
    model, x = problem(seconds, threads, prior=prior)
    method = getattr(methods, name)(**options).suited(model)
    taken = timed(lambda: infer(model, x, method), repeat=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{taken:.2f} | {taken / seconds:.3f} | {peak:.2f}"


def batch(prior: Prior, size: int, seconds: float, threads: int) -> str:
    """Cells of ``fast`` on so many recordings side by side, 0 being one that is no batch: wall and processor time per recording, peak memory."""
    model, x = problem(seconds, threads, size, prior)
    method = methods.fast().suited(model)

    def run() -> tuple[float, float]:
        before = time.perf_counter(), time.process_time()
        infer(model, x, method)
        return time.perf_counter() - before[0], time.process_time() - before[1]

    run()
    wall, processor = (min(times) / max(1, size) for times in zip(*(run() for _ in range(3)), strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return f"{wall:.3f} | {processor:.3f} | {peak:.2f}"


def trace_overhead(chains: int, seconds: float, threads: int) -> str:
    """Cells of one value and gradient: by the Pyro graph, by the same formula in raw torch, and their ratio."""
    model, x = problem(seconds, threads)
    model.requires_grad_(False)
    model.start(x)
    target = log_density(model, x, chains=chains)
    position = target.init()
    trace: Any = poutine.trace(model).get_trace(x)
    variance = trace.nodes["_RETURN"]["value"]["noise"].var.detach()
    speech = model.sources["speech"]
    assert isinstance(speech, VAESpeech)
    decoder, z0 = speech.decoder, position["speech.z"]

    def raw() -> None:
        z = z0.detach().requires_grad_()
        law = ComplexNormal(0j, decoder(z).exp() + variance, validate_args=False)
        (law.log_prob(x).sum() - 0.5 * z.square().sum()).backward()

    graph, plain = timed(lambda: target.value_and_grad(position), repeat=20), timed(raw, repeat=20)
    return f"{1e3 * graph:.1f} | {1e3 * plain:.1f} | {graph / plain:.2f}"


def tables(seconds: float, threads: int) -> dict[str, list[Row]]:
    """Rows by the header of their table."""
    run = partial(inference, seconds=seconds, threads=threads)
    names = ("fast", "default", "peem", "vem", "ld_em", "mala_em", "mcem")
    cells, short = "seconds | RTF | peak memory (GB)", min(seconds, 5.0)
    return {
        f"method | {cells}": [
            *((name, partial(run, name, {})) for name in names),
            *((f"rvae: {name}", partial(run, name, {}, prior=PRIORS["rvae"])) for name in ("fast", "default")),
        ],
        f"ld_em, chains | {cells}": [(str(c), partial(run, "ld_em", {"chains": c})) for c in (1, 4, 10)],
        **{
            f"{name} fast, recordings of {short:g} s in a batch | seconds per recording | processor seconds per recording | peak memory (GB)": [
                (str(size or "one at a time"), partial(batch, prior, size, short, threads)) for size in (0, 4, 8, 16)
            ] for name, prior in PRIORS.items()
        },
        "value and gradient, chains | graph (ms) | raw torch (ms) | ratio": [
            (str(c), partial(trace_overhead, c, seconds, threads)) for c in (1, 4)
        ],
    }


def main() -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="duration of the recording")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="the one row of this name in each table, e.g. fast")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    lines = [
        f"# Speed\n\n`python benchmarks/{provenance.command()}`\n\n"
        f"{args.seconds:g} s of audio, {args.threads} threads; {provenance.sentence('torch', 'pyro-ppl')}.\n"
        "Peak memory is that of the process of the row, Python and torch with it. Numbers of one machine, to be compared within this page."
    ]
    print(lines[0], flush=True)

    def tell(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, fresh, max_tasks_per_child=1) as pool:
        for header, rows in tables(args.seconds, args.threads).items():
            tell(f"\n| {header} |\n|{'---|' * header.count('|')}---|")
            for name, measure in rows:
                if args.only in (None, name):
                    tell(f"| {name} | {pool.submit(measure).result()} |")
    if args.out:
        audio.write_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
