"""Step sizes and scales found by warm-up: of anisotropic targets, per block, in single chains, beside dead and flat blocks."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse.infer import (
    TARGET_ACCEPTANCE,
    Group,
    Kernel,
    LogDensity,
    Position,
    adapt_step_size,
    elliptical_slice,
    gibbs,
    hmc,
    langevin,
    log_density,
    mala,
    metropolis,
    sample,
    tuned,
    warm_up,
)
from ppse.testing import assert_moments

L, CHAINS = 6, 8
ZERO = torch.zeros(L, dtype=torch.float64)
SCALES = torch.stack([torch.logspace(-2, 1, L), torch.ones(L), torch.logspace(2, -1, L)]).double()
"""Standard deviations of three frames: narrow to wide 1 : 1000, round, wide to narrow."""
STEPS = {"metropolis": 1000, "mala": 600, "hmc": 300}


def anisotropic() -> None:
    with pyro.plate("frames", 3, dim=-1):
        pyro.sample("z", dist.Normal(ZERO, SCALES).to_event(1))


def _make(name: str, target: LogDensity, step_size: Tensor, scale: Position | None = None) -> Kernel:
    if name == "hmc":
        return hmc(target, step_size, steps=6, scale=scale)
    return mala(target, step_size, scale) if name == "mala" else metropolis(target, step_size, scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(STEPS))
def test_scales_and_acceptance_of_every_frame(name: str) -> None:
    target = log_density(anisotropic, chains=CHAINS)
    # All chains start in one place, so that the scale must be learnt from how far they get.
    done = warm_up(
        target, lambda e, s: _make(name, target, e, s), target.init({"z": ZERO + 0.01}, jitter=0.01), STEPS[name], step_size=0.1,
        target_acceptance=TARGET_ACCEPTANCE[name],
    )
    assert done.step_size.shape == (1, 3) and done.scale["z"].shape == (1, 3, L)
    ratio = (done.scale["z"][0] / SCALES).log()
    # Slow kernels have not seen all of the wide directions by then, but most of the way from 1 : 1000 to round is done.
    assert ((ratio.max(-1)[0] - ratio.min(-1)[0]).exp() < {"metropolis": 25, "mala": 8, "hmc": 5}[name]).all()
    assert done.scale["z"].log().mean(-1).abs().max() < 1e-6  # the common size is in the step size
    draws = sample(target, _make(name, target, done.step_size, done.scale), done.state, 150)
    above = draws.stats.acceptance.mean((0, 1)) - TARGET_ACCEPTANCE[name]
    # HMC falls from accepting most to accepting nothing within a small change of the step: the average of steps that swing lies below.
    assert ((above > -0.1) & (above < 0.28)).all()


def test_what_the_scale_is_good_for() -> None:
    """200 draws are enough with it, and nowhere near enough with the step size alone."""
    target = log_density(anisotropic, chains=CHAINS)
    start = target.init()
    done = warm_up(target, lambda e, s: hmc(target, e, 6, s), start, 300, step_size=0.1, target_acceptance=0.8)
    moments = torch.zeros_like(SCALES), SCALES.square()
    assert_moments(sample(target, hmc(target, done.step_size, 6, done.scale), done.state, 200).values["z"], *moments, minimum_ess=250)
    step_size, state = adapt_step_size(lambda e: hmc(target, e, 6), start, 300, 0.1, 0.8)
    with pytest.raises(AssertionError, match="effective sample size"):
        assert_moments(sample(target, hmc(target, step_size, 6), state, 200).values["z"], *moments, minimum_ess=250)
    # The scale that MALA or HMC has found serves Langevin steps, which have no acceptance to be tuned by.
    finer = langevin(target, 0.2, {"z": done.scale["z"] * (SCALES / done.scale["z"]).log().mean(-1, keepdim=True).exp()})
    found = sample(target, finer, done.state.position, 400, thin=3).values["z"].square().mean((0, 1)) / SCALES.square()
    assert ((found > 0.8) & (found < 1.35)).all()


def shared_level() -> None:
    level = pyro.sample("level", dist.Normal(ZERO.new_zeros(()), 10.0))
    with pyro.plate("frames", 3, dim=-1):
        z = pyro.sample("z", dist.Normal(ZERO[:2], 0.1).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1) + level, 1.0), obs=ZERO[:3])


@pytest.mark.parametrize("chains", [1, 4])
def test_whole_utterances_and_single_chains(chains: int) -> None:
    target = log_density(shared_level, chains=chains)
    assert target.block == ()
    done = warm_up(target, lambda e, s: hmc(target, e, 5, s), target.init(), 300, step_size=0.05, target_acceptance=0.7)
    assert done.step_size.shape == (1, 1) and done.scale["level"].shape == (1, 1) and done.scale["z"].shape == (1, 3, 2)
    assert done.state.position["z"].shape == (chains, 3, 2)
    wider = done.scale["level"] / done.scale["z"]
    assert ((wider > 3) & (wider < 12)).all()  # sds: level 0.58, z 0.1


@pytest.mark.slow
def test_every_group_of_gibbs_is_tuned_in_its_own_blocks() -> None:
    """A wide level and narrow frames, both from far-off first guesses, beside a group that needs no tuning."""
    def model() -> None:
        level = pyro.sample("level", dist.Normal(ZERO.new_zeros(()), 10.0))
        with pyro.plate("frames", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO[:2], ZERO.new_tensor([[0.01, 0.1], [1.0, 1.0], [3.0, 0.1]])).to_event(1))
            e = pyro.sample("e", dist.Normal(ZERO.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.sum(-1) + e + level, 5.0), obs=ZERO[:3])

    target = log_density(model, chains=16)
    seen: dict[str, torch.Size] = {}

    def kernel(conditional: LogDensity, step_size: Tensor, scale: Position) -> Kernel:
        seen[conditional.sites[0]] = step_size.shape
        return hmc(conditional, step_size, 4, scale)

    z = Group(("z",), tuned(kernel, 240, step_size=1.0, target_acceptance=0.7), steps=2)
    level = Group(("level",), tuned(kernel, 120, step_size=1e-3, target_acceptance=0.7))
    draws = sample(target, gibbs(target, z, Group(("e",), elliptical_slice), level), target.init(), 150, warmup=120)
    assert seen == {"z": (1, 3), "level": (1, 1)}
    frames = torch.eye(3, dtype=torch.float64)
    design = torch.cat([frames.repeat_interleave(2, dim=1), frames, torch.ones_like(frames[:, :1])], dim=1)
    prior = ZERO.new_tensor([0.01, 0.1, 1.0, 1.0, 3.0, 0.1, 1.0, 1.0, 1.0, 10.0]).square()
    second = torch.linalg.inv(torch.diag(1 / prior) + design.mT @ design / 25).diagonal()
    values = torch.cat([draws.values["z"].flatten(-2), draws.values["e"], draws.values["level"]], dim=-1)
    assert_moments(values, torch.zeros_like(second), second)


def test_a_dead_and_a_flat_block_do_not_matter_to_others() -> None:
    def model(spoilt: bool) -> None:
        with pyro.plate("frames", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(ZERO[:2], 1.0).to_event(1))
            wider = ZERO.new_tensor([[0.0, 0.48], [torch.nan if spoilt else 0.0, 0.0], [0.5, 0.5]])
            pyro.factor("wider", (z.square() * wider).sum(-1))

    found = []
    for spoilt in (True, False):
        target = log_density(model, spoilt, chains=2, block=("frames",))
        pyro.set_rng_seed(3)
        found.append(warm_up(target, lambda e, s, t=target: mala(t, e, s), {"z": ZERO.new_zeros(2, 3, 2)}, 150, step_size=0.1, target_acceptance=0.5))
    for one in found:
        assert all(values.isfinite().all() for values in (one.step_size, one.scale["z"], one.state.position["z"]))
        assert (one.step_size > 0).all() and (one.scale["z"] > 0).all()
        assert one.step_size[0, 2] > 1e6 and one.step_size[0, 0] < 100  # flat: always accepted
    dead, alive = found
    assert dead.step_size[0, 1] < 1e-6 and (dead.scale["z"][0, 1] == 1).all()
    assert torch.equal(dead.step_size[0, [0, 2]], alive.step_size[0, [0, 2]]) and torch.equal(dead.scale["z"][0, 0], alive.scale["z"][0, 0])


def test_first_guesses_are_kept_where_nothing_is_learnt() -> None:
    target = log_density(anisotropic, chains=2)
    guess = {"z": SCALES}
    short = warm_up(target, lambda e, s: hmc(target, e, 2, s), target.init(), 15, step_size=0.3, target_acceptance=0.8, scale=guess)
    assert torch.equal(short.scale["z"][0], SCALES) and (short.step_size / 0.3).log().abs().max() < 3
    longer = warm_up(target, lambda e, s: hmc(target, e, 5, s), target.init(), 100, step_size=0.3, target_acceptance=0.8, scale=guess)
    ratio = longer.scale["z"][0] / SCALES
    assert not torch.equal(ratio, torch.ones_like(ratio)) and ratio.log().abs().max() < 0.7 and ratio.log().mean(-1).abs().max() < 1e-6


@pytest.mark.parametrize("change", [{"steps": 0}, {"step_size": 0.0}, {"step_size": float("nan")}, {"target_acceptance": 1.0}])
def test_bad_settings_are_refused(change: dict[str, float]) -> None:
    target = log_density(anisotropic)
    settings = {"steps": 5, "step_size": 0.1, "target_acceptance": 0.5} | change
    with pytest.raises(ValueError, match="warm_up: steps="):
        warm_up(target, lambda e, s: mala(target, e, s), target.init(), **settings)  # type: ignore[arg-type]  # numbers by name
