"""What trained ears are worth: as a one-pass enhancer, and as the start of EM.

    ppse mix --clean speech/dev --noise noise/dev -o corpus --count 120
    python benchmarks/amortised.py corpus/manifest.json --count 24

Scores are mean gains over the noisy recordings; times are of the process, on one thread, as ratios to `default` of the same prior. The second
table counts the iterations that EM needs, from the start that ears give and from the published one (the encoder for clean speech, random noise),
until its objective is that which the published start has reached in the end. Iterations in which the noise settles count like others.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import ppse
from ppse import Mixture, audio, choices, methods, metrics, pairing
from ppse.enhance import RANK, SPACING
from ppse.guides import clean_guide
from ppse.methods import Method
from ppse.models import NMFNoise, RVAESpeech, VAESpeech

RATE = 16_000


def gains(pairs: list[tuple[np.ndarray, np.ndarray]], model: Mixture, method: Method) -> tuple[np.ndarray, float]:
    """Mean gain in SI-SDR, pesq_wb and ESTOI, and processor seconds per second of sound."""
    found, began = [], time.process_time()
    estimates = [ppse.enhance(noisy, model, method).estimates["speech"][0] for noisy, _ in pairs]
    seconds = time.process_time() - began
    for estimate, (noisy, clean) in zip(estimates, pairs, strict=True):
        after, before = (metrics.score(clean, wave, RATE, ("si_sdr", "pesq_wb", "estoi")) for wave in (estimate, noisy))
        found.append([after[name] - before[name] for name in after])
    return np.mean(found, 0), seconds / (sum(noisy.size for noisy, _ in pairs) / RATE)


def iterations(pairs: list[tuple[np.ndarray, np.ndarray]], model: Mixture, ours: Method, theirs: Method, seen: int = 5) -> list[tuple[int, int]]:
    """For every recording, iterations that each method needs to the objective that the second ends at, by means over ``seen``."""
    needed = []
    for noisy, _ in pairs:
        mine, aims = (
            np.convolve(ppse.enhance(noisy, model, method).traces[0].objective, np.ones(seen) / seen, "valid") for method in (ours, theirs)
        )
        aim = aims[-10:].mean()
        needed.append((_first(mine, aim), _first(aims, aim)))
    return needed


def _first(objective: np.ndarray, aim: float) -> int:
    """The first iteration at which the aim is reached, counted from one; one past the last when it never is."""
    reached = np.flatnonzero(objective >= aim)
    return int(reached[0] if reached.size else objective.size) + 1


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path, help="of ppse mix")
    parser.add_argument("--count", type=int, default=24, help="recordings, spread over the corpus")
    parser.add_argument("--starts", type=int, default=8, help="of these, for the second table; 0 leaves it out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    items, problems = pairing.items_from_manifest(options.manifest, options.manifest.parent / "noisy")
    if problems:
        raise SystemExit("\n".join(problems))
    chosen = [items[round(i)] for i in np.linspace(0, len(items) - 1, options.count)]
    pairs = [(audio.read_mono(item.noisy, RATE), audio.read_mono(item.clean, RATE)) for item in chosen]
    vae, aware, rvae = VAESpeech.pretrained(), VAESpeech.pretrained("vae_aware"), RVAESpeech.pretrained("rvae")

    def nmf(speech: VAESpeech | RVAESpeech) -> Mixture:
        return Mixture(speech=speech, noise=NMFNoise(RANK, spacing=SPACING))

    heard_vae, heard_rvae = (choices.model(prior, "heard") for prior in ("vae_aware", "rvae"))
    rows: list[tuple[str, Mixture, Callable[[], Method]]] = [
        ("vae, NMF: `default`, unsupervised", nmf(vae), methods.default),
        ("vae, NMF: `amortised`, unsupervised", nmf(vae), methods.amortised),
        ("vae_aware, heard: `default`", heard_vae, methods.default),
        ("vae_aware, heard: `fast`", heard_vae, methods.fast),
        ("vae_aware, heard: `amortised`", heard_vae, methods.amortised),
        ("rvae, heard: `default`", heard_rvae, methods.default),
        ("rvae, heard: `fast`", heard_rvae, methods.fast),
        ("rvae, heard: `amortised`", heard_rvae, methods.amortised),
    ]
    print("| | SI-SDR (dB) | pesq_wb | ESTOI | s per s |\n|---|---|---|---|---|")
    for name, model, method in rows:
        mean, factor = gains(pairs, model, method())
        print(f"| {name} | {mean[0]:+.2f} | {mean[1]:+.3f} | {mean[2]:+.3f} | {factor:.3f} |", flush=True)
    if not options.starts:
        return
    print("\n| | iterations from the ears | from the published start |\n|---|---|---|")
    few = pairs[:: max(1, len(pairs) // options.starts)][: options.starts]
    frames_settled, frames_plain = methods.hmc_em(60), methods.hmc_em(60, settle=0)
    settled, plain = methods.langevin_em(60, settle=12), methods.langevin_em(60)
    contests = [
        ("vae_aware: `hmc_em(60)`, the noise settles for no iteration", aware, frames_plain, frames_plain),
        ("vae_aware: for 20 from either, as in `default`", aware, frames_settled, frames_settled),
        ("rvae: `langevin_em(60)`, for none", rvae, plain, plain),
        ("rvae: for 12 from the ears, for none from the published start", rvae, settled, plain),
        ("rvae: for 12 from either, as in `default`", rvae, settled, settled),
    ]
    for name, speech, ours, theirs in contests:
        mine, published = np.median(iterations(few, nmf(speech), ours, replace(theirs, guide=clean_guide)), 0)
        print(f"| {name}, median of {len(few)} | {mine:.0f} | {published:.0f} |", flush=True)


if __name__ == "__main__":
    main()
