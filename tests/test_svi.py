from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppse import ComplexNormal, Mixture
from ppse.guides import EncoderGuide, flow, low_rank, mean_field, per_frame
from ppse.infer import fit
from ppse.inference import infer
from ppse.methods import svi_em
from ppse.mixture import Frames
from ppse.models import HeavyTailed, NMFNoise, VAESpeech

OBSERVED = torch.linspace(-1, 2, 6)


def _model() -> None:
    with pyro.plate("frames", 6, dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=OBSERVED)


def test_finds_the_posterior_and_the_evidence_of_a_gaussian_model() -> None:
    guide = AutoNormal(_model)
    seen: list[int] = []
    elbo = TraceMeanField_ELBO(num_particles=30, vectorize_particles=True, max_plate_nesting=1)
    losses = fit(_model, guide, steps=600, learning_rate=0.03, elbo=elbo, callback=lambda step, _: seen.append(step))
    median = guide.median()["z"]
    torch.testing.assert_close(median, OBSERVED / 1.25, atol=0.1, rtol=0)
    torch.testing.assert_close(guide.quantiles([0.8413])["z"] - median, torch.full((1, 6), 0.2**0.5), atol=0.08, rtol=0)
    evidence = dist.Normal(0.0, 1.25**0.5).log_prob(OBSERVED).sum().item()
    assert sum(losses[-100:]) / 100 == pytest.approx(-evidence, abs=0.15) and len(losses) == len(seen) == 600


def test_a_network_shared_by_model_and_guide_is_trained_once() -> None:
    vae = VAESpeech(9, 2, (8,))
    x = torch.randn(20, 9, dtype=torch.complex64)
    losses = fit(Mixture(speech=vae), EncoderGuide({"speech.z": vae.encoder}), x, steps=60, learning_rate=0.01)
    assert sum(losses[-10:]) < sum(losses[:10])


def test_a_loss_that_is_not_finite_is_reported() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.0))

        def forward(self) -> None:
            _model()
            pyro.factor("broken", self.weight.log())

    with pytest.raises(ValueError, match=r"loss is nan at step 0; lower the learning rate \(0.5\)"):
        fit(Broken(), AutoNormal(_model), steps=3, learning_rate=0.5)


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("family", [mean_field, per_frame, low_rank, flow])
def test_em_with_a_guide_of_the_recording(family: Callable[..., nn.Module], lead: tuple[int, ...]) -> None:
    """Of latents that an encoder knows and of some that it does not; what is averaged explains the recording."""
    model = Mixture(speech=VAESpeech(9, 2, (5,), 4), noise=HeavyTailed(NMFNoise(2)))
    x = torch.randn(*lead, 12, 9, dtype=torch.complex64) * torch.linspace(0.3, 2.0, 12).unsqueeze(-1)
    weights = [p.clone() for p in model.parameters()]
    found = infer(model, x, svi_em(family, iterations=25, steps=3, average=5))
    assert found.draws["speech.z"].shape == (*lead[:1], 4, 12, 2) and found.draws["noise.scale"].shape == (*lead[:1], 4, 12, 1)
    assert sum(found.objective[-5:]) / 5 > found.objective[0] + 0.1
    torch.testing.assert_close(found.sources["speech"].loc + found.sources["noise"].loc, x, atol=1e-5, rtol=0)
    assert all(torch.equal(p, q) for p, q in zip(weights, model.parameters(), strict=True))


def test_em_with_a_guide_needs_no_encoder() -> None:
    """Student-t noise of unit power: p(log u | x) is exp(-a log u - b / u), its best normal law N(log(b / a) + 1 / (2 a), 1 / a)."""

    def unit(frames: Frames) -> ComplexNormal:
        return ComplexNormal(0j, torch.ones(frames.size, 9))

    x = torch.randn(20, 9, dtype=torch.complex64) * torch.linspace(0.2, 3.0, 20).unsqueeze(-1)
    found = infer(Mixture(noise=HeavyTailed(unit, dof=4.0)), x, svi_em(iterations=80, draws=500, learning_rate=0.03, average=1))
    a, b = 2.0 + 9, 2.0 + x.abs().square().sum(-1)
    log_scale = found.draws["noise.scale"].log().squeeze(-1)
    torch.testing.assert_close(log_scale.mean(0), (b / a).log() + 0.5 / a, atol=0.2, rtol=0)
    torch.testing.assert_close(log_scale.mean(), ((b / a).log() + 0.5 / a).mean(), atol=0.04, rtol=0)
    torch.testing.assert_close(log_scale.std(0).mean(), torch.tensor(a**-0.5), atol=0.03, rtol=0)
