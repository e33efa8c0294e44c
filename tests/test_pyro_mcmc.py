"""NUTS of Pyro on our densities, and our kernels under Pyro's MCMC: closed forms, chains kept apart, what is reported."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from ppse import Mixture, to_arviz
from ppse.infer import Info, PyroKernel, State, elliptical_slice, hmc, log_density, mala, nuts, sample
from ppse.models import StationaryNoise
from ppse.priors import with_priors
from ppse.testing import assert_moments

X = torch.tensor([1.0, -0.5], dtype=torch.float64)


def correlated(x: Tensor) -> None:
    """z_t ~ N(0, I), x_t ~ N(z_t1 + z_t2 + b, 0.5^2), b ~ N(0, 1): frames share b."""
    b = pyro.sample("b", dist.Normal(X.new_zeros(()), 1.0))
    with pyro.plate("frames", 2, dim=-1):
        z = pyro.sample("z", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) + b, 0.5), obs=x)


def posterior() -> tuple[Tensor, Tensor]:
    """Means and second moments of (z_11, z_12, z_21, z_22, b)."""
    design = torch.tensor([[1.0, 1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(5, dtype=torch.float64) + design.mT @ design / 0.25)
    mean = covariance @ design.mT @ X / 0.25
    return mean, mean.square() + covariance.diagonal()


def rates(x: Tensor) -> None:
    """g_t ~ Gamma(1.5, 1), x_t | g_t ~ Exponential(g_t): the posterior is Gamma(2.5, 1 + x_t), sampled as log g_t."""
    with pyro.plate("frames", 2, dim=-1):
        g = pyro.sample("g", dist.Gamma(X.new_tensor(1.5), X.new_tensor(1.0)))
        pyro.sample("x", dist.Exponential(g), obs=x)


@pytest.mark.slow
def test_nuts_of_a_correlated_posterior_and_its_energy() -> None:
    draws = nuts(correlated, X, num_samples=260, warmup=80, chains=2)
    values = torch.cat([draws.values["z"].flatten(-2), draws.values["b"]], dim=-1)
    assert_moments(values, *posterior(), minimum_ess=100)
    # Of (z, p), normal in 10 dims, the energy above its minimum is Gamma(5).
    stats = draws.stats
    assert isinstance(stats, Info) and stats.energy is not None
    target = log_density(correlated, X)
    mean = posterior()[0]
    lowest = -target({"z": mean[:4].reshape(1, 2, 2), "b": mean[4:].reshape(1, 1)})
    assert_moments(stats.energy - lowest, X.new_tensor([5.0]), X.new_tensor([30.0]), minimum_ess=100)


@pytest.mark.slow
def test_nuts_of_a_skewed_posterior() -> None:
    x = torch.tensor([0.2, 3.0], dtype=torch.float64)
    draws = nuts(rates, x, num_samples=220, warmup=80, chains=2).values["g"]
    assert_moments(draws, 2.5 / (1 + x), 2.5 * 3.5 / (1 + x).square(), minimum_ess=100)


def test_nuts_reports_like_sample() -> None:
    told = []
    pyro.set_rng_seed(5)
    draws = nuts(correlated, X, num_samples=8, warmup=12, chains=2, callback=lambda chain, step, info: told.append((chain, step, info)))
    assert [(chain, step) for chain, step, _ in told] == [(chain, step) for chain in range(2) for step in range(20)]
    ours = sample(target := log_density(correlated, X, chains=2, block=()), hmc(target), target.init(), 8)
    assert draws.plates == ours.plates and draws.blocks == ours.blocks == ("chains", "")
    assert {k: v.shape for k, v in draws.values.items()} == {k: v.shape for k, v in ours.values.items()}
    for field, other in zip(draws.stats[:5], ours.stats[:5], strict=True):
        assert field.shape == other.shape and field.dtype == other.dtype
    # The log density is that of the draws, which are unconstrained here; every draw of a chain is where its state went.
    at_draws = torch.stack([target({k: v[i] for k, v in draws.values.items()}) for i in range(8)])
    assert torch.allclose(draws.stats.log_density, at_draws)
    assert draws.state is not None and torch.equal(draws.state.position["z"], draws.values["z"][-1])
    acceptance = torch.stack([info.acceptance.squeeze() for _, _, info in told])
    assert ((acceptance >= 0) & (acceptance <= 1)).all() and torch.equal(draws.stats.acceptance[:, 1, 0], acceptance[-8:])
    idata = to_arviz(draws)
    assert idata.sample_stats["energy"].dims == ("chain", "draw") and np.isfinite(az.bfmi(idata)).all()
    pyro.set_rng_seed(5)
    again = nuts(correlated, X, num_samples=8, warmup=12, chains=2)
    assert torch.equal(again.values["z"], draws.values["z"])


def test_acceptance_is_that_of_single_steps() -> None:
    """Their running mean is what Pyro keeps, and adapts to."""
    draws = nuts(correlated, X, num_samples=60, warmup=80, target_acceptance=0.9)
    found = draws.stats.acceptance
    assert len(found.unique()) > 40 and 0.75 < found.mean() <= 1 and draws.stats.accepted.any() and not draws.stats.divergent.any()


def test_chains_in_two_modes_are_told_apart() -> None:
    def model() -> None:
        with pyro.plate("frames", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(X.new_zeros(()), 3.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.1), obs=X.new_full((2,), 3.0))

    start = log_density(model, chains=2).init({"z": torch.tensor([[3.0], [-3.0]], dtype=torch.float64)})
    draws = nuts(model, num_samples=40, warmup=40, chains=2, start=start)
    assert (draws.values["z"][:, 0] > 2).all() and (draws.values["z"][:, 1] < -2).all()
    assert (az.rhat(to_arviz(draws))["z"] > 1.7).all()


def test_divergences_are_reported_where_they_are() -> None:
    """A wall that some trajectories run into, and are ended by."""
    def model() -> None:
        z = pyro.sample("z", dist.Normal(X.new_zeros(()), 1.0))
        pyro.factor("wall", torch.where(z > 1.5, -1e5 * (z - 1.5), 0.0))

    draws = nuts(model, num_samples=100, warmup=60, target_acceptance=0.6)
    divergent, acceptance = draws.stats.divergent, draws.stats.acceptance
    assert 5 < divergent.sum() < 80 and acceptance[divergent].mean() < acceptance[~divergent].mean()
    assert (draws.values["z"] < 1.51).all()


def test_the_density_is_that_of_pyro_for_a_lifted_mixture() -> None:
    x = torch.randn(4, 5, dtype=torch.complex128)
    model = Mixture(noise=StationaryNoise()).double()
    model.start(x)
    lifted = with_priors(model, {"noise.spectrum": dist.LogNormal(x.real.new_zeros(()), 1.0)}, x)
    start, potential, _, _ = initialize_model(lifted, (x,))
    target = log_density(lifted, x, block=())
    ours = [-target({k: v.reshape(target.init()[k].shape) + shift for k, v in start.items()}).sum().item() for shift in (0.0, 0.5)]
    theirs = [potential({k: v + shift for k, v in start.items()}).item() for shift in (0.0, 0.5)]
    assert np.allclose(ours, theirs)
    draws = nuts(lifted, x, num_samples=5, warmup=5, chains=2)
    assert draws.values["noise.spectrum"].shape == (5, 2, 1, 5) and (draws.values["noise.spectrum"] > 0).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="chains=0"):
        nuts(correlated, X, num_samples=1, warmup=1, chains=0)
    with pytest.raises(ValueError, match="num_samples=0"):
        nuts(correlated, X, num_samples=0, warmup=1)
    with pytest.raises(ValueError, match="log density at the start of a chain is not finite"):
        nuts(correlated, X * torch.nan, num_samples=1, warmup=1)


def test_our_kernel_under_mcmc() -> None:
    kernel = PyroKernel(correlated, elliptical_slice, chains=16)
    mcmc = MCMC(kernel, num_samples=400, warmup_steps=30, disable_progbar=True)
    mcmc.run(X)
    draws = kernel.draws(mcmc)
    values = torch.cat([draws.values["z"].flatten(-2), draws.values["b"]], dim=-1)
    assert_moments(values, *posterior())
    assert draws.stats.acceptance.shape == (400, 16, 1)
    assert to_arviz(draws).posterior["z"].shape == (16, 400, 2, 2)


def test_constrained_sites_start_and_divergences_under_mcmc() -> None:
    x = torch.tensor([0.2, 3.0], dtype=torch.float64)
    start = {"g": torch.tensor([[0.1, 0.2]], dtype=torch.float64)}
    still = PyroKernel(rates, lambda target: mala(target, 1e6))
    mcmc = MCMC(still, num_samples=6, warmup_steps=4, initial_params=start, disable_progbar=True)
    mcmc.run(x)
    assert torch.allclose(mcmc.get_samples()["g"], start["g"].exp().expand(6, 1, 2))  # nothing is accepted
    reported = mcmc.diagnostics()
    assert reported["divergences"] == {"chain 0": list(range(6))} and reported["acceptance rate"]["chain 0"] < 0.01
    assert not torch.allclose(still.initial_params["g"], start["g"]) or still._start is None  # the start was for that run
    idata = az.from_pyro(mcmc, log_likelihood=False)
    assert idata.posterior["g"].shape[:2] == (1, 6) and bool(idata.sample_stats["diverging"].all())


def test_a_step_goes_on_from_where_it_is_told() -> None:
    kernel = PyroKernel(correlated, lambda target: mala(target, 1e-12))
    kernel.setup(0, X)
    first = kernel.sample(kernel.initial_params)
    assert torch.allclose(kernel.sample(first)["z"], first["z"], atol=1e-4)
    elsewhere = {k: v + 5 for k, v in first.items()}
    assert torch.allclose(kernel.sample(elsewhere)["z"], elsewhere["z"], atol=1e-4)
    assert isinstance(kernel._state, State)


def test_draws_of_many_chains_of_pyro_are_refused() -> None:
    kernel = PyroKernel(correlated, elliptical_slice)
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=0, disable_progbar=True)
    mcmc.run(X)
    mcmc.num_chains = 2
    with pytest.raises(ValueError, match="Pyro ran 2 chains"):
        kernel.draws(mcmc)
