"""Samplers against closed forms: means and second moments inside ESS-gated bounds (see ``assert_moments``)."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse.infer import (
    Info,
    Kernel,
    LogDensity,
    Position,
    State,
    hmc,
    kinetic_langevin,
    langevin,
    log_density,
    mala,
    mcmc_e_step,
    metropolis,
    sample,
    whitened,
)
from ppse.testing import KernelFactory, assert_moments, check_kernel

T, L, D, CHAINS = 4, 2, 3, 32
DECODER = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.6]], dtype=torch.float64)
NOISE = 0.6  # standard deviation of the observation
OBSERVED = torch.linspace(-2, 2, T * D, dtype=torch.float64).reshape(T, D).sin()
LATENCY = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)

# step size per frame and per utterance, draws kept, thinning
SETTINGS: dict[str, tuple[KernelFactory, float, float, int]] = {
    "metropolis": (metropolis, 0.7, 0.35, 12),
    "mala": (mala, 0.6, 0.3, 4),
    "hmc": (lambda target, step_size: hmc(target, step_size, steps=6), 0.45, 0.35, 1),
}
KERNELS = pytest.mark.parametrize("name", list(SETTINGS))
BLOCKS = pytest.mark.parametrize("block", [("frames",), ()], ids=["frame", "utterance"])


def linear_gaussian() -> None:
    """z_t ~ N(0, I), x_t | z_t ~ N(A z_t, s^2 I)."""
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(OBSERVED.new_zeros(L), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ DECODER.mT, NOISE).to_event(1), obs=OBSERVED)


def closed_form(temperature: float = 1.0, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean (T, L) and covariance (L, L) of the posterior of :func:`linear_gaussian`, tempered."""
    precision = torch.eye(L, dtype=torch.float64) + power / NOISE**2 * DECODER.mT @ DECODER
    covariance = torch.linalg.inv(precision)
    return power / NOISE**2 * OBSERVED @ DECODER @ covariance, covariance * temperature


def skewed() -> None:
    """g_t ~ Gamma(1.5, 1), x_t | g_t ~ Exponential(g_t): the posterior is Gamma(2.5, 1 + x_t), sampled as log g_t."""
    with pyro.plate("frames", T, dim=-1):
        g = pyro.sample("g", dist.Gamma(LATENCY.new_tensor(1.5), LATENCY.new_tensor(1.0)))
        pyro.sample("x", dist.Exponential(g), obs=LATENCY)


def _draws(model: Callable[[], None], name: str, block: tuple[str, ...], num_samples: int = 400, **options: float) -> dict[str, Tensor]:
    factory, per_frame, per_utterance, thin = SETTINGS[name]
    target = log_density(model, chains=CHAINS, block=block, **options)  # type: ignore[arg-type]  # floats by name
    kernel = factory(target, per_frame if block else per_utterance)
    return sample(target, kernel, target.init(), num_samples, warmup=100, thin=thin).values


@KERNELS
@BLOCKS
def test_linear_gaussian_posterior(name: str, block: tuple[str, ...]) -> None:
    mean, covariance = closed_form()
    draws = _draws(linear_gaussian, name, block)["z"]
    assert_moments(draws, mean, mean.square() + covariance.diagonal())
    # Another direction, where the correlation of the two latents counts.
    total = mean.sum(-1)
    assert_moments(draws.sum(-1), total, total.square() + covariance.sum())


def test_energy_is_the_hamiltonian_that_a_step_ended_in() -> None:
    """In equilibrium (z, p) is normal in 2 D dims, so that the energy above its minimum is Gamma(D): rejected moves must count as well."""
    def model() -> None:
        with pyro.plate("frames", 3, dim=-1):
            pyro.sample("z", dist.Normal(OBSERVED.new_zeros(L), 1.0).to_event(1))

    target = log_density(model, chains=CHAINS)
    stats = sample(target, hmc(target, 1.2, steps=3), target.init(), 400).stats
    assert isinstance(stats, Info) and stats.energy is not None and stats.energy.shape == (400, CHAINS, 3)
    assert 0.5 < stats.accepted.double().mean() < 0.95
    above = stats.energy + target({"z": OBSERVED.new_zeros(CHAINS, 3, L)})
    assert_moments(above, OBSERVED.new_tensor(L), OBSERVED.new_tensor(L * (L + 1)))
    assert sample(target, mala(target, 0.1), target.init(), 2).stats.energy is None


