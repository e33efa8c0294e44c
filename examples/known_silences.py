"""Telling the model where nobody speaks: labels of silence, in loud noise.

    python examples/known_silences.py [--wav noisy.wav --labels labels.txt --out clean.wav]

Without files, speech is drawn from the prior, with a pause, in noise whose colour changes; a person would see the pause in an editor.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import ppse
from ppse import STFT, audio, methods, metrics
from ppse.given import labelled
from ppse.labels import Label, read_labels
from ppse.models import NMFNoise, VAESpeech
from ppse.sampling import sample_speech


def simulated(generator: torch.Generator) -> tuple[np.ndarray, np.ndarray, list[Label]]:
    """Clean and noisy samples (N,), the noise 5 dB louder, and the labels of a pause and of the end."""
    clean = sample_speech(VAESpeech.pretrained(), seconds=2.4).numpy()
    labels = [Label(0.8, 1.3), Label(2.0, clean.size / 16_000)]
    for start, end, _ in labels:
        clean[round(start * 16_000) : round(end * 16_000)] = 0
    stft = STFT()
    noise = stft.analysis(torch.randn(clean.size, generator=generator))
    rising = torch.linspace(-2, 2, len(noise)).unsqueeze(-1) * torch.linspace(-1, 1, stft.n_freqs)
    coloured = stft.synthesis(noise * rising.exp(), clean.size).numpy()
    return clean, clean + coloured * (10 ** (5 / 20) * np.std(clean) / np.std(coloured)), labels


def main(args: argparse.Namespace) -> None:
    """Enhance without labels and with them."""
    clean = None
    if args.wav:
        noisy, rate = audio.read(args.wav)
        labels = read_labels(args.labels)
    else:
        clean, noisy, labels = simulated(torch.Generator().manual_seed(0))
        rate = 16_000
    model = ppse.Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=4, spacing=16))
    print(f"{sum(end - start for start, end, _ in labels):.1f} s of {np.atleast_2d(noisy).shape[1] / rate:.1f} s are labelled")
    for name, given in {"without labels": [], "with labels": [labelled(labels)]}.items():
        result = ppse.enhance(noisy, model, methods.hmc_em(args.iterations), sample_rate=rate, given=given)
        if clean is not None:
            estimate = result.estimates["speech"][0]
            print(f"{name}: SI-SDR {metrics.si_sdr(clean, noisy):.1f} dB -> {metrics.si_sdr(clean, estimate):.1f} dB")
    if args.out:
        result.save(args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wav", type=Path, help="a noisy recording")
    parser.add_argument("--labels", type=Path, help="its labels: a track of Audacity, or CSV")
    parser.add_argument("--out", type=Path, help="where to write the speech found with labels")
    parser.add_argument("--iterations", type=int, default=40)
    arguments = parser.parse_args()
    if bool(arguments.wav) != bool(arguments.labels):
        parser.error("give both --wav and --labels, or neither")
    main(arguments)
