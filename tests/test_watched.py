"""A speaker who is seen: lips go with the sound from stretch to stretch, and where they are bad the sound is heard alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import ppse
from ppse import Mixture, methods
from ppse.corruptions import corrupt, occluded
from ppse.given import Given
from ppse.lips import Lips
from ppse.models import AVVAESpeech, NMFNoise, VAESpeech
from ppse.models.lip_reader import prepared
from ppse.switching_vem import switching_vem
from ppse.watched import watched, watching

F = 129
NOISY = (0.1 * np.random.default_rng(0).normal(size=24_000)).astype(np.float32)


@pytest.fixture
def priors() -> tuple[VAESpeech, AVVAESpeech]:
    return VAESpeech(F, 3, (8,)).eval(), AVVAESpeech(F, 3, (8,), 4).eval()


def _lips(seconds: float, bad: tuple[float, float]) -> Lips:
    lips = Lips.at_rate(torch.rand(round(25 * seconds), 88, 88), 25.0)
    return replace(lips, good=(lips.times < bad[0]) | (lips.times > bad[1]))


def _enhanced(heard: VAESpeech, lips: Given, window: float = 30.0) -> ppse.Enhancement:
    model = Mixture(speech=heard, noise=NMFNoise(2))
    return ppse.enhance(NOISY, model, switching_vem(4, average=2), given=[lips], keep_run=True, window=window)


def _regimes(result: ppse.Enhancement, run: int) -> torch.Tensor:
    """How often expert 1 was drawn, (T,)."""
    return result.runs[run].draws.values["speech.regime"].float().flatten(0, -2).mean(0)


@pytest.mark.parametrize("offset", [0.0, 0.2])
def test_frames_with_bad_lips_are_heard(priors: tuple[VAESpeech, AVVAESpeech], offset: float) -> None:
    heard, seeing = priors
    # The networks are the same, with lips or without: only the flag tells the experts apart.
    same = AVVAESpeech.around(heard, 4).eval()
    result = _enhanced(heard, watched(_lips(1.5, (0.6, 0.9)), same, offset))
    times = torch.as_tensor(result.stft.centres(len(_regimes(result, 0)))) + offset
    seen = _regimes(result, 0)
    assert (seen[(times > 0.6) & (times < 0.9)] == 0).all()
    assert seen[(times > 0.1) & (times < 0.4)].mean() > 0.2 and seen[(times > 1.1) & (times < 1.4)].mean() > 0.2


def _mouth(seconds: float, seed: int) -> Lips:
    """A dark ellipse that opens and closes at random, on a face with some texture."""
    generator = torch.Generator().manual_seed(seed)
    count = round(25 * seconds)
    opening = torch.nn.functional.interpolate(torch.rand(1, 1, count // 4 + 2, generator=generator), count, mode="linear")[0, 0]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 88), torch.linspace(-1, 1, 88), indexing="ij")
    mouth = (rows / (0.15 + 0.4 * opening[:, None, None])).square() + (columns / 0.7).square()
    face = 0.7 + 0.1 * torch.cos(9 * rows) * torch.cos(7 * columns)
    return Lips.at_rate((face - 0.5 * torch.sigmoid(8 * (1 - mouth)) + 0.01 * torch.randn(count, 88, 88, generator=generator)).clamp(0, 1), 25.0)


def test_covered_lips_are_not_followed_whatever_the_sound_prefers(priors: tuple[VAESpeech, AVVAESpeech]) -> None:
    """The prior that hears expects far too much power, so that the sound would have the other in all frames; `watching` has the video decide."""
    heard, _ = priors
    same = AVVAESpeech.around(heard, 4).eval()
    same.law.learn([prepared(each.frames, each.good) for each in (_mouth(3.0, seed) for seed in range(4))])
    with torch.no_grad():
        heard.decoder[-1].bias += 5.0
    covered = corrupt(_mouth(1.5, 9), occluded, seed=1)
    model = Mixture(speech=heard, noise=NMFNoise(2))
    result = ppse.enhance(NOISY, model, watching(methods.fast()), given=[watched(covered.lips, same)], keep_run=True)
    seen = _regimes(result, 0)
    bad = covered.where[covered.lips.align(torch.as_tensor(result.stft.centres(len(seen)))).place.round().long()]
    assert seen[bad].mean() < 0.1 and seen[~bad].mean() > 0.6
    by_ear = ppse.enhance(NOISY, model, switching_vem(10, average=5), given=[watched(covered.lips, same)], keep_run=True)
    assert _regimes(by_ear, 0)[bad].mean() > 0.8


def test_no_sound_makes_up_for_bad_lips(priors: tuple[VAESpeech, AVVAESpeech]) -> None:
    """The prior that hears expects far too much power, by some nats a bin; still, bad frames are its own."""
    heard, _ = priors
    same = AVVAESpeech.around(heard, 4).eval()
    with torch.no_grad():
        heard.decoder[-1].bias += 5.0
    result = _enhanced(heard, watched(_lips(1.5, (0.6, 0.9)), same))
    seen, times = _regimes(result, 0), torch.as_tensor(result.stft.centres(len(_regimes(result, 0))))
    assert (seen[(times > 0.6) & (times < 0.9)] == 0).all() and seen[(times > 0.1) & (times < 0.5)].mean() > 0.9


def test_lips_go_with_the_stretches_of_a_long_recording(priors: tuple[VAESpeech, AVVAESpeech]) -> None:
    heard, _ = priors
    same = AVVAESpeech.around(heard, 4).eval()
    result = _enhanced(heard, watched(_lips(1.5, (1.0, 1.2)), same), 0.5)
    assert len(result.runs) > 2
    for run in range(len(result.runs)):
        seen = _regimes(result, run)
        times = torch.as_tensor(result.stft.centres(len(seen))) + result.runs[run].start
        inside = (times > 1.0) & (times < 1.2)
        assert (seen[inside] == 0).all()
        assert seen[~inside].mean() > 0.2


def test_lips_that_end_before_the_sound_leave_the_rest_to_the_ear(priors: tuple[VAESpeech, AVVAESpeech]) -> None:
    heard, seeing = priors
    result = _enhanced(heard, watched(_lips(0.5, (9, 9)), seeing), 0.5)
    assert (_regimes(result, len(result.runs) - 1) == 0).all()


def test_other_methods_sum_the_choice_out(priors: tuple[VAESpeech, AVVAESpeech]) -> None:
    heard, seeing = priors
    model = Mixture(speech=heard, noise=NMFNoise(2))
    result = ppse.enhance(NOISY[:8000], model, methods.langevin_em(4), given=[watched(_lips(0.5, (0.2, 0.3)), seeing)], keep_run=True)
    assert "speech.expert1.z" in result.runs[0].draws.values
    assert np.isfinite(result.estimates["speech"]).all()
    assert type(model.sources["speech"]) is VAESpeech  # what was given is left as it was


def test_a_source_that_is_not_there_is_refused(priors: tuple[VAESpeech, AVVAESpeech]) -> None:
    with pytest.raises(ValueError, match="no source 'voice' to know something of"):
        ppse.enhance(NOISY, Mixture(speech=priors[0], noise=NMFNoise(2)), given=[watched(_lips(1.0, (9, 9)), priors[1], source="voice")])


def test_lips_between_two_moments() -> None:
    lips = _lips(2.0, (9, 9))
    part = lips.between(0.5, 1.0)
    assert torch.equal(part.frames, lips.frames[12:26]) and part.times[0].item() == pytest.approx(12 / 25 - 0.5)
    moments = torch.linspace(0, 0.5, 20, dtype=torch.float64)
    assert torch.allclose(part.align(moments).place + 12, lips.align(moments + 0.5).place)
    assert len(lips.between(5.0, 6.0)) == 1 and lips.between(5.0, 6.0).times.item() == pytest.approx(49 / 25 - 5)
    assert not lips.between(5.0, 6.0).align(moments).good.any() and not lips.between(-3.0, -2.0).align(moments).good.any()
