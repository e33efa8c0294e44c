"""Elliptical slice sampling against closed forms, its contract, and what it refuses."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse.infer import Kernel, LogDensity, elliptical_slice, log_density, sample
from ppse.testing import assert_moments, check_kernel

T, L, D, CHAINS = 4, 2, 3, 32
DECODER = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.6]], dtype=torch.float64)
LOC = torch.tensor([0.5, -1.0], dtype=torch.float64)
SCALE = torch.tensor([1.5, 0.7], dtype=torch.float64)
NOISE = 0.6
OBSERVED = torch.linspace(-2, 2, T * D, dtype=torch.float64).reshape(T, D).sin()
COUNTS = torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64)
BLOCKS = pytest.mark.parametrize("block", [("frames",), ()], ids=["frame", "utterance"])


def linear_gaussian() -> None:
    """z_t ~ N(m, diag(s^2)), x_t | z_t ~ N(A z_t, 0.6^2 I)."""
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(LOC, SCALE).to_event(1))
        pyro.sample("x", dist.Normal(z @ DECODER.mT, NOISE).to_event(1), obs=OBSERVED)


def closed_form(temperature: float = 1.0, power: float = 1.0) -> tuple[Tensor, Tensor]:
    precision = torch.diag(1 / SCALE.square()) + power / NOISE**2 * DECODER.mT @ DECODER
    covariance = torch.linalg.inv(precision)
    return (power / NOISE**2 * OBSERVED @ DECODER + LOC / SCALE.square()) @ covariance, covariance * temperature


def skewed() -> None:
    """u_t ~ N(0.3, 1.2^2), x_t | u_t ~ Poisson(exp(u_t)): log-normal prior of the rate, a skewed posterior."""
    with pyro.plate("frames", T, dim=-1):
        u = pyro.sample("u", dist.Normal(COUNTS.new_tensor(0.3), 1.2))
        pyro.sample("x", dist.Poisson(u.exp()), obs=COUNTS)


def skewed_moments() -> tuple[Tensor, Tensor]:
    """E u and E u^2 of :func:`skewed`, by quadrature."""
    u = torch.linspace(-10, 10, 20_001, dtype=torch.float64)
    weight = (-0.5 * ((u - 0.3) / 1.2).square() + COUNTS.unsqueeze(-1) * u - u.exp()).softmax(-1)
    return weight @ u, weight @ u.square()


@BLOCKS
def test_linear_gaussian_posterior(block: tuple[str, ...]) -> None:
    mean, covariance = closed_form()
    target = log_density(linear_gaussian, chains=CHAINS, block=block)
    draws = sample(target, elliptical_slice(target), target.init(), 400, warmup=50, thin=1 if block else 2).values["z"]
    assert_moments(draws, mean, mean.square() + covariance.diagonal())
    total = mean.sum(-1)
    assert_moments(draws.sum(-1), total, total.square() + covariance.sum())


@BLOCKS
@pytest.mark.parametrize("width", [2 * math.pi, 1.0])
def test_skewed_posterior(block: tuple[str, ...], width: float) -> None:
    target = log_density(skewed, chains=CHAINS, block=block)
    draws = sample(target, elliptical_slice(target, width), target.init(), 400, warmup=50, thin=1 if block else 2).values["u"]
    assert_moments(draws, *skewed_moments())


@pytest.mark.parametrize(("temperature", "power"), [(2.0, 1.0), (1.0, 0.4), (0.5, 2.0)])
def test_temperature_and_likelihood_power(temperature: float, power: float) -> None:
    mean, covariance = closed_form(temperature, power)
    target = log_density(linear_gaussian, chains=CHAINS, temperature=temperature, likelihood_power=power)
    draws = sample(target, elliptical_slice(target), target.init(), 400, warmup=50).values["z"]
    assert_moments(draws, mean, mean.square() + covariance.diagonal())


def test_utterances_of_a_batch_and_two_sites() -> None:
    """Every utterance has a posterior of its own; sites inside and outside of the frames move together."""
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).reshape(3, 1, 1)

    def model() -> None:
        with pyro.plate("utterances", 3, dim=-3):
            level = pyro.sample("level", dist.Normal(scale.new_zeros(()), 1.0))
            with pyro.plate("frames", 2, dim=-1):
                z = pyro.sample("z", dist.Normal(scale.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z + level, 1.0), obs=4 * scale.expand(3, 1, 2))

    target = log_density(model, chains=CHAINS)
    assert target.shape == (3, CHAINS, 1)
    found = sample(target, elliptical_slice(target), target.init(), 400, warmup=50, thin=2).values
    # The mean of the two frames is level + N(0, 1): its weight is one half, the frames share the rest.
    level = (2 * scale)[:, 0]
    assert_moments(found["level"].transpose(1, 2), level, level.square() + 0.5)
    z = scale.expand(3, 1, 2)[:, 0]
    assert_moments(found["z"].transpose(1, 2), z, z.square() + 5 / 8)


def test_parameters_that_move_the_prior_later_leave_the_draws_right() -> None:
    scale = SCALE.clone()

    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(LOC, scale).to_event(1))
            pyro.sample("x", dist.Normal(z @ DECODER.mT, NOISE).to_event(1), obs=OBSERVED)

    scale *= 2
    target = log_density(model, chains=CHAINS)
    kernel = elliptical_slice(target)
    scale /= 2
    mean, covariance = closed_form()
    draws = sample(target, kernel, target.init(), 400, warmup=50).values["z"]
    assert_moments(draws, mean, mean.square() + covariance.diagonal())


def _narrowed(target: LogDensity, step_size: float | Tensor) -> Kernel:
    return elliptical_slice(target, step_size)


def test_contract() -> None:
    check_kernel(_narrowed, adjusted=False)
    check_kernel(lambda target, step_size: elliptical_slice(target, 20 * step_size), adjusted=False)


@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf])
def test_a_block_with_nowhere_to_go_stays_and_is_told(spoil: float) -> None:
    def model() -> None:
        with pyro.plate("frames", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(LOC.new_zeros(()), 1.0))
            pyro.factor("spoilt", torch.where((z != 0) & (torch.arange(3) == 1), spoil, 0.0))

    target = log_density(model, chains=2, block=("frames",))
    kernel = elliptical_slice(target)
    state, info = kernel.step(kernel.init({"z": torch.tensor([[1.0, 0.0, 1.0]] * 2, dtype=torch.float64)}))
    stuck = torch.tensor([False, True, False]).expand(2, 3)
    assert torch.equal(info.divergent, stuck) and torch.equal(info.accepted, ~stuck)
    assert ((state.position["z"] == 0) & stuck)[:, 1].all() and state.position["z"].isfinite().all()


def test_a_dead_start_is_left_for_a_live_point() -> None:
    def model() -> None:
        with pyro.plate("frames", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(LOC.new_zeros(()), 1.0))
            pyro.factor("edge", torch.where(z > 3, -torch.inf, 0.0))

    target = log_density(model, chains=2)
    kernel = elliptical_slice(target)
    state = kernel.init({"z": LOC.new_full((2, 2), 4.0)})
    assert state.log_density is not None and state.log_density.isneginf().all()
    for _ in range(20):
        state, _ = kernel.step(state)
    assert (state.position["z"] <= 3).all()


def test_refuses_priors_that_are_not_normal_and_widths_that_are_no_angle() -> None:
    def heavy() -> None:
        pyro.sample("gain", dist.LogNormal(LOC.new_zeros(()), 1.0))

    def hierarchy() -> None:
        level = pyro.sample("level", dist.Normal(LOC.new_zeros(()), 1.0))
        pyro.sample("z", dist.Normal(level, 1.0))

    with pytest.raises(ValueError, match="site 'gain' is LogNormal a priori; expected Normal"):
        elliptical_slice(log_density(heavy))
    with pytest.raises(ValueError, match="prior of site 'z' depends on the latent sites"):
        elliptical_slice(log_density(hierarchy))
    for width in (0.0, 7.0, math.nan):
        with pytest.raises(ValueError, match="width="):
            elliptical_slice(log_density(linear_gaussian), width)


def test_normal_latents_beyond_a_wall() -> None:
    """z ~ N(0, 1) given z > 1.2 or z < -2.4: long searches across two modes, where shrinking a bracket too much would show."""
    wall = 1.2

    def model() -> None:
        with pyro.plate("frames", 8, dim=-1):
            z = pyro.sample("z", dist.Normal(LOC.new_zeros(()), 1.0))
            pyro.factor("wall", torch.where((z > wall) | (z < -2 * wall), 0.0, -torch.inf))

    normal = dist.Normal(LOC.new_zeros(()), 1.0)
    right, left = 1 - normal.cdf(LOC.new_tensor(wall)), normal.cdf(LOC.new_tensor(-2 * wall))
    mean = (normal.log_prob(LOC.new_tensor(wall)).exp() - normal.log_prob(LOC.new_tensor(2 * wall)).exp()) / (right + left)
    above = wall * normal.log_prob(LOC.new_tensor(wall)).exp() + 2 * wall * normal.log_prob(LOC.new_tensor(2 * wall)).exp()
    second = 1 + above / (right + left)
    target = log_density(model, chains=64, block=("frames",))
    draws = sample(target, elliptical_slice(target), target.init({"z": LOC.new_tensor(2.0)}), 600, warmup=50).values["z"]
    assert_moments(draws.flatten(1), mean.expand(()), second)


def test_without_data_the_first_angle_is_taken_at_any_temperature() -> None:
    """v follows the tempered prior, so nothing is left to be rejected."""
    calls = 0

    def model() -> None:
        nonlocal calls
        calls += 1
        with pyro.plate("frames", T, dim=-1):
            pyro.sample("z", dist.Normal(LOC, SCALE).to_event(1))

    target = log_density(model, chains=2, temperature=3.0)
    kernel = elliptical_slice(target)
    state = kernel.init(target.init())
    before = calls
    for _ in range(20):
        state, _ = kernel.step(state)
    assert calls == before + 20