@KERNELS
@BLOCKS
def test_skewed_posterior_of_a_constrained_site(name: str, block: tuple[str, ...]) -> None:
    rate = 1 + LATENCY
    factory, per_frame, per_utterance, thin = SETTINGS[name]
    target = log_density(skewed, chains=CHAINS, block=block)
    # The density of log g falls faster than any normal law to the right, where long Langevin steps get stuck.
    kernel = factory(target, (0.4 if name == "mala" else 1.0) * (per_frame if block else per_utterance))
    draws = sample(target, kernel, target.init({"g": 2.5 / rate}, jitter=0.3), 400, warmup=100, thin=2 * thin).values["g"]
    assert_moments(draws, 2.5 / rate, 2.5 * 3.5 / rate.square())


WIDTHS = torch.stack([torch.tensor([0.01, 1.0]), torch.tensor([3.0, 30.0]), torch.tensor([1.0, 0.1]), torch.tensor([100.0, 1.0])]).double()


def anisotropic() -> None:
    """z_t ~ N(0, diag(w_t^2)), x_t | z_t ~ N(z_t, diag(w_t^2)): the posterior is N(x_t / 2, w_t^2 / 2)."""
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(0 * WIDTHS, WIDTHS).to_event(1))
        pyro.sample("x", dist.Normal(z, WIDTHS).to_event(1), obs=WIDTHS)


# step size in units of the scale and thinning, of a preconditioned kernel; the scale is wrong by up to 1.5 either way
SCALED: dict[str, tuple[Callable[[LogDensity, float, Position], Kernel], float, int]] = {
    "metropolis": (metropolis, 1.2, 12),
    "mala": (mala, 0.9, 4),
    "hmc": (lambda target, step_size, scale: hmc(target, step_size, 5, scale), 0.6, 1),
}
WRONG = torch.tensor([0.67, 1.5], dtype=torch.float64)


@pytest.mark.parametrize("name", list(SCALED))
def test_one_step_size_does_for_scales_from_a_hundredth_to_a_hundred(name: str) -> None:
    factory, step_size, thin = SCALED[name]
    target = log_density(anisotropic, chains=CHAINS)
    scale = {"z": WIDTHS * 0.5**0.5 * WRONG}
    draws = sample(target, factory(target, step_size, scale), target.init(), 300, warmup=50, thin=thin).values["z"]
    assert_moments(draws, WIDTHS / 2, 0.75 * WIDTHS.square())
    with pytest.raises(AssertionError, match="effective sample size"):  # what the scale is for
        assert_moments(sample(target, factory(target, 0.01, {}), target.init(), 100).values["z"], WIDTHS / 2, 0.75 * WIDTHS.square())


@pytest.mark.parametrize("name", list(SCALED))
def test_skewed_posterior_with_a_scale(name: str) -> None:
    factory, step_size, thin = SCALED[name]
    rate, target = 1 + LATENCY, log_density(skewed, chains=CHAINS)
    scale = {"g": 0.7 * torch.tensor([0.7, 1.0, 1.4, 1.0], dtype=torch.float64)}
    kernel = factory(target, (0.6 if name == "mala" else 1.0) * step_size, scale)
    draws = sample(target, kernel, target.init({"g": 2.5 / rate}, jitter=0.3), 300, warmup=50, thin=2 * thin).values["g"]
    assert_moments(draws, 2.5 / rate, 2.5 * 3.5 / rate.square())


