"""All kernels agree on real frames under the shipped prior: a long HMC run and short runs of the others have the same posterior.

Four frames of the demo, pauses and weak speech (8 to 20 dB below its level), in noise as the noisy encoder hears it. There every kernel
mixes. On loud frames, where the posterior is narrow, they differ in speed by far: in a few seconds MALA and HMC have effective samples by
the hundred, random walk and elliptical slice a dozen, which would agree with anything.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import arviz as az
import pyro
import pytest
import torch
from torch import Tensor

from ppse import Mixture, audio
from ppse.demo import NOISY
from ppse.guides import starting_guide
from ppse.infer import (
    TARGET_ACCEPTANCE,
    Group,
    Kernel,
    LogDensity,
    Position,
    elliptical_slice,
    gibbs,
    hmc,
    log_density,
    mala,
    metropolis,
    sample,
    warm_up,
)
from ppse.models import StationaryNoise, VAESpeech
from ppse.stft import STFT, level
from ppse.warm_start import fit_noise

FRAMES, CHAINS = [0, 175, 184, 373], 24
SIGMAS, MINIMUM_ESS = 5.0, 50.0

Factory = Callable[[LogDensity, Tensor, Position], Kernel]
"""(target, step size, scale) → kernel."""


class Problem(NamedTuple):
    """Frames of a recording, the model with its noise fitted, and what the encoder says of them."""

    model: Mixture
    x: Tensor
    loc: Tensor
    scale: Tensor


@cache
def problem() -> Problem:
    wave, _ = audio.read(NOISY)
    x = STFT().analysis(torch.as_tensor(wave[0]))
    x = x / level(x).sqrt()
    model = Mixture(speech=VAESpeech.pretrained(), noise=StationaryNoise())
    model.start(x)
    guide = starting_guide(model)
    assert guide is not None
    with torch.no_grad():
        laws, noise = guide.listen(x)
        assert noise is not None
        fit_noise(model, noise, {"speech"})
    loc, scale = laws["speech.z"]
    return Problem(model, x[FRAMES], loc[FRAMES], scale[FRAMES])


def functionals(z: Tensor) -> Tensor:
    """What the posterior is asked, (draw, chain, frame, 5): log density, mean log-variance of the speech, mean Wiener gain, z_1, |z|^2 / L."""
    model, x, *_ = problem()
    target = log_density(model, x, chains=z.shape[1])
    noise = model.noise.spectrum
    rows = []
    with torch.no_grad():
        for row in z:
            variance = model.speech.decoder(row).exp()
            gain = variance / (variance + noise)
            rows.append(torch.stack([target({"speech.z": row}), variance.log().mean(-1), gain.mean(-1), row[..., 0], row.square().mean(-1)], -1))
    return torch.stack(rows).double()


def run(make: Factory, draws: int, thin: int = 1, acceptance: float | None = None, temperature: float = 1.0) -> Tensor:
    """Functionals of draws of a kernel that starts at what the encoder proposes, and is tuned from there unless acceptance is None."""
    _, x, loc, scale = problem()
    target = log_density(problem().model, x, chains=CHAINS, temperature=temperature)
    start = {"speech.z": loc + 0.3 * scale * torch.randn(CHAINS, *loc.shape)}
    if acceptance is None:
        kernel = make(target, torch.tensor(0.3), {"speech.z": scale})
        return functionals(sample(target, kernel, start, draws, warmup=20, thin=thin).values["speech.z"])
    tuned = warm_up(target, lambda e, s: make(target, e, s), start, 150, step_size=0.2, target_acceptance=acceptance, scale={"speech.z": scale})
    return functionals(sample(target, make(target, tuned.step_size, tuned.scale), tuned.state, draws, thin=thin).values["speech.z"])


@cache
def reference() -> Tensor:
    with pyro.poutine.seed(rng_seed=1):
        return run(lambda t, e, s: hmc(t, e, 10, s), 200, acceptance=0.8)


def assert_same_posterior(draws: Tensor) -> None:
    """Means of all functionals and their variances about the reference mean, within Monte Carlo error, of enough effective samples."""
    centre = reference().mean((0, 1))
    moments, errors = [], []
    for values in (draws, reference()):
        both = torch.stack([values - centre, (values - centre).square()], -1)
        ess = torch.as_tensor(az.ess(az.convert_to_dataset({"f": both.transpose(0, 1).numpy()}), method="mean")["f"].values)
        assert ess.min() >= MINIMUM_ESS, f"effective sample size {ess.min():.0f}, below {MINIMUM_ESS}: take more draws"
        moments.append(both.mean((0, 1)))
        errors.append(both.flatten(0, 1).var(0) / ess)
    off = (moments[0] - moments[1]).abs() / (errors[0] + errors[1]).sqrt()
    assert off.max() < SIGMAS, f"(frame, functional, moment) off by standard errors:\n{off}"


KERNELS: dict[str, tuple[Factory, int, int, float | None]] = {
    "mala": (mala, 300, 4, 0.8),  # shorter steps than the optimum: long ones stick where the density is steep
    "metropolis": (metropolis, 400, 10, TARGET_ACCEPTANCE["metropolis"]),
    "elliptical slice": (lambda t, e, s: elliptical_slice(t), 120, 1, None),
    "gibbs of slice and hmc": (lambda t, e, s: gibbs(t, Group(t.sites, elliptical_slice), Group(t.sites, lambda u: hmc(u, e, 5, s))), 40, 1, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_agrees_with_a_long_run_of_hmc(name: str) -> None:
    assert_same_posterior(run(*KERNELS[name]))


@pytest.mark.slow
def test_another_posterior_is_noticed() -> None:
    with pytest.raises(AssertionError, match="off by standard errors"):
        assert_same_posterior(run(lambda t, e, s: hmc(t, e, 10, s), 60, acceptance=0.8, temperature=1.1))
