"""EM on the mixture graph: phases, what is fitted and what is not, and what happens when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import arviz as az
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ppse import ComplexNormal, Mixture, methods
from ppse.infer import Expectation, hmc, log_density, sample, warm_up
from ppse.inference import OPEN_RATE, Keep, infer, resume
from ppse.methods import Method, Problem
from ppse.mixture import Frames
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech
from ppse.priors import with_priors
from ppse.testing import assert_moments

T, F, L = 12, 9, 3


class Tilt(PyroModule):
    """Noise with spectrum f^-slope: its parameter has no closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        return ComplexNormal(0j, torch.arange(1.0, F + 1).pow(-self.slope).expand(frames.size, F))


def flicker(frames: Frames) -> ComplexNormal:
    """A level per frame, which no encoder draws."""
    with frames:
        level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, level.unsqueeze(-1).expand(*level.shape, F))


def _x(*lead: int) -> Tensor:
    return torch.randn(*lead, T, F, dtype=torch.complex64)


def _tilted(slope: float) -> Tensor:
    return torch.randn(200, F, dtype=torch.complex64) * torch.arange(1.0, F + 1).pow(-slope / 2)


def _model() -> Mixture:
    return Mixture(speech=VAESpeech(F, L, (5,), 4).requires_grad_(False), noise=NMFNoise(2))


def _fixed(iterations: int, average: int = 1, **settings: float) -> Method:
    """EM without latents."""
    return replace(Method("fixed", lambda _: lambda _: Expectation({}), iterations=iterations, average=average), **settings)  # type: ignore[arg-type]  # numbers by name


def test_a_run_that_converges_early_still_averages() -> None:
    x = _x()
    seen: list[int] = []
    e_step_saw: list[int] = []

    def e_step(iteration: int) -> Expectation:
        e_step_saw.append(iteration)
        return Expectation({"speech.z": torch.zeros(1, T, L)})

    method = Method("early", lambda _: e_step, iterations=200, average=7, tolerance=1e-3)
    found = infer(_model(), x, method, callback=lambda i, _: seen.append(i))
    assert 20 <= len(found.objective) < 200 and len(seen) == len(found.objective)
    assert seen[-7:] == list(range(193, 200)) == e_step_saw[-7:]  # the E-step knows that its warm-up is over
    torch.testing.assert_close(sum(law.loc for law in found.sources.values()), x)


@pytest.mark.parametrize("iterations", [1, 2, 5, 20])
@pytest.mark.parametrize("make", [methods.default, methods.fast, methods.hmc_em])
def test_short_runs_draw_and_average_too(make: Callable[..., Method], iterations: int) -> None:
    method = make(iterations=iterations)
    found = infer(_model(), _x(), method)
    assert len(found.objective) == iterations and 1 <= method.average <= iterations
    assert method.average <= len(found.info) <= iterations  # all that is averaged was drawn


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average": 0}, "average=0 with iterations=10.*set average too"),
        ({"average": 11}, "average=11 with iterations=10"),
        ({"iterations": 0}, "iterations=0; expected 1 or more"),
        ({"tolerance": -1.0}, "tolerance=-1"),
        ({"open_steps": 0}, "open_steps=0"),
    ],
)
def test_methods_that_cannot_work_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"fixed: .*{message}"):
        replace(_fixed(10, 2), **change)  # type: ignore[arg-type]  # numbers by name


