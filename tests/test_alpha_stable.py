"""Alpha-stable noise: its characteristic function, the Cauchy case, its tails, and a kernel on it."""

import math

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture, methods
from ppse.infer import LogDensity, hmc, log_density, sample
from ppse.inference import infer
from ppse.mixture import Frames, Source
from ppse.models import AlphaStable, NMFNoise, StationaryNoise
from ppse.models.alpha_stable import positive_stable
from ppse.testing import assert_moments, check_source

T, F = 7, 11

SOURCES: dict[str, Source] = {
    "frames": AlphaStable(StationaryNoise()),
    "bins": AlphaStable(StationaryNoise(), alpha=0.7, per_bin=True),
    "nmf": AlphaStable(NMFNoise(2), alpha=1.0),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_contract(name: str) -> None:
    check_source(SOURCES[name], n_frames=T, n_freqs=F)


def _grid(alpha: float, x: Tensor, size: int = 300) -> tuple[Mixture, LogDensity, Tensor, Tensor, float]:
    """A model of unit spectrum, its density with one chain for every node of a grid over both latents, their values, the log of a cell."""
    model = Mixture(noise=AlphaStable(StationaryNoise(), alpha)).double()
    model.start(x)
    model.noise.source.spectrum = torch.ones(x.shape[-1], dtype=torch.float64)
    model.requires_grad_(False)
    logit, log = torch.linspace(-35, 35, size, dtype=torch.float64), torch.linspace(-35, 5, size, dtype=torch.float64)
    nodes = torch.cartesian_prod(logit, log)
    target = log_density(model, x, chains=len(nodes))
    assert target.block == ("frames",)
    angle, exponential = (nodes[:, i].reshape(-1, 1, 1).expand(-1, len(x), 1) for i in (0, 1))
    return model, target, angle, exponential, (logit[1] - logit[0]).log().item() + (log[1] - log[0]).log().item()


def test_cauchy_noise_by_quadrature() -> None:
    """alpha = 1: u is inverse Gamma (1/2, 1/4), so a frame of D bins has the Student-t density of one degree of freedom and half the spectrum."""
    x = torch.randn(4, 3, dtype=torch.complex128) * torch.tensor([[0.1], [1.0], [3.0], [20.0]])
    _, target, angle, exponential, cell = _grid(1.0, x)
    marginal = target({"noise.angle": angle, "noise.exponential": exponential}).logsumexp(0) + cell
    n, power = x.shape[-1], x.abs().square().sum(-1)
    closed = math.lgamma(0.5 + n) - math.lgamma(0.5) + 0.5 * math.log(0.25) - n * math.log(math.pi) - (0.5 + n) * (0.25 + power).log()
    torch.testing.assert_close(marginal, closed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.6, 1.3, 1.9])
def test_characteristic_function_by_quadrature(alpha: float) -> None:
    """E exp(-s u) = exp(-s^(alpha / 2)), the mean over u of the characteristic function of CN(0, u v) at |w|^2 v / 4 = s."""
    model, _, angle, exponential, cell = _grid(alpha, torch.zeros(1, 1, dtype=torch.complex128))
    uniform, positive = angle.sigmoid(), exponential.exp()
    weight = (uniform * (1 - uniform)).log() + dist.Exponential(1.0).log_prob(positive) + exponential
    latents = {"noise.angle": uniform, "noise.exponential": positive}
    with torch.no_grad():
        scale = poutine.condition(model, data=latents)(torch.zeros(1, 1, dtype=torch.complex128))["noise"].var
    for s in (0.01, 0.3, 2.0, 20.0):
        found = ((weight - s * scale).sum((-2, -1)) + cell).exp().sum()
        assert abs(found.item() - math.exp(-(s ** (alpha / 2)))) < 1e-5


