import copy

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ppse import ComplexNormal, Mixture
from ppse.infer import TARGET_ACCEPTANCE, adapt_step_size, hmc, log_density, sample
from ppse.mixture import Frames
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech
from ppse.priors import parameters_of, weak_priors, with_priors
from ppse.testing import assert_moments

T, F, L, K = 7, 5, 3, 2


def _model(spacing: int = 1) -> Mixture:
    return Mixture(speech=FrameGain(VAESpeech(F, L, (5,))), noise=NMFNoise(K, spacing=spacing)).double()


PRIORS = {"noise.W": dist.Gamma(torch.tensor(2.0).double(), 1.0), "noise.H": dist.LogNormal(torch.tensor(0.0).double(), 1.0)}


@pytest.mark.parametrize("spacing", [1, 3])
@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_density_is_that_of_the_graph_and_its_priors(lead: tuple[int, ...], spacing: int) -> None:
    """Summed over blocks it is minus the potential of Pyro, and the log-priors of the entries are in it."""
    model, x = _model(spacing), torch.randn(*lead, T, F, dtype=torch.complex128)
    model.start(x)
    bayesian = with_priors(model, PRIORS, x)
    target = log_density(bayesian, x, chains=3)
    assert set(target.sites) == {"speech.z", "noise.W", "noise.H"}
    position = target.init()

    def under_chains() -> None:
        with pyro.plate("chains", 3, dim=-2):
            bayesian(x)

    potential = initialize_model(under_chains)[1]
    torch.testing.assert_close(target(position).sum(), -potential(position), rtol=1e-9, atol=1e-8)
    trace = poutine.trace(bayesian).get_trace(x)
    trace.compute_log_prob()
    for name, law in PRIORS.items():
        value = trace.nodes[name]["value"]
        assert value.shape == getattr(model.noise, name[-1]).shape  # one for every frame, with and without chains around it
        torch.testing.assert_close(trace.nodes[name]["log_prob"].sum(), law.log_prob(value).sum())


def test_posterior_of_a_spectrum_is_the_conjugate_one() -> None:
    """x_t ~ CN(0, v) with v ~ InverseGamma(a, b): v | x ~ InverseGamma(a + T, b + sum |x|^2). log v is sampled, its moments compared."""
    torch.manual_seed(0)
    x = torch.randn(T, 2, dtype=torch.complex128) * torch.tensor([0.5, 2.0])
    model = Mixture(noise=StationaryNoise())
    model.start(x)
    a, b = torch.tensor(3.0).double(), torch.tensor(2.0).double()
    target = log_density(with_priors(model, {"noise.spectrum": dist.InverseGamma(a, b)}, x), x, chains=20)
    start = target.init({"noise.spectrum": model.noise.spectrum.detach()}, jitter=0.1)  # at the mode: far out the density is too steep
    step_size, state = adapt_step_size(lambda e: hmc(target, e, 8), start, 200, 0.3, TARGET_ACCEPTANCE["hmc"])
    draws = sample(target, hmc(target, step_size, 8), state.position, 300).values["noise.spectrum"].log()
    shape, rate = a + T, b + x.abs().square().sum(0)
    mean = rate.log() - torch.digamma(shape)  # log v = log rate - log Gamma(shape, 1)
    second = mean.square() + torch.polygamma(1, shape)
    assert_moments(draws.reshape(300, 20, 2), mean, second)


def test_a_law_for_every_entry_and_parameters_without_a_prior_stay() -> None:
    model, x = _model(), torch.randn(T, F, dtype=torch.complex128)
    model.start(x)
    rates = torch.arange(1.0, F + 1).double().unsqueeze(-1)
    trace = poutine.trace(with_priors(model, {"noise.W": dist.Gamma(1e4 * rates, 1e4)}, x)).get_trace(x)
    torch.testing.assert_close(trace.nodes["noise.W"]["value"], rates.expand(F, K), rtol=0.1, atol=0)
    assert trace.nodes["noise.H"]["type"] == "param" and torch.equal(trace.nodes["noise.H"]["value"], model.noise.H)


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"noise.V": dist.Gamma(1.0, 1.0)}, "no parameter 'noise.V'; it has .*noise.H, noise.W"),
        ({"noise.W": dist.Gamma(torch.ones(F + 1, 1), 1.0)}, r"'noise.W' has shape \(6, 1\); expected one that broadcasts to \(5, 2\)"),
        ({"noise.W": dist.Normal(0.0, 1.0)}, "values that the parameter may not"),
    ],
)
def test_priors_that_cannot_be(priors: dict[str, dist.Distribution], message: str) -> None:
    model, x = _model(), torch.randn(T, F, dtype=torch.complex128)
    model.start(x)
    with pytest.raises(ValueError, match=message):
        with_priors(model, priors, x)


