"""Draws of guides, bounds and Pareto k-hat, against what is known of normal guides of normal posteriors."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppse import Mixture, to_arviz
from ppse.guides import EncoderGuide, low_rank, mean_field
from ppse.infer import Draws, GuideQuality, Proposal, RenyiBound, fit, guide_draws, guide_quality, log_density, mala, sample
from ppse.models import StationaryNoise, VAESpeech

T, S = 4, 0.5
X = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
EVIDENCE = dist.Normal(0.0, (1 + S**2) ** 0.5).log_prob(X)
LOC, SCALE = X / (1 + S**2), (S**2 / (1 + S**2)) ** 0.5


def model(x: Tensor) -> None:
    with pyro.plate("frames", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, S), obs=x)


def _guide(ratio: float | Tensor, shift: float = 0.0) -> Callable[[Tensor], None]:
    """The posterior but for a scale that is ``ratio`` times too wide, and a mean that is ``shift`` away."""

    def guide(x: Tensor) -> None:
        with pyro.plate("frames", len(x), dim=-1):
            pyro.sample("z", dist.Normal(LOC.to(x) + shift, SCALE * ratio))

    return guide


def _quality(ratio: float | Tensor, shift: float = 0.0, count: int = 40_000) -> GuideQuality:
    return guide_quality(guide_draws(model, _guide(ratio, shift), X, num_samples=4, chains=count // 4))


def _divergence(ratio: float, shift: float = 0.0) -> float:
    """KL(q || p(z | x)) of all frames."""
    law = kl_divergence(dist.Normal(shift, SCALE * ratio), dist.Normal(0.0, SCALE))
    return T * float(law)


def test_the_exact_guide_has_no_gap() -> None:
    for dtype in (torch.float64, torch.float32):
        quality = guide_quality(guide_draws(model, _guide(1.0), X.to(dtype), num_samples=100))
        assert quality.elbo == pytest.approx(EVIDENCE.sum().item(), abs=1e-5) and abs(quality.gap) < 1e-5
        assert quality.k_hat.tolist() == [0.0] * T
        assert "4 good" in str(quality) and "The guide is good." in str(quality)


def test_a_wide_guide_has_the_gap_of_its_divergence_and_the_bound_reaches_the_evidence() -> None:
    quality = _quality(1.5)
    assert quality.elbo == pytest.approx(EVIDENCE.sum().item() - _divergence(1.5), abs=0.05)
    assert quality.bound == pytest.approx(EVIDENCE.sum().item(), abs=0.03)
    assert quality.gap == pytest.approx(_divergence(1.5), abs=0.05)
    assert (quality.k_hat < 0.5).all() and quality.num_draws == 40_000


def test_k_hat_of_narrow_guides_is_the_known_one() -> None:
    """The weights exp(z^2 (1 / q^2 - 1 / p^2) / 2), z of scale q, have a tail of shape 1 - q^2 / p^2."""
    ratios = torch.tensor([0.25, 0.5, 0.65, 0.95], dtype=torch.float64)
    quality = _quality(ratios)
    torch.testing.assert_close(quality.k_hat, 1 - ratios**2, atol=0.12, rtol=0)
    said = str(quality)
    assert "worst" in said and "(frame 0)" in said and "fit longer, take a richer family, or use MCMC" in said
    good, usable, bad = ((lambda k: k < 0.5), (lambda k: (k >= 0.5) & (k < 0.7)), (lambda k: k >= 0.7))
    counts = [int(f(quality.k_hat).sum()) for f in (good, usable, bad)]
    assert f"Of 4 blocks {counts[0]} good (below 0.5), {counts[1]} usable (below 0.7), {counts[2]} not." in said and counts[2] >= 1


def test_more_draws_make_the_bound_tighter() -> None:
    draws = guide_draws(model, _guide(0.6, 0.5), X, num_samples=20, chains=2000)
    log_weights = draws.stats.log_density - draws.stats[1]

    def bound(k: int) -> float:
        return float((log_weights.reshape(-1, k, T).logsumexp(1) - torch.tensor(float(k)).log()).sum(-1).mean())

    bounds = [bound(k) for k in (1, 10, 100, 40_000)]
    assert bounds == sorted(bounds) and bounds[0] == pytest.approx(EVIDENCE.sum().item() - _divergence(0.6, 0.5), abs=0.05)
    quality = guide_quality(draws)
    assert quality.elbo == pytest.approx(bounds[0]) and quality.bound == pytest.approx(bounds[-1])
    assert quality.bound == pytest.approx(EVIDENCE.sum().item(), abs=0.15)


def test_draws_of_a_guide_are_those_of_its_law_and_go_to_arviz() -> None:
    draws = guide_draws(model, _guide(0.8, 0.3), X, num_samples=500, chains=4)
    z = draws.values["z"]
    assert z.shape == (500, 4, T) and draws.state is None and isinstance(draws.stats, Proposal)
    torch.testing.assert_close(draws.stats.log_proposal, dist.Normal(LOC + 0.3, 0.8 * SCALE).log_prob(z))
    torch.testing.assert_close(draws.stats.log_density, dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, S).log_prob(X))
    data: Any = to_arviz(draws, model, X)
    assert data.posterior["z"].dims == ("chain", "draw", "frame") and data.sample_stats["lp"].dims == ("chain", "draw", "frame")
    assert data.log_likelihood["x"].shape == (4, 500, T)


def test_frames_that_the_guide_ties_together_are_one_block() -> None:
    guide = low_rank(model, X)
    draws = guide_draws(model, guide, X, num_samples=50, chains=3)
    assert draws.blocks == ("chains", "") and draws.stats.log_density.shape == (50, 3, 1)
    z = draws.values["z"]
    torch.testing.assert_close(draws.stats.log_density[..., 0], (dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, S).log_prob(X)).sum(-1))
    quality = guide_quality(draws)
    assert quality.k_hat.shape == (1,) and quality.blocks == ("",) and "frame" not in str(quality)


def test_a_constant_outside_of_the_blocks_counts_once() -> None:
    def with_constant(x: Tensor) -> None:
        pyro.sample("level", dist.Normal(0.0, 1.0), obs=torch.tensor(3.0))
        model(x)

    expected = EVIDENCE.sum() + dist.Normal(0.0, 1.0).log_prob(torch.tensor(3.0))
    draws = guide_draws(with_constant, _guide(1.0), X, num_samples=100)
    assert draws.blocks == ("chains", "frames")
    assert guide_quality(draws).elbo == pytest.approx(expected.item(), rel=1e-6)


def test_frames_that_the_model_ties_together_are_one_block() -> None:
    """A decoder with memory declares independent frames, which they are not."""

    def memory(x: Tensor) -> None:
        with pyro.plate("frames", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.cumsum(-1), S), obs=x)

    lower = torch.ones(T, T, dtype=torch.float64).tril()
    evidence = dist.MultivariateNormal(torch.zeros_like(X), lower @ lower.mT + S**2 * torch.eye(T)).log_prob(X)
    covariance = (torch.eye(T) + lower.mT @ lower / S**2).inverse()
    guide = low_rank(memory, X)
    law = guide.law
    with torch.no_grad():
        law.loc.copy_(covariance @ lower.mT @ X / S**2)
        law.scale = 1e-5 * torch.ones_like(X)
        law.factor = nn.Parameter(1e5 * torch.linalg.cholesky(covariance))
    draws = guide_draws(memory, guide, X, num_samples=100)
    assert draws.blocks == ("chains", "") and guide_quality(draws).elbo == pytest.approx(evidence.item(), abs=1e-4)
    assert guide_draws(memory, _guide(1.0), X, num_samples=1).blocks == ("chains", "")
    assert RenyiBound(5).differentiable_loss(memory, guide, X).item() == pytest.approx(-evidence.item(), abs=1e-4)


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_the_objectives_agree_on_a_mixture_with_bins_that_do_not_count(lead: tuple[int, ...]) -> None:
    x = torch.randn(*lead, T, 9, dtype=torch.complex128)
    observed = torch.rand(*lead, T, 9) > 0.3
    mixture = Mixture(speech=VAESpeech(9, 2, (5,)), noise=StationaryNoise()).double()
    mixture.start(x, observed)
    guide = mean_field(mixture, x, observed, scale=0.3)
    nesting = 3 if lead else 1
    objectives = [
        *(elbo(num_particles=4000, vectorize_particles=True, max_plate_nesting=nesting) for elbo in (Trace_ELBO, TraceMeanField_ELBO)),
        RenyiBound(4000, 1.0),
    ]
    # What is hidden has no part in it.
    other = torch.where(observed, x, 30 * x + 1)
    with torch.no_grad():
        losses = [objective.differentiable_loss(mixture, guide, x_, observed).item() for objective in objectives for x_ in (x, other)]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=0.2)
    # And the bound of a batch is the sum of those of its recordings.
    if lead:
        apart = 0.0
        for b in range(2):
            single = Mixture(speech=mixture.speech, noise=StationaryNoise()).double()
            single.start(x[b, 0], observed[b, 0])
            own = x[b, 0], observed[b, 0]
            apart += RenyiBound(4000, 1.0).differentiable_loss(single, mean_field(single, *own, scale=0.3), *own).item()
        assert apart == pytest.approx(losses[0], abs=0.2)


def test_batches_have_a_k_hat_for_every_frame_of_every_recording() -> None:
    x = torch.randn(2, 1, T, 9, dtype=torch.complex128)
    observed = torch.ones(2, 1, T, 1, dtype=torch.bool)
    observed[1, :, 2:] = False
    mixture = Mixture(speech=VAESpeech(9, 2, (5,)), noise=StationaryNoise()).double()
    mixture.start(x)
    guide = mean_field(mixture, x, observed)
    draws = guide_draws(mixture, guide, x, observed, num_samples=30, chains=5)
    assert draws.values["speech.z"].shape == (30, 2, 5, T, 2) and draws.stats.log_density.shape == (30, 2, 5, T)
    quality = guide_quality(draws)
    assert quality.k_hat.shape == (2, T) and quality.blocks == ("utterances", "frames") and "utterance" in str(quality)
    # What is not observed has no likelihood: there log p is the prior.
    z = draws.values["speech.z"]
    torch.testing.assert_close(draws.stats.log_density[:, 1, :, 2:], dist.Normal(0.0, 1.0).log_prob(z).sum(-1)[:, 1, :, 2:])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_bound_is_that_of_pyro_where_that_holds(alpha: float) -> None:
    """Vectorised particles of one recording: same draws, same value."""
    guide = _guide(0.7, 0.4)
    own = RenyiBound(5, alpha)
    own.differentiable_loss(model, guide, X)
    theirs = RenyiELBO(alpha, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    with pyro.poutine.seed(rng_seed=1):
        expected = theirs.loss(model, guide, X)
    with pyro.poutine.seed(rng_seed=1):
        assert own.differentiable_loss(model, guide, X).item() == pytest.approx(expected)


def test_bounds_are_in_order_and_equal_the_evidence_for_the_exact_guide() -> None:
    guide = _guide(0.6, 0.3)
    losses = [
        torch.stack([bound.differentiable_loss(model, guide, X) for _ in range(200)]).mean().item()
        for bound in (RenyiBound(1, 1.0), RenyiBound(30, 0.5), RenyiBound(30, 0.0))
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] > -EVIDENCE.sum().item()
    for alpha in (0.0, 0.5, 1.0):
        assert RenyiBound(3, alpha).differentiable_loss(model, _guide(1.0), X).item() == pytest.approx(-EVIDENCE.sum().item())


def test_iwae_fits_a_wider_guide_than_the_elbo_and_trains_plain_modules() -> None:
    """Two modes: the ELBO stays on one of them, the importance-weighted bound covers both."""

    def modes(x: Tensor) -> None:
        with pyro.plate("frames", 1, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 2.0))
            pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=x)

    x = torch.tensor([2.0], dtype=torch.float64)
    scales = []
    for bound in (RenyiBound(30, 1.0), RenyiBound(30, 0.0)):
        guide = mean_field(modes, x, start={"z": (torch.tensor([1.0], dtype=torch.float64), 1.0)})
        fit(modes, guide, x, steps=200, learning_rate=0.05, elbo=bound)
        scales.append(guide.laws[0].scale.item())
    assert scales[0] < 0.7 < 1.2 < scales[1]
    vae = VAESpeech(9, 2, (8,))
    frames = torch.randn(10, 9, dtype=torch.complex64)
    before = [p.clone() for p in vae.encoder.parameters()]
    losses = fit(Mixture(speech=vae), EncoderGuide({"speech.z": vae.encoder}), frames, steps=60, learning_rate=0.01, elbo=RenyiBound(5))
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(not torch.equal(p, q) for p, q in zip(before, vae.encoder.parameters(), strict=True))


def test_the_bound_notices_another_recording() -> None:
    bound, guide = RenyiBound(4), _guide(1.0)
    assert bound.differentiable_loss(model, guide, X).item() == pytest.approx(-EVIDENCE.sum().item())

    def shorter(x: Tensor) -> None:
        with pyro.plate("frames", len(x), dim=-1):
            pyro.sample("z", dist.Normal(LOC[: len(x)], SCALE))

    assert bound.differentiable_loss(model, shorter, X[:2]).item() == pytest.approx(-EVIDENCE[:2].sum().item())


def test_automatic_guides_of_pyro_work_too() -> None:
    guide = AutoNormal(model)
    draws = guide_draws(model, guide, X, num_samples=3, chains=2)
    assert draws.blocks == ("chains", "frames") and draws.values["z"].shape == (3, 2, T)


def test_errors_say_what_to_do() -> None:
    def empty(x: Tensor) -> None:
        return

    with pytest.raises(ValueError, match=r"does not draw the latents \['z'\]"):
        guide_draws(model, empty, X)
    with pytest.raises(ValueError, match="num_samples=0"):
        guide_draws(model, _guide(1.0), X, num_samples=0)
    with pytest.raises(ValueError, match="50 draws; expected 100 or more"):
        guide_quality(guide_draws(model, _guide(1.0), X, num_samples=50))
    draws = guide_draws(model, _guide(1.0), X, num_samples=100)
    spoilt = draws.stats.log_density.clone()
    spoilt[3, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 400 log weights are not finite"):
        guide_quality(Draws(draws.values, Proposal(spoilt, draws.stats[1]), None, draws.plates, draws.blocks))
    target = log_density(model, X)
    with pytest.raises(ValueError, match="draws of a kernel"):
        guide_quality(sample(target, mala(target, 0.1), target.init(), 2))
    with pytest.raises(ValueError, match="particles=0"):
        RenyiBound(0)
    with pytest.raises(ValueError, match="RenyiELBO has no differentiable loss; use Trace_ELBO"):
        fit(model, nn.Identity(), X, elbo=RenyiELBO())  # type: ignore[arg-type]  # as a user without type checks would
    assert isinstance(Trace_ELBO().loss(model, _guide(1.0), X), float)
