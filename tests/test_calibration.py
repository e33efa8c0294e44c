"""Simulation-based calibration of every kernel through the mixture graph, of guides where it should pass, and of samplers that are wrong.

Every assertion that a right sampler passes has an error rate of 1e-4, and there are fewer than 25 of them: a change of the random
numbers breaks the file about once in four hundred runs.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from scipy.stats import binom
from torch import Tensor

from ppse import Mixture, with_priors
from ppse.distributions import ComplexNormal
from ppse.guides import mean_field, per_frame
from ppse.infer import (
    Group,
    Kernel,
    LogDensity,
    elliptical_slice,
    fit,
    gibbs,
    guide_draws,
    hmc,
    kinetic_langevin,
    langevin,
    log_density,
    mala,
    metropolis,
    nuts,
    parallel_tempering,
    replicas,
    sample,
    warm_up,
    whitened,
)
from ppse.mixture import Frames
from ppse.models import NMFNoise, StationaryNoise, VAESpeech
from ppse.testing import around_truth, assert_calibrated, calibrate, plot_ranks, uniformity
from ppse.testing.calibration import Sampler, Sites

Graph = Callable[[Tensor], Any]

B, T, F, L = 300, 5, 4, 2
DRAWS = 9
LIKE = torch.ones(B, 1, T, F, dtype=torch.complex128)
REAL = torch.zeros(B, 1, 1, 3, dtype=torch.float64)
ONE = torch.ones((), dtype=torch.float64)
SCALE = {"speech.z": ONE, "noise.W": 0.7 * ONE, "noise.H": 0.5 * ONE}


def _vae() -> VAESpeech:
    vae = VAESpeech(F, L, (4,)).double()
    with torch.no_grad():
        for weight in vae.decoder.parameters():
            weight *= 3  # so that z matters, and not only linearly
    return vae


def speech_in_stationary_noise() -> Graph:
    """z per frame; the noise is known."""
    model = Mixture(speech=_vae(), noise=StationaryNoise())
    model.start(0.5 * LIKE)
    return model


def speech_in_bayesian_noise(like: Tensor = LIKE) -> Graph:
    """z per frame, and the W and H of an NMF per utterance: the frames are no longer independent."""
    model = Mixture(speech=_vae(), noise=NMFNoise(1))
    model.start(like)
    return with_priors(model, {"noise.W": dist.Gamma(2 * ONE, 2 * ONE), "noise.H": dist.LogNormal(0 * ONE, 0.5)}, like)


Z, NOISE = Group(("speech.z",), elliptical_slice), Group(("noise.W", "noise.H"), lambda t: hmc(t, 0.3, 3))

KERNELS: dict[str, tuple[Callable[[LogDensity], Kernel], int]] = {
    "metropolis": (lambda t: metropolis(t, 0.3), 20),
    "mala": (lambda t: mala(t, 0.15), 10),
    "preconditioned mala": (lambda t: mala(t, 0.2, SCALE), 10),
    "hmc": (lambda t: hmc(t, 0.25, 4), 3),
    "preconditioned hmc": (lambda t: hmc(t, 0.3, 4, SCALE), 3),
    "langevin, tiny steps": (lambda t: langevin(t, 0.02), 15),
    "kinetic langevin, small steps": (lambda t: kinetic_langevin(t, 0.02**0.5), 6),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_on_speech_in_bayesian_noise(name: str) -> None:
    kernel, thin = KERNELS[name]
    model = speech_in_bayesian_noise()
    assert_calibrated(calibrate(model, LIKE, around_truth(model, kernel, DRAWS, thin=thin)))


@pytest.mark.parametrize(
    ("kernel", "thin"),
    [(elliptical_slice, 2), (lambda t: elliptical_slice(t, 1.0), 5), (lambda t: hmc(t, 0.5, 3), 2), (lambda t: metropolis(t, 1.0), 5)],
    ids=["elliptical slice", "elliptical slice, narrow bracket", "hmc", "metropolis"],
)
def test_kernels_frame_by_frame(kernel: Callable[[LogDensity], Kernel], thin: int) -> None:
    model = speech_in_stationary_noise()
    assert log_density(model, LIKE).block == ("frames", "utterances")
    assert_calibrated(calibrate(model, LIKE, around_truth(model, kernel, DRAWS, thin=thin)))


def test_gibbs_over_frames_and_utterances() -> None:
    """z frame by frame, W and H of the whole utterance; backwards the groups come in the opposite order."""
    model = speech_in_bayesian_noise()
    sampler = around_truth(model, lambda t: gibbs(t, Z, NOISE), DRAWS, thin=2, backward=lambda t: gibbs(t, NOISE, Z))
    assert_calibrated(calibrate(model, LIKE, sampler))


def _from_the_prior(model: Graph, make: Callable[[LogDensity], Kernel], warmup: int, thin: int) -> Sampler:
    def sampler(x: Tensor, truth: Sites) -> Sites:
        target = log_density(model, x)
        return sample(target, make(target), target.init(), DRAWS, warmup=warmup, thin=thin).values

    return sampler


def _tuned(target: LogDensity) -> Kernel:
    """HMC whose step size and scale are found in a warm-up from the prior, then frozen."""
    tuned = warm_up(target, lambda e, s: hmc(target, e, 4, s), target.init(), 60, step_size=0.2, target_acceptance=0.8)
    return hmc(target, tuned.step_size, 4, tuned.scale)


def _whitened(target: LogDensity) -> Kernel:
    """HMC that walks along the axes of some covariance of each latent vector."""
    return whitened(target, {"speech.z": torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)}, lambda t: hmc(t, 0.25, 4))


@pytest.mark.parametrize("kernel", [_tuned, _whitened])
def test_kernels_made_for_the_target(kernel: Callable[[LogDensity], Kernel]) -> None:
    model = speech_in_bayesian_noise()
    assert_calibrated(calibrate(model, LIKE, around_truth(model, kernel, DRAWS, thin=3)))


def test_a_run_as_in_use() -> None:
    """From the prior, tuned, warmed up, and thinned until the draws are nearly independent: calibrated if the chains arrive."""
    model = speech_in_bayesian_noise()
    assert_calibrated(calibrate(model, LIKE, _from_the_prior(model, _tuned, warmup=50, thin=12)))


@pytest.mark.slow
def test_nuts() -> None:
    """One chain for a hundred replicates at once: that the joint density is the product of theirs, NUTS need not know."""
    like = LIKE[:100]
    model = speech_in_bayesian_noise(like)
    assert_calibrated(calibrate(model, like, lambda x, truth: nuts(model, x, num_samples=DRAWS, warmup=40, max_tree_depth=5).values))


def test_parallel_tempering() -> None:
    model = speech_in_bayesian_noise()

    def tempered(target: LogDensity) -> Kernel:
        hot = replicas(target, (1.0, 0.4, 0.1))
        return parallel_tempering(target, hot, hmc(hot, 0.25 * hot.likelihood_power**-0.3, 3))

    assert_calibrated(calibrate(model, LIKE, _from_the_prior(model, tempered, warmup=60, thin=8)))


def _linear(x: Tensor) -> None:
    """x_t = A z_t + noise: the posterior of a frame is normal, with correlation."""
    a = x.new_tensor([[1.0, 0.9], [0.8, 0.3], [0.9, 0.5]])
    with pyro.plate("utterances", len(x), dim=-3), pyro.plate("frames", x.shape[-2], dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ a.mT, 0.4).to_event(1), obs=x)


def _fitted(family: Callable[..., torch.nn.Module], x: Tensor, truth: Sites) -> Sites:
    guide = family(_linear, x)
    for learning_rate in (0.05, 0.01, 0.002):
        fit(_linear, guide, x, steps=120, learning_rate=learning_rate, elbo=_Many())
    return guide_draws(_linear, guide, x, num_samples=DRAWS).values


class _Many(TraceMeanField_ELBO):  # type: ignore[misc]  # Pyro is untyped
    """The divergence in closed form, and sixteen draws for the rest: little noise in the gradient."""

    def __init__(self) -> None:
        super().__init__(num_particles=16, vectorize_particles=True, max_plate_nesting=3)


@pytest.mark.slow
def test_guides_whose_family_has_the_posterior_and_one_whose_has_not() -> None:
    assert_calibrated(calibrate(_linear, REAL, partial(_fitted, per_frame)))
    narrow = calibrate(_linear, REAL, partial(_fitted, mean_field))
    with pytest.raises(AssertionError, match=r"not uniform.*'z\[0\]'"):
        assert_calibrated(narrow)
    ends = (narrow.ranks["z[0]"] == 0) | (narrow.ranks["z[0]"] == DRAWS)
    assert ends.double().mean() > 1.3 * 2 / (DRAWS + 1)  # ranks pile up at both ends: the draws are too narrow


def _with_prior(decoder: torch.nn.Module, spread: float) -> Graph:
    """z ~ N(0, spread^2) in white noise."""

    def speech(frames: Frames) -> ComplexNormal:
        with frames:
            z = pyro.sample("z", dist.Normal(torch.zeros(L, dtype=torch.float64), spread).to_event(1))
        return ComplexNormal(0j, decoder(z).exp() + 0.25)

    return Mixture(speech=speech)


def _ignores_the_data(x: Tensor, truth: Sites) -> Sites:
    return {"speech.z": torch.randn(DRAWS, B, 1, T, L, dtype=torch.float64)}


WRONG: dict[str, tuple[Callable[[Graph], Sampler], str]] = {
    "langevin, large steps": (lambda m: around_truth(m, lambda t: langevin(t, 0.8), DRAWS, thin=5), "not uniform.*log_likelihood"),
    "a power of the likelihood": (lambda m: around_truth(m, lambda t: mala(t.tempered(1.0, 0.7), 0.8), DRAWS, thin=5), "not uniform.*log_likelihood"),
    "a temperature": (lambda m: around_truth(m, lambda t: hmc(t.tempered(1.5, 1.0), 0.6, 3), DRAWS, thin=3), "not uniform"),
    "no data": (lambda m: _ignores_the_data, r"p-values \{'log_likelihood': \S+\}"),
    "no move": (lambda m: around_truth(m, lambda t: metropolis(t, 1e-4), DRAWS), "successive draws have correlation"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_samplers_are_rejected(name: str) -> None:
    make, message = WRONG[name]
    model = speech_in_stationary_noise()
    with pytest.raises(AssertionError, match=message):
        assert_calibrated(calibrate(model, LIKE, make(model)))


def test_a_prior_with_its_half_missing_is_rejected() -> None:
    """The drift -z / 2 in place of -z, a slip seen in the field: the prior N(0, 2)."""
    decoder: Any = _vae()._modules["decoder"]
    right, wrong = _with_prior(decoder, 1.0), _with_prior(decoder, 2**0.5)
    assert_calibrated(calibrate(right, LIKE, around_truth(right, lambda t: mala(t, 0.8), DRAWS, thin=5)))
    with pytest.raises(AssertionError, match="not uniform.*log_prior"):
        assert_calibrated(calibrate(right, LIKE, around_truth(wrong, lambda t: mala(t, 0.8), DRAWS, thin=5)))


def test_uniformity_is_exact() -> None:
    """Over all ways in which ranks can fall, a p-value of at most p has probability p."""
    total, draws = 6, 2
    found = np.array([uniformity(torch.tensor(ranks), draws) for ranks in product(range(draws + 1), repeat=total)])
    for p in np.unique(found.round(10)):
        assert np.isclose((found <= p + 1e-9).mean(), p)
    assert len(np.unique(found.round(10))) > 5


def test_uniformity_sees_what_a_histogram_shows() -> None:
    ranks = torch.from_numpy(binom.rvs(19, 0.5, size=200, random_state=0))
    assert uniformity(ranks, 19) < 1e-12  # in the middle: draws too wide
    assert uniformity((ranks + 10) % 20, 19) < 1e-12  # at both ends: too narrow
    assert uniformity(torch.randint(20, (200,)), 19) > 1e-3
    figure = plot_ranks({"z[0]": ranks, "log_likelihood": ranks}, 19)
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["z[0]", "log_likelihood"]
    assert sum(bar.get_height() for bar in figure.axes[0].containers[0]) == 200 and len(figure.axes[0].containers[0]) == 10
    with pytest.raises(ValueError, match="whole numbers from 0 to 19"):
        uniformity(ranks + 10, 19)


def test_ranks_of_known_draws() -> None:
    """The rank is the number of draws below the truth, and ties are broken at random."""

    def sampler(x: Tensor, truth: Sites) -> Sites:
        return {"z": torch.stack([truth["z"] - 1, truth["z"] - 2, truth["z"] + 1, truth["z"]])}

    found = calibrate(_linear, REAL, sampler)
    assert found.draws == 4 and set(found.ranks["z[0]"].tolist()) == {2, 3}
    assert set(found.ranks) == set(found.p_values()) == {"z[0]", "z^2", "log_prior", "log_likelihood"}
    assert len(found.plot().axes) == 4


def test_the_truth_stands_anywhere_in_its_chain() -> None:
    """A kernel that adds one, and takes one away when time is reversed: the rank of the truth is its place."""

    def drift(amount: float) -> Callable[[LogDensity], Kernel]:
        def make(target: LogDensity) -> Kernel:
            still = metropolis(target)
            return Kernel(still.init, lambda state: (still.init({"z": state.position["z"] + amount}), still.step(state)[1]))

        return make

    found = calibrate(_linear, REAL, around_truth(_linear, drift(1.0), 4, backward=drift(-1.0))).ranks["z[0]"]
    assert set(found.tolist()) == {0, 1, 2, 3, 4} and uniformity(found, 4) > 1e-4


def test_refusals() -> None:
    model = speech_in_stationary_noise()
    with pytest.raises(ValueError, match="no draws of 'speech.z'"):
        calibrate(model, LIKE, lambda x, truth: {})
    with pytest.raises(ValueError, match=r"draws of shape \(300, 1, 5, 2\) of 'speech.z'; expected \(draw, …\) with \(300, 1, 5, 2\)"):
        calibrate(model, LIKE, lambda x, truth: truth)
    with pytest.raises(ValueError, match="'speech.z'.*outside of the plate 'utterances'"):
        calibrate(model, LIKE[0, 0], lambda x, truth: truth)
