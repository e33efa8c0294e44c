"""Whitened kernels and dense warm-up: steps along the axes of the posterior, the same law, the same contract."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse.infer import (
    Group,
    Kernel,
    LogDensity,
    Position,
    gibbs,
    hmc,
    log_density,
    mala,
    metropolis,
    parallel_tempering,
    replicas,
    sample,
    tuned,
    warm_up,
    whitened,
)
from ppse.testing import assert_moments, check_kernel

T, L, CHAINS = 2, 3, 32
ZERO = torch.zeros(L, dtype=torch.float64)
FACTORS = torch.tensor(
    [[[1.0, 0.0, 0.0], [1.9, 0.6, 0.0], [0.1, -0.1, 0.1]], [[0.1, 0.0, 0.0], [-3.0, 1.2, 0.0], [0.2, 1.0, 5.0]]], dtype=torch.float64,
)
"""Cholesky factors of the covariances of two frames: correlations up to 0.95, deviations from 0.1 to 5."""
MEAN = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 0.0]], dtype=torch.float64)
KERNELS: dict[str, Callable[[LogDensity], Kernel]] = {
    "hmc": lambda t: hmc(t, 0.5, 4), "mala": lambda t: mala(t, 0.8), "metropolis": lambda t: metropolis(t, 1.0),
}


def correlated() -> None:
    with pyro.plate("frames", T, dim=-1):
        pyro.sample("z", dist.MultivariateNormal(MEAN, scale_tril=FACTORS))


@pytest.mark.parametrize("name", list(KERNELS))
@pytest.mark.parametrize("frame", range(T))
def test_is_the_same_walk_as_on_a_round_target(frame: int, name: str) -> None:
    """With the same random numbers u = L^-1 z takes the very steps that the kernel takes on N(L^-1 m, I)."""
    def gaussian(mean: Tensor, tril: Tensor) -> None:
        with pyro.plate("frames", 1, dim=-1):
            pyro.sample("z", dist.MultivariateNormal(mean, scale_tril=tril))

    mean, factor, one = MEAN[frame], FACTORS[frame], torch.eye(L, dtype=torch.float64)
    start, moved = torch.randn(CHAINS, 1, L, dtype=torch.float64), []
    for law in ((mean, factor), (torch.linalg.solve_triangular(factor, mean.unsqueeze(-1), upper=False).squeeze(-1), one)):
        target = log_density(gaussian, *law, chains=CHAINS)
        with pyro.poutine.seed(rng_seed=0):
            draws = sample(target, whitened(target, {"z": law[1]}, KERNELS[name]), {"z": start @ law[1].mT}, 20)
        moved.append(torch.linalg.solve_triangular(law[1], draws.values["z"].unsqueeze(-1), upper=False).squeeze(-1))
    torch.testing.assert_close(moved[0], moved[1], rtol=1e-6, atol=1e-6)
    assert (moved[0][-1] - start).abs().max() > 1


@pytest.mark.parametrize("name", ["hmc", "mala"])
def test_identity_changes_nothing(name: str) -> None:
    target = log_density(correlated, chains=2)
    kernels = KERNELS[name](target), whitened(target, {"z": torch.eye(L, dtype=torch.float64)}, KERNELS[name])
    found, start = [], target.init()
    for kernel in kernels:
        with pyro.poutine.seed(rng_seed=1):
            found.append(sample(target, kernel, start, 10).values["z"])
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("hmc", 150), ("mala", 300), ("metropolis", 1500)])
def test_exact_on_skewed_positive_latents_by_any_factor(name: str, count: int) -> None:
    """A factor that is no covariance of the target, and a support that is a half-line: the draws still are Gamma."""
    shape, rate = torch.tensor([[2.0, 3.0, 5.0], [4.0, 4.0, 2.0]], dtype=torch.float64), torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            pyro.sample("z", dist.Gamma(shape, rate).to_event(1))

    target = log_density(model, chains=CHAINS)
    factor = torch.tensor([[0.6, 0.0, 0.0], [0.3, 0.6, 0.0], [-0.3, 0.2, 0.6]], dtype=torch.float64)
    draws = sample(target, whitened(target, {"z": factor}, KERNELS[name]), target.init(), count, warmup=50, thin=2).values["z"]
    mean = shape / rate
    assert_moments(draws, mean, mean.square() + shape / rate.square())
    # In logarithms, where small values count.
    mean = shape.digamma() - rate.log()
    assert_moments(draws.log(), mean, mean.square() + torch.polygamma(1, shape))


@pytest.mark.parametrize("name", ["hmc", "mala"])
def test_a_correlated_target_is_as_easy_as_a_round_one(name: str) -> None:
    target = log_density(correlated, chains=CHAINS)
    draws = sample(target, whitened(target, {"z": FACTORS}, KERNELS[name]), target.init(), 150, warmup=20, thin=2).values["z"]
    assert_moments(draws, MEAN, MEAN.square() + (FACTORS @ FACTORS.mT).diagonal(dim1=-2, dim2=-1))
    along = torch.tensor([3.0, -1.0, 0.7], dtype=torch.float64)  # a direction in which the coordinates must agree
    mean, variance = MEAN @ along, (FACTORS.mT @ along).square().sum(-1)
    assert_moments(draws @ along, mean, mean.square() + variance)


@pytest.mark.parametrize("factory", [hmc, mala, metropolis])
def test_contract(factory: Callable[[LogDensity, float | Tensor], Kernel]) -> None:
    factor = {"z": torch.tensor([[1.0, 0.0], [-0.7, 0.5]], dtype=torch.float64)}
    check_kernel(lambda target, step_size: whitened(target, factor, lambda white: factory(white, step_size)))


@pytest.mark.parametrize("name", ["hmc", "mala", "metropolis"])
def test_states_are_handed_from_one_factor_to_another(name: str) -> None:
    """As a warm-up does whenever it learns a new factor: density and gradient in the State are those of the target."""
    target = log_density(correlated, chains=4)
    state = KERNELS[name](target).init({"z": MEAN + 0.05 * torch.randn(4, T, L, dtype=torch.float64)})
    for scale in (1.0, 0.3, 2.0):
        for factor in (scale * FACTORS, torch.eye(L, dtype=torch.float64) * 0.05):
            for _ in range(5):
                before = state
                state, info = whitened(target, {"z": factor}, KERNELS[name]).step(state)
                value, gradient = target.value_and_grad(state.position)
                torch.testing.assert_close(state.log_density, value)
                if state.gradient is not None:
                    torch.testing.assert_close(state.gradient["z"], gradient["z"], rtol=1e-6, atol=1e-5)
                still = ~info.accepted
                assert torch.equal(state.position["z"][still], before.position["z"][still])  # to the last digit


def spectrum() -> None:
    """A shared number, a shared matrix and a number per frame, all correlated given the data: x_tf = b + sum_k W_fk + z_t + noise."""
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]], dtype=torch.float64)
    b = pyro.sample("b", dist.Normal(x.new_zeros(()), 2.0))
    w = pyro.sample("W", dist.Normal(x.new_zeros(2, 2), 1.0).to_event(2))
    with pyro.plate("frames", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(b.unsqueeze(-1) + w.sum(-1) + z.unsqueeze(-1), 2.0).to_event(1), obs=x)


def spectrum_posterior() -> tuple[Tensor, Tensor]:
    """Mean and second moments of (b, W_11, W_12, W_21, W_22, z_1, z_2, z_3)."""
    x = torch.tensor([1.0, 2.0, 0.0, -1.0, 3.0, 0.5], dtype=torch.float64)
    frame, freq = torch.arange(6) // 2, torch.arange(6) % 2
    columns = [torch.ones(6), *(freq == f for f in (0, 0, 1, 1)), *(frame == t for t in range(3))]
    design = torch.stack([c.double() for c in columns], -1)
    prior = torch.tensor([0.25] + 7 * [1.0], dtype=torch.float64)
    covariance = torch.linalg.inv(torch.diag(prior) + 0.25 * design.mT @ design)
    mean = 0.25 * covariance @ design.mT @ x
    return mean, mean.square() + covariance.diagonal()


def flat(values: Position) -> Tensor:
    return torch.cat([values["b"], values["W"].flatten(-3), values["z"]], -1)


SPECTRUM_FACTORS = {
    "b": torch.tensor([[1.2]], dtype=torch.float64), "z": torch.tensor([[[0.8]], [[0.7]], [[0.8]]], dtype=torch.float64),
    "W": torch.tensor([[[0.9, 0.0], [-0.3, 0.8]], [[0.9, 0.0], [-0.2, 0.9]]], dtype=torch.float64),
}


@pytest.mark.parametrize("how", ["together", "in gibbs", "around gibbs", "around nested gibbs"])
def test_numbers_and_matrices_alone_and_in_gibbs(how: str) -> None:
    """Scalar sites (factor 1 x 1), matrix sites (a factor for every row), within gibbs and around it, where the groups walk in u."""
    target = log_density(spectrum, chains=CHAINS)
    parts = [Group((site,), lambda t: hmc(t, 0.8, 3)) for site in ("z", "b", "W")]
    if how == "together":
        kernel = whitened(target, SPECTRUM_FACTORS, lambda t: hmc(t, 0.6, 4))
    elif how == "in gibbs":
        groups = [Group(g.sites, lambda t, g=g: whitened(t, SPECTRUM_FACTORS, g.kernel), g.steps) for g in parts]
        kernel = gibbs(target, *groups)
    elif how == "around gibbs":
        kernel = whitened(target, SPECTRUM_FACTORS, lambda t: gibbs(t, *parts))
    else:
        kernel = whitened(target, SPECTRUM_FACTORS, lambda t: gibbs(t, parts[0], Group(("b", "W"), lambda u: gibbs(u, *parts[1:]))))
    draws = sample(target, kernel, target.init(), 120, warmup=20)
    assert_moments(flat(draws.values), *spectrum_posterior())


def test_kernels_with_a_memory_are_refused() -> None:
    target = log_density(correlated, chains=2)
    with pytest.raises(ValueError, match="Whitened density cannot be replicated"):
        whitened(target, {"z": FACTORS}, lambda white: parallel_tempering(white, replicas(white, (1, 0.5)), hmc(white)))
    hot = replicas(target, (1, 0.5))
    kernel = whitened(target, {"z": FACTORS}, lambda white: parallel_tempering(white, hot, hmc(hot, 0.1)))
    with pytest.raises(ValueError, match="whitened: the kernel has a memory"):
        kernel.init(target.init())


@pytest.mark.slow
@pytest.mark.parametrize("guess", [None, {"z": FACTORS.square().sum(-1).sqrt()}], ids=["no guess", "deviations known"])
def test_dense_warm_up_learns_the_covariance_of_every_frame(guess: Position | None) -> None:
    target = log_density(correlated, chains=8)
    done = warm_up(
        target, lambda e, f: whitened(target, f, lambda t: hmc(t, e, 6)), target.init({"z": MEAN}, jitter=0.01), 300, step_size=0.2,
        target_acceptance=0.8, scale=guess, dense=True,
    )
    factor = done.scale["z"]
    assert factor.shape == (1, T, L, L) and torch.equal(factor, factor.tril())
    white = torch.linalg.solve_triangular(factor[0], FACTORS, upper=False)  # of a target that is round in u, a rotation
    values = torch.linalg.svdvals(white)
    assert ((values > 0.7) & (values < 1.4)).all()
    draws = sample(target, whitened(target, done.scale, lambda t: hmc(t, done.step_size, 6)), done.state, 150)
    assert ((draws.stats.acceptance.mean((0, 1)) > 0.65) & (draws.stats.acceptance.mean((0, 1)) < 0.99)).all()
    assert_moments(draws.values["z"], MEAN, MEAN.square() + (FACTORS @ FACTORS.mT).diagonal(dim1=-2, dim2=-1), minimum_ess=300)



@pytest.mark.slow
def test_dense_warm_up_within_gibbs_goes_on_for_its_steps_and_is_then_frozen() -> None:
    target = log_density(spectrum, chains=CHAINS)
    seen: dict[tuple[str, ...], list[tuple[Tensor, Position]]] = {}

    def group(*sites: str) -> Group:
        def make(conditional: LogDensity, step_size: Tensor, factor: Position) -> Kernel:
            seen.setdefault(sites, []).append((step_size, factor))
            return whitened(conditional, factor, lambda white: hmc(white, step_size, 4))

        return Group(sites, tuned(make, 60, step_size=0.1, target_acceptance=0.8, dense=True))

    draws = sample(target, gibbs(target, group("z"), group("b", "W")), target.init(), 120, warmup=60)
    for sites, shapes in {("z",): {"z": (1, 3, 1, 1)}, ("b", "W"): {"b": (1, 1, 1, 1), "W": (1, 1, 2, 2, 2)}}.items():
        first, last = seen[sites][0], seen[sites][-1]
        assert {name: tuple(value.shape) for name, value in last[1].items()} == shapes
        assert not torch.equal(first[0], last[0]) and not all(torch.equal(first[1][k], last[1][k]) for k in shapes)
        frozen = seen[sites][-120:]
        assert all(step is last[0] and factor is last[1] for step, factor in frozen)
    rows = seen["b", "W"][-1][1]["W"]
    assert (rows[..., 1, 0] < 0).all()  # W_f1 and W_f2 share what they explain
    assert_moments(flat(draws.values), *spectrum_posterior())


def test_a_dead_block_keeps_the_guess_and_does_not_matter_to_others() -> None:
    def model(spoilt: bool) -> None:
        with pyro.plate("frames", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO[:2], 1.0).to_event(1))
            wider = ZERO.new_tensor([[0.0, 0.3], [torch.nan if spoilt else 0.0, 0.0], [0.0, 0.0]])
            pyro.factor("wider", (z.square() * wider).sum(-1) - 0.9 * z.prod(-1))

    found, guess = [], {"z": ZERO.new_tensor([2.0, 0.5])}
    for spoilt in (True, False):
        target = log_density(model, spoilt, chains=3, block=("frames",))
        with pyro.poutine.seed(rng_seed=3):
            found.append(warm_up(
                target, lambda e, f, t=target: whitened(t, f, lambda white: mala(white, e)), {"z": ZERO.new_zeros(3, 3, 2)}, 100, step_size=0.1,
                target_acceptance=0.5, scale=guess, dense=True,
            ))
    dead, alive = (one.scale["z"][0] for one in found)
    assert torch.equal(dead[1], torch.diag(guess["z"])) and not torch.equal(alive[1], dead[1])
    assert torch.equal(dead[[0, 2]], alive[[0, 2]]) and torch.equal(found[0].step_size[0, [0, 2]], found[1].step_size[0, [0, 2]])
    assert (alive[[0, 2], 1, 0] < 0).all() and all(one.step_size.isfinite().all() for one in found)


def test_a_short_warm_up_tunes_the_step_size_alone() -> None:
    target, guess = log_density(correlated, chains=2), {"z": FACTORS.square().sum(-1).sqrt()}
    done = warm_up(
        target, lambda e, f: whitened(target, f, lambda t: hmc(t, e, 2)), target.init(), 15, step_size=0.3, target_acceptance=0.8,
        scale=guess, dense=True,
    )
    assert torch.equal(done.scale["z"], torch.diag_embed(guess["z"])[None]) and not torch.equal(done.step_size, torch.full_like(done.step_size, 0.3))