@pytest.mark.parametrize("lead", [(), (3, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("masked", [False, True])
def test_objective_is_the_likelihood_of_the_graph_per_observed_bin(lead: tuple[int, ...], masked: bool) -> None:
    x, model = _x(*lead), Mixture(noise=NMFNoise(2))
    observed = torch.rand(*lead, T, F) > 0.3 if masked else None
    model.start(x, observed)
    law = model(x, observed)["noise"]
    value = law.log_prob(x)[observed].mean() if observed is not None else law.log_prob(x).mean()
    assert resume(model, x, _fixed(1), observed).objective[0] == pytest.approx(value.item(), rel=1e-5)


@pytest.mark.parametrize("wrapped", [False, True])
def test_open_parameters_are_fitted_in_a_wrapper_too_and_weights_never(wrapped: bool) -> None:
    tilt, vae = Tilt(), VAESpeech(F, L, (5,), 4)  # not frozen
    for parameter in vae.parameters():
        parameter.data *= 0.01  # speech explains nothing but a floor
    model = Mixture(noise=FrameGain(tilt) if wrapped else tilt, speech=vae)
    weights = {k: v.clone() for k, v in vae.state_dict().items()}
    x = _tilted(3.0) * 5
    model.start(x)
    resume(model, x, methods.mala_em(iterations=40, draws=1, burn_in=0))
    assert all(torch.equal(v, weights[k]) for k, v in vae.state_dict().items())
    assert (tilt.slope - 1).abs() > 0.3
    assert all(p.grad is None for p in vae.parameters())


def test_open_parameters_find_the_maximum_of_the_likelihood_with_one_optimiser() -> None:
    x, tilt = _tilted(2.0), Tilt()
    steps: list[float] = []

    def note(_: int, __: float) -> None:
        steps.append(tilt.slope_unconstrained.item())

    resume(Mixture(noise=tilt), x, _fixed(300, open_steps=1), callback=note)
    grid = torch.linspace(1.0, 3.0, 401)
    best = grid[torch.stack([ComplexNormal(0j, torch.arange(1.0, F + 1).pow(-s)).log_prob(x).sum() for s in grid]).argmax()]
    assert abs(tilt.slope.item() - best.item()) < 0.02
    assert abs(steps[-1] - steps[-2]) < 0.1 * OPEN_RATE  # an optimiser without memory would take a full step every time


def test_vem_refuses_latents_that_its_guide_does_not_draw() -> None:
    model = Mixture(speech=VAESpeech(F, L, (5,)), hum=flicker)
    with pytest.raises(ValueError, match=r"does not draw the latent 'hum\.level'.*mala_em"):
        infer(model, _x(), methods.vem(iterations=2))


def test_a_run_that_is_not_finite_ends_in_one_clear_error() -> None:
    class Broken(Tilt):
        def forward(self, frames: Frames) -> ComplexNormal:
            law = super().forward(frames)
            return ComplexNormal(0j, law.var * (torch.nan if self.slope != 1 else 1.0))

    with pytest.raises(ValueError, match=r"fixed: the log-likelihood is nan in iteration 2 of 9.*smaller step size"):
        infer(Mixture(noise=Broken()), _x(), _fixed(9))


def test_a_short_utterance_in_a_padded_batch_starts_where_it_starts_alone() -> None:
    def start(problem: Problem) -> Callable[[int], Expectation]:
        assert problem.guide is not None
        draws = {site: loc for site, (loc, _) in problem.guide.laws(*problem.args).items()}
        return lambda _: Expectation(draws)

    model, x, method = _model(), _x(2, 1), Method("start", start, iterations=1, average=1)
    observed = torch.ones(2, 1, T, 1, dtype=torch.bool)
    observed[1, 0, 5:] = False
    together = infer(model, torch.where(observed, x, 9 + 0j), method, observed).draws["speech.z"]
    torch.testing.assert_close(together[1, 0, :5], infer(model, x[1, 0, :5], method).draws["speech.z"])


@pytest.mark.parametrize("shape", [(T, F), (T, 1), (F,), "x"], ids=str)
@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_starts_side_by_side_are_averaged(lead: tuple[int, ...], shape: tuple[int, ...] | str) -> None:
    """Law of total variance over runs that differ in their random start alone; masks broadcast."""
    x = torch.randn(*lead, T, F, dtype=torch.complex64)
    observed = torch.rand(x.shape if isinstance(shape, str) else shape) > 0.2
    model = Mixture(a=NMFNoise(1), b=StationaryNoise())
    with poutine.seed(rng_seed=1):
        found = infer(model, x, replace(_fixed(4), starts=3), observed).sources
    batch = x if lead else x[None, None]
    masks = observed.expand(x.shape) if lead else observed.expand(x.shape)[None, None]
    with poutine.seed(rng_seed=1):
        apart = infer(model, batch.repeat_interleave(3, 0), _fixed(4), masks.repeat_interleave(3, 0)).sources
    for name, law in found.items():
        locs, variances = (v.reshape(*batch.shape[:1], 3, T, F) for v in (apart[name].loc, apart[name].var))
        assert (locs[:, 0] - locs[:, 1]).abs().max() > 1e-3  # they do differ
        mean = locs.mean(1)
        total = variances.mean(1) + (locs - mean[:, None]).abs().square().mean(1)
        torch.testing.assert_close(law.loc, mean.reshape(x.shape))
        torch.testing.assert_close(law.var, total.reshape(x.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [make() for make in methods.ALL], ids=lambda m: m.name)
def test_mixture_without_latents_is_plain_em(method: Method) -> None:
    noises = Mixture(a=NMFNoise(2), b=StationaryNoise())
    method = replace(method, iterations=20, average=1)
    found = infer(noises, _x(), method)
    if method.priors:  # then its parameters are latents
        assert set(found.draws) == {"a.W", "a.H", "b.spectrum"} and len(found.objective) == 20
    else:
        assert found.draws == {} and found.objective[-1] > found.objective[0]


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("starts", [1, 3])
def test_draws_of_the_sources_have_the_moments_of_the_estimate(lead: tuple[int, ...], starts: int) -> None:
    count, x = 1200, _x(*lead)
    method = replace(methods.mala_em(iterations=6, chains=2, draws=1), average=4, starts=starts)
    found = infer(_model(), x, method, keep=Keep(sources=count))
    torch.testing.assert_close(sum(found.source_draws.values()), x.expand(count, *x.shape), rtol=1e-4, atol=1e-4)
    for name, law in found.sources.items():
        drawn = found.source_draws[name]
        assert drawn.shape == (count, *x.shape)
        error = (drawn.mean(0) - law.loc).abs().square() / (law.var / count)
        assert error.max() < 16 and error.mean() == pytest.approx(1.0, abs=0.3)  # no more than one, as the draws are spread evenly
        ratio = (drawn - law.loc).abs().square().mean(0) / law.var
        assert ratio.mean() == pytest.approx(1.0, abs=0.03) and ((ratio > 0.7) & (ratio < 1.4)).all()


@pytest.mark.parametrize("method", [methods.mala_em(4), methods.fast(6), methods.full_bayes(8, warm_up=4)], ids=lambda m: m.name)
def test_what_is_kept_does_not_change_what_is_estimated_and_a_seed_gives_all_of_it_again(method: Method) -> None:
    model, x, found = _model(), _x(), []
    for keep in (None, Keep(3, run=True), Keep(3, run=True), Keep(sources=3)):
        with poutine.seed(rng_seed=4):
            found.append(infer(model, x, method, keep=keep))
    plain, one, same, only = found
    assert plain.run is None and plain.source_draws == {} and one.run is not None and same.run is not None and only.run is None
    for name in plain.sources:
        assert all(torch.equal(plain.sources[name].loc, other.sources[name].loc) for other in (one, same, only))
        assert torch.equal(one.source_draws[name], same.source_draws[name])
        assert not torch.allclose(one.source_draws[name][0], one.source_draws[name][1])
    assert plain.objective == one.objective and all(torch.equal(one.run.values[k], same.run.values[k]) for k in one.run.values)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (methods.mala_em(10, draws=3, chains=2), (5, 2)), (methods.mcem(3), (1, 1)), (methods.svi_em(iterations=6, draws=5, average=4), (4, 5)),
        (methods.full_bayes(10, chains=3, warm_up=8), (5, 3)),  # it warms up for half of the iterations at most
        (replace(methods.full_bayes(10, chains=3), average=2), (2, 3)),  # what is not averaged may still be warm-up
        (methods.hmc_em(10, settle=7, adapt=8, average=2), (3, 1)),  # while the latents rest, nothing is drawn
    ],
    ids=lambda v: v.name if isinstance(v, Method) else str(v),
)
def test_runs_hold_what_was_drawn_in_the_latter_half(method: Method, expected: tuple[int, int]) -> None:
    found = infer(_model(), _x(), method, keep=Keep(run=True))
    assert found.run is not None and found.run.values["speech.z"].shape == (*expected, T, L)
    assert torch.equal(found.run.values["speech.z"][-1], found.draws["speech.z"][-expected[1] :])
    assert set(found.run.values) == set(found.run.plates) == set(found.draws)


class Offset(PyroModule):
    """White noise whose level may have any sign in nats: a parameter without a weak prior."""

    def __init__(self) -> None:
        super().__init__()
        self.nats = PyroParam(torch.zeros(F))

    def forward(self, frames: Frames) -> ComplexNormal:
        with frames:
            return ComplexNormal(0j, self.nats.exp().expand(frames.size, F))


def level_of_all(frames: Frames) -> ComplexNormal:
    """A latent of the whole recording."""
    level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    with frames:
        ones = pyro.sample("ones", dist.LogNormal(torch.zeros(()), 0.1))
    return ComplexNormal(0j, (level * ones).unsqueeze(-1).expand(*ones.shape, F))


BAYESIAN: dict[str, tuple[Callable[[], Mixture], set[str]]] = {
    "speech and noise": (_model, {"speech.z", "noise.W", "noise.H"}),
    "no site in frames": (lambda: Mixture(noise=StationaryNoise()), {"noise.spectrum"}),
    "no shared site": (lambda: Mixture(hum=flicker), {"hum.level"}),
    "no positive parameter": (lambda: Mixture(hum=flicker, noise=Offset()), {"hum.level"}),
    "latents of all kinds": (lambda: Mixture(hum=level_of_all, noise=FrameGain(StationaryNoise())), {"hum.level", "hum.ones", "noise.gain"}),
}


@pytest.mark.parametrize("kind", BAYESIAN)
@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_full_bayes_draws_every_positive_parameter_and_fits_none(kind: str, lead: tuple[int, ...]) -> None:
    make, sites = BAYESIAN[kind]
    x, observed, method = _x(*lead), torch.rand(*lead, T, F) > 0.2, replace(methods.full_bayes(6, chains=3, warm_up=3), starts=2)
    after = []
    for run in (method, replace(method.before, starts=2)):  # type: ignore[type-var]  # it has one
        seen: list[int] = []
        with poutine.seed(rng_seed=5):
            model = make()
            batch = (x if lead else x[None, None]).repeat_interleave(2, 0)
            model.start(batch, observed.expand(batch.shape) if not lead else observed.repeat_interleave(2, 0))
            found = resume(model, x, run, observed, keep=Keep(4, run=True), callback=lambda i, _, seen=seen: seen.append(i))
        assert seen == list(range(run.all_iterations)) and len(found.objective) == run.iterations
        after.append((found, {k: v.detach() for k, v in model.named_parameters()}))
    (found, parameters), (_, fitted) = after
    assert parameters.keys() == fitted.keys() and all(torch.equal(v, fitted[k]) for k, v in parameters.items())
    assert found.run is not None and sites <= set(found.run.values)
    assert all(value.isfinite().all() and value.shape[:3] == (3, 2 * (lead or (1,))[0], 3) for value in found.run.values.values())
    assert all(law.loc.shape == x.shape for law in found.sources.values())
    torch.testing.assert_close(sum(law.loc for law in found.sources.values()), x, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_full_bayes_finds_a_conjugate_posterior() -> None:
    """x_t ~ CN(0, v) with v ~ InverseGamma(a, b): v | x ~ InverseGamma(a + T, b + sum |x|^2)."""
    x = (torch.randn(T, F, dtype=torch.complex128) * torch.linspace(0.3, 3.0, F))[:, ::3]
    a, b = torch.tensor(3.0).double(), torch.tensor(2.0).double()
    method = methods.full_bayes(300, chains=16, warm_up=120, priors=lambda *_: {"noise.spectrum": dist.InverseGamma(a, b)})
    found = infer(Mixture(noise=StationaryNoise()), x, method, keep=Keep(run=True))
    assert found.run is not None
    draws = found.run.values["noise.spectrum"].log().squeeze(2)
    shape, rate = a + T, b + x.abs().square().sum(0)
    mean = rate.log() - torch.digamma(shape)
    assert_moments(draws, mean, mean.square() + torch.polygamma(1, shape))


@pytest.mark.slow
def test_full_bayes_agrees_with_a_long_run_of_hmc_on_all_at_once() -> None:
    """A level of every frame and a spectrum that all frames share; the joint density has one block, and is sampled as such."""
    frames, freqs = 5, torch.arange(1.0, 4.0).double()

    def hum(plate: Frames) -> ComplexNormal:
        with plate:
            level = pyro.sample("level", dist.LogNormal(freqs.new_zeros(()), 1.0))
        return ComplexNormal(0j, level.unsqueeze(-1) / freqs)

    x = torch.randn(frames, 3, dtype=torch.complex128) * torch.linspace(0.5, 2.0, frames).unsqueeze(-1)
    prior = dist.InverseGamma(torch.tensor(3.0).double(), torch.tensor(1.0).double())
    model = Mixture(hum=hum, noise=StationaryNoise())
    method = methods.full_bayes(220, chains=48, steps=6, warm_up=100, priors=lambda *_: {"noise.spectrum": prior})
    found = infer(model, x, method, keep=Keep(run=True))
    assert found.run is not None
    model.start(x)
    target = log_density(with_priors(model, {"noise.spectrum": prior}, x), x, chains=64)
    done = warm_up(target, lambda e, s: hmc(target, e, 8, s), target.init(jitter=0.3), 150, step_size=0.2, target_acceptance=0.8)
    long = sample(target, hmc(target, done.step_size, 8, done.scale), done.state, 200).values
    for site in ("hum.level", "noise.spectrum"):
        moments = []
        for values in (found.run.values[site].log(), long[site].log()):
            drawn = values.reshape(*values.shape[:2], -1)
            both = torch.stack([drawn, drawn.square()], -1)
            ess = torch.as_tensor(az.ess(az.convert_to_dataset({"f": both.transpose(0, 1).numpy()}), method="mean")["f"].values)
            assert ess.min() > 400
            moments.append((both.mean((0, 1)), both.flatten(0, 1).var(0) / ess))
        (one, error), (other, error_of_other) = moments
        assert ((one - other).abs() < 5 * (error + error_of_other).sqrt()).all()
