"""EM on x_t = a z_t + noise, whose posterior, marginal likelihood and maximum are known in closed form."""

import math
from collections.abc import Callable
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

from ppse.infer import (
    EStep,
    Expectation,
    Info,
    Position,
    em,
    gradient_m_step,
    guide_e_step,
    hmc,
    langevin,
    last_draws,
    log_density,
    mala,
    mcmc_e_step,
    metropolis,
    point_e_step,
)

T, NOISE = 60, 0.5
GAIN = 1.7


def _data() -> Tensor:
    """Scaled so that the maximum of the likelihood lies exactly at GAIN: mean x^2 = GAIN^2 + NOISE^2."""
    x = torch.randn(T, dtype=torch.float64)
    return x * ((GAIN**2 + NOISE**2) / x.square().mean()).sqrt()


class Toy(nn.Module):
    def __init__(self, gain: float = 0.6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.gain * z, NOISE), obs=x)

    def marginal(self, x: Tensor) -> float:
        return dist.Normal(0.0, (self.gain.detach() ** 2 + NOISE**2).sqrt()).log_prob(x).sum().item()

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.gain.detach()
        return a * x / (a**2 + NOISE**2), (NOISE**2 / (a**2 + NOISE**2)).sqrt()


class Guide(PyroModule):
    """The exact family: mean linear in x, one standard deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("frames", T, dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, self.log_scale.exp()))


def _exact(toy: Toy, x: Tensor) -> EStep:
    """Two points at one standard deviation have the first two moments of the posterior, all that a quadratic needs."""

    def e_step(_: int) -> Expectation:
        mean, scale = toy.posterior(x)
        return Expectation({"z": torch.stack([mean - scale, mean + scale])})

    return e_step


def _closed_form_m_step(toy: Toy, x: Tensor) -> Callable[[Position], float]:
    def m_step(draws: Position) -> float:
        before = toy.marginal(x)
        z = draws["z"]
        toy.gain.data = (x * z).mean() / z.square().mean()
        return before

    return m_step


def test_exact_em_never_lowers_the_marginal_likelihood_and_finds_the_maximum() -> None:
    x, toy = _data(), Toy()
    objective = em(_exact(toy, x), _closed_form_m_step(toy, x), 200)
    assert all(b >= a - 1e-10 * abs(a) for a, b in zip(objective[:-1], objective[1:], strict=True))
    assert objective[-1] > objective[0] and abs(toy.gain.item() - GAIN) < 1e-4


def test_gradient_m_step_climbs_too_and_reports_the_expected_log_joint_before_it() -> None:
    x, toy = _data(), Toy()
    m_step = gradient_m_step(toy, (x,), torch.optim.Adam(toy.parameters(), lr=0.01), 2, steps=3)
    marginal: list[float] = []
    objective = em(_exact(toy, x), m_step, 150, callback=lambda *_: marginal.append(toy.marginal(x)))
    assert all(b >= a - 1e-6 for a, b in zip(marginal[:-1], marginal[1:], strict=True))
    gain = Toy().gain.detach()
    mean, scale = Toy().posterior(x)
    second = mean.square() + scale**2
    joint = -0.5 * second - (x.square() - 2 * gain * x * mean + gain**2 * second) / (2 * NOISE**2) - math.log(2 * math.pi * NOISE)
    assert objective[0] == pytest.approx(joint.sum().item(), rel=1e-10)
    assert abs(toy.gain.item() - GAIN) < 0.05


SETTINGS = {"metropolis": (metropolis, 0.5), "mala": (mala, 0.15), "hmc": (hmc, 0.2), "langevin": (langevin, 0.02)}


def _mcmc(name: str, toy: Toy, x: Tensor) -> EStep:
    kernel, step_size = SETTINGS[name]
    target = log_density(toy, x, chains=10)
    return mcmc_e_step(target, lambda e: kernel(target, e), target.init(), step_size=step_size, draws=3, burn_in=7)


@pytest.mark.parametrize("kind", [*SETTINGS, "guide"])
def test_em_with_every_e_step_finds_the_maximum_of_the_likelihood(kind: str) -> None:
    x, toy = _data(), Toy()
    guide = Guide()
    e_step = guide_e_step(toy, guide, (x,), draws=30, steps=3, learning_rate=0.05) if kind == "guide" else _mcmc(kind, toy, x)
    gains: list[float] = []
    em(e_step, _closed_form_m_step(toy, x), 150, callback=lambda *_: gains.append(toy.gain.item()))
    # Averaged over iterations, the Monte Carlo error of the M-step is far below the tolerance.
    assert abs(sum(gains[-50:]) / 50 - GAIN) < 0.08
    assert guide.slope.item() == 0.1  # the guide that was given is not changed


def test_point_estimate_climbs_to_the_mode_and_is_biased() -> None:
    x, toy = _data(), Toy(GAIN)
    target = log_density(toy, x)
    e_step = point_e_step(target, target.init(), steps=400, learning_rate=0.05)
    draws = e_step(0).draws["z"]
    torch.testing.assert_close(draws.squeeze(0), toy.posterior(x)[0], atol=1e-3, rtol=0)
    assert not draws.requires_grad
    em(point_e_step(target, target.init(), steps=50, learning_rate=0.05), _closed_form_m_step(toy, x), 30)
    assert toy.gain.item() > GAIN + 0.05  # a mode has no variance, so the gain must make up for it


def test_draws_of_an_e_step_join_the_chains() -> None:
    x, toy = _data(), Toy()
    target = log_density(toy, x, chains=4)
    expectation = mcmc_e_step(target, lambda e: mala(target, e), target.init(), step_size=0.1, draws=3, burn_in=1)(0)
    assert expectation.draws["z"].shape == (12, T)
    assert isinstance(expectation.info, Info) and expectation.info.acceptance.shape == (4, T)
    assert guide_e_step(toy, Guide(), (x,), draws=5, steps=0)(0).draws["z"].shape == (5, T)


def test_chains_go_on_where_they_were_and_see_new_parameters() -> None:
    x, toy = _data(), Toy()
    target = log_density(toy, x, chains=2)
    e_step = mcmc_e_step(target, lambda e: mala(target, e), target.init(), step_size=1e-8)
    first = e_step(0).draws["z"]
    toy.gain.data += 1
    expectation = e_step(1)
    torch.testing.assert_close(expectation.draws["z"], first, atol=1e-2, rtol=0)
    assert expectation.info is not None
    torch.testing.assert_close(expectation.info.log_density, target(expectation.draws))


def test_settling_keeps_the_start() -> None:
    x, toy = _data(), Toy()
    target = log_density(toy, x)
    start = target.init()
    e_step = mcmc_e_step(target, lambda e: mala(target, e), start, step_size=0.1, settle=2)
    assert all(torch.equal(e_step(i).draws["z"], start["z"]) for i in range(2))
    assert not torch.equal(e_step(2).draws["z"], start["z"])


def test_convergence_stops_the_loop() -> None:
    values = iter([float(min(i, 12)) for i in range(100)])
    objective = em(lambda _: Expectation({}), lambda _: next(values), 100, tolerance=1e-6, window=5)
    assert len(objective) == 22  # the first time that two windows of five lie on the plateau that starts at 12
    assert len(em(lambda _: Expectation({}), lambda _: 0.0, 30)) == 30


@pytest.mark.parametrize("change", [{"iterations": 0}, {"window": 0}, {"tolerance": -1.0}])
def test_nothing_to_do_is_refused(change: dict[str, float]) -> None:
    settings = {"iterations": 3, "window": 2, "tolerance": 0.0} | change
    with pytest.raises(ValueError, match="em: iterations="):
        em(lambda _: Expectation({}), lambda _: 0.0, **settings)  # type: ignore[arg-type]  # numbers by name


@pytest.mark.parametrize("automatic", [AutoNormal, AutoDiagonalNormal, AutoDelta])
def test_automatic_guides_are_set_up_and_their_auxiliary_sites_stay_inside(automatic: Callable[[nn.Module], nn.Module]) -> None:
    x, toy = _data(), Toy(GAIN)
    guide = automatic(toy)
    its_model = guide.model
    e_step = guide_e_step(toy, guide, (x,), draws=200, steps=300, learning_rate=0.05)
    draws = e_step(0).draws
    assert list(draws) == ["z"] and draws["z"].shape == (200, T)
    mean, scale = toy.posterior(x)
    if automatic is AutoDelta:
        mean = GAIN * x / (GAIN**2 + NOISE**2)
        assert torch.equal(draws["z"][0], draws["z"][1])
    assert (draws["z"].mean(0) - mean).abs().mean() < 0.1 < 0.5 * mean.abs().mean()
    if automatic is not AutoDelta:
        assert draws["z"].std(0).mean() == pytest.approx(scale.item(), rel=0.15)
    assert guide.model is its_model  # a guide that was copied still knows its model
    assert guide(x)["z"].abs().max() < 1 + 6 * scale  # and has not moved


def test_a_guide_must_draw_every_latent() -> None:
    def more(x: Tensor) -> None:
        Toy()(x)
        pyro.sample("extra", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="does not draw the latent 'extra'"):
        guide_e_step(more, Guide(), (_data(),))


def test_gradient_m_step_leaves_other_parameters_alone() -> None:
    toy, other, x = Toy(), Toy(), _data()

    def both(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(x.new_zeros(T), 1.0).to_event(1))
        pyro.sample("x", dist.Normal((toy.gain + other.gain) * z, NOISE).to_event(1), obs=x)

    gradient_m_step(both, (x,), torch.optim.Adam([toy.gain]), 1)({"z": x})
    assert toy.gain != Toy().gain and other.gain == Toy().gain and other.gain.grad is None


def test_a_gradient_that_is_not_finite_does_not_stay_in_the_memory_of_the_point_estimate() -> None:
    broken = True

    def model(x: Tensor) -> None:
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(GAIN * z * (torch.nan if broken else 1.0), NOISE, validate_args=False), obs=x)

    broken = False
    x = _data()
    target = log_density(model, x)
    e_step = point_e_step(target, target.init(), steps=400, learning_rate=0.05)
    broken = True
    e_step(0)
    broken = False
    torch.testing.assert_close(e_step(1).draws["z"].squeeze(0), Toy(GAIN).posterior(x)[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("lead", [(), (2,)], ids=["one", "batch"])
def test_last_draws_are_those_that_the_chains_ended_at(lead: tuple[int, ...]) -> None:
    """Three draws of four chains per E-step, side by side: the last four of each are kept, with the Info of that step."""
    def model() -> None:
        with pyro.plate("utterances", 2, dim=-3) if lead else nullcontext():
            level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("frames", 5, dim=-1):
                pyro.sample("z", dist.Normal(level.unsqueeze(-1).expand(*level.shape, 2) if level.dim() else torch.zeros(2), 1.0).to_event(1))

    target = log_density(model, chains=4)
    e_step = mcmc_e_step(target, lambda e: mala(target, e), target.init(), step_size=0.1, draws=3, settle=2)
    expectations = [e_step(i) for i in range(5)]
    before = torch.random.get_rng_state()
    found = last_draws(model, (), expectations)
    assert found is not None and torch.equal(before, torch.random.get_rng_state())
    assert found.values["z"].shape == (3, *lead, 4, 5, 2) and found.values["level"].shape == (3, *lead, 4, 1)  # while it rested, nothing was drawn
    utterances = ("utterances",) if lead else ()
    assert found.plates == {"level": (*utterances, "chains", ""), "z": (*utterances, "chains", "frames")}
    assert found.blocks == (*utterances, "chains", "")
    assert isinstance(found.stats, Info) and found.stats.log_density.shape == (3, *lead, 4, 1)
    for draw, expectation in zip(found.values["z"], expectations[2:], strict=True):
        assert torch.equal(draw, expectation.draws["z"][..., -4:, :, :])
    # The log density of a step is that of the state which it ended in.
    last = {k: v[-1] for k, v in found.values.items()}
    torch.testing.assert_close(target(last), found.stats.log_density[-1])


def test_last_draws_of_frames_that_are_accepted_one_by_one_and_of_guides() -> None:
    x, toy = _data(), Toy()
    found = last_draws(toy, (x,), [_mcmc("mala", toy, x)(i) for i in range(2)])
    assert found is not None and found.blocks == ("chains", "frames") and found.stats is not None and found.values["z"].shape == (2, 10, T)
    guided = [guide_e_step(toy, Guide(), (x,), draws=6)(0), guide_e_step(toy, Guide(), (x,), draws=6)(1)]
    found = last_draws(toy, (x,), guided)
    assert found is not None and found.stats is None and found.values["z"].shape == (2, 6, T) and found.plates == {"z": ("chains", "frames")}
    assert last_draws(toy, (x,), []) is None and last_draws(toy, (x,), [Expectation({})]) is None


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_step_size_is_positive(size: float) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    target = log_density(model)
    with pytest.raises(ValueError, match=f"step_size={size}; expected a positive number"):
        mcmc_e_step(target, lambda e: hmc(target, e), target.init(), step_size=size)
