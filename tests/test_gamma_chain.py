"""Gamma chain and NMF with smooth activations: moments and densities in closed form, blocks, and a kernel."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture, methods, with_priors
from ppse.infer import BlockError, hmc, log_density, sample
from ppse.inference import resume
from ppse.models import GammaChain, SmoothNMFNoise
from ppse.testing import assert_moments, check_source

T, F = 7, 11


def test_contract() -> None:
    check_source(SmoothNMFNoise(3), n_frames=T, n_freqs=F)


@pytest.mark.parametrize("correlation", [0.0, 0.8, 0.99])
def test_chain_is_stationary_in_its_moments(correlation: float) -> None:
    n, scale = 100_000, torch.tensor([0.3, 0.6], dtype=torch.float64)
    chain = GammaChain(correlation, scale.expand(T, 2))
    draws = chain.sample((n,))
    centred = draws - 1
    assert ((centred.mean(0) / (centred.std(0) / n**0.5)).abs() < 5).all()
    steps = torch.arange(T)
    expected = scale.square().reshape(2, 1, 1) * correlation ** (steps - steps.unsqueeze(-1)).abs().double()
    products = torch.einsum("ntl,nul->nltu", centred, centred)
    assert ((products.mean(0) - expected).abs() / (products.std(0) / n**0.5)).max() < 5


def test_chain_has_the_density_of_its_draws() -> None:
    """Two frames by quadrature: total mass, mean of the second, and the product of the two, from ``log_prob`` alone."""
    correlation, scale = 0.7, 0.5
    log = torch.linspace(-9, 3.5, 801, dtype=torch.float64)
    nodes = torch.cartesian_prod(log, log).unsqueeze(-1)
    chain = GammaChain(correlation, torch.full((2, 1), scale, dtype=torch.float64)).expand([len(nodes), 2, 1])
    value = nodes.exp()
    weight = (chain.log_prob(value).sum((-2, -1)) + nodes.sum((-2, -1)) + 2 * (log[1] - log[0]).log()).exp()
    first, second = value.squeeze(-1).unbind(-1)
    found = torch.stack([weight.sum(), (weight * second).sum(), (weight * second.square()).sum(), (weight * first * second).sum()])
    torch.testing.assert_close(found, found.new_tensor([1, 1, 1 + scale**2, 1 + correlation * scale**2]), rtol=1e-4, atol=0)


def _model(x: Tensor, **settings: Any) -> Mixture:
    model = Mixture(noise=SmoothNMFNoise(2, **settings)).double()
    model.start(x)
    return model.requires_grad_(False)


def test_noise_has_its_density_and_utterances_for_blocks() -> None:
    x = torch.randn(T, F, dtype=torch.complex128)
    model = _model(x, correlation=0.8, spread=0.7)
    target = log_density(model, x, chains=4)
    assert target.block == () and target.shape == (4, 1)
    u = 0.5 * torch.randn(4, 1, T, 2, dtype=torch.float64)
    h = u.squeeze(1).exp()
    a = (1 + 0.64 * 0.49) / (0.49 * 0.36)
    prior = dist.Gamma(1 / 0.49, 1 / 0.49).log_prob(h[:, 0]).sum(-1) + dist.Gamma(a, a / (0.2 + 0.8 * h[:, :-1])).log_prob(h[:, 1:]).sum((-2, -1))
    law = ComplexNormal(0j, torch.einsum("ctk,fk->ctf", h, model.noise.W))
    torch.testing.assert_close(target({"noise.h": u})[:, 0], prior + u.sum((-3, -2, -1)) + law.log_prob(x).sum((-2, -1)))
    with pytest.raises(BlockError, match="'noise.h' is outside of plate 'frames'"):
        log_density(model, x, block=("frames",))
    batch = torch.randn(3, 1, T, F, dtype=torch.complex128)
    assert log_density(_model(batch), batch, chains=2).block == ("utterances",)


@pytest.mark.slow
def test_kernel_draws_the_posterior_of_a_chain() -> None:
    """Two frames of two bins against quadrature: the second is not observed, and hears of the first through the chain alone."""
    x = torch.tensor([[2.0, 2.0], [0.0, 0.0]], dtype=torch.complex128)
    observed = torch.tensor([[True], [False]])
    model = Mixture(noise=SmoothNMFNoise(1, correlation=0.8, spread=0.5)).double()
    model.start(x, observed)
    model.noise.W = torch.ones(2, 1, dtype=torch.float64)
    model.requires_grad_(False)
    log = torch.linspace(-8, 4, 2001, dtype=torch.float64)
    weight = (dist.Gamma(4.0, 4.0).log_prob(log.exp()) + log - 2 * log - 8 * (-log).exp()).softmax(0)
    mean, square = (weight * log.exp()).sum(), (weight * (2 * log).exp()).sum()
    a = (1 + 0.64 * 0.25) / (0.25 * 0.36)
    middle = 0.2 + 0.8 * mean
    second = (0.04 + 0.32 * mean + 0.64 * square) * (1 + 1 / a)
    target = log_density(model, x, observed, chains=100)
    draws = sample(target, hmc(target, 0.25, 8), target.init(), 200, warmup=40).values["noise.h"].reshape(200, 100, 2)
    assert_moments(draws, torch.stack([mean, middle]), torch.stack([square, second]))


def test_em_fits_the_patterns_by_gradient() -> None:
    pattern = torch.linspace(0.2, 2, 12)
    x = ComplexNormal(0j, GammaChain(0.95, torch.full((40, 1), 0.8)).sample() * pattern).sample()
    model = Mixture(noise=SmoothNMFNoise(1, spread=0.8))
    model.start(x)
    model.noise.W = torch.ones(12, 1)
    resume(model, x, methods.hmc_em(60))
    error = model.noise.W.detach().squeeze(-1).log() - pattern.log()
    assert error.std() < 0.35  # one pattern from 40 frames has 0.16


def test_patterns_can_be_latent_too() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    model = Mixture(noise=SmoothNMFNoise(2))
    model.start(x)
    target = log_density(with_priors(model, {"noise.W": dist.Gamma(1.0, 1.0)}, x), x, chains=3)
    assert set(target.sites) == {"noise.h", "noise.W"} and target.block == ()
    assert target(target.init()).isfinite().all()


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"correlation": 1.0}, {"correlation": -0.1}, {"spread": 0.0}, {"spread": math.nan}])
def test_bad_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="SmoothNMFNoise: rank="):
        SmoothNMFNoise(**wrong)


def test_noise_without_a_recording_is_refused() -> None:
    with pytest.raises(RuntimeError, match="call model.start"):
        Mixture(noise=SmoothNMFNoise())(torch.zeros(T, F, dtype=torch.complex64))