def test_generator_is_left_alone() -> None:
    model, x = _model(), torch.randn(T, F, dtype=torch.complex128)
    model.start(x)
    before = torch.random.get_rng_state()
    with_priors(model, PRIORS, x)
    assert torch.equal(before, torch.random.get_rng_state())


class Mixed(PyroModule):
    """Parameters of all signs; only the scale is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.nats = PyroParam(torch.zeros(F))
        self.share = PyroParam(torch.tensor(0.5), constraints.unit_interval)
        self.scale = PyroParam(torch.full((F,), 3.0), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        var: Tensor = self.nats.exp() * self.share.unsqueeze(-1) * self.scale
        return ComplexNormal(0j, var.expand(*var.shape[:-2], frames.size, F))


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("shape", [1.0, 0.3])
def test_weak_priors_have_the_order_of_magnitude_of_the_positive_parameters(lead: tuple[int, ...], shape: float) -> None:
    model = Mixture(speech=FrameGain(VAESpeech(F, L, (5,))), noise=NMFNoise(K), other=Mixed()).double()
    x = torch.randn(*lead, T, F, dtype=torch.complex128)
    model.start(x)
    before = torch.random.get_rng_state()
    model = copy.deepcopy(model)  # with copies of the constraints
    priors, values = weak_priors(model, x, shape=shape), parameters_of(model, x)
    assert torch.equal(before, torch.random.get_rng_state())
    assert set(priors) == {"speech.gain", "noise.W", "noise.H", "other.scale"}
    assert set(values) == {*priors, "other.nats", "other.share"} and not any(v.requires_grad for v in values.values())
    assert torch.equal(values["noise.H"], model.noise.H)
    for name, law in priors.items():
        assert isinstance(law, dist.Gamma) and law.concentration.item() == pytest.approx(shape)
        torch.testing.assert_close(law.mean, values[name].mean())
    # In the precision of the model, and from the values as they stand every density is finite.
    target = log_density(with_priors(model, priors, x), x, chains=2)
    position = target.init(values)
    assert all(value.dtype == torch.float64 for value in position.values()) and target(position).isfinite().all()
    for name in ("noise.W", "other.scale"):
        torch.testing.assert_close(target.constrain(position)[name], values[name].expand(target.constrain(position)[name].shape))


def test_without_priors_the_graph_is_that_of_the_model() -> None:
    model, x = _model(), torch.randn(T, F, dtype=torch.complex128)
    model.start(x)
    trace = poutine.trace(with_priors(model, {}, x)).get_trace(x)
    assert {name for name, site in trace.nodes.items() if site["type"] == "param" and "$$$" not in name} == set(parameters_of(model, x))


def test_a_value_that_is_nan_has_a_density_that_is_nan() -> None:
    """A kernel then rejects it; an error of validation would end the run. What the user gave stays as it was."""
    model, x = _model(), torch.randn(T, F, dtype=torch.complex128)
    model.start(x)
    target = log_density(with_priors(model, PRIORS, x), x, chains=2)
    position = target.init()
    position["noise.W"][1] = torch.nan
    with pyro.validation_enabled(True):
        trace = target.trace(position)
        assert trace.nodes["noise.W"]["log_prob"].isnan().reshape(-1).tolist() == [False, True]
        with pytest.raises(ValueError, match="within the support"):
            PRIORS["noise.W"].log_prob(torch.tensor(torch.nan).double())


class Inside(Mixed):
    """Reads inside of the plate of frames what these share."""

    def forward(self, frames: Frames) -> ComplexNormal:
        with frames:
            return super().forward(frames)


def test_a_parameter_that_frames_share_is_no_parameter_of_every_frame() -> None:
    model, x = Mixture(noise=Inside()), torch.randn(T, F, dtype=torch.complex64)
    with pytest.raises(ValueError, match="'noise.scale' has shape .5,., none of it for the frames.*before it enters the plate"):
        with_priors(model, {"noise.scale": dist.Gamma(1.0, 1.0)}, x)


def test_a_batch_has_a_law_for_every_entry_of_what_was_made_without_utterances() -> None:
    """Parameters of __init__ have no dims for utterances: each of these then has a draw of its own, of the whole parameter."""
    model, x = Mixture(noise=Mixed()), torch.randn(3, 1, T, F, dtype=torch.complex64)
    bayesian = with_priors(model, {"noise.scale": dist.Gamma(2.0, 1.0), "noise.share": dist.Beta(2.0, 2.0)}, x)
    target = log_density(bayesian, x, chains=2)
    values = target.constrain(target.init())
    assert values["noise.scale"].shape == (3, 2, 1, F) and values["noise.share"].shape == (3, 2, 1)
    assert target.block == ("utterances",) and len(set(values["noise.scale"].flatten().tolist())) == 3 * 2 * F
