"""Full Bayes: the codes of speech and the parameters of noise are all sampled, none is fitted. Have the chains converged?

    python examples/full_bayes.py                               # half a second drawn from the model, so that the truth is known
    python examples/full_bayes.py --wav FILE --samples 2000     # the first half second of a recording
"""

from __future__ import annotations

import argparse

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

import ppse
from ppse import STFT, audio, methods, with_priors
from ppse.convergence import convergence
from ppse.guides import starting_guide
from ppse.infer import Draws, Group, gibbs, hmc, log_density, sample, tuned, whitened
from ppse.inference import resume
from ppse.models import NMFNoise, VAESpeech
from ppse.priors import Graph, parameters_of
from ppse.sampling import latent_path
from ppse.stft import level

SECONDS, SPACING = 0.5, 16
LEVELS = (0.3, 0.5, 0.55, 0.35)
"""Power of the noise at the knots of its activations, in the synthetic recording."""


def synthetic(vae: VAESpeech) -> Tensor:
    """A mixture STFT (T, F) drawn from the model: speech along a path of codes, and white noise that swells."""
    n_frames = STFT().n_frames(int(16_000 * SECONDS))
    codes = latent_path(n_frames, vae.n_latent, smoothness=0.9)
    speech = poutine.condition(vae, data={"z": codes})(pyro.plate("frames", n_frames, dim=-1)).sample()
    power = torch.from_numpy(np.interp(np.linspace(0, len(LEVELS) - 1, n_frames), range(len(LEVELS)), LEVELS)).float()
    return speech + power.sqrt().unsqueeze(-1) * torch.randn_like(speech)


def posterior(model: ppse.Mixture, x: Tensor, args: argparse.Namespace) -> tuple[Draws, Graph]:
    """Chains over all that is unknown, and the graph that they are of."""
    model.start(x)
    found = resume(model, x, methods.fast())  # a start: codes, and W and H in the model

    # A parameter with a prior is a latent variable, on the same graph. Gamma(1, b) is the exponential law of mean 1 / b.
    graph = with_priors(model, {"noise.W": dist.Gamma(1.0, 513.0), "noise.H": dist.Gamma(1.0, 1 / 200)}, x)
    target = log_density(graph, x, chains=args.chains)

    # Given the noise, frames are independent: codes are accepted frame by frame, with a step size and a covariance for each.
    def group(*sites: str, scale: dict[str, Tensor] | None = None) -> Group:
        return Group(sites, tuned(
            lambda t, step_size, factor: whitened(t, factor, lambda white: hmc(white, step_size, 10)), args.warmup,
            step_size=0.3, target_acceptance=0.8, scale=scale, dense=True,
        ))

    guide = starting_guide(model)
    assert guide is not None  # the speech prior has an encoder; its deviations are the first guess of the scale
    scale = {site: law[1].detach() for site, law in guide.laws(x).items()}
    kernel = gibbs(target, group("speech.z", scale=scale), group("noise.W", "noise.H"))
    start = target.init({"speech.z": found.draws["speech.z"].mean(0)} | parameters_of(model, x), jitter=0.05)
    return sample(target, kernel, start, args.samples, warmup=args.warmup), graph


def main(args: argparse.Namespace) -> None:
    """Sample, and judge the draws."""
    torch.manual_seed(0)
    vae = VAESpeech.pretrained()
    if args.wav:
        x = STFT().analysis(torch.from_numpy(audio.read_mono(args.wav))[: int(16_000 * SECONDS)])
        x = x / level(x).sqrt()
    else:
        x = synthetic(vae)
    draws, graph = posterior(ppse.Mixture(speech=vae, noise=NMFNoise(rank=1, spacing=SPACING)), x, args)
    idata = ppse.to_arviz(draws, graph, x, stft=STFT())
    found = convergence(idata)
    print(ppse.verdict(idata, found))

    assert found is not None  # with chains of four draws or more
    codes = found.rhat["speech.z"]
    print(f"codes: R-hat at most 1.01 for {float((codes <= 1.01).mean()):.0%}, at most 1.05 for {float((codes <= 1.05).mean()):.0%}")
    # W and H may trade a factor, and each wanders; what the sound knows is their product, here as the mean over frequencies.
    w, h = (idata["posterior"][f"noise.{name}"].values for name in "WH")
    power = w.mean((-2, -1))[..., None] * h[..., 0]  # (chain, draw, knot)
    print(f"noise: R-hat of its level at most {max(az.rhat(knot) for knot in power.transpose(2, 0, 1)):.3f}")
    for i, (low, middle, high) in enumerate(np.quantile(power, (0.05, 0.5, 0.95), axis=(0, 1)).T):
        print(f"  at knot {i}: {middle:.3f}, 90 % interval {low:.3f} to {high:.3f}" + ("" if args.wav else f", truth {LEVELS[i]}"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", help="noisy recording")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--samples", type=int, default=200)
    main(parser.parse_args())
