"""Kernels in turn over groups of sites: the exact posterior, Geweke's joint test, contract, refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse.infer import Group, Kernel, LogDensity, elliptical_slice, gibbs, hmc, log_density, mala, metropolis, sample
from ppse.infer.gibbs import Conditional
from ppse.testing import assert_moments, check_kernel

T, CHAINS = 3, 32
OBSERVED = torch.tensor([1.0, 3.0, -0.5], dtype=torch.float64)
ZERO = OBSERVED.new_zeros(())


def offset() -> None:
    """x_t = z_t + b + 0.7 e_t, all N(0, 1): the offset b is shared by the frames."""
    b = pyro.sample("b", dist.Normal(ZERO, 1.0))
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(ZERO, 1.0))
        pyro.sample("x", dist.Normal(z + b, 0.7), obs=OBSERVED)


def offset_posterior(power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (z_1, …, z_T, b)."""
    design = torch.cat([torch.eye(T, dtype=torch.float64), torch.ones(T, 1, dtype=torch.float64)], dim=1)
    covariance = torch.linalg.inv(torch.eye(T + 1, dtype=torch.float64) + power / 0.49 * design.mT @ design)
    return power / 0.49 * covariance @ design.mT @ OBSERVED, covariance


def scale_of_latents(x: Tensor) -> None:
    """g is log-normal, z_t | g ~ N(0, g^2), x_t | z_t ~ N(z_t + g, 0.5^2): g is in the prior of z and in the likelihood."""
    g = pyro.sample("g", dist.LogNormal(ZERO, 0.4))
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(ZERO, g))
        pyro.sample("x", dist.Normal(z + g, 0.5), obs=x)


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 1.0), (1.5, 0.5)])
def test_posterior_of_a_shared_offset(temperature: float, power: float) -> None:
    target = log_density(offset, chains=CHAINS, temperature=temperature, likelihood_power=power)
    kernel = gibbs(target, Group(("z",), elliptical_slice), Group(("b",), lambda t: hmc(t, 0.3, steps=4)))
    values = sample(target, kernel, target.init(), 500, warmup=50).values
    draws = torch.cat([values["z"], values["b"]], dim=-1)
    mean, covariance = offset_posterior(power)
    assert_moments(draws, mean, mean.square() + temperature * covariance.diagonal())
    # The sum of an offset and its frame, where their negative correlation counts.
    total, variance = mean[0] + mean[-1], covariance[0, 0] + covariance[-1, -1] + 2 * covariance[0, -1]
    assert_moments(draws[..., 0] + draws[..., -1], total, total.square() + temperature * variance)


def _geweke(draws: int, likelihood_power: float = 1.0) -> Tensor:
    """Successive-conditional draws of seven functions of (g, z, x): the kernel moves g and z given x, then x is drawn given both."""
    x = OBSERVED.new_zeros(CHAINS, T)
    target = log_density(scale_of_latents, x, chains=CHAINS, likelihood_power=likelihood_power)
    kernel = gibbs(target, Group(("z",), elliptical_slice), Group(("g",), lambda t: mala(t, 0.1), steps=2))
    position = target.init({"g": (0.4 * torch.randn(CHAINS, 1, dtype=torch.float64)).exp()})
    position["z"] = position["g"].exp() * torch.randn(CHAINS, T, dtype=torch.float64)
    kept = []
    for _ in range(draws):
        x.copy_(position["z"] + position["g"].exp() + 0.5 * torch.randn(CHAINS, T, dtype=torch.float64))
        position = kernel.step(kernel.init(position))[0].position
        log_g, z = position["g"], position["z"]
        w, e = z / log_g.exp(), x - z - log_g.exp()
        columns = (log_g[:, 0], w[:, 0], e[:, 1], log_g[:, 0] * w[:, 2], w[:, 0] * w[:, 1], log_g[:, 0] * e[:, 2], w[:, 0] * e[:, 0])
        kept.append(torch.stack(columns, dim=-1))
    return torch.stack(kept)


def _assert_joint(draws: Tensor) -> None:
    """Marginal-conditional draws have log g, w = z / g and e = x - z - g independent and normal, so their moments are known."""
    g, w, e = 0.16, 1.0, 0.25
    second = OBSERVED.new_tensor([g, w, e, g * w, w * w, g * e, w * e])
    assert_moments(draws, torch.zeros_like(second), second)


@pytest.mark.slow
def test_geweke_joint_distribution() -> None:
    _assert_joint(_geweke(1000))


@pytest.mark.slow
def test_geweke_notices_a_wrong_posterior() -> None:
    with pytest.raises(AssertionError, match="standard errors"):
        _assert_joint(_geweke(800, likelihood_power=0.7))