@pytest.mark.parametrize("alpha", [0.6, 1.0, 1.7])
def test_draws_have_the_characteristic_function_and_the_tail_index(alpha: float) -> None:
    n = 400_000
    model = Mixture(noise=AlphaStable(StationaryNoise(), alpha)).double()
    x = torch.zeros(n, 1, dtype=torch.complex128)
    model.start(x)
    model.noise.source.spectrum = torch.ones(1, dtype=torch.float64)
    with torch.no_grad():
        noise: Tensor = model(x)["noise"].sample()
    for w in (0.5, 1.0, 3.0):
        wave = (w * noise.real).cos()
        error = (wave.mean() - math.exp(-((w * w / 4) ** (alpha / 2)))) / (wave.std() / n**0.5)
        assert abs(error.item()) < 5
    largest = noise.abs().flatten().sort(descending=True).values[:1001].log()
    hill = 1 / (largest[:1000] - largest[1000]).mean()  # the estimate of the tail index has a standard error of alpha / sqrt(1000)
    assert abs(hill.item() / alpha - 1) < 5 / 1000**0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_and_slopes_are_finite_and_positive_wherever_latents_go(dtype: torch.dtype) -> None:
    ends = torch.finfo(dtype)
    angle = torch.tensor([ends.tiny, 1e-6, 0.5, 1 - ends.eps], dtype=dtype, requires_grad=True)
    exponential = torch.tensor([ends.tiny, 1e-3, 1.0, 50.0], dtype=dtype, requires_grad=True)
    for index in (0.1, 0.5, 0.95):
        u = positive_stable(index, angle.unsqueeze(-1), exponential)
        assert u.isfinite().all() and (u > 0).all()
        slopes = torch.autograd.grad(u.log().sum(), [angle, exponential])
        assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.slow
def test_kernel_draws_the_posterior_of_the_scale() -> None:
    """Against quadrature: a quiet and a loud frame. The latents move in unconstrained space, the Jacobian included."""
    x = torch.tensor([[0.3, 0.2], [6.0, 3.0]], dtype=torch.complex128)
    model, target, angle, exponential, _ = _grid(1.5, x)
    weight = target({"noise.angle": angle, "noise.exponential": exponential}).softmax(0)
    log_scale = positive_stable(0.75, angle.sigmoid(), exponential.exp()).squeeze(-1).log()
    mean, second = (weight * log_scale).sum(0), (weight * log_scale.square()).sum(0)
    target = log_density(model, x, chains=100)
    draws = sample(target, hmc(target, 0.4, 8), target.init(), 200, warmup=50).values
    found = positive_stable(0.75, draws["noise.angle"], draws["noise.exponential"]).squeeze(-1).log()
    assert_moments(found, mean, second)


def test_one_click_does_not_spoil_the_other_frames() -> None:
    """Under one Gaussian spectrum the click is spread over all frames, and the speech in them is taken for noise."""

    def speech(frames: Frames) -> ComplexNormal:
        return ComplexNormal(0j, torch.ones(frames.size, 30))

    clean = torch.randn(40, 30, dtype=torch.complex64)
    x = clean + 0.5 * torch.randn(40, 30, dtype=torch.complex64)
    x[7] *= 100
    error = {}
    for name, noise in (("stable", AlphaStable(StationaryNoise(), alpha=1.2)), ("gaussian", StationaryNoise())):
        law = infer(Mixture(speech=speech, noise=noise), x, methods.hmc_em(60)).sources["speech"]
        error[name] = (law.loc - clean).abs().square().mean(-1)
    assert error["gaussian"].mean() > 0.9 and error["stable"].mean() < 0.35  # 0.2 were each frame's variance known


@pytest.mark.parametrize("alpha", [0.0, 2.0, -1.0, math.nan])
def test_bad_exponents_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="AlphaStable: alpha="):
        AlphaStable(StationaryNoise(), alpha)


def test_scales_per_bin_need_bins() -> None:
    def one_for_all(frames: Frames) -> ComplexNormal:
        return ComplexNormal(0j, torch.ones(frames.size, 1))

    with pytest.raises(ValueError, match="one variance for all frequencies"):
        Mixture(noise=AlphaStable(one_for_all, per_bin=True))(torch.zeros(T, F, dtype=torch.complex64))