def test_preconditioned_langevin_has_exactly_the_bias_of_its_discretisation() -> None:
    """A step h with scale s on a normal law of variance v ends at the variance v / (1 - h s^2 / (4 v))."""
    target, step_size, scale = log_density(anisotropic, chains=CHAINS), 0.6, WIDTHS * 0.5**0.5 * WRONG
    draws = sample(target, langevin(target, step_size, {"z": scale}), target.init(), 500, warmup=50, thin=4).values["z"]
    variance = 0.5 * WIDTHS.square()
    biased = variance / (1 - step_size * scale.square() / (4 * variance))
    assert_moments(draws, WIDTHS / 2, 0.25 * WIDTHS.square() + biased)
    with pytest.raises(AssertionError, match="second moment is off"):
        assert_moments(draws, WIDTHS / 2, 0.75 * WIDTHS.square())


def steep() -> None:
    """One coordinate ten times as narrow as the other: the posterior is N(w / 2, w^2 / 2)."""
    widths = torch.tensor([0.1, 1.0], dtype=torch.float64)
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(0 * widths, widths).to_event(1))
        pyro.sample("x", dist.Normal(z, widths).to_event(1), obs=widths.expand(T, 2))


def test_a_tamed_langevin_step_drifts_less_than_its_noise() -> None:
    target, step_size = log_density(steep, chains=CHAINS), 0.5
    start, steps = target.init(), []
    for tamed in (False, True):
        pyro.set_rng_seed(0)
        kernel = langevin(target, step_size, tamed=tamed)
        steps.append(kernel.step(kernel.init(start))[0].position["z"] - start["z"])
    drift = 0.5 * step_size * target.value_and_grad(start)[1]["z"]
    assert drift.abs().max() > 2 * step_size**0.5  # else there is nothing to tame
    torch.testing.assert_close(steps[1] - steps[0], drift / (1 + drift.abs() / step_size**0.5) - drift)


def test_tamed_langevin_stays_where_untamed_goes_astray() -> None:
    """The step is 25 times too large for the narrow coordinate. By symmetry the means of the tamed one are exact."""
    target, step_size = log_density(steep, chains=CHAINS), 0.5
    astray = sample(target, langevin(target, step_size), target.init(), 1, warmup=300).values["z"]
    assert astray[..., 0].abs().min() > 1e6
    draws = sample(target, langevin(target, step_size, tamed=True), target.init(), 800, warmup=50).values["z"]
    assert_moments(draws, torch.tensor([0.05, 0.5]).expand(T, 2), draws.square().mean((0, 1)))
    assert (draws[..., 0].var((0, 1)) < 4 * step_size).all()


def banana() -> None:
    """a_t ~ N(0, 1), b_t | a_t ~ N(a_t^2 / 2, 1), a hierarchy with a bend: the mean of b is 1/2, its second moment 3/4 + 1."""
    with pyro.plate("frames", T, dim=-1):
        a = pyro.sample("a", dist.Normal(OBSERVED.new_zeros(()), 1.0))
        pyro.sample("b", dist.Normal(a.square() / 2, 1.0))


@KERNELS
def test_banana(name: str) -> None:
    factory, per_frame, _, thin = SETTINGS[name]
    target = log_density(banana, chains=CHAINS)
    kernel = factory(target, (0.6 if name == "mala" else 1.5) * per_frame)
    found = sample(target, kernel, target.init(), 400, warmup=50, thin=2 * thin).values
    assert_moments(found["a"], torch.zeros(T), torch.ones(T))
    assert_moments(found["b"], torch.full((T,), 0.5), torch.full((T,), 1.75))


@pytest.mark.parametrize(("temperature", "power"), [(2.0, 1.0), (1.0, 0.4), (0.5, 2.0)])
def test_temperature_and_likelihood_power(temperature: float, power: float) -> None:
    mean, covariance = closed_form(temperature, power)
    draws = _draws(linear_gaussian, "hmc", ("frames",), temperature=temperature, likelihood_power=power)["z"]
    assert_moments(draws, mean, mean.square() + covariance.diagonal())


