"""The families of guides against closed forms: linear-Gaussian models, log-normal latents, a shared level."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ppse import Mixture, with_priors
from ppse.guides import flow, low_rank, mean_field, per_frame, semi_amortised, starting_guide
from ppse.guides.sites import Start
from ppse.infer import fit, guide_draws
from ppse.infer.density import is_latent
from ppse.models import HeavyTailed, NMFNoise, StationaryNoise, VAESpeech

T, F, L, B = 3, 4, 2, 2
A = torch.tensor([[1.0, 0.9], [0.8, 0.3], [0.9, 0.5], [0.2, 1.0]], dtype=torch.float64)
S = 0.6
FAMILIES = [mean_field, per_frame, flow, low_rank]


def _utterances(x: Tensor) -> Any:
    return pyro.plate("utterances", len(x), dim=-3) if x.dim() == 4 else nullcontext()


def linear(x: Tensor) -> None:
    """x_t = A z_t + noise: the posterior of a frame is normal, with correlation."""
    with _utterances(x), pyro.plate("frames", x.shape[-2], dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(L), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ A.mT, S).to_event(1), obs=x)


def positive(x: Tensor) -> None:
    """Positive latents, of frames (T, F) and shared (F,), of which the logarithms are seen with noise."""
    with _utterances(x):
        w = pyro.sample("w", dist.LogNormal(x.new_zeros(F), 0.5).to_event(1))
        pyro.sample("seen", dist.Normal(w.log(), S).to_event(1), obs=x[..., :1, :].unsqueeze(-3).squeeze(-2) if x.dim() == 4 else x[0])
        with pyro.plate("frames", x.shape[-2], dim=-1):
            h = pyro.sample("h", dist.LogNormal(x.new_zeros(F), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(h.log(), S).to_event(1), obs=x)


def _posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (…, T, L) and covariance (L, L) of the latents of the linear model."""
    covariance = (torch.eye(L).to(x) + A.mT @ A / S**2).inverse()
    return x @ A @ covariance / S**2, covariance


def _recording(*lead: int) -> Tensor:
    return torch.randn(*lead, T, F, dtype=torch.float64)


def _fitted(model: Callable[..., Any], guide: nn.Module, x: Tensor, elbo: Any = None, steps: int = 250) -> float:
    """Fit with two learning rates; the mean loss at the end."""
    elbo = elbo or Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=3 if x.dim() == 4 else 1)
    fit(model, guide, x, steps=steps, learning_rate=0.05, elbo=elbo)
    losses = fit(model, guide, x, steps=steps, learning_rate=0.005, elbo=elbo)
    return sum(losses[-50:]) / 50


