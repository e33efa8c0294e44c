"""A normal law bent by couplings: its density by the change of variables, its use as a posterior, and in a noisy encoder."""

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse import Mixture, methods, weights
from ppse.elbo import negative_elbo
from ppse.guides import starting_guide
from ppse.inference import infer
from ppse.models import NMFNoise, VAESpeech
from ppse.models.coupled_normal import CoupledNormal, Coupling

COPIES = 50


def _law(frames: int = 3, latent: int = 4, bent: float = 0.5) -> CoupledNormal:
    torch.manual_seed(1)
    couplings = [Coupling(latent, 2, 8, odd=bool(i % 2)).double().requires_grad_(False) for i in range(3)]
    for coupling in couplings:
        coupling.out.weight.normal_(0, bent)
    loc, context = torch.randn(frames, latent, dtype=torch.float64), torch.randn(frames, 2, dtype=torch.float64)
    return CoupledNormal(loc, torch.rand(frames, latent, dtype=torch.float64) + 0.3, couplings, context)


def test_the_density_is_that_of_the_change_of_variables() -> None:
    law = _law()
    start = torch.randn(3, 4, dtype=torch.float64)

    def bent(value: Tensor) -> Tensor:
        return law._bent(value)[0]

    jacobian = torch.autograd.functional.jacobian(bent, start)  # frames do not touch one another
    wanted = law.base.log_prob(start).sum(-1) - torch.stack([jacobian[t, :, t].slogdet()[1] for t in range(3)])
    assert (law.base.log_prob(start).sum(-1) - wanted).abs().max() > 0.05
    torch.testing.assert_close(law.log_prob(bent(start)).sum(-1), wanted)


def test_a_draw_knows_its_density() -> None:
    law = _law().expand((5, 3, 4))
    drawn = law.rsample()
    quick = law.log_prob(drawn)
    assert drawn.shape == quick.shape == (5, 3, 4)
    torch.testing.assert_close(quick, law.log_prob(drawn.clone()))


def test_at_first_it_is_normal() -> None:
    law = _law(bent=0.0)
    value = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(value), law.base.log_prob(value))
    assert (law.mean == law.base.loc).all() and law.stddev.allclose(law.base.scale)


def test_where_it_starts_and_how_far_it_goes_is_the_image_of_the_centre() -> None:
    law = _law()
    law = CoupledNormal(law.base.loc, 1e-4 * law.base.scale, law.couplings[:1], law.context)
    with pyro.poutine.seed(rng_seed=0):
        drawn = law.rsample((20_000,))
    torch.testing.assert_close(drawn.mean(0), law.mean, atol=1e-5, rtol=0)
    assert (drawn.std(0) > 0.97 * law.stddev).all()  # a coordinate moves with its neighbours, too, which the scales leave out


def test_one_latent_is_too_few() -> None:
    with pytest.raises(ValueError, match="1 latents; expected two or more"):
        Coupling(1, 2, 4, odd=False)


@pytest.mark.slow
def test_a_crescent_is_followed_where_a_normal_law_cannot() -> None:
    """p(z) p(x | z) with a curved ridge; the bound against the evidence by quadrature."""
    def model(x: Tensor, observed: Tensor | None = None) -> None:
        with pyro.plate("frames", COPIES, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 1] - 1.5 * z[..., 0].square(), 0.2), obs=x)

    x = torch.full((COPIES,), -1.0, dtype=torch.float64)  # as many draws of one posterior
    axis = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    first, second = torch.meshgrid(axis, axis, indexing="ij")
    normal = dist.Normal(0.0, 1.0)
    joint = normal.log_prob(first) + normal.log_prob(second) + dist.Normal(second - 1.5 * first.square(), 0.2).log_prob(x[0])
    evidence = float(joint.flatten().logsumexp(0)) + 2 * math.log(0.01)
    losses = []
    for count in (0, 4):
        torch.manual_seed(0)
        couplings = torch.nn.ModuleList(Coupling(2, 1, 16, odd=bool(i % 2)) for i in range(count)).double()
        loc, log_scale = (torch.zeros(1, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))

        def guide(
            x: Tensor, observed: Tensor | None = None, parts: torch.nn.ModuleList = couplings, loc: Tensor = loc, log_scale: Tensor = log_scale,
        ) -> None:
            law = CoupledNormal(loc, log_scale.exp(), [*parts], torch.ones(1, 1, dtype=torch.float64))  # type: ignore[arg-type]  # they are
            with pyro.plate("frames", COPIES, dim=-1):
                pyro.sample("z", law.expand((COPIES, 2)).to_event(1))

        optimiser = torch.optim.Adam([loc, log_scale, *couplings.parameters()], lr=0.02)
        found = []
        for step in range(600):
            optimiser.zero_grad()
            loss = negative_elbo(model, guide, x)
            loss.backward()  # type: ignore[no-untyped-call]  # of torch
            optimiser.step()
            if step >= 500:
                found.append(float(loss.detach()) / COPIES)
        losses.append(sum(found) / len(found))
    assert -evidence - 0.05 < losses[1] < -evidence + 0.25 < losses[0] - 0.2


def test_a_noisy_encoder_that_bends_is_stored_and_enhances(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = VAESpeech(33, 4, (8,), 6, couplings=2)
    assert vae.listener is not None
    for coupling in vae.listener.couplings:
        torch.nn.init.normal_(coupling.out.weight, 0, 0.3)  # type: ignore[arg-type]  # a tensor
    weights.write(vae, tmp_path / "bent.safetensors", {})
    vae = VAESpeech.pretrained(str(tmp_path / "bent.safetensors"))
    x = torch.randn(12, 33, dtype=torch.complex64)
    model = Mixture(speech=vae, noise=NMFNoise(2))
    model.start(x)
    guide = starting_guide(model)
    assert guide is not None and isinstance(guide._read(x, None)[0]["speech.z"], CoupledNormal)
    for method in (methods.amortised(), methods.hmc_em(3, average=1)):
        assert infer(model, x, method).sources["speech"].loc.isfinite().all()
