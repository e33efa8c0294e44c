import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from ppse import Mixture
from ppse.guides import EncoderGuide
from ppse.infer import fit
from ppse.models import VAESpeech

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
