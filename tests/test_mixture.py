from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture, posterior
from ppse.mixture import VARIANCE_FLOOR, Frames, draw_sources, over_draws
from ppse.models import FrameGain, NMFNoise, StationaryNoise, SwitchingSpeech, VAESpeech
from ppse.models._multiplicative import averages, per_draw_averages

T, F = 6, 5


def flicker(frames: Frames) -> ComplexNormal:
    """A bare function is a source: 1 / f noise with a level per frame."""
    with frames:
        level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, level.unsqueeze(-1) / torch.arange(1.0, F + 1))


def tone(frames: Frames) -> ComplexNormal:
    """A source that is known up to a little noise, with a mean."""
    return ComplexNormal(torch.full((frames.size, F), 2 - 1j), torch.full((frames.size, F), 0.1))


def test_names_of_sites_and_parameters_carry_the_source() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    model = Mixture(a=VAESpeech(F, 2, (3,)), b=VAESpeech(F, 2, (3,)), noise=NMFNoise(2), hum=flicker, fan=flicker)
    model.start(x)
    trace = poutine.trace(model).get_trace(x)
    assert {"a.z", "b.z", "hum.level", "fan.level", "x"} <= set(trace.nodes)
    assert {name for name, site in trace.nodes.items() if site["type"] == "param"} == {"noise.W", "noise.H"}


def test_a_source_that_has_run_can_be_put_into_another_model() -> None:
    """Modules in modules too, whose names Pyro fixes at their first run, in every place that takes a source."""
    x = torch.randn(T, F, dtype=torch.complex64)
    loud = FrameGain(VAESpeech(F, 2, (3,)))
    for speech in (loud, loud, FrameGain(loud), SwitchingSpeech([loud, FrameGain(VAESpeech(F, 2, (3,)))])):
        model = Mixture(speech=speech, noise=StationaryNoise())
        model.start(x)
        assert model(x)["speech"].var.shape[-2:] == (T, F)


def test_likelihood_is_that_of_the_sum() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    trace = poutine.trace(Mixture(tone=tone, noise=flicker)).get_trace(x)
    trace.compute_log_prob()
    var = trace.nodes["noise.level"]["value"].unsqueeze(-1) / torch.arange(1.0, F + 1) + 0.1
    expected = ComplexNormal(torch.full((T, F), 2 - 1j), var).log_prob(x)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected.sum(-1))


def test_posterior_is_bayes_rule_and_adds_up() -> None:
    x = torch.randn(3, T, F, dtype=torch.complex128)
    laws = {
        name: ComplexNormal(torch.randn(T, F, dtype=torch.complex128), torch.rand(3, T, F, dtype=torch.float64) + 0.1) for name in "abc"
    }
    given = posterior(laws, x)
    torch.testing.assert_close(sum(law.loc for law in given.values()), x)
    # Bayes: p(a | x) p(x) = p(a) p(x | a), for any value of a.
    value = torch.randn(3, T, F, dtype=torch.complex128)
    rest = laws["b"] + laws["c"]
    evidence = (laws["a"] + rest).log_prob(x)
    joint = laws["a"].log_prob(value) + rest.log_prob(x - value)
    torch.testing.assert_close(given["a"].log_prob(value) + evidence, joint)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("flat", [False, True])
def test_drawn_sources_have_the_joint_posterior(count: int, flat: bool) -> None:
    """Given x they have the covariance diag(v) - v v^T / sum v around their Wiener estimates, are circular, and add up to x."""
    n_draws, bins = 40_000, 2
    x = torch.randn(1, bins, dtype=torch.complex128).expand(n_draws, 1, bins)
    laws = {
        name: ComplexNormal(torch.randn(1, bins, dtype=torch.complex128), torch.rand(1, bins, dtype=torch.float64) + 0.2) for name in "abc"[:count]
    }
    if flat:  # one value of the law for all frequencies
        laws["a"] = ComplexNormal(1j, torch.full((1, 1), 0.7, dtype=torch.float64))
    drawn = draw_sources(laws, x)
    torch.testing.assert_close(sum(drawn.values()), x)
    means = posterior(laws, x[0])
    off = torch.stack([drawn[name] - means[name].loc for name in laws], -1).flatten(1)  # all bins of all sources at once
    v = torch.stack([law.var.expand(1, bins) for law in laws.values()], -1)[0]
    expected = torch.block_diag(*(torch.diag(row) - row.outer(row) / row.sum() for row in v)).to(off.dtype)
    noise = 5 * n_draws**-0.5
    assert off.mean(0).abs().max() < noise
    assert (off.mT @ off.conj() / n_draws - expected).abs().max() < noise  # no variance here is above one
    assert (off.mT @ off / n_draws).abs().max() < noise
    for i, name in enumerate(laws):
        torch.testing.assert_close(means[name].var.expand(1, bins)[0], expected.diagonal().real.reshape(bins, count)[:, i])


