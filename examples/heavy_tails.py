"""Clicks are rare and loud: a noise model with heavy tails takes them for what they are, a Gaussian one does not.

    python examples/heavy_tails.py [--out FOLDER]     # the bundled clean recording, with a hiss and clicks
    python examples/heavy_tails.py --wav FILE         # a recording of yours
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import ppse
from ppse import audio, demo, methods, metrics
from ppse.mixture import Source
from ppse.models import AlphaStable, HeavyTailed, StationaryNoise, VAESpeech

# The same spectrum for all frames, and around it: nothing; Student-t tails; tails so heavy that there is no variance.
NOISES: dict[str, Source] = {
    "Gaussian": StationaryNoise(),
    "Student-t": HeavyTailed(StationaryNoise(), dof=1.5),
    "alpha-stable": AlphaStable(StationaryNoise(), alpha=1.2),
}


def clicks(length: int, per_second: float = 6.0, loudest: float = 2.0, rate: int = 16_000) -> Tensor:
    """Decaying bursts of 2 ms at random times, with random levels, (length,). Random from the global generator."""
    wave, decay = torch.zeros(length), torch.exp(-torch.arange(160) / 32)
    for start in torch.randint(length - 160, (int(per_second * length / rate),)).tolist():
        wave[start : start + 160] += loudest * torch.rand(()) * decay * torch.randn(160)
    return wave


def main(args: argparse.Namespace) -> None:
    """Enhance the same recording under each noise model, and compare."""
    torch.manual_seed(0)
    clean = None
    if args.wav:
        noisy = torch.from_numpy(audio.read_mono(args.wav))
    else:
        clean = torch.from_numpy(audio.read_mono(demo.CLEAN))
        noisy = clean + 0.01 * torch.randn(len(clean)) + clicks(len(clean))
        print(f"{'noisy':>12}: SI-SDR {metrics.si_sdr(clean.numpy(), noisy.numpy()):5.1f} dB")
    speech = VAESpeech.pretrained()
    for name, noise in NOISES.items():
        result = ppse.enhance(noisy, ppse.Mixture(speech=speech, noise=noise), methods.hmc_em(args.iterations))
        fit = result.traces[0].objective[-1]
        score = "" if clean is None else f"SI-SDR {metrics.si_sdr(clean.numpy(), result.estimates['speech'][0]):5.1f} dB, "
        print(f"{name:>12}: {score}log-likelihood {fit:.3f} nats per bin, {result.seconds:.0f} s")
        if args.out:
            result.save(Path(args.out) / f"{name}.wav")
    if args.out:
        audio.write(Path(args.out) / "noisy.wav", noisy.numpy()[None], 16_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", help="noisy recording, 16 kHz")
    parser.add_argument("--out", help="folder for the sound files")
    parser.add_argument("--iterations", type=int, default=60)
    main(parser.parse_args())