def test_unadjusted_langevin_has_exactly_the_bias_of_its_discretisation() -> None:
    """On a Gaussian with precision P the stationary covariance is (P (I - h P / 4))^-1, the mean exact."""
    step_size = 0.15
    mean, covariance = closed_form()
    precision = torch.linalg.inv(covariance)
    biased = torch.linalg.inv(precision @ (torch.eye(L, dtype=torch.float64) - step_size / 4 * precision))
    target = log_density(linear_gaussian, chains=CHAINS)
    draws = sample(target, langevin(target, step_size), target.init(), 1500, warmup=200, thin=2).values["z"]
    assert_moments(draws, mean, mean.square() + biased.diagonal())
    with pytest.raises(AssertionError, match="second moment is off"):
        assert_moments(draws, mean, mean.square() + covariance.diagonal())
    # The bias shrinks with the step: within 2 % of the posterior variance at a tenth of it.
    finer = torch.linalg.inv(precision @ (torch.eye(L, dtype=torch.float64) - step_size / 40 * precision))
    assert ((finer / covariance - 1).diagonal().abs() < 0.02).all()


@pytest.mark.parametrize("persistence", [0.0, 0.8])
def test_kinetic_langevin_is_as_wide_as_langevin_of_the_squared_step(persistence: float) -> None:
    """However long the momentum lasts: on a Gaussian with precision P the stationary covariance is (P (I - h^2 P / 4))^-1."""
    step_size = 0.15**0.5
    mean, covariance = closed_form()
    precision = torch.linalg.inv(covariance)
    biased = torch.linalg.inv(precision @ (torch.eye(L, dtype=torch.float64) - step_size**2 / 4 * precision))
    target = log_density(linear_gaussian, chains=CHAINS)
    draws = sample(target, kinetic_langevin(target, step_size, persistence), target.init(), 1500, warmup=200, thin=2).values["z"]
    assert_moments(draws, mean, mean.square() + biased.diagonal())
    with pytest.raises(AssertionError, match="second moment is off"):
        assert_moments(draws, mean, mean.square() + covariance.diagonal())


def test_kinetic_langevin_with_scales_has_exactly_the_bias_of_its_discretisation() -> None:
    target, step_size, scale = log_density(anisotropic, chains=CHAINS), 0.6**0.5, WIDTHS * 0.5**0.5 * WRONG
    draws = sample(target, kinetic_langevin(target, step_size, 0.6, {"z": scale}), target.init(), 500, warmup=50, thin=4).values["z"]
    variance = 0.5 * WIDTHS.square()
    assert_moments(draws, WIDTHS / 2, 0.25 * WIDTHS.square() + variance / (1 - step_size**2 * scale.square() / (4 * variance)))


def test_a_momentum_that_lasts_forgets_sooner_where_it_was() -> None:
    """Of a standard normal coordinate at step 0.2, after 25 steps: (1 - 0.02)^25 = 0.60 is left without, less than 0.1 of it with a momentum."""

    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            pyro.sample("z", dist.Normal(OBSERVED.new_zeros(()), 1.0))

    left = []
    for persistence in (0.0, 0.8):
        target = log_density(model, chains=400)
        z = sample(target, kinetic_langevin(target, 0.2, persistence), target.init(jitter=1.0), 8, warmup=100, thin=25).values["z"]
        left.append(float((z[1:] * z[:-1]).mean() / z.square().mean()))
    assert left[0] == pytest.approx(0.98**25, abs=0.06) and abs(left[1]) < 0.1


