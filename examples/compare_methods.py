"""One graph, one recording, three ways to infer: SVI, EM with a point estimate, and EM with MALA.

    python examples/compare_methods.py                # the bundled recording
    python examples/compare_methods.py --wav FILE     # yours
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

import ppse
from ppse import STFT, audio, demo, methods, metrics, posterior
from ppse.guides import mean_field, starting_guide
from ppse.infer import fit
from ppse.inference import resume
from ppse.models import NMFNoise, VAESpeech
from ppse.stft import level

Estimator = Callable[[ppse.Mixture, Tensor], Tensor]
"""Started model and mixture (T, F) -> posterior mean of speech (T, F). Fits the parameters of the noise in the model."""


def svi(steps: int) -> Estimator:
    """A normal law for every latent coordinate. Its parameters and those of the noise climb the ELBO together, by gradient."""

    def run(model: ppse.Mixture, x: Tensor) -> Tensor:
        encoder = starting_guide(model)
        assert encoder is not None  # the speech prior has one; the laws start where it puts them
        guide = mean_field(model, x, start=encoder.laws(x))
        fit(model, guide, x, steps=steps, learning_rate=0.02)
        with torch.no_grad(), pyro.plate("draws", 20, dim=-2):
            laws = poutine.condition(model, data=guide(x))(x)
        return posterior(laws, x)["speech"].loc.mean(0)

    return run


def em(method: methods.Method) -> Estimator:
    """Draws of the latents, or their mode, and a closed-form step on the noise, in turn."""
    return lambda model, x: resume(model, x, method).sources["speech"].loc


def main(args: argparse.Namespace) -> None:
    """Infer from the same start, and compare."""
    wave = torch.from_numpy(audio.read_mono(args.wav or demo.NOISY))
    clean = None if args.wav else audio.read_mono(demo.CLEAN)
    x = STFT().analysis(wave)
    scale = level(x).sqrt()
    x = x / scale
    torch.manual_seed(0)
    model = ppse.Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=4, spacing=16))
    model.start(x)
    estimators = {
        "SVI": svi(args.iterations * 10),
        "EM, point estimate": em(methods.peem(args.iterations)),
        "EM, MALA": em(methods.mala_em(args.iterations)),
    }
    if clean is not None:
        print(f"{'noisy':>18}: SI-SDR {metrics.si_sdr(clean, wave.numpy()):4.1f} dB")
    for name, estimate in estimators.items():
        own, started = copy.deepcopy(model), time.monotonic()
        speech = estimate(own, x)
        seconds = time.monotonic() - started
        noise = own(x)["noise"].var.mean().item()
        score = "" if clean is None else f"SI-SDR {metrics.si_sdr(clean, STFT().synthesis(speech * scale, len(wave)).numpy()):4.1f} dB, "
        print(f"{name:>18}: {score}noise holds {noise:.2f} of the power, {seconds:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", help="noisy recording, 16 kHz")
    parser.add_argument("--iterations", type=int, default=50, help="of EM; SVI takes ten steps for each")
    main(parser.parse_args())
