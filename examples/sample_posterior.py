"""Sample the posterior of the latents of one recording, several chains side by side, and look at R-hat and ESS.

    python examples/sample_posterior.py [--wav FILE]

The noise is found by EM first; then the latents are sampled with everything else held.
"""

from __future__ import annotations

import argparse

import arviz as az
import torch

import ppse
from ppse import STFT, audio, methods
from ppse.infer import TARGET_ACCEPTANCE, adapt_step_size, hmc, log_density, sample
from ppse.inference import resume
from ppse.models import NMFNoise, VAESpeech
from ppse.sampling import sample_speech
from ppse.stft import level


def main(args: argparse.Namespace) -> None:
    """Run, and print a summary."""
    torch.manual_seed(0)
    vae = VAESpeech.pretrained()
    if args.wav:
        wave = torch.from_numpy(audio.read_mono(args.wav))
    else:
        wave = sample_speech(vae, seconds=1.0)
        wave = wave + 0.1 * torch.randn_like(wave)
    x = STFT().analysis(wave)
    x = x / level(x).sqrt()

    model = ppse.Mixture(speech=vae, noise=NMFNoise(rank=2))
    model.start(x)
    found = resume(model, x, methods.mala_em(iterations=10))  # W and H of the noise stay in the model

    target = log_density(model, x, chains=args.chains)  # blocks are read off the graph: one per frame
    start = target.init({"speech.z": found.draws["speech.z"].mean(0)}, jitter=0.1)
    step_size, state = adapt_step_size(lambda e: hmc(target, e), start, args.warmup, 0.02, TARGET_ACCEPTANCE["hmc"])
    draws = sample(target, hmc(target, step_size), state.position, args.samples)

    z = draws.values["speech.z"].transpose(0, 1)  # (draw, chain, T, L) -> (chain, draw, T, L)
    posterior = az.from_dict({"z": z.numpy()}, dims={"z": ["frame", "latent"]})
    rhat, ess = az.rhat(posterior)["z"].values, az.ess(posterior)["z"].values
    print(f"blocks {target.block}, acceptance {draws.stats.acceptance.mean():.2f}")
    print(f"R-hat: median {float(torch.tensor(rhat).median()):.3f}; ESS: median {float(torch.tensor(ess).median()):.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wav", help="noisy recording")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--samples", type=int, default=100)
    main(parser.parse_args())
