"""Parallel tempering and annealing on targets with two modes, against closed forms; what plain chains do there; contract; refusals."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse import to_arviz
from ppse.infer import (
    Group,
    Kernel,
    LogDensity,
    Position,
    State,
    annealed,
    elliptical_slice,
    gibbs,
    hmc,
    langevin,
    log_density,
    mala,
    parallel_tempering,
    replicas,
    sample,
)
from ppse.testing import assert_moments, check_kernel

T, CHAINS = 3, 24
X = torch.tensor([-0.5, 0.0, 0.7], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
LOCS = torch.tensor([-2.0, 2.0], dtype=torch.float64)
SCALES = torch.tensor([0.5, 0.25], dtype=torch.float64)
POWERS = (1.0, 0.3, 0.1, 0.03)


def two_modes(shift: Tensor, wide: float) -> dist.MixtureSameFamily:
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS), dist.Normal(shift.unsqueeze(-1) + LOCS, SCALES.expand(*shift.shape, 2) * wide))


def ambiguous() -> None:
    """z_t ~ N(0, 2^2), x_t | z_t ~ sum_k w_k N(z_t + m_k, s_k^2): the likelihood has two modes in every frame."""
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(X.new_zeros(()), 2.0))
        pyro.sample("x", two_modes(z, 1.0), obs=X)


def two_clusters() -> None:
    """z_t ~ sum_k w_k N(m_k, s_k^2), x_t | z_t ~ N(z_t, 2^2): the prior has the modes."""
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", two_modes(X.new_zeros(T), 1.0))
        pyro.sample("x", dist.Normal(z, 2.0), obs=X)


def posterior(model: object) -> tuple[Tensor, Tensor]:
    """E z and E z^2 of either model: a product of a normal law of sd 2 and a mixture is a mixture again."""
    centre = X.unsqueeze(-1) - LOCS if model is ambiguous else LOCS.expand(T, 2)  # of the components, as functions of z
    other = X.new_zeros(T, 1) if model is ambiguous else X.unsqueeze(-1)  # of the normal law
    weight = (WEIGHTS.log() + dist.Normal(other, (4 + SCALES.square()).sqrt()).log_prob(centre)).softmax(-1)
    variance = 1 / (1 / SCALES.square() + 0.25)
    mean = variance * (centre / SCALES.square() + 0.25 * other)
    return (weight * mean).sum(-1), (weight * (mean.square() + variance)).sum(-1)


def _start(target: LogDensity) -> Position:
    """All chains in one mode."""
    return target.init({"z": X.new_tensor(-2.0)})


@pytest.mark.slow
@pytest.mark.parametrize(("model", "joint"), [(ambiguous, False), (ambiguous, True), (two_clusters, True)])
def test_modes_of_every_frame_get_their_share(model: object, joint: bool) -> None:
    target = log_density(model, chains=CHAINS)
    hot = replicas(target, POWERS, joint)
    power = 1 / hot.temperature if joint else hot.likelihood_power
    kernel = parallel_tempering(target, hot, hmc(hot, 0.25 * power**-0.5, steps=4))
    draws = sample(target, kernel, _start(target), 500, warmup=50)
    assert_moments(draws.values["z"], *posterior(model))
    sample(target, kernel, hmc(target).init(_start(target)), 1)  # a state that another kernel left will do for a start
    assert draws.stats.swap is not None and draws.stats.swap.shape == (500, CHAINS, T)
    rate = draws.stats.swap.mean((0, 1))
    assert ((rate > 0.2) & (rate < 0.9)).all()
    assert to_arviz(draws).sample_stats["swap"].dims == ("chain", "draw", "frame")


def test_plain_chains_stay_in_their_mode() -> None:
    target = log_density(ambiguous, chains=CHAINS)
    draws = sample(target, hmc(target, 0.25, steps=4), _start(target), 200).values["z"]
    assert (draws < 0).all()
    with pytest.raises(AssertionError, match="standard errors"):
        assert_moments(draws, *posterior(ambiguous))


@pytest.mark.parametrize("joint", [False, True])
def test_slices_at_several_temperatures(joint: bool) -> None:
    """v of elliptical slice sampling follows the prior of its own replica."""
    target = log_density(ambiguous, chains=CHAINS)
    hot = replicas(target, (1, 0.2, 0.05), joint)
    draws = sample(target, parallel_tempering(target, hot, elliptical_slice(hot)), _start(target), 180, warmup=20).values["z"]
    assert_moments(draws, *posterior(ambiguous))


def test_replicas_are_the_target_at_its_powers() -> None:
    target = log_density(ambiguous, chains=2, likelihood_power=0.8, temperature=1.3)
    position = target.init()
    everyone = {"z": torch.cat([position["z"]] * 3)}
    for joint in (False, True):
        values = replicas(target, (1, 0.5, 0.2), joint)(everyone).split(2)
        for value, power in zip(values, (1, 0.5, 0.2), strict=True):
            one = target.tempered(1.3 / power, 0.8) if joint else target.tempered(1.3, 0.8 * power)
            assert torch.allclose(value, one(position))
    assert target.likelihood_power == 0.8 and target.temperature == 1.3


def _swaps_always(target: LogDensity, hot: LogDensity) -> Kernel:
    """A kernel whose states hide their log densities from the swaps."""
    right = mala(hot, 0.05)

    def blind(state: State) -> State:
        assert state.log_density is not None
        return state._replace(log_density=torch.zeros_like(state.log_density))

    hidden = Kernel(lambda position: blind(right.init(position)), lambda state: (blind((done := right.step(right.init(state.position)))[0]), done[1]))
    return parallel_tempering(target, hot, hidden)


def test_moments_notice_swaps_without_a_ratio() -> None:
    target = log_density(ambiguous, chains=CHAINS)
    draws = sample(target, _swaps_always(target, replicas(target, (1, 0.05))), _start(target), 400, warmup=50)
    assert (draws.stats.swap == 1).all()
    with pytest.raises(AssertionError, match="standard errors"):
        assert_moments(draws.values["z"], *posterior(ambiguous), minimum_ess=30)


def _tempered(target: LogDensity, step_size: float | Tensor, joint: bool) -> Kernel:
    hot = replicas(target, (1, 0.4, 0.1), joint)
    steps = step_size.expand(target.shape).repeat(3, 1) if isinstance(step_size, Tensor) else step_size
    return parallel_tempering(target, hot, mala(hot, steps) if joint else hmc(hot, steps, steps=2))


@pytest.mark.parametrize("joint", [False, True])
def test_contract(joint: bool) -> None:
    check_kernel(lambda target, step_size: _tempered(target, step_size, joint))


def test_gibbs_is_tempered_as_a_whole_and_not_in_parts() -> None:
    """z as in `ambiguous`, beside a shared level that moves all frames: the sum of both is what the data tell."""
    def model() -> None:
        level = pyro.sample("level", dist.Normal(X.new_zeros(()), 0.1))
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(X.new_zeros(()), 2.0))
            pyro.sample("x", two_modes(z + level, 1.0), obs=X)

    target = log_density(model, chains=4)
    groups = Group(("z",), lambda t: hmc(t, 0.3)), Group(("level",), elliptical_slice)
    hot = replicas(target, (1, 0.3, 0.1))
    draws = sample(target, parallel_tempering(target, hot, gibbs(hot, *groups)), _start(target), 20)
    assert draws.values["z"].shape == (20, 4, T) and draws.stats.swap is not None and draws.stats.swap.shape == (20, 4, 1)
    inside = Group(("z",), lambda t: parallel_tempering(t, hot := replicas(t, (1, 0.5)), mala(hot, 0.1)))
    kernel = gibbs(target, inside, groups[1])
    with pytest.raises(ValueError, match="a Conditional density cannot be replicated"):
        kernel.step(kernel.init(_start(target)))


def test_annealed_chains_end_at_the_target_in_all_modes() -> None:
    target = log_density(ambiguous, chains=300)
    powers = torch.logspace(-2.5, 0, 12).tolist()
    found = annealed(target, lambda t: hmc(t, 0.25 * t.likelihood_power**-0.5, steps=4), _start(target), powers, steps=5)["z"]
    right, left = found[found > 0], found[found < 0]
    assert 0.2 < len(right) / found.numel() < 0.8 and target.likelihood_power == 1
    # Within a mode they are where the target is, and as wide: about X - LOCS, with the scales of the components.
    centre = 4 / (4 + SCALES.square()) * (X.unsqueeze(-1) - LOCS)
    for side, k in ((right, 0), (left, 1)):
        away = found - centre[:, k]
        away = away[away.abs() < 5 * SCALES[k]]
        assert abs(len(away) / len(side) - 1) < 0.02 and abs(away.mean().item()) < 0.1 and abs((away.std() / SCALES[k]).log().item()) < 0.2
    cold = annealed(target, lambda t: hmc(t, 0.25, steps=4), _start(target), (1.0,), steps=60)["z"]
    assert (cold < 0).all()
    joint = annealed(target, lambda t: hmc(t, 0.25 * t.temperature**0.5, steps=4), _start(target), powers, steps=5, joint=True)["z"]
    assert 0.2 < (joint > 0).double().mean() < 0.8


def test_refusals() -> None:
    target = log_density(ambiguous, chains=2)
    for powers in ((1,), (0.9, 0.5), (1, 0.5, 0.5), (1, 0.0)):
        with pytest.raises(ValueError, match="decreasing from 1"):
            replicas(target, powers)
    hot = replicas(target, (1, 0.5))
    with pytest.raises(ValueError, match="is a tensor"):
        replicas(hot, (1, 0.5))
    with pytest.raises(ValueError, match="2 chains in 'hot' for 2 in the target"):
        parallel_tempering(target, target, mala(target))
    with pytest.raises(ValueError, match="keeps the log density"):
        parallel_tempering(target, hot, langevin(hot)).init(target.init())
    for powers, steps in (((), 1), ((0.5, 1), 0), ((0.0, 1), 1)):
        with pytest.raises(ValueError, match="annealed: steps="):
            annealed(target, mala, target.init(), powers, steps=steps)
