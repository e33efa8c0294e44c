"""A model with three regimes, declared from its parts: silence, hiss-like sounds, voiced sounds; its chain is learnt from the recording.

    python examples/three_regimes.py
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch

import ppse
from ppse import STFT
from ppse.inference import Keep, resume
from ppse.methods import switching_gibbs, switching_vem
from ppse.models import MarkovChain, StationaryNoise, SwitchingSpeech

NAMES = ("silence", "hiss", "voice")
STAY = torch.tensor([[0.95, 0.05, 0.0], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]])  # silence -> hiss -> voice -> silence


def flat(power: float) -> ppse.mixture.Source:
    """A source without latents."""
    return lambda frames: ppse.ComplexNormal(0j, torch.full((frames.size, STFT().n_freqs), power))


class Coloured(pyro.nn.PyroModule):
    """Any spectrum from one number per frame: its level goes up or down along a shape."""

    def __init__(self, shape: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("shape", shape)

    def forward(self, frames: pyro.plate) -> ppse.ComplexNormal:
        with frames:
            level = pyro.sample("level", dist.Normal(torch.zeros(1), 0.5).to_event(1))
        return ppse.ComplexNormal(0j, (self.shape + level).exp())


def main(args: argparse.Namespace) -> None:
    """Draw a recording from the model, then infer its regimes and learn the transition between them."""
    torch.manual_seed(0)
    tilt = torch.linspace(-1.5, 1.5, STFT().n_freqs)
    experts = [flat(1e-4), Coloured(tilt), Coloured(-tilt)]
    model = ppse.Mixture(speech=SwitchingSpeech(experts, transition=0.8, learn=True), noise=StationaryNoise())

    truth = MarkovChain(torch.tensor([1.0, 0.0, 0.0]), STAY, args.frames).sample()
    spectra = torch.stack([torch.full_like(tilt, 1e-4), tilt.exp(), (-tilt).exp()])
    x = ppse.ComplexNormal(0j, spectra[truth] + 0.5).sample()

    method = switching_gibbs(args.iterations) if args.gibbs else switching_vem(args.iterations, learning_rate=0.1)
    model.start(x)
    result = resume(model, x, method, keep=Keep(run=True))
    assert result.run is not None
    path = result.run.values["speech.regime"].flatten(0, -2).mode(0).values
    print(f"frames whose regime is found: {100 * (path == truth).double().mean():.0f} %")
    for name, row in zip(NAMES, model.sources["speech"].transition.tolist(), strict=True):
        print(f"after {name:8s}" + ", ".join(f"{other} {p:.2f}" for other, p in zip(NAMES, row, strict=True)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--gibbs", action="store_true", help="sample, rather than fit a variational posterior")
    main(parser.parse_args())
