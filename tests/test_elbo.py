"""The loss of training against Pyro's, and against closed forms where it has more."""

import torch
from pyro.distributions import Normal
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from ppse import Mixture
from ppse.elbo import negative_elbo
from ppse.guides import EncoderGuide
from ppse.models import RVAESpeech, VAESpeech
from ppse.models.recurrent import RecurrentNormal

T, F, L, R, S = 4, 6, 2, 0.5, 0.3


def both(model: Mixture, guide: EncoderGuide, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss and KL divergence for the same draw."""
    values = []
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        values.append(negative_elbo(model, guide, x, observed, beta))
    return values[1], values[1] - values[0]


def test_is_the_elbo_of_pyro_for_independent_frames() -> None:
    vae, x = VAESpeech(F, L, (5,)), torch.randn(3, 1, T, F, dtype=torch.complex64)
    model, guide = Mixture(speech=vae), EncoderGuide({"speech.z": vae.encoder})
    loss, divergence = both(model, guide, x)
    torch.manual_seed(0)
    torch.testing.assert_close(loss, TraceMeanField_ELBO().differentiable_loss(model, guide, x))
    law = vae.encoder(x)
    torch.testing.assert_close(divergence, kl_divergence(law, Normal(torch.zeros_like(law.loc), 1.0)).sum(), rtol=1e-3, atol=1e-3)


class Chain(nn.Module):
    """An encoder that listens to nobody: z_t ~ N(R z_t-1, S^2)."""

    def forward(self, x: Tensor, observed: Tensor | None = None) -> RecurrentNormal:
        return RecurrentNormal(lambda past, _, state: (R * past, torch.full_like(past, S), state), L, x.real[..., :0])


def test_divergence_of_laws_with_memory_is_unbiased() -> None:
    model = Mixture(speech=VAESpeech(F, L, (5,)).double())
    guide = EncoderGuide({"speech.z": Chain()})
    x = torch.ones(4000, 1, T, F, dtype=torch.complex128)
    inverse = torch.linalg.inv(torch.eye(T, dtype=torch.float64) - R * torch.diag(torch.ones(T - 1, dtype=torch.float64), -1))
    law = MultivariateNormal(torch.zeros(T, dtype=torch.float64), S**2 * inverse @ inverse.mT)
    expected = L * kl_divergence(law, MultivariateNormal(torch.zeros_like(law.loc), torch.eye(T, dtype=torch.float64)))
    assert abs(both(model, guide, x)[1] / x.shape[0] - expected) < 0.01  # of about 7.6; the standard error is 0.002


def test_frames_that_nobody_observed_do_not_count() -> None:
    """A batch with padding has the loss of its recordings one by one; draws are replaced by means, so that both see the same."""
    torch.manual_seed(1)
    prior = RVAESpeech(F, L, 3).double()
    ends = (T, 2)
    x = torch.randn(2, 1, T, F, dtype=torch.complex128)
    observed = (torch.arange(T) < torch.tensor(ends).reshape(-1, 1, 1)).unsqueeze(-1)
    model, guide = Mixture(speech=prior), EncoderGuide({"speech.z": Still(prior.encoder)})
    model.start(x, observed)
    loss = negative_elbo(model, guide, x, observed, beta=0.5)
    model.start(x[0])
    alone = [negative_elbo(model, guide, x[b, 0, :end], beta=0.5) for b, end in enumerate(ends)]
    torch.testing.assert_close(loss, alone[0] + alone[1])


class Still(nn.Module):
    """The means of an encoder, almost certain."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        return Normal(self.encoder(x, observed).mean, 1e-9)
