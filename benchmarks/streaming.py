"""Streaming against offline inference with the same priors: scores, real-time factor, and what the look-ahead is worth.

    python benchmarks/streaming.py CORPUS/manifest.json [--prior vae rvae_causal] [--count 8] [--out docs/streaming_scores.md]

The corpus is one of 'ppse mix'; of its mixtures ``count`` are taken, spread evenly. Times are those of the processor, which says the
same whatever else the machine does, over the duration of the recordings: with one thread that is the real-time factor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ppse import Mixture, audio, choices, enhance, methods, metrics, provenance
from ppse.choices import PRIORS
from ppse.enhance import RANK, SPACING
from ppse.models import NMFNoise
from ppse.streaming import Stream
from ppse.weights import load_any

SCORES = ("si_sdr", "pesq_wb", "estoi")
Enhancer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def offline(prior: str, method: str) -> Enhancer:
    """The whole recording at once."""
    model = Mixture(speech=load_any(PRIORS, prior), noise=NMFNoise(RANK, spacing=SPACING))
    return lambda noisy: enhance(noisy, model, getattr(methods, method)()).estimates["speech"][0]


def streaming(prior: str, ears: str, look_ahead: int, piece: int = 1600) -> Enhancer:
    """Piece by piece, in blocks as long as the look-ahead allows."""
    model, heard_by = Mixture(speech=load_any(PRIORS, prior), noise=NMFNoise(RANK)), choices.ears(ears)

    def run(noisy: NDArray[np.float32]) -> NDArray[np.float32]:
        stream = Stream(model, look_ahead=look_ahead, ears=heard_by)
        return np.concatenate([*(stream.push(noisy[i : i + piece]) for i in range(0, len(noisy), piece)), stream.flush()])

    return run


def measured(enhancer: Enhancer, pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]]) -> str:
    """Cells of an enhancer: mean scores, SI-SDR without the first 1.5 s, and processor time over duration."""
    scores, late, seconds = [], [], 0.0
    for noisy, clean in pairs:
        start = time.process_time()
        estimate = enhancer(noisy)
        seconds += time.process_time() - start
        scores.append(list(metrics.score(clean, estimate, names=SCORES).values()))
        late.append(metrics.si_sdr(clean[24_000:], estimate[24_000:]))
    si_sdr, pesq, estoi = np.mean(scores, 0)
    factor = seconds / sum(len(noisy) / 16_000 for noisy, _ in pairs)
    return f"{si_sdr:.2f} | {np.mean(late):.2f} | {pesq:.2f} | {estoi:.3f} | {factor:.2f}"


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--prior", nargs="+", default=["vae"], help="shipped names or weights files")
    parser.add_argument("--ears", nargs="+", default=["ears_causal", "vae"], help="of the streams: shipped names or weights files")
    parser.add_argument("--method", nargs="+", default=["fast", "default"], help="offline methods")
    parser.add_argument("--look-ahead", nargs="+", type=int, default=[4], help="in frames")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    entries = list(json.loads(args.manifest.read_text()).values())
    chosen = entries[:: max(1, len(entries) // args.count)][: args.count]
    pairs = [(audio.read_mono(args.manifest.parent / e["noisy_wav"]), audio.read_mono(args.manifest.parent / e["clean_wav"])) for e in chosen]
    lines = [
        f"{len(pairs)} mixtures, {args.threads} thread; {provenance.sentence('torch', 'pyro-ppl')}.\n",
        "| prior | how | SI-SDR (dB) | from 1.5 s on | pesq_wb | ESTOI | RTF |", "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)

    def tell(prior: str, how: str, enhancer: Enhancer) -> None:
        lines.append(f"| {prior} | {how} | {measured(enhancer, pairs)} |")
        print(lines[-1], flush=True)

    tell("", "noisy", lambda noisy: noisy)
    for prior in args.prior:
        for method in args.method:
            tell(Path(prior).stem, method, offline(prior, method))
        for ears, look_ahead in product(args.ears, args.look_ahead):
            latency = 1e3 * Stream(look_ahead=look_ahead).latency
            tell(Path(prior).stem, f"stream, ears of {Path(ears).stem}, {latency:.0f} ms", streaming(prior, ears, look_ahead))
    if args.out:
        audio.write_text(args.out, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
