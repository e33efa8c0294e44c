"""Declare a noise model in ten lines and enhance with it.

    python examples/new_noise_model.py                # a synthetic recording
    python examples/new_noise_model.py --wav FILE     # yours
"""

from __future__ import annotations

import argparse

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

import ppse
from ppse import audio, methods, metrics
from ppse.distributions import ComplexNormal
from ppse.mixture import Frames
from ppse.models import VAESpeech
from ppse.sampling import sample_speech


class FlickerNoise(PyroModule):
    """1 / f^slope noise, with a log-normal level in every frame. The slope is found by gradient, the levels are sampled."""

    def __init__(self, n_freqs: int = 513) -> None:
        super().__init__()
        self.register_buffer("f", torch.arange(1.0, n_freqs + 1))
        self.slope = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        with frames:
            level = pyro.sample("level", dist.LogNormal(0.0, 2.0))  # (…, T)
        spectrum = self.f ** -self.slope.unsqueeze(-1)  # (F,), or (C, 1, F) when the slope is random
        spectrum = spectrum / spectrum.mean(-1, keepdim=True)  # so that a level of 1 is as loud as the recordings that the priors know
        return ComplexNormal(0j, level.unsqueeze(-1) * spectrum)  # (…, T, F)


def synthetic(vae: VAESpeech) -> tuple[Tensor, Tensor]:
    """Speech drawn from the prior, and its sum with noise of slope 1.5 at 0 dB; two waveforms (N,)."""
    speech = sample_speech(vae, seconds=3.0)
    shape = (1 + 1024 * torch.fft.rfftfreq(len(speech))) ** -0.75  # of the amplitude; bins of the model are 1 / 1024 apart
    noise = torch.fft.irfft(shape * torch.fft.rfft(torch.randn(len(speech))), n=len(speech))
    return speech, speech + noise * speech.norm() / noise.norm()


def main(args: argparse.Namespace) -> None:
    """Enhance and print what was found."""
    vae = VAESpeech.pretrained()
    torch.manual_seed(0)
    clean, noisy = synthetic(vae) if args.wav is None else (None, torch.from_numpy(audio.read_mono(args.wav)))
    model = ppse.Mixture(speech=vae, noise=FlickerNoise())
    result = ppse.enhance(noisy, model, methods.hmc_em(args.iterations))
    estimate = result.estimates["speech"][0]
    if clean is not None:
        reference = clean.numpy()
        print(f"SI-SDR: {metrics.si_sdr(reference, np.asarray(noisy)):.1f} dB -> {metrics.si_sdr(reference, estimate):.1f} dB")
    if args.out:
        result.save(args.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wav", help="noisy recording")
    parser.add_argument("--out", help="where to write the enhanced recording")
    parser.add_argument("--iterations", type=int, default=40)
    main(parser.parse_args())
