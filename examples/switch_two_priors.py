"""Switching between two priors: speech, and near silence. Which one sounds when is inferred, with a probability.

    python examples/switch_two_priors.py [--wav noisy.wav] [--plot regimes.png]
"""

from __future__ import annotations

import argparse

import pyro
import torch

import ppse
from ppse import demo, methods
from ppse.models import NMFNoise, SwitchingSpeech, VAESpeech
from ppse.regimes import plot_regimes, regime_posterior


def quiet(frames: pyro.plate) -> ppse.ComplexNormal:
    """A source is a function from the frames to a law of the STFT: this one is 40 dB below a recording."""
    return ppse.ComplexNormal(0j, torch.full((frames.size, 513), 1e-4))


def main(args: argparse.Namespace) -> None:
    """Enhance, and say who sounds when."""
    speech = SwitchingSpeech([VAESpeech.pretrained(), quiet], transition=0.95)  # probability of staying for another frame
    model = ppse.Mixture(speech=speech, noise=NMFNoise(rank=4, spacing=16))
    result = ppse.enhance(args.wav, model, methods.switching_vem(args.iterations), keep_run=True)
    times, probability = regime_posterior(result)
    for time, share in zip(times[::20], probability[::20], strict=True):
        print(f"{time:5.2f} s: speech with probability {share[0]:.2f}")
    if args.plot:
        plot_regimes(result, args.plot, experts=["speech", "quiet"])
        print(f"wrote {args.plot}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wav", default=demo.NOISY, help="a noisy recording; the bundled one unless given")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--plot", help="where to write the picture of the chain")
    main(parser.parse_args())
