"""Enhancement that watches the lips, and listens alone where they are covered.

    python examples/audiovisual.py [--out chain.png]
    python examples/audiovisual.py --clip CLIP.mp4 --noise NOISE.wav --snr 0     with the shipped priors

Without a clip, a drawn mouth hums, and two small priors learn it first: one from the sound alone, one from sound and lips.
One prior alone is inferred by the default method, both together by variational EM, so that the scores tell nothing of priors.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch

import ppse
from ppse import STFT, audio, corruptions, methods, metrics
from ppse.av_corpus import WatchedWaves, find_clips
from ppse.av_training import train_av
from ppse.lips import Lips
from ppse.models import AVVAESpeech, NMFNoise, StationaryNoise, VAESpeech
from ppse.optimisation import Schedule
from ppse.regimes import plot_regimes, regime_posterior
from ppse.stft import level
from ppse.switching_vem import switching_vem
from ppse.training import train
from ppse.watched import SeenSpeech

METHODS = {"sound alone": methods.default, "lips": methods.default, "switching": partial(switching_vem, hearing=0.0)}
"""The video alone tells whether to follow the lips (docs/audiovisual.md)."""


def hum(seconds: float, generator: torch.Generator) -> tuple[torch.Tensor, Lips]:
    """A mouth that opens and closes, and what it sounds like: the wider, the louder and brighter."""
    images = int(25 * seconds)
    opening = torch.nn.functional.interpolate(torch.rand(1, 1, images // 5, generator=generator), images, mode="linear")[0, 0]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 88), torch.linspace(-1, 1, 88), indexing="ij")
    mouth = (rows / (0.1 + 0.5 * opening[:, None, None])) ** 2 + (columns / 0.7) ** 2 < 1
    frames = 0.7 - 0.5 * mouth + 0.02 * torch.randn(images, 88, 88, generator=generator)
    loud = torch.nn.functional.interpolate(opening[None, None], images * 640, mode="linear")[0, 0]
    phase = 2 * torch.pi * 140 * torch.arange(images * 640) / 16_000
    wave = sum(loud ** (1 + k / 8) * torch.cos(k * phase) / k for k in range(1, 25)) + 0.02 * torch.randn(images * 640, generator=generator)
    return wave * loud, Lips.at_rate(frames.clamp(0, 1), 25.0)


def learnt(epochs: int) -> tuple[VAESpeech, AVVAESpeech]:
    """Priors of the mouth that hums, from half a minute of it."""
    generator, stft = torch.Generator().manual_seed(0), STFT()
    sounds, lips = zip(*(hum(3.0, generator) for _ in range(10)), strict=True)
    data = WatchedWaves([wave / level(stft.analysis(wave)).sqrt().squeeze() for wave in sounds], lips, stft)
    torch.manual_seed(0)
    vae = VAESpeech(n_latent=4, hidden=(64,))
    with tempfile.TemporaryDirectory() as folder:
        train(vae, data, data, Path(folder) / "a.safetensors", Schedule(2 * epochs, 3e-3), batch=128)
        speech = AVVAESpeech.around(vae, n_seen=16, heard_lips=False)
        speech.law.learn([images.float() for images in data.images])
        train_av(speech, data, data, Path(folder) / "av.safetensors", Schedule(epochs, 3e-3), batch=4, frames=60)
    return vae.requires_grad_(False), speech.eval().requires_grad_(False)


def main(args: argparse.Namespace) -> None:
    """A third of the images is covered; which prior is believed when?"""
    if args.clip:
        vae, seer = VAESpeech.pretrained("a_vae"), AVVAESpeech.pretrained()
        clean, lips = find_clips([args.clip])[0].read(STFT())
        noise = torch.from_numpy(np.resize(audio.read_mono(args.noise), len(clean)))
    else:
        vae, seer = learnt(args.epochs)
        clean, lips = hum(3.0, torch.Generator().manual_seed(1))
        noise = torch.randn(len(clean), generator=torch.Generator().manual_seed(2))
    clean = 0.1 * clean
    noisy = clean + noise * (clean.square().mean() / noise.square().mean() / 10 ** (args.snr / 10)).sqrt()
    covered = corruptions.corrupt(lips, corruptions.occluded, seed=args.seed)

    seeing = seer.watching(covered.lips)
    systems = {"sound alone": vae, "lips": seeing, "switching": SeenSpeech(vae, seeing)}
    print(f"noisy: SI-SDR {metrics.si_sdr(clean.numpy(), noisy.numpy()):.1f} dB")
    for name, prior in systems.items():
        model = ppse.Mixture(speech=prior, noise=NMFNoise(4, spacing=16) if args.clip else StationaryNoise())
        result = ppse.enhance(noisy, model, METHODS[name](args.iterations), keep_run=True)
        print(f"{name}: SI-SDR {metrics.si_sdr(clean.numpy(), result.estimates['speech'][0]):.1f} dB")

    times, probability = regime_posterior(result)
    believed = torch.from_numpy(probability[:, 1])  # expert 1 watches the lips
    where = covered.where[covered.lips.align(torch.from_numpy(times)).place.round().long()]
    print(f"lips believed where covered: {believed[where].mean():.2f}, elsewhere: {believed[~where].mean():.2f}")
    plot_regimes(result, args.out, experts=["listens", "watches"], lips=covered.lips)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="with its sound, or an audio file of the same name beside it")
    parser.add_argument("--noise", help="sound of it, for --clip")
    parser.add_argument("--snr", type=float, default=0.0)
    parser.add_argument("--epochs", type=int, default=20, help="of the small priors")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="chain.png")
    main(parser.parse_args())
