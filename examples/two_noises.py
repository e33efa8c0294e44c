"""Sources add: speech, the noise of a machine that was recorded alone before, and whatever else there is.

    python examples/two_noises.py
"""

from __future__ import annotations

import argparse
import math

import torch

import ppse
from ppse import STFT, methods, metrics
from ppse.models import NMFNoise, StationaryNoise, VAESpeech, learn_dictionary
from ppse.sampling import sample_speech
from ppse.stft import level


def machine(length: int, generator: torch.Generator) -> torch.Tensor:
    """Harmonics of 110 Hz that beat, (length,)."""
    time = torch.arange(length) / 16_000
    phases = 2 * math.pi * torch.rand(20, 1, generator=generator)
    harmonics = torch.sin(2 * math.pi * 110 * torch.arange(1, 21).unsqueeze(1) * time + phases).sum(0)
    return 0.02 * harmonics * (1 + 0.8 * torch.sin(2 * math.pi * 3 * time))


def main(args: argparse.Namespace) -> None:
    """Learn the machine from an example, then separate three sources."""
    generator = torch.Generator().manual_seed(0)
    vae, stft = VAESpeech.pretrained(), STFT()
    clean = sample_speech(vae, seconds=2.0)
    hiss = 0.03 * torch.randn(len(clean), generator=generator)
    noisy = clean + machine(len(clean), generator) + hiss

    example = stft.analysis(machine(32_000, generator))
    dictionary = learn_dictionary((example / level(example).sqrt()).abs().square(), rank=4)
    model = ppse.Mixture(speech=vae, machine=NMFNoise(rank=0, dictionary=dictionary), hiss=StationaryNoise())
    result = ppse.enhance(noisy, model, methods.mala_em(iterations=args.iterations))

    estimate = result.estimates["speech"][0]
    print(f"sources: {', '.join(result.estimates)}")
    print(f"SI-SDR: {metrics.si_sdr(clean.numpy(), noisy.numpy()):.1f} dB -> {metrics.si_sdr(clean.numpy(), estimate):.1f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iterations", type=int, default=30)
    main(parser.parse_args())
