"""Adaptation without labels: a prior to the recordings of one place, and its noisy encoder to one recording alone.

    python examples/adapt.py [--epochs 5] [--iterations 30]

Without recordings of your own, a fan hums over the bundled speech. From the command line: ppse adapt vae FOLDER -o adapted.safetensors
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

import ppse
from ppse import STFT, audio, demo, methods, metrics
from ppse.adaptation import Adaptation, Unlabelled, adapt
from ppse.models import NMFNoise, VAESpeech
from ppse.recordings import Recordings


def fan(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Air, and the blades of a rotor that does not quite keep its speed."""
    turn = 2 * np.pi * np.cumsum(95 + rng.standard_normal(samples).cumsum() / 500) / 16_000
    air = np.convolve(rng.standard_normal(samples), np.exp(-np.arange(30) / 6), "same")
    return air + sum(np.cos(k * turn + rng.uniform(0, 6)) for k in range(1, 20))


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="over the recordings")
    parser.add_argument("--iterations", type=int, default=30, help="of EM")
    asked = parser.parse_args()

    rng, clean = np.random.default_rng(0), audio.read_mono(demo.CLEAN)

    def in_the_room(snr: float) -> np.ndarray:
        noise = fan(clean.size, rng)
        return (clean + noise * np.sqrt(np.mean(clean**2) / np.mean(noise**2) / 10 ** (snr / 10))).astype(np.float32)

    # What is said in the room, as a recorder has it: nobody says what of it is speech.
    room = Recordings([torch.from_numpy(in_the_room(snr)) for snr in (-2.0, 0.0, 2.0, 4.0)], STFT())
    held = Recordings([torch.from_numpy(in_the_room(snr)) for snr in (-3.0, -1.0, 1.0, 3.0, 5.0)], STFT())
    vae, adapted = VAESpeech.pretrained(), VAESpeech.pretrained()
    with tempfile.TemporaryDirectory() as folder:
        _, verdict = adapt(adapted, Unlabelled(room), Unlabelled(held), Path(folder) / "best.safetensors", Adaptation(epochs=asked.epochs, batch=4))
    print(f"adapting to the room {verdict.sentence}")

    # A later recording, by the prior as it was, as it is, and adapted to this very recording as well.
    noisy = in_the_room(0.0)
    print(f"{'noisy':32s}SI-SDR {metrics.si_sdr(clean, noisy):5.1f} dB")
    for name, prior in (("shipped", vae), ("adapted to the room", adapted)):
        model = ppse.Mixture(speech=prior, noise=NMFNoise(rank=4, spacing=16))
        for method in (methods.hmc_em(asked.iterations, temperature=2.5), methods.adapt_em(asked.iterations)):
            estimate = ppse.enhance(noisy, model, method).estimates["speech"][0]
            print(f"{name + ', ' + method.name:32s}SI-SDR {metrics.si_sdr(clean, estimate):5.1f} dB")


if __name__ == "__main__":
    main()
