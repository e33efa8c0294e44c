"""Noise with heavy tails, noise and speech with memory, NMF speech: against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture
from ppse.guides import starting_guide
from ppse.infer import BlockError, hmc, log_density, sample
from ppse.mixture import Frames, Source
from ppse.models import (
    ARNoise,
    Autoregressive,
    AutoregressiveVAESpeech,
    FrameGain,
    HeavyTailed,
    NMFNoise,
    NMFSpeech,
    StationaryNoise,
    VAESpeech,
)
from ppse.testing import assert_moments, check_source

T, F = 7, 11


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def _nmf_speech() -> NMFSpeech:
    return NMFSpeech(torch.rand(F, 3), torch.tensor([0.5, 1.0, 2.0]), torch.tensor([1.0, 0.5, 3.0]))


def _codes(correlation: float = 0.8) -> AutoregressiveVAESpeech:
    return AutoregressiveVAESpeech(F, 3, (8, 6), correlation=correlation)


SOURCES: dict[str, tuple[Source, tuple[str, ...]]] = {
    "student-t frames": (HeavyTailed(StationaryNoise()), ()),
    "student-t bins": (HeavyTailed(StationaryNoise(), per_bin=True), ()),
    "student-t nmf": (HeavyTailed(NMFNoise(3), dof=1.0), ()),
    "student-t bins of nmf with knots": (HeavyTailed(NMFNoise(2, spacing=3), per_bin=True), ()),
    "gain on student-t": (FrameGain(HeavyTailed(StationaryNoise())), ()),
    "drifting": (ARNoise(), ()),
    "drifting nmf": (ARNoise(NMFNoise(2), correlation=-0.5), ()),
    "vae with memory": (_codes(), ("encoder",)),
    "gain on vae with memory": (FrameGain(_codes()), ("source.encoder",)),
    "nmf speech": (_nmf_speech(), ()),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_contract(name: str) -> None:
    source, aside = SOURCES[name]
    check_source(source, n_frames=T, n_freqs=F, aside=aside)


def _student(x: Tensor, v: Tensor, dof: float) -> Tensor:
    """Log density of the complex Student-t law of scale v over the last dim, in closed form."""
    half, n = torch.tensor(dof / 2, dtype=v.dtype), x.shape[-1]
    distance = (x.abs().square() / v).sum(-1)
    return torch.lgamma(half + n) - torch.lgamma(half) - n * (half * math.pi).log() - v.log().sum(-1) - (half + n) * (distance / half).log1p()


def _noise_alone(noise: Source, x: Tensor) -> Mixture:
    model = Mixture(noise=noise).double()
    model.start(x)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dof", [1.0, 4.0, 30.0])
def test_student_t_of_a_frame_by_quadrature(dof: float) -> None:
    x = _x(4, 3) * torch.tensor([[0.1], [1.0], [3.0], [20.0]])
    model = _noise_alone(HeavyTailed(StationaryNoise(), dof), x)
    log_scale = torch.linspace(-10, 30, 2001, dtype=torch.float64)  # a chain for every node; the density has the Jacobian
    target = log_density(model, x, chains=len(log_scale))
    assert target.block == ("frames",)
    value = target({"noise.scale": log_scale.reshape(-1, 1, 1).expand(-1, 4, 1)})
    marginal = value.logsumexp(0) + (log_scale[1] - log_scale[0]).log()
    torch.testing.assert_close(marginal, _student(x, model.noise.source.spectrum.expand(4, 3), dof), rtol=1e-7, atol=1e-7)


def test_student_t_of_bins_by_quadrature_is_one_law_for_each() -> None:
    dof, x = 3.0, _x(2, 2) * torch.tensor([[1.0], [5.0]])
    model = _noise_alone(HeavyTailed(StationaryNoise(), dof, per_bin=True), x)
    log_scale = torch.linspace(-6, 18, 181, dtype=torch.float64)
    nodes = torch.cartesian_prod(log_scale, log_scale)
    value = log_density(model, x, chains=len(nodes))({"noise.scale": nodes.unsqueeze(1).expand(-1, 2, -1)})
    marginal = value.logsumexp(0) + 2 * (log_scale[1] - log_scale[0]).log()
    one_by_one = _student(x.unsqueeze(-1), model.noise.source.spectrum.expand(2, 2).unsqueeze(-1), dof).sum(-1)
    torch.testing.assert_close(marginal, one_by_one, rtol=1e-6, atol=1e-6)


def test_student_t_is_the_source_itself_for_many_degrees_of_freedom() -> None:
    x = _x(5, 3)
    model = _noise_alone(HeavyTailed(StationaryNoise(), 1e7), x)
    v = model.noise.source.spectrum.expand(5, 3)
    torch.testing.assert_close(_student(x, v, 1e7), ComplexNormal(0j, v).log_prob(x).sum(-1), rtol=1e-5, atol=1e-5)
    scale = poutine.trace(model).get_trace(x).nodes["noise.scale"]["value"]
    assert (scale - 1).abs().max() < 5e-3


def test_m_step_under_draws_of_the_scale_ends_at_the_weighted_mean() -> None:
    """With conjugate draws u | x the best spectrum is the mean of |x|^2 / u, an outlier counts little."""
    x, dof = _x(20, 3), 2.0
    x[4] *= 100
    noise = HeavyTailed(StationaryNoise(), dof)
    noise.start(x)
    power, v = x.abs().square(), noise.source.spectrum.detach()
    u = dist.InverseGamma(dof / 2 + 3 + torch.zeros(20, dtype=v.dtype), dof / 2 + (power / v).sum(-1)).sample((50,)).unsqueeze(-1)
    own = u * v
    for _ in range(100):
        own = noise.update(power, own, torch.full_like(own, 1e-14))
    torch.testing.assert_close(noise.source.spectrum.detach(), (power / u).mean((0, 1)), rtol=1e-6, atol=0)
    torch.testing.assert_close(own, u * noise.source.spectrum)


@pytest.mark.parametrize("noise", [HeavyTailed(NMFNoise(2)), ARNoise(NMFNoise(2))], ids=["student-t", "drifting"])
def test_m_step_of_a_batch_is_that_of_every_utterance(noise: HeavyTailed | ARNoise) -> None:
    x = _x(3, 1, T, F)
    noise.start(x)
    wrapped = noise.source
    assert isinstance(wrapped, NMFNoise)
    w, h = wrapped.W.detach().clone(), wrapped.H.detach().clone()
    u = torch.rand(3, 4, T, 1, dtype=torch.float64) + 0.2
    power, others = x.abs().square(), torch.rand(3, 4, T, F, dtype=torch.float64)
    with torch.no_grad():
        batch = noise.update(power, u * (h @ w.squeeze(-3).mT), others)
        for b in range(3):
            noise.start(x[b, 0])
            wrapped.W, wrapped.H = w[b, 0, 0], h[b, 0]
            torch.testing.assert_close(noise.update(power[b, 0], u[b] * (h[b, 0] @ w[b, 0, 0].mT), others[b]), batch[b])


def test_m_step_refuses_a_source_with_latents_and_leaves_one_without_m_step() -> None:
    own = torch.ones(T, F)
    loud = HeavyTailed(FrameGain(VAESpeech(F, 3, (6,))))
    loud.start(_x(T, F).to(torch.complex64))
    with pytest.raises(ValueError, match=r"FrameGain has latents of its own, \['z'\].*the other way round"):
        loud.update(own, own, own)
    assert HeavyTailed(VAESpeech(F, 3, (6,))).update(own, own, own) is own


def _one_for_all(frames: Frames) -> ComplexNormal:
    return ComplexNormal(0j, torch.ones(frames.size, 1))


@pytest.mark.parametrize("dof", [0.0, -1.0, math.inf, math.nan])
def test_bad_degrees_of_freedom_are_refused(dof: float) -> None:
    with pytest.raises(ValueError, match="HeavyTailed: dof="):
        HeavyTailed(StationaryNoise(), dof)


def test_scales_per_bin_need_bins() -> None:
    with pytest.raises(ValueError, match="one variance for all frequencies"):
        Mixture(noise=HeavyTailed(_one_for_all, per_bin=True))(_x(T, F).to(torch.complex64))


def _covariance(correlation: float, n: int) -> Tensor:
    steps = torch.arange(n, dtype=torch.float64)
    return correlation ** (steps - steps.unsqueeze(-1)).abs()


@pytest.mark.parametrize("correlation", [0.9, 0.0, -0.6])
def test_chain_is_the_stationary_gaussian(correlation: float) -> None:
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64).expand(T, 2)
    chain = Autoregressive(correlation, scale).expand([3, T, 2])
    value = torch.randn(3, T, 2, dtype=torch.float64)
    covariance = _covariance(correlation, T) * scale[0].square().reshape(2, 1, 1)
    dense = dist.MultivariateNormal(torch.zeros(T, dtype=torch.float64), covariance)
    torch.testing.assert_close(chain.log_prob(value).sum(-2), dense.log_prob(value.mT))
    n = 20_000
    draws = Autoregressive(correlation, scale).sample((n,))
    found = torch.einsum("ntl,nul->ltu", draws, draws) / n
    variances = scale[0].square().reshape(2, 1, 1)
    error = (found - covariance).abs() / (variances * (1 + _covariance(correlation, T).square()).sqrt() / n**0.5)
    assert error.max() < 5  # standard errors, over 98 entries


def test_chain_of_one_frame_is_a_normal() -> None:
    value = torch.randn(1, 2, dtype=torch.float64)
    chain = Autoregressive(0.9, torch.full((1, 2), 3.0, dtype=torch.float64))
    torch.testing.assert_close(chain.log_prob(value), dist.Normal(0.0, 3.0).log_prob(value))


def test_drifting_noise_has_its_density_and_utterances_for_blocks() -> None:
    x, noise = _x(T, F), ARNoise(correlation=0.8, spread=0.7)
    model = _noise_alone(noise, x)
    target = log_density(model, x, chains=4)
    assert target.block == () and target.shape == (4, 1)
    level = torch.randn(4, 1, T, 1, dtype=torch.float64)
    prior = dist.MultivariateNormal(torch.zeros(T, dtype=torch.float64), 0.49 * _covariance(0.8, T)).log_prob(level.reshape(4, T))
    var = level.reshape(4, T, 1).exp() * noise.source.spectrum
    torch.testing.assert_close(target({"noise.level": level})[:, 0], prior + ComplexNormal(0j, var).log_prob(x).sum((-2, -1)))
    with pytest.raises(BlockError, match="'noise.level' is outside of plate 'frames'"):
        log_density(model, x, block=("frames",))
    batch = _x(3, 1, T, F)
    both = Mixture(speech=VAESpeech(F, 3, (6,)), noise=ARNoise()).double().requires_grad_(False)
    both.start(batch)
    assert log_density(both, batch, chains=2).block == ("utterances",)
    with pytest.raises(BlockError, match="'noise.level' is outside of plate 'frames'"):
        log_density(both, batch, block=("frames",))


@pytest.mark.slow
def test_levels_sampled_in_utterance_blocks_have_their_posterior() -> None:
    """Two frames of two bins against quadrature: frame 0 is loud, frame 1 is not observed, and hears of it through the chain alone."""
    x = torch.tensor([[3.0, 2.0], [0.0, 0.0]], dtype=torch.complex128)
    observed = torch.tensor([[True], [False]])
    model = Mixture(noise=ARNoise(correlation=0.8)).double()
    model.start(x, observed)
    model.noise.source.spectrum = torch.ones(2, dtype=torch.float64)
    model.requires_grad_(False)
    nodes = torch.linspace(-6, 8, 281, dtype=torch.float64)
    prior = dist.Normal(0.0, 1.0).log_prob(nodes)
    weight = (prior - 2 * nodes - 13 * (-nodes).exp()).softmax(0)
    mean, second = (weight * nodes).sum(), (weight * nodes.square()).sum()
    target = log_density(model, x, observed, chains=50)
    start = target.init({"noise.level": torch.ones(2, 1, dtype=torch.float64)})  # far below, the slope is too steep for the steps
    draws = sample(target, hmc(target, 0.2, 7), start, 300, warmup=30).values["noise.level"].reshape(300, 50, 2)
    assert_moments(draws, torch.stack([mean, 0.8 * mean]), torch.stack([second, 0.64 * second + 0.36]))


def test_codes_with_memory_have_their_density_and_utterances_for_blocks() -> None:
    x, speech = _x(T, F), _codes(0.8)
    model = Mixture(speech=speech).double().requires_grad_(False)
    target = log_density(model, x, chains=4)
    assert target.block == () and target.shape == (4, 1)
    z = torch.randn(4, T, 3, dtype=torch.float64)
    prior = dist.MultivariateNormal(torch.zeros(T, dtype=torch.float64), _covariance(0.8, T)).log_prob(z.mT).sum(-1)
    var = poutine.condition(speech, data={"z": z})(pyro.plate("frames", T, dim=-1)).var
    torch.testing.assert_close(target({"speech.z": z})[:, 0], prior + ComplexNormal(0j, var).log_prob(x).sum((-2, -1)))
    with pytest.raises(BlockError, match="'speech.z' in one member .* changes the density of others"):
        log_density(model, x, block=("frames",))
    batch = _x(2, 1, T, F)
    assert log_density(model, batch, chains=3).block == ("utterances",)


def test_codes_without_correlation_are_those_of_the_vae() -> None:
    x, memory, vae = _x(T, F), _codes(0.0), VAESpeech(F, 3, (8, 6))
    vae.load_state_dict(memory.state_dict())
    position = {"speech.z": torch.randn(2, T, 3, dtype=torch.float64)}
    values = [log_density(Mixture(speech=s).double().requires_grad_(False), x, chains=2, block=())(position) for s in (memory, vae)]
    torch.testing.assert_close(*values)


def test_codes_with_memory_use_the_weights_and_encoders_of_the_vae() -> None:
    speech, vae = AutoregressiveVAESpeech.pretrained(correlation=0.5), VAESpeech.pretrained()
    assert speech.correlation == 0.5 and not any(p.requires_grad for p in speech.parameters())
    for name, value in vae.state_dict().items():
        assert torch.equal(value, speech.state_dict()[name])
    model, x = Mixture(speech=speech), torch.randn(T, 513, dtype=torch.complex64)
    guide = starting_guide(model)
    assert guide is not None
    with torch.no_grad():
        drawn = poutine.trace(guide).get_trace(x).nodes["speech.z"]["value"]
        replayed = poutine.trace(poutine.condition(model, data={"speech.z": drawn})).get_trace(x)
    assert replayed.nodes["speech.z"]["fn"].log_prob(drawn).shape == (T,) and replayed.log_prob_sum().isfinite()


@pytest.mark.parametrize("correlation", [1.0, -1.0, 2.0, math.nan])
def test_chains_that_are_not_stationary_are_refused(correlation: float) -> None:
    with pytest.raises(ValueError, match="ARNoise: correlation="):
        ARNoise(correlation=correlation)
    with pytest.raises(ValueError, match="AutoregressiveVAESpeech: correlation="):
        _codes(correlation)


@pytest.mark.parametrize("spread", [0.0, -1.0, math.inf, math.nan])
def test_bad_spread_is_refused(spread: float) -> None:
    with pytest.raises(ValueError, match="ARNoise: spread="):
        ARNoise(spread=spread)


def test_nmf_speech_has_its_density_per_frame() -> None:
    x, speech = _x(T, F), _nmf_speech()
    model = Mixture(speech=speech).double()
    target = log_density(model, x, chains=2)
    assert target.block == ("frames",)
    u = torch.randn(2, T, 3, dtype=torch.float64)
    prior = (dist.Gamma(speech.shape, speech.rate).log_prob(u.exp()) + u).sum(-1)
    var = torch.einsum("ctk,fk->ctf", u.exp(), speech.dictionary)
    torch.testing.assert_close(target({"speech.h": u}), prior + ComplexNormal(0j, var).log_prob(x).sum(-1))


def test_nmf_speech_learns_patterns_and_laws_of_its_activations() -> None:
    dictionary = torch.zeros(80, 2, dtype=torch.float64)
    dictionary[:40, 0], dictionary[40:, 1] = 1 / 40, 1 / 40
    shape, rate = torch.tensor([0.8, 3.0], dtype=torch.float64), torch.tensor([0.01, 0.1], dtype=torch.float64)
    truth = NMFSpeech(dictionary, shape, rate)
    law = truth(pyro.plate("frames", 2000, dim=-1))
    power = law.sample().abs().square()
    state = torch.random.get_rng_state()
    found = NMFSpeech.learn(power, rank=2, iterations=300)
    assert torch.equal(state, torch.random.get_rng_state())
    order = [0, 1] if found.dictionary[0, 0] > found.dictionary[0, 1] else [1, 0]
    assert (found.dictionary[:, order] - dictionary).abs().max() < 0.2 / 40
    activations = torch.stack([power[:, :40].sum(-1), power[:, 40:].sum(-1)], -1)  # the best estimates, of the known patterns
    best = activations.mean(0).square() / activations.var(0)
    torch.testing.assert_close((found.shape / found.rate)[order], shape / rate, rtol=0.1, atol=0)
    torch.testing.assert_close(found.shape[order], best, rtol=0.15, atol=0)


@pytest.mark.parametrize(
    ("dictionary", "shape", "rate", "message"),
    [
        (torch.ones(3), torch.ones(3), torch.ones(3), "dictionary must be"), (-torch.ones(4, 2), torch.ones(2), torch.ones(2), "dictionary must be"),
        (torch.ones(4, 2), torch.ones(3), torch.ones(2), "shape must be positive"),
        (torch.ones(4, 2), torch.ones(2), torch.zeros(2), "rate must be positive"),
    ],
)
def test_bad_nmf_speech_is_refused(dictionary: Tensor, shape: Tensor, rate: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NMFSpeech(dictionary, shape, rate)
