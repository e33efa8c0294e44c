"""Harmonic speech: its variance against the sum of harmonics, what it learns, where its pitch is."""

import math

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture
from ppse.infer import log_density
from ppse.models import HarmonicSpeech
from ppse.stft import POWER_FLOOR
from ppse.testing import check_source

T, F = 7, 11


def _speech(n_freqs: int = F, n_cosines: int = 3) -> HarmonicSpeech:
    return HarmonicSpeech(torch.linspace(1, -1, n_cosines), torch.linspace(1, 0.5, n_cosines), n_freqs)


def test_contract() -> None:
    check_source(_speech(), n_frames=T, n_freqs=F)


def _variance(speech: HarmonicSpeech, frames: int, **latents: Tensor) -> Tensor:
    return poutine.condition(speech, data=latents)(pyro.plate("frames", frames, dim=-1)).var


def test_variance_is_a_sum_of_harmonics_under_the_envelope() -> None:
    """The comb is the Poisson sum of its bumps: in the narrow limit, normal densities of standard deviation f0 / (2 pi sqrt(sharpness))."""
    speech = HarmonicSpeech(torch.zeros(2), torch.ones(2), n_freqs=2001, sharpness=400.0, jitter=0.0).double()
    f0 = torch.tensor([100.0, 400.0], dtype=torch.float64)
    envelope = torch.tensor([[0.0, 0.0], [0.5, 1.0]], dtype=torch.float64)
    var = _variance(speech, 2, pitch=f0, voicing=torch.ones(2, dtype=torch.float64), envelope=envelope) - POWER_FLOOR
    places = (torch.arange(2001, dtype=torch.float64) + 0.5) / 2001
    smooth = (envelope[:, :1] + envelope[:, 1:] * (math.pi * places).cos()).exp()
    phase = speech.frequencies / f0.unsqueeze(-1)
    bumps = dist.Normal(torch.arange(-1, 83, dtype=torch.float64), 1 / (2 * math.pi * 20)).log_prob(phase.unsqueeze(-1)).exp().sum(-1)
    near = ((phase - phase.round()).abs() < 0.02).expand_as(bumps)
    torch.testing.assert_close((var / smooth)[near], bumps[near], rtol=0.01, atol=0)
    assert (var / smooth)[(phase - phase.round()).abs() > 0.1].max() < 1e-3


def test_jitter_blurs_high_harmonics() -> None:
    speech = HarmonicSpeech(torch.zeros(1), torch.ones(1), n_freqs=801, jitter=0.02).double()
    voiced = {"voicing": torch.ones(1, dtype=torch.float64), "envelope": torch.zeros(1, 1, dtype=torch.float64)}
    periods = _variance(speech, 1, pitch=torch.tensor([200.0], dtype=torch.float64), **voiced)[0, :-1].reshape(40, 20)
    depth = periods.amax(-1) / periods.amin(-1)
    assert (depth.diff() < 0).all() and depth[0] > 100 and depth[-1] < 1.2
    torch.testing.assert_close(periods.mean(-1)[10:], torch.ones(30, dtype=torch.float64), rtol=0.01, atol=0)  # loudness


@pytest.mark.parametrize("voicing", [0.0, 0.4, 1.0])
def test_pitch_and_voicing_do_not_change_the_loudness(voicing: float) -> None:
    speech = HarmonicSpeech(torch.zeros(1), torch.ones(1), n_freqs=4001, jitter=0.0).double()
    f0 = torch.tensor([80.0, 125.0, 250.0], dtype=torch.float64)  # divide 8 kHz: whole periods
    voiced = torch.full((3,), voicing, dtype=torch.float64)
    var = _variance(speech, 3, pitch=f0, voicing=voiced, envelope=torch.zeros(3, 1, dtype=torch.float64))
    torch.testing.assert_close(var[:, :-1].mean(-1), torch.full((3,), 1 + POWER_FLOOR, dtype=torch.float64))


def test_density_per_frame_in_closed_form() -> None:
    speech, x = _speech().double(), torch.randn(T, F, dtype=torch.complex128)
    target = log_density(Mixture(speech=speech).double(), x, chains=2)
    assert target.block == ("frames",)
    position = target.init()
    log_pitch, logit, c = (position[f"speech.{site}"] for site in ("pitch", "voicing", "envelope"))
    prior = dist.Normal(math.log(150), 0.35).log_prob(log_pitch) + dist.Normal(0.0, 1.0).log_prob(c).sum(-1)
    prior = prior + torch.nn.functional.logsigmoid(logit) + torch.nn.functional.logsigmoid(-logit)
    w = logit.sigmoid().unsqueeze(-1)
    phase = 2 * math.pi * torch.linspace(0, 8000, F, dtype=torch.float64) / log_pitch.exp().unsqueeze(-1)
    k = 1 / (1 / 4 + (0.01 * phase).square())
    comb = (k * phase.cos()).exp() / torch.special.i0(k)
    places = math.pi * (torch.arange(F, dtype=torch.float64) + 0.5) / F
    e = sum((speech.location[j] + speech.spread[j] * c[..., j, None]) * (j * places).cos() for j in range(3))
    var = torch.as_tensor(e).exp() * (w * comb + 1 - w) + POWER_FLOOR
    torch.testing.assert_close(target(position), prior + ComplexNormal(0j, var).log_prob(x).sum(-1))


def test_learns_the_law_of_its_envelopes() -> None:
    truth = HarmonicSpeech(torch.tensor([1.0, 2.0, -0.5]), torch.tensor([1.5, 0.7, 0.3]), n_freqs=257)
    with poutine.condition(data={"voicing": torch.zeros(2000)}):
        power = truth(pyro.plate("frames", 2000, dim=-1)).sample().abs().square()
    found = HarmonicSpeech.learn(power, n_cosines=3)
    assert ((found.location - truth.location).abs() < 5 * truth.spread / 2000**0.5 + 0.01).all()  # 0.01: the scatter of the log-power
    torch.testing.assert_close(found.spread, truth.spread, rtol=0.1, atol=0)
    assert found.cosines.shape == (257, 3) and found.spread.shape == (3,)


def test_pitch_of_a_harmonic_frame_is_the_mode_of_the_density() -> None:
    """The octaves below and above fit less well; a grid over the pitch, the other latents as they are."""
    speech = HarmonicSpeech(torch.zeros(1), torch.ones(1)).double()
    known = {"voicing": torch.full((1,), 0.95, dtype=torch.float64), "envelope": torch.zeros(1, 1, dtype=torch.float64)}
    var = _variance(speech, 1, pitch=torch.tensor([190.0], dtype=torch.float64), **known)
    x = ComplexNormal(0j, var).sample()
    grid = torch.linspace(70, 400, 661, dtype=torch.float64)
    target = log_density(Mixture(speech=speech), x, chains=len(grid))
    fixed = {f"speech.{name}": value for name, value in known.items()} | {"speech.pitch": grid.unsqueeze(-1)}
    found = grid[target(target.init(fixed))[:, 0].argmax()]
    assert abs(found.item() - 190) < 1.5


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="HarmonicSpeech: location and spread have shapes"):
        HarmonicSpeech(torch.zeros(3), torch.ones(2))
    with pytest.raises(ValueError, match="the spread above 0"):
        HarmonicSpeech(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="pitch=-1.0"):
        HarmonicSpeech(torch.zeros(3), torch.ones(3), pitch=-1.0)
