"""Which noise model? Sample each on the stretch before anybody speaks, and let leave-one-out cross-validation choose.

    python examples/choose_noise_model.py                          # a synthetic recording
    python examples/choose_noise_model.py --wav FILE --lead 2.0    # yours, and how many seconds of noise it begins with

LOO leaves out one frame at a time and asks how well the others predict it. That is sound for what frames share, such as spectra;
a latent of a single frame, such as the code of speech, would be left out with its frame. Hence the stretch without speech.
"""

from __future__ import annotations

import argparse
import warnings

import arviz as az
import torch
from torch import Tensor

import ppse
from ppse import STFT, audio, demo, methods, metrics, with_priors
from ppse.infer import hmc, log_density, sample, warm_up
from ppse.mixture import Source
from ppse.models import NMFNoise, StationaryNoise, VAESpeech
from ppse.priors import parameters_of, weak_priors
from ppse.stft import level

SMALL = STFT(n_fft=128, hop=64)
"""To tell noise from noise takes no fine frequencies."""


def candidates() -> dict[str, Source]:
    """One spectrum; one whose level changes; two that come and go."""
    return {"stationary": StationaryNoise(), "NMF, rank 1": NMFNoise(rank=1, spacing=32), "NMF, rank 2": NMFNoise(rank=2, spacing=32)}


def recording(lead: float) -> tuple[Tensor, Tensor]:
    """Three seconds of speech after a while, and its sum at 0 dB with 1 / f noise whose level comes and goes; (N,) both."""
    speech = torch.from_numpy(audio.read_mono(demo.CLEAN))[:48_000]
    clean = torch.cat([torch.zeros(int(16_000 * lead)), speech])
    amplitude = torch.fft.rfftfreq(len(clean)).clamp_min(5e-3) ** -0.5
    noise = torch.fft.irfft(amplitude * torch.fft.rfft(torch.randn(len(clean))), n=len(clean))
    noise *= 1.2 + torch.sin(2 * torch.pi * 0.6 / 16_000 * torch.arange(len(clean)))
    return clean, clean + noise * speech.norm() / noise[-len(speech) :].norm()


def posterior(noise: Source, x: Tensor, args: argparse.Namespace) -> az.InferenceData:
    """Draws of all parameters of the noise, given noise alone, with the log-likelihood of every frame."""
    model = ppse.Mixture(noise=noise)
    model.start(x)
    for _ in range(100):
        model.update(x, model(x))  # towards maximum likelihood, where the chains start
    graph = with_priors(model, weak_priors(model, x), x)
    target = log_density(graph, x, chains=args.chains)
    start = target.init(parameters_of(model, x), jitter=0.02)
    tuned = warm_up(target, lambda e, scale: hmc(target, e, 8, scale), start, args.warmup, step_size=0.05, target_acceptance=0.8)
    draws = sample(target, hmc(target, tuned.step_size, 8, tuned.scale), tuned.state, args.samples)
    return ppse.to_arviz(draws, graph, x, stft=SMALL)


def main(args: argparse.Namespace) -> None:
    """Compare; then enhance the recording with each, to see whether the choice was good."""
    torch.manual_seed(0)
    clean, noisy = (None, torch.from_numpy(audio.read_mono(args.wav))) if args.wav else recording(args.lead)
    x = SMALL.analysis(noisy[: int(16_000 * args.lead)])
    x = x / level(x).sqrt()
    runs = {}
    for name, noise in candidates().items():
        runs[name] = posterior(noise, x, args)
        # Not of W and H, which may trade a factor: what LOO reads must have converged. A pattern too many keeps it from that.
        print(f"{name}: R-hat of the log-likelihood of a frame is {float(az.rhat(runs[name]['log_likelihood'])['x'].max()):.2f} at most")
    with warnings.catch_warnings(action="ignore"):  # the column "warning" says the same: some Pareto k-hat is too large
        table = az.compare(runs, ic="loo")
    print(table[["elpd_loo", "p_loo", "elpd_diff", "dse", "warning"]].round(1).to_string())
    if clean is None:
        return
    for name, noise in candidates().items():
        result = ppse.enhance(noisy, ppse.Mixture(speech=VAESpeech.pretrained(), noise=noise), methods.fast())
        print(f"{name}: speech at SI-SDR {metrics.si_sdr(clean.numpy(), result.estimates['speech'][0]):.1f} dB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", help="noisy recording, 16 kHz")
    parser.add_argument("--lead", type=float, default=2.0, help="seconds of noise alone at its beginning")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=150)
    parser.add_argument("--samples", type=int, default=150)
    main(parser.parse_args())