def test_tamed_kinetic_langevin_stays_where_untamed_goes_astray() -> None:
    target = log_density(steep, chains=CHAINS)
    astray = sample(target, kinetic_langevin(target, 0.7, 0.5), target.init(), 1, warmup=300).values["z"]
    assert astray[..., 0].abs().min() > 1e6
    draws = sample(target, kinetic_langevin(target, 0.7, 0.5, tamed=True), target.init(), 800, warmup=50).values["z"]
    assert_moments(draws, torch.tensor([0.05, 0.5]).expand(T, 2), draws.square().mean((0, 1)))
    assert (draws[..., 0].var((0, 1)) < 4).all()


def test_a_momentum_lasts_from_one_e_step_to_the_next() -> None:
    """E-steps whose parameters do not move are steps of one run; the chains of a kernel that caches densities start anew."""
    target, start = log_density(linear_gaussian, chains=2), log_density(linear_gaussian, chains=2).init()
    kernel = kinetic_langevin(target, 0.25)
    pyro.set_rng_seed(0)
    state, run = kernel.init(start), []
    for _ in range(3):
        state, _ = kernel.step(state)
        run.append(state.position["z"])
    pyro.set_rng_seed(0)
    e_step = mcmc_e_step(target, lambda e: kinetic_langevin(target, e), start, step_size=0.25)
    torch.testing.assert_close([e_step(i).draws["z"] for i in range(3)], run, rtol=0, atol=0)


def test_a_momentum_is_not_lost_in_silence() -> None:
    """Whitening would drop it at every step, so it refuses the kernel, as any with a memory."""
    target = log_density(linear_gaussian)
    factor = {"z": torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))}
    with pytest.raises(ValueError, match="the kernel has a memory"):
        whitened(target, factor, lambda white: kinetic_langevin(white)).init(target.init())