def test_drawn_sources_differ_between_draws_of_the_latents() -> None:
    """Noise without latents has one law for all of them."""
    laws = {"s": ComplexNormal(0j, torch.rand(2, 60, 50) + 0.1), "n": ComplexNormal(0j, torch.ones(60, 50))}
    drawn = draw_sources(laws, torch.zeros(60, 50, dtype=torch.complex64))["n"]
    one, other = drawn / (laws["s"].var / (laws["s"].var + 1)).sqrt()  # standard normal
    assert (one * other.conj()).mean().abs() < 5 * 3000**-0.5


def test_a_silent_mixture_has_a_finite_density() -> None:
    def silence(frames: Frames) -> ComplexNormal:
        return ComplexNormal(0j, torch.zeros(frames.size, F))

    x = torch.zeros(T, F, dtype=torch.complex64)
    value = poutine.trace(Mixture(silence=silence)).get_trace(x).log_prob_sum()
    torch.testing.assert_close(value, ComplexNormal(0j, torch.full((T, F), VARIANCE_FLOOR)).log_prob(x).sum())
    assert torch.equal(posterior({"s": ComplexNormal(0j, torch.zeros(T, F))}, x)["s"].loc, x)


def test_update_takes_the_sources_in_turn_and_never_lowers_the_likelihood() -> None:
    x = torch.randn(T, F, dtype=torch.complex128)
    model = Mixture(a=StationaryNoise(), hum=flicker, b=NMFNoise(2)).double()
    model.start(x)
    with pyro.plate("chains", 4, dim=-2):
        trace = poutine.trace(model).get_trace(x)
    draws = {"hum.level": trace.nodes["hum.level"]["value"]}

    def value() -> tuple[float, dict[str, ComplexNormal]]:
        with torch.no_grad(), pyro.plate("chains", 4, dim=-2):
            conditioned = poutine.trace(poutine.condition(model, data=draws))
            laws = conditioned(x)
        return conditioned.trace.log_prob_sum().item(), laws

    before, laws = value()
    for _ in range(60):
        with torch.no_grad():
            model.update(x, laws)
        after, laws = value()
        assert after >= before - 1e-9 * abs(before)
        before = after


def _no_source() -> None:
    Mixture()


def _bad_name() -> None:
    Mixture(train=StationaryNoise())


def _bad_shape() -> None:
    Mixture(tone=tone)(torch.zeros(2, T, F, dtype=torch.complex64))


def _not_started() -> None:
    Mixture(noise=NMFNoise(2))(torch.zeros(T, F, dtype=torch.complex64))


def _other_stft() -> None:
    Mixture(speech=VAESpeech(F + 2, 2, (3,)), noise=StationaryNoise())(torch.zeros(T, F, dtype=torch.complex64))


def _no_law() -> None:
    Mixture(noise=lambda _: torch.ones(T, F))(torch.zeros(T, F, dtype=torch.complex64))  # type: ignore[arg-type, return-value]  # that is the mistake


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (_no_law, ValueError, "source 'noise' gives a Tensor; expected a law, ComplexNormal"),
        (_no_source, ValueError, "no source given"),
        (_bad_name, ValueError, "cannot be called 'train'.*rename"),
        (_bad_shape, ValueError, r"shape \(2, 6, 5\); expected \(T, F\)"),
        (_other_stft, ValueError, "source 'speech' has 7 frequencies, the recording 5"),
        (_not_started, RuntimeError, r"call model.start\(x\)"),
    ],
)
def test_mistakes_are_explained(act: Callable[[], None], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


@pytest.mark.parametrize("shape", [(T, F), (T, 1), (F,)])
def test_masked_bins_have_no_likelihood(shape: tuple[int, ...]) -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    observed = torch.rand(shape) > 0.4
    trace = poutine.trace(Mixture(tone=tone)).get_trace(x, observed)
    trace.compute_log_prob()
    expected: Tensor = tone(pyro.plate("frames", T, dim=-1)).log_prob(x) * observed
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected.sum(-1))


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(("power", "variance"), [
    ((4, 5), (4, 5)), ((4, 5), (3, 4, 5)), ((3, 4, 5), (3, 4, 5)), ((1, 4, 5), (1, 4, 5)), ((2, 1, 4, 5), (2, 3, 4, 5)),
])
def test_averages_over_draws_are_those_of_the_draws(power: tuple[int, ...], variance: tuple[int, ...], observed: bool) -> None:
    p, v = torch.rand(power), 0.1 + torch.rand(variance)
    seen = (torch.rand(4, 5) > 0.3).expand(power) if observed else None
    for found, each in zip(averages(p, v, seen), per_draw_averages(p, v, seen), strict=True):
        torch.testing.assert_close(found, over_draws(each))
