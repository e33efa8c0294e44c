"""EM on the mixture graph: phases, what is fitted and what is not, and what happens when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ppse import ComplexNormal, Mixture, methods
from ppse.infer import Expectation
from ppse.inference import OPEN_RATE, Moments, infer, resume
from ppse.methods import Method, Problem
from ppse.mixture import Frames
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech

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


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no law was added"):
        Moments().laws()


def test_moments_follow_the_law_of_total_variance() -> None:
    locs, moments = torch.randn(40, T, F, dtype=torch.complex128), Moments()
    var = torch.rand(40, T, F, dtype=torch.float64)
    for i in range(0, 40, 4):
        moments.add({"s": ComplexNormal(locs[i : i + 4], var[i : i + 4])})
    law = moments.laws()["s"]
    torch.testing.assert_close(law.loc, locs.mean(0))
    torch.testing.assert_close(law.var, var.mean(0) + (locs - locs.mean(0)).abs().square().mean(0))


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
    assert found.draws == {} and found.objective[-1] > found.objective[0]
