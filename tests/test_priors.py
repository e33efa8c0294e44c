import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model

from ppse import Mixture
from ppse.infer import TARGET_ACCEPTANCE, adapt_step_size, hmc, log_density, sample
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech
from ppse.priors import with_priors
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
