"""Sources that switch: quality and processor time of their methods on a corpus that `ppse mix` made.

    ppse mix --clean SPEECH --noise NOISE -o mixtures --snr 0 --snr 10 --count 4
    python benchmarks/switching.py mixtures [--count 4] [--seconds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import torch

from ppse import ComplexNormal, Mixture, audio, enhance, methods, metrics, mixing
from ppse.enhance import RANK, SPACING
from ppse.mixture import Source
from ppse.models import NMFNoise, SwitchingSpeech, VAESpeech


def quiet(frames: pyro.plate) -> ComplexNormal:
    """60 dB below a recording."""
    return ComplexNormal(0j, torch.full((frames.size, 513), 1e-6))


def with_quiet() -> Source:
    """Speech that pauses."""
    return SwitchingSpeech([VAESpeech.pretrained(), quiet], 0.9)


def twice() -> Source:
    """Two VAEs, which cost what two costs."""
    return SwitchingSpeech([VAESpeech.pretrained(), VAESpeech.pretrained()], 0.9)


ROWS: dict[str, tuple[Callable[[], Source], methods.Method]] = {
    "VAE: fast": (VAESpeech.pretrained, methods.fast()),
    "VAE, VAE: switching_vem": (twice, methods.switching_vem()),
    "VAE, quiet: switching_vem": (with_quiet, methods.switching_vem()),
    "VAE, quiet: switching_vem(factored=True)": (with_quiet, methods.switching_vem(factored=True)),
    "VAE, quiet: switching_gibbs(temperature=2.5)": (with_quiet, methods.switching_gibbs(temperature=2.5)),
}


def main() -> None:
    """Print a row for every method: means over the mixtures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, help="folder with the manifest.json of `ppse mix`")
    parser.add_argument("--count", type=int, default=4, help="mixtures, from the first")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each, from its start")
    parser.add_argument("--only", default="", help="rows whose name has this in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    entries = list(mixing.read_manifest(args.corpus / "manifest.json").values())[: args.count]
    print("| | SI-SDR (dB) | processor seconds per second |\n|---|---|---|")
    for name, (speech, method) in ROWS.items():
        if args.only not in name:
            continue
        scores, spent = [], 0.0
        for entry in entries:
            noisy, clean = (audio.read_mono(entry[key])[: int(mixing.RATE * args.seconds)] for key in ("noisy_wav", "clean_wav"))
            before = time.process_time()
            result = enhance(noisy, Mixture(speech=speech(), noise=NMFNoise(RANK, spacing=SPACING)), method)
            spent += (time.process_time() - before) * mixing.RATE / len(noisy)
            scores.append(metrics.si_sdr(clean, result.estimates["speech"][0]))
        print(f"| {name} | {np.mean(scores):.2f} | {spent / len(entries):.2f} |", flush=True)


if __name__ == "__main__":
    main()