@pytest.mark.parametrize("persistence", [-0.1, 1.0, float("nan")])
def test_a_persistence_that_is_none_is_refused(persistence: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= persistence < 1"):
        kinetic_langevin(log_density(linear_gaussian), persistence=persistence)


@pytest.mark.parametrize("name", ["langevin", *SETTINGS])
def test_batch_of_utterances(name: str) -> None:
    """Utterances of a batch do not touch one another: every one has its own posterior."""
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).reshape(3, 1, 1)

    def model() -> None:
        with pyro.plate("utterances", 3, dim=-3), pyro.plate("frames", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(scale.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=4 * scale.expand(3, 1, 2))

    target = log_density(model, chains=CHAINS, block=())
    factory, _, step_size, thin = SETTINGS.get(name, (langevin, 0.0, 0.02, 10))
    found = sample(target, factory(target, step_size), target.init(), 400, warmup=100, thin=thin).values["z"]
    mean = (2 * scale).expand(3, 1, 2)[:, 0]
    variance = 0.5 / (1 - (0.02 / 4 * 2 if name == "langevin" else 0))
    assert found.shape == (400, 3, CHAINS, 2)
    assert_moments(found.transpose(1, 2), mean, mean.square() + variance)


@pytest.mark.parametrize("kernel", [metropolis, mala, hmc])
def test_contract_of_adjusted_kernels(kernel: KernelFactory) -> None:
    check_kernel(kernel)
    scale = {"z": torch.linspace(0.5, 2, 10, dtype=torch.float64).reshape(5, 2)}
    check_kernel(lambda target, step_size: kernel(target, step_size, scale=scale))  # type: ignore[call-arg]  # all three have it


@pytest.mark.parametrize("kernel", [langevin, kinetic_langevin])
def test_contract_of_kernels_that_accept_every_step(kernel: KernelFactory) -> None:
    check_kernel(kernel, adjusted=False)


def test_a_dead_start_is_left_for_any_live_point() -> None:
    def model() -> None:
        with pyro.plate("frames", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.factor("edge", torch.where(z > 3, -torch.inf, 0.0))

    target = log_density(model, chains=2)
    kernel = metropolis(target, 2.0)
    state = kernel.init({"z": torch.full((2, 2), 4.0, dtype=torch.float64)})
    assert state.log_density is not None and state.log_density.isneginf().all()
    for _ in range(50):
        state, _ = kernel.step(state)
    assert (state.position["z"] < 3).all()


def test_sample_thins_goes_on_and_reports() -> None:
    target = log_density(linear_gaussian, chains=2)
    kernel, start, seen = mala(target, 0.3), target.init(), []
    pyro.set_rng_seed(1)
    every = sample(target, kernel, start, 6, callback=lambda step, state, info: seen.append(step))
    pyro.set_rng_seed(1)
    first = sample(target, kernel, start, 1, warmup=1, thin=2)
    rest = sample(target, kernel, first.state, 3)
    assert seen == list(range(6)) and every.values["z"].shape == (6, 2, T, L)
    assert torch.equal(first.values["z"][0], every.values["z"][2]) and torch.equal(rest.values["z"], every.values["z"][3:])
    assert every.stats.acceptance.shape == (6, 2, T)
    with pytest.raises(ValueError, match="num_samples=0"):
        sample(target, kernel, start, 0)
    with pytest.raises(ValueError, match="steps=0"):
        hmc(target, 0.1, steps=0)


def _without_way_back(target: LogDensity, step_size: float | Tensor) -> Kernel:
    """MALA without the ratio of the proposals."""
    right = mala(target, step_size)

    def step(state: State) -> tuple[State, Info]:
        assert state.log_density is not None and state.gradient is not None
        proposal = {k: v + 0.5 * step_size * state.gradient[k] + step_size**0.5 * torch.randn_like(v) for k, v in state.position.items()}
        new = right.init(proposal)
        assert new.log_density is not None and new.gradient is not None
        ratio = (new.log_density - state.log_density).clamp_max(0)
        accepted = torch.rand_like(ratio).log() < ratio
        mask = target.spread(accepted, "z")
        position: Position = {"z": torch.where(mask, new.position["z"], state.position["z"])}
        return right.init(position), Info(ratio.exp(), accepted, new.log_density, ~new.log_density.isfinite())

    return Kernel(right.init, step)


def test_moments_notice_a_wrong_sampler() -> None:
    mean, covariance = closed_form()
    target = log_density(linear_gaussian, chains=CHAINS)
    draws = sample(target, _without_way_back(target, 0.6), target.init(), 400, warmup=100, thin=4).values["z"]
    with pytest.raises(AssertionError, match="standard errors"):
        assert_moments(draws, mean, mean.square() + covariance.diagonal())


def _stale_gradient(target: LogDensity, step_size: float | Tensor) -> Kernel:
    right = mala(target, step_size)

    def step(state: State) -> tuple[State, Info]:
        new, info = right.step(state)
        return State(new.position, new.log_density, state.gradient), info

    return Kernel(right.init, step)


def _accepts_all_together(target: LogDensity, step_size: float | Tensor) -> Kernel:
    """One decision for all blocks: NaN in one of them stops the others."""
    right = metropolis(target, step_size)

    def step(state: State) -> tuple[State, Info]:
        new, info = right.step(state)
        keep = info.accepted.all()
        assert new.log_density is not None and state.log_density is not None
        position = {k: torch.where(keep, new.position[k], state.position[k]) for k in new.position}
        return State(position, torch.where(keep, new.log_density, state.log_density), None), info

    return Kernel(right.init, step)


def _learns(target: LogDensity, step_size: float | Tensor) -> Kernel:
    """Every step is longer than the one before."""
    length = 1.0

    def step(state: State) -> tuple[State, Info]:
        nonlocal length
        length *= 1.1
        return metropolis(target, length * step_size).step(state)

    return Kernel(metropolis(target, step_size).init, step)


@pytest.mark.parametrize(
    ("broken", "message"),
    [(_learns, "end apart"), (_stale_gradient, "State.gradient"), (_accepts_all_together, "disturbs other blocks|another chain")],
)
def test_contract_notices_a_broken_kernel(broken: KernelFactory, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_kernel(broken)
