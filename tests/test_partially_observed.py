"""Clean speech that is observed in part: one graph, equal to the explicit one, and nothing leaks between what is known and what is not."""

import copy
import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture, methods, posterior
from ppse.guides import clean_guide, starting_guide
from ppse.infer import log_density
from ppse.inference import infer
from ppse.mixture import Source
from ppse.models import (
    CodeChain,
    CodePrior,
    FrameGain,
    KnownSilence,
    NMFNoise,
    PartiallyObserved,
    RVAESpeech,
    StationaryNoise,
    VAESpeech,
)
from ppse.testing import check_source

T, F, L = 7, 11, 3


def _x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128)


def _vae() -> VAESpeech:
    return VAESpeech(F, L, (6,))


KNOWN = torch.rand(T, F, generator=torch.Generator().manual_seed(0)) < 0.4
FRAMES, BAND = torch.arange(T).unsqueeze(-1) < 3, torch.arange(F) < 5
CLEAN = torch.randn(T, F, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
MASKS = {
    "bins": KNOWN, "frames": FRAMES, "band": BAND, "stretch of a band": FRAMES & BAND,
    "all": torch.ones(1, 1, dtype=torch.bool), "none": torch.zeros(1, 1, dtype=torch.bool),
}
SOURCES: dict[str, tuple[Source, tuple[str, ...]]] = {
    "vae": (_vae(), ("source.encoder",)),
    "rvae": (RVAESpeech(F, L, 3), ("source.encoder",)),
    "vae under a chain": (CodePrior(_vae(), CodeChain(L)), ("source.source.encoder",)),
    "gain on vae": (FrameGain(_vae()), ("source.source.encoder",)),
    "silence": (KnownSilence(_vae(), torch.arange(T) > 4), ("source.source.encoder",)),
    "nmf": (NMFNoise(2), ()),
    "nmf with knots": (NMFNoise(2, spacing=3), ()),
    "stationary": (StationaryNoise(), ()),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_contract(name: str) -> None:
    source, aside = SOURCES[name]
    check_source(PartiallyObserved(source, CLEAN, KNOWN), n_frames=T, n_freqs=F, aside=aside)


@pytest.mark.parametrize("mask", list(MASKS))
def test_contract_of_masks(mask: str) -> None:
    check_source(PartiallyObserved(NMFNoise(2), CLEAN, MASKS[mask]), n_frames=T, n_freqs=F)


def _mixture(known: Tensor, clean: Tensor = CLEAN, speech: Source | None = None) -> Mixture:
    torch.manual_seed(0)
    model = Mixture(speech=PartiallyObserved(speech or _vae(), clean, known), noise=StationaryNoise()).double().requires_grad_(False)
    model.start(_x(T, F))
    return model


def _log_prob(model: Mixture, x: Tensor, z: Tensor, observed: Tensor | None = None) -> Tensor:
    return log_density(model, x, observed, block=())({"speech.z": z[None]}).squeeze()


def _speech_var(model: Mixture, z: Tensor) -> Tensor:
    return poutine.condition(model.speech.source, data={"z": z})(pyro.plate("frames", T, dim=-1)).var


def _of_prior(z: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum()


@pytest.mark.parametrize("mask", list(MASKS))
def test_density_is_that_of_the_factorisation(mask: str) -> None:
    known, x, z = MASKS[mask].expand(T, F), _x(T, F), torch.randn(T, L, dtype=torch.float64)
    model = _mixture(MASKS[mask])
    v, n = _speech_var(model, z), model.noise.spectrum.expand(T, F)
    of_clean = ComplexNormal(0j, v).log_prob(CLEAN)
    of_rest = ComplexNormal(0j, n).log_prob(x - CLEAN)
    of_sum = ComplexNormal(0j, v + n).log_prob(x)
    expected = _of_prior(z) + torch.where(known, of_clean + of_rest, of_sum).sum()
    torch.testing.assert_close(_log_prob(model, x, z), expected)


def test_all_known_is_training_on_clean_speech_and_none_known_is_the_mixture() -> None:
    x, z = _x(T, F), torch.randn(T, L, dtype=torch.float64, requires_grad=True)
    model = _mixture(MASKS["all"])
    training = _of_prior(z) + ComplexNormal(0j, _speech_var(model, z)).log_prob(CLEAN).sum()
    slopes = [torch.autograd.grad(value, z)[0] for value in (_log_prob(model, x, z), training)]
    torch.testing.assert_close(*slopes)
    unsupervised = _mixture(MASKS["none"])
    plain = Mixture(speech=unsupervised.speech.source, noise=unsupervised.noise)
    torch.testing.assert_close(_log_prob(unsupervised, x, z), _log_prob(plain, x, z))


def test_collapsed_graph_equals_the_explicit_one_by_monte_carlo() -> None:
    """The same with ``obs_mask`` of Pyro, where the unknown bins are a complex latent, averaged over draws of it."""
    frames, freqs, draws = 2, 3, 400_000
    known = torch.tensor([[True, False, True], [False, False, True]])
    generator = torch.Generator().manual_seed(3)
    clean, x = (torch.randn(frames, freqs, dtype=torch.complex128, generator=generator) for _ in range(2))
    v, n = (torch.rand(frames, freqs, dtype=torch.float64, generator=generator) + 0.5 for _ in range(2))

    def explicit() -> None:
        with pyro.plate("draws", draws, dim=-3), pyro.plate("frames", frames, dim=-2), pyro.plate("freqs", freqs, dim=-1):
            s = pyro.sample("s", ComplexNormal(0j, v), obs=clean, obs_mask=known)
            pyro.sample("x", ComplexNormal(s, n), obs=x)

    trace = poutine.trace(explicit).get_trace()
    trace.compute_log_prob()
    told = trace.nodes["s_observed"]["log_prob"].expand(draws, frames, freqs)[0].sum()
    per_draw = trace.nodes["x"]["log_prob"].sum((-2, -1))
    by_monte_carlo = told + per_draw.logsumexp(0) - math.log(draws)

    collapsed = Mixture(speech=PartiallyObserved(lambda _: ComplexNormal(0j, v), clean, known), noise=lambda _: ComplexNormal(0j, n))
    value = poutine.trace(collapsed).get_trace(x).log_prob_sum()
    error = ((per_draw - per_draw.logsumexp(0) + math.log(draws)).exp().var() / draws).sqrt()
    assert error < 5e-3
    assert abs(value - by_monte_carlo) < 4 * error


def test_nothing_leaks_between_what_is_known_and_what_is_not() -> None:
    x, z = _x(T, F), torch.randn(T, L, dtype=torch.float64, requires_grad=True)
    model = _mixture(KNOWN)
    slope = torch.autograd.grad(_log_prob(model, x, z), z)[0]
    spoilt = torch.where(KNOWN, 1e3 * _x(T, F), x)  # the noise in known bins says nothing of speech
    torch.testing.assert_close(torch.autograd.grad(_log_prob(model, spoilt, z), z)[0], slope)
    other = _mixture(KNOWN, torch.where(KNOWN, CLEAN, torch.full_like(CLEAN, math.nan)))  # what clean has elsewhere is not read
    torch.testing.assert_close(torch.autograd.grad(_log_prob(other, x, z), z)[0], slope)
    spectrum = model.noise.spectrum_unconstrained.requires_grad_()
    slopes = [torch.autograd.grad(_log_prob(model, x, latents, KNOWN), spectrum)[0] for latents in (z.detach(), z.detach() + 1)]
    torch.testing.assert_close(*slopes)  # where speech is known, the noise does not ask the latents


def test_known_bins_come_out_as_they_are_and_the_noise_is_the_rest() -> None:
    x = _x(T, F).to(torch.complex64)
    model = _mixture(KNOWN).float()
    laws = infer(model, x, methods.mala_em(iterations=3)).sources
    clean = CLEAN.to(torch.complex64)
    torch.testing.assert_close(laws["speech"].loc[KNOWN], clean[KNOWN])
    torch.testing.assert_close(laws["noise"].loc[KNOWN], (x - clean)[KNOWN])
    assert laws["speech"].var[KNOWN].max() < 1e-6 and laws["speech"].var[~KNOWN].min() > 0


def test_m_step_of_the_noise_is_fitted_to_what_clean_speech_leaves() -> None:
    x, model = _x(T, F), _mixture(MASKS["all"])
    for _ in range(60):
        with torch.no_grad(), poutine.block():
            laws = poutine.condition(model, data={"speech.z": torch.zeros(T, L, dtype=torch.float64)})(x)
            model.update(x, laws)
    torch.testing.assert_close(model.noise.spectrum.detach(), (x - CLEAN).abs().square().mean(0), rtol=1e-6, atol=0)


def test_a_source_that_is_known_is_fitted_to_itself() -> None:
    """A noise of which a reference is known in some frames has the spectrum of these, however loud the others."""
    noise = PartiallyObserved(StationaryNoise(), CLEAN, FRAMES)
    model, x = Mixture(noise=noise, speech=lambda _: ComplexNormal(0j, torch.full((T, F), 1e12, dtype=torch.float64))), 1e6 * _x(T, F)
    model.start(x)
    for _ in range(200):
        with torch.no_grad(), poutine.block():
            model.update(x, model(x))
    torch.testing.assert_close(noise.source.spectrum.detach(), CLEAN[:3].abs().square().mean(0), rtol=1e-3, atol=1e-6)


def test_batch_is_the_loop_over_utterances() -> None:
    """Also one that has every recording twice, as several starts do; whole utterances may be known."""
    x, clean = _x(2, 1, T, F), _x(2, 1, T, F)
    z = torch.randn(2, 1, T, L, dtype=torch.float64)
    known = torch.stack([KNOWN, torch.ones_like(KNOWN)]).unsqueeze(1)
    model = _mixture(known, clean)
    for copies in (1, 2):
        batch, latents = x.repeat_interleave(copies, 0), z.repeat_interleave(copies, 0)
        model.start(batch)
        value = log_density(model, batch, block=("utterances",))({"speech.z": latents}).reshape(2, copies)
        for b in range(2):
            one = copy.deepcopy(model)
            one.speech = PartiallyObserved(model.speech.source, clean[b, 0], known[b, 0])
            one.noise.start(x[b, 0])
            torch.testing.assert_close(value[b], _log_prob(one, x[b, 0], z[b, 0]).expand(copies))
    with pytest.raises(ValueError, match="are of 2 utterances, the batch has 3"):
        infer(model, _x(3, 1, T, F), methods.mala_em(iterations=1))


def test_frames_stay_independent_where_they_were_and_guides_find_what_is_wrapped() -> None:
    x = _x(T, F)
    assert log_density(_mixture(KNOWN), x).block == ("frames",)
    assert log_density(_mixture(KNOWN, speech=RVAESpeech(F, L, 3)), x).block == ()
    model = Mixture(speech=FrameGain(PartiallyObserved(KnownSilence(_vae(), FRAMES.squeeze(-1)), CLEAN, KNOWN)))
    for find in (starting_guide, clean_guide):
        guide = find(model)
        assert guide is not None and guide.sites == ("speech.z",)


def test_a_known_source_alone_has_a_finite_posterior() -> None:
    """Nothing noisy: x is speech, which is known; the density is that of the clean recording, up to a constant."""
    model = Mixture(speech=PartiallyObserved(_vae(), CLEAN, MASKS["all"])).double()
    laws = infer(model, CLEAN, methods.mala_em(iterations=2)).sources
    torch.testing.assert_close(laws["speech"].loc, CLEAN)
    laws = posterior({"speech": ComplexNormal(CLEAN, torch.zeros(T, F, dtype=torch.float64))}, CLEAN)
    assert laws["speech"].loc.isfinite().all()


def test_precision_and_copies() -> None:
    source = PartiallyObserved(NMFNoise(2), CLEAN, KNOWN)
    clean = torch.view_as_complex(copy.deepcopy(source).to(torch.float32).parts)
    torch.testing.assert_close(clean, torch.where(KNOWN, CLEAN, 0).to(torch.complex64))


@pytest.mark.parametrize(
    ("clean", "known", "message"),
    [
        (CLEAN.real, KNOWN, "expected a complex and a boolean tensor"),
        (CLEAN, KNOWN.double(), "expected a complex and a boolean tensor"),
        (CLEAN, KNOWN[:3], "expected a complex and a boolean tensor"),
        (CLEAN[0], KNOWN[0], "expected a complex and a boolean tensor"),
        (CLEAN * math.nan, KNOWN, "NaN or infinite in bins that are known"),
    ],
)
def test_bad_knowledge_is_refused(clean: Tensor, known: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartiallyObserved(StationaryNoise(), clean, known)


def test_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="clean and known have 7 frames, and the recording, or this window of it, has 9"):
        infer(_mixture(KNOWN), _x(9, F), methods.mala_em(iterations=2))