def test_geweke_notices_groups_that_do_not_see_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data run away from what a group believes, and the draws never mix."""
    monkeypatch.setattr(Conditional, "given", lambda self, held: self)
    with pytest.raises(AssertionError, match="standard errors|effective sample size"):
        _assert_joint(_geweke(100))


def test_every_group_is_accepted_in_blocks_of_its_own() -> None:
    seen: dict[str, LogDensity] = {}

    def noted(name: str, step_size: float) -> Group:
        def make(target: LogDensity) -> Kernel:
            seen[name] = target
            return metropolis(target, step_size)

        return Group((name,), make)

    target = log_density(offset, chains=CHAINS)
    kernel = gibbs(target, noted("z", 1e8), noted("b", 1e-9))
    state, info = kernel.step(kernel.init(target.init()))
    assert target.block == () and seen["z"].block == ("frames",) and seen["b"].block == ()
    assert seen["z"].shape == (CHAINS, T) and seen["b"].shape == target.shape == (CHAINS, 1)
    # z is never accepted, b always: together half of the moves, and something has moved.
    assert torch.allclose(info.acceptance, torch.full_like(info.acceptance, 0.5)) and info.accepted.all()
    # Apart, in their own blocks; what moves is what the sweep ended in.
    assert info.groups is not None and list(info.groups) == ["z", "b"]
    z, b = info.groups["z"], info.groups["b"]
    assert z.acceptance.shape == (CHAINS, T) and not z.accepted.any() and b.acceptance.shape == (CHAINS, 1) and b.accepted.all()
    assert z.step_size is not None and (z.step_size == 1e8).all() and info.step_size is None
    assert torch.allclose(b.log_density, info.log_density)
    # The conditional densities are the joint one: they change by what it changes by.
    moved = {k: v + 0.3 for k, v in state.position.items()}
    for name in ("z", "b"):
        held = {k: v for k, v in state.position.items() if k != name}
        conditional = seen[name].given(held)  # type: ignore[attr-defined]  # a Conditional
        change = conditional({name: moved[name]}) - conditional({name: state.position[name]})
        assert torch.allclose(change.sum(-1, keepdim=True), target(held | {name: moved[name]}) - target(state.position))


def test_a_gibbs_kernel_can_be_a_group_of_another() -> None:
    def inner(target: LogDensity) -> Kernel:
        return gibbs(target, Group(("a",), elliptical_slice), Group(("b",), elliptical_slice))

    def model() -> None:
        a, b, c = (pyro.sample(name, dist.Normal(ZERO, 1.0)) for name in "abc")
        pyro.sample("x", dist.Normal(a + b + c, 1.0), obs=ZERO + 4)

    target = log_density(model, chains=CHAINS)
    kernel = gibbs(target, Group(("a", "b"), inner), Group(("c",), elliptical_slice))
    values = sample(target, kernel, target.init(), 300, warmup=50).values
    draws = torch.cat([values[name] for name in "abc"], dim=-1)
    assert_moments(draws, torch.ones(3), torch.full((3,), 1.75))


def test_contract() -> None:
    check_kernel(lambda target, step_size: gibbs(target, Group(("z",), lambda t: mala(t, step_size))))
    check_kernel(lambda target, step_size: gibbs(target, Group(("z",), lambda t: hmc(t, step_size, steps=1), steps=2)))


def test_refusals_name_the_site() -> None:
    target = log_density(offset)
    z, b = Group(("z",), elliptical_slice), Group(("b",), elliptical_slice)
    with pytest.raises(ValueError, match="site 'b' is in no group"):
        gibbs(target, z)
    with pytest.raises(ValueError, match="which 'W' is not"):
        gibbs(target, z, b, Group(("W",), elliptical_slice))
    with pytest.raises(ValueError, match="at least one step"):
        gibbs(target, z, b._replace(steps=0))

    def remembers(conditional: LogDensity) -> Kernel:
        inner = elliptical_slice(conditional)
        return Kernel(lambda position: (state := inner.init(position))._replace(memory=state), inner.step)

    kernel = gibbs(target, z, b._replace(kernel=remembers))
    with pytest.raises(ValueError, match=r"the kernel of the sites \('b',\) has a memory"):
        kernel.step(kernel.init(target.init()))


def test_a_group_that_moves_twice_in_a_sweep_is_reported_once() -> None:
    target = log_density(offset, chains=CHAINS)
    never, always = (Group(("b",), lambda t, e=e: metropolis(t, e)) for e in (1e8, 1e-9))
    _, info = (kernel := gibbs(target, never, Group(("z",), lambda t: metropolis(t, 0.1)), always)).step(kernel.init(target.init()))
    assert info.groups is not None and list(info.groups) == ["b", "z"]
    assert torch.allclose(info.groups["b"].acceptance, torch.full_like(info.acceptance, 0.5)) and info.groups["b"].accepted.all()