@pytest.mark.slow
@pytest.mark.parametrize("lead", [(), (B, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("family", [per_frame, flow])
def test_structured_guides_find_the_correlated_posterior(family: Callable[..., nn.Module], lead: tuple[int, ...]) -> None:
    x = _recording(*lead)
    guide = family(linear, x)
    _fitted(linear, guide, x)
    mean, covariance = _posterior(x)
    z = guide_draws(linear, guide, x, num_samples=1, chains=20_000).values["z"][0]
    torch.testing.assert_close(z.mean(-3), mean.reshape(*lead[:1], T, L), atol=0.05, rtol=0)
    error = z - z.mean(-3, keepdim=True)
    torch.testing.assert_close((error.unsqueeze(-1) * error.unsqueeze(-2)).mean(-4), covariance.expand(*lead[:1], T, L, L), atol=0.05, rtol=0)


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceMeanField_ELBO])
def test_mean_field_finds_the_inverse_of_the_precisions(estimator: Any) -> None:
    x = _recording()
    guide = mean_field(linear, x)
    _fitted(linear, guide, x, estimator(num_particles=16, vectorize_particles=True, max_plate_nesting=1))
    mean, covariance = _posterior(x)
    torch.testing.assert_close(guide.laws[0].loc, mean, atol=0.06, rtol=0)
    torch.testing.assert_close(guide.laws[0].scale.square(), (1 / covariance.inverse().diagonal()).expand(T, L), atol=0.03, rtol=0)


def test_low_rank_finds_what_moves_together() -> None:
    """A level shared by the frames: given x, level and frames are a rank of one and a diagonal."""

    def model(x: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(x.new_zeros(()), 2.0))
        with pyro.plate("frames", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(level, 0.5))
            pyro.sample("x", dist.Normal(z, 2.0), obs=x)

    x = torch.tensor([1.0, 0.0, 2.0, 1.5], dtype=torch.float64)
    evidence = dist.MultivariateNormal(torch.zeros_like(x), 4 * torch.ones(4, 4).to(x) + (0.25 + 4) * torch.eye(4).to(x)).log_prob(x).item()
    loss = {family: _fitted(model, family(model, x), x) for family in (low_rank, mean_field)}
    assert -loss[low_rank] == pytest.approx(evidence, abs=0.05)
    assert loss[mean_field] > loss[low_rank] + 0.5


def _exact(x: Tensor) -> Start:
    """The posterior of the positive model: of every logarithm normal."""

    def law(seen: Tensor, prior: float) -> tuple[Tensor, float]:
        precision = 1 / prior**2 + 1 / S**2
        return (seen / S**2 / precision).exp(), precision**-0.5

    return {"w": law(x[..., :1, :] if x.dim() == 4 else x[0], 0.5), "h": law(x, 1.0)}


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("lead", [(), (B, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("family", [mean_field, per_frame, flow])
def test_every_draw_of_the_exact_guide_weighs_the_evidence(family: Callable[..., nn.Module], lead: tuple[int, ...], objective: Any) -> None:
    """Positive supports, sites in and outside of frames, batches: with the right Jacobians log p - log q is log p(x) without error."""
    x = _recording(*lead)
    guide = family(positive, x, start=_exact(x))
    shared = x[..., :1, :] if lead else x[0]
    evidence = dist.Normal(0.0, math.hypot(0.5, S)).log_prob(shared).sum((-2, -1) if lead else -1)
    evidence = evidence + dist.Normal(0.0, math.hypot(1.0, S)).log_prob(x).sum((-2, -1))
    assert -objective().differentiable_loss(positive, guide, x).item() == pytest.approx(evidence.sum().item())
    draws = guide_draws(positive, guide, x, num_samples=2, chains=3)
    assert draws.values["h"].shape == (2, *lead[:1], 3, T, F) and draws.values["w"].shape == (2, *lead[:1], 3, 1, F)
    weights = draws.stats.log_density - draws.stats[1]
    torch.testing.assert_close(weights, evidence.reshape(*lead, 1).expand(weights.shape))


@pytest.mark.parametrize("lead", [(), (B, 1)], ids=["one", "batch"])
def test_low_rank_keeps_the_recordings_of_a_batch_apart(lead: tuple[int, ...]) -> None:
    """With next to no spread every draw is the start, wherever the plates of recordings and of chains lie."""
    x = _recording(*lead)
    start = {name: (value, 1e-9) for name, (value, _) in _exact(x).items()}
    guide = low_rank(positive, x, start=start)
    draws = guide_draws(positive, guide, x, num_samples=1, chains=3)
    torch.testing.assert_close(draws.values["h"][0], start["h"][0].reshape(*lead, T, F).expand(*lead[:1], 3, T, F))
    torch.testing.assert_close(draws.values["w"][0], start["w"][0].reshape(*lead, 1, F).expand(*lead[:1], 3, 1, F))
    assert draws.blocks == (*(("utterances",) if lead else ()), "chains", "")


def test_low_rank_density_is_that_of_its_covariance() -> None:
    x = _recording()
    guide = low_rank(linear, x, rank=2)
    draws = guide_draws(linear, guide, x, num_samples=1, chains=4)
    law = guide.law
    factor = law.scale.unsqueeze(-1) * law.factor
    full = dist.MultivariateNormal(law.loc, factor @ factor.mT + (law.scale.square() / 2).diag_embed())
    torch.testing.assert_close(draws.stats[1][0].squeeze(-1), full.log_prob(draws.values["z"][0].flatten(-2)))


def test_flow_density_is_that_of_its_jacobian() -> None:
    """With weights that are not those of the start."""
    x = _recording(B, 1)
    guide = flow(linear, x, hidden=8)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    law = guide.law()
    value = law.rsample()
    torch.testing.assert_close(law.log_prob(value), guide.law().log_prob(value))  # a new law has no cache: by inversion
    e = torch.randn(L, dtype=torch.float64)
    at = (1, 0, 2)

    def forward(noise: Tensor) -> Tensor:
        u = noise.expand(B, 1, T, L)
        for transform in guide.law().transforms:
            u = transform(u)
        return u[at]

    jacobian: Any = torch.autograd.functional.jacobian(forward, e)
    density = dist.Normal(0.0, 1.0).log_prob(e).sum() - jacobian.slogdet()[1]
    u = value.detach().clone()
    u[at] = forward(e).detach()
    torch.testing.assert_close(guide.law().log_prob(u)[at], density)


def _mixtures(lead: tuple[int, ...]) -> list[tuple[str, Callable[..., Any], Tensor]]:
    x = torch.randn(*lead, T, 9, dtype=torch.complex128)
    found = []
    for spacing in (1, 2):
        model = Mixture(speech=VAESpeech(9, L, (5,)), noise=NMFNoise(rank=2, spacing=spacing)).double()
        model.start(x)
        priors = {"noise.W": dist.Gamma(torch.tensor(0.5).double(), 1.0), "noise.H": dist.Gamma(torch.tensor(1.0).double(), 1.0)}
        found.append((f"NMF {spacing}", with_priors(model, priors, x), x))
    model = Mixture(speech=VAESpeech(9, L, (5,)), noise=HeavyTailed(StationaryNoise())).double()
    model.start(x)
    return [*found, ("clicks", model, x)]


@pytest.mark.parametrize("lead", [(), (B, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fits_the_graph_of_every_mixture(family: Callable[..., nn.Module], lead: tuple[int, ...]) -> None:
    for name, model, x in _mixtures(lead):
        guide = family(model, x)
        with pyro.plate("chains", 5, dim=-2):
            proposed: Any = poutine.trace(guide).get_trace(x)
            graph: Any = poutine.trace(poutine.replay(model, trace=proposed)).get_trace(x)
            prior: Any = poutine.trace(model).get_trace(x)
        for site, node in prior.nodes.items():
            if is_latent(node):
                assert proposed.nodes[site]["value"].shape == node["value"].shape, (name, site)
        assert graph.log_prob_sum().isfinite() and proposed.log_prob_sum().isfinite()
        elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=3 if lead else 1)
        parameters = list(guide.parameters())
        gradients = torch.autograd.grad(elbo.differentiable_loss(model, guide, x), parameters, allow_unused=True)
        assert all(g is not None and g.isfinite().all() for g in gradients), name
        with pyro.validation_enabled(True):  # warns where guide and model have another order of sites
            assert TraceMeanField_ELBO().differentiable_loss(model, guide, x).isfinite()
        assert copy.deepcopy(guide)(x)  # em refines a copy


def test_semi_amortised_starts_at_the_encoder_and_leaves_it_alone() -> None:
    x = torch.randn(8, 9, dtype=torch.complex128)
    model = Mixture(speech=VAESpeech(9, L, (8,)), noise=StationaryNoise()).double()
    model.start(x)
    model.requires_grad_(False)
    encoder = starting_guide(model)
    assert encoder is not None
    before = copy.deepcopy(encoder.state_dict())
    laws = encoder.laws(x)["speech.z"]
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    losses = {"encoder": elbo.differentiable_loss(model, encoder, x).item()}
    for family in (mean_field, per_frame, flow):
        guide = semi_amortised(model, encoder, x, family=family)
        law = guide.laws[0]() if family is mean_field else guide.law()
        torch.testing.assert_close(law.rsample(torch.Size([4000])).mean(0), laws[0], atol=0.1, rtol=0)
        assert elbo.differentiable_loss(model, guide, x).item() == pytest.approx(losses["encoder"], rel=0.02)
        fit(model, guide, x, steps=150, learning_rate=0.03)
        losses[family.__name__] = elbo.differentiable_loss(model, guide, x).item()
        assert losses[family.__name__] < losses["encoder"] - 1
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in before.items())


def test_semi_amortised_takes_a_start_of_other_latents() -> None:
    x = torch.randn(T, 9, dtype=torch.complex64)
    model = Mixture(speech=VAESpeech(9, L, (5,)), noise=NMFNoise(rank=2))
    model.start(x)
    encoder = starting_guide(model)
    assert encoder is not None
    w = model.noise.W.detach()
    bayesian = with_priors(model, {"noise.W": dist.Gamma(1.0, 1.0)}, x)
    guide = semi_amortised(bayesian, encoder, x, start={"noise.W": (w, 0.2)})
    by_name = {site.name: law for site, law in zip(guide.sites, guide.laws, strict=True)}
    torch.testing.assert_close(by_name["noise.W"].loc.exp(), w)
    torch.testing.assert_close(by_name["speech.z"].loc, encoder.laws(x)["speech.z"][0])


def test_what_cannot_be_is_refused() -> None:
    x = _recording()

    def discrete(x: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    def level(x: Tensor) -> None:
        pyro.sample("level", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="'k' is not continuous"):
        mean_field(discrete, x)
    with pytest.raises(ValueError, match="no latent site"):
        mean_field(poutine.condition(level, data={"level": torch.tensor(0.0)}), x)
    for family in (per_frame, flow):
        with pytest.raises(ValueError, match=r"none of the latents \['level'\] lies in the plate 'frames'"):
            family(level, x)
    with pytest.raises(ValueError, match=r"start has \['y'\]; the latent sites of the model are \['z'\]"):
        mean_field(linear, x, start={"y": (x, 0.1)})
    with pytest.raises(ValueError, match=r"start of 'z' does not broadcast to its shape \(3, 2\)"):
        mean_field(linear, x, start={"z": (torch.zeros(5, dtype=torch.float64), 0.1)})
    with pytest.raises(ValueError, match="outside of its support"):
        mean_field(positive, x, start={"h": (-torch.ones(T, F, dtype=torch.float64), 0.1)})
    with pytest.raises(ValueError, match="rank=0"):
        low_rank(linear, x, rank=0)
    with pytest.raises(ValueError, match="layers=0"):
        flow(linear, x, layers=0)


def test_making_a_guide_leaves_the_generator_alone_and_one_latent_flows_too() -> None:
    x = _recording()
    before = torch.random.get_rng_state()
    mean_field(linear, x)
    per_frame(linear, x)
    assert torch.equal(before, torch.random.get_rng_state())

    def single(x: Tensor) -> None:
        with pyro.plate("frames", T, dim=-1):
            pyro.sample("z", dist.Gamma(x.new_ones(()), 1.0))

    assert flow(single, x)(x)["z"].shape == (T,)
