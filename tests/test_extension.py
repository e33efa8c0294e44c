"""The upper band of narrow-band speech: drawn with the power that the lower band tells of, which itself stays."""

from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from ppse import ComplexNormal, audio, methods
from ppse.cli import app
from ppse.departure import Departure, Wander
from ppse.extension import Extension, extend
from ppse.mixture import Frames
from ppse.models import NMFNoise, VAESpeech
from ppse.stft import STFT


def _noise(rate: int, seconds: float = 0.5) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(0).standard_normal((2, round(seconds * rate)))).astype(np.float32)


def _hiss(frames: Frames) -> ComplexNormal:
    """White noise whose level every frame draws anew."""
    with frames:
        level = pyro.sample("level", dist.LogNormal(torch.zeros(1), 0.5).to_event(1))
    return ComplexNormal(0j, level.expand(*level.shape[:-1], 513))


def test_white_noise_goes_on_above_the_cutoff_with_its_level() -> None:
    wave = _noise(8000) * np.array([[1.0], [0.1]], np.float32)
    result = extend(wave, prior=_hiss, method=methods.hmc_em(40, settle=0, adapt=30, average=10), sample_rate=8000, draws=3, departure=None)
    stft = STFT()
    assert result.sample_rate == 16_000 and result.draws.shape == (3, 2, 8000) and result.variances.shape == (3, 2, stft.n_frames(8000), 513)
    for waves, tolerance in ((result.draws, 0.15), (result.estimate[None], 0.25)):
        powers = stft.analysis(torch.from_numpy(waves)).abs().square()[..., 5:-5, :]
        low, high = powers[..., 10:230].mean((0, -1, -2)), powers[..., 280:].mean((0, -1, -2))
        assert (high / low - 1).abs().max() < tolerance
    assert (result.variances[..., :240] == 0).all() and (result.variances[..., 250:] > 0).all()
    truth, found = (stft.analysis(torch.from_numpy(w))[5:-5, :230] for w in (audio.resample(wave[0], 8000, 16_000), result.draws[0, 0]))
    assert (truth - found).abs().square().mean() < 1e-3 * truth.abs().square().mean()


def test_same_seed_same_result_with_a_vae(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, method, state = VAESpeech(513, 2, (4,)), methods.hmc_em(3), torch.random.get_rng_state()
    first, second = (extend(_noise(16_000)[0], 3000.0, vae, method, draws=2) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(first.draws, second.draws)
    assert not np.array_equal(first.draws[0], first.draws[1])
    first.save(tmp_path / "wide.wav", draw=1)
    np.testing.assert_allclose(audio.read(tmp_path / "wide.wav")[0], first.draws[1], atol=1e-4)
    np.testing.assert_array_equal(first.estimate, second.estimate)
    first.save(tmp_path / "estimate.wav")
    np.testing.assert_allclose(audio.read(tmp_path / "estimate.wav")[0], first.estimate, atol=1e-4)


def test_a_cutoff_beyond_what_the_rate_can_hold_is_that() -> None:
    torch.manual_seed(0)
    vae, method = VAESpeech(513, 2, (4,)), methods.hmc_em(1)
    beyond, plain = (extend(_noise(8000, 0.2)[0], cutoff, vae, method, sample_rate=8000, draws=1) for cutoff in (6000.0, None))
    np.testing.assert_array_equal(beyond.draws, plain.draws)


def test_digital_silence_comes_out_as_it_is() -> None:
    result = extend(_noise(8000, 0.2) * np.array([[0.0], [1.0]], np.float32), prior=_hiss, method=methods.hmc_em(1), sample_rate=8000, draws=2)
    for silent, sounding in ((result.draws[:, 0], result.draws[:, 1]), (result.estimate[0], result.estimate[1])):
        assert not silent.any() and sounding.any()
    assert not result.variances[:, 0].any() and result.variances[:, 1].any()


def test_intervals_are_those_of_the_mixture_of_draws() -> None:
    variances = np.array([0.0, 1.0, 4.0, 100.0], np.float32)
    alone = Extension(16_000, np.zeros((1, 8), np.float32), np.zeros((1, 1, 8), np.float32), variances[None, None, None])
    low, high = alone.interval(0.8)  # Rayleigh: P(|s| < r) = 1 - exp(-r^2 / v)
    np.testing.assert_allclose(low[0, 0], np.sqrt(-variances * np.log(0.9)), rtol=1e-6)
    np.testing.assert_allclose(high[0, 0], np.sqrt(-variances * np.log(0.1)), rtol=1e-6)
    mixed = Extension(16_000, np.zeros((1, 8), np.float32), np.zeros((4, 1, 8), np.float32), variances[:, None, None, None])
    low, high = (end.item() for end in mixed.interval(0.5))
    assert low == pytest.approx(0, abs=1e-5)  # a quarter of the law is silence
    assert np.mean([1.0, *(1 - np.exp(-(high**2) / variances[1:]))]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="level"):
        mixed.interval(1.0)


def test_intervals_hold_what_departs_as_speech_does() -> None:
    law = Departure(recording=Wander(1e-3, 1.0), frame=Wander(2.0, 2.0), memory=0.02)
    wave, stft = _noise(16_000, 4.0)[0], STFT()
    x = stft.analysis(torch.from_numpy(wave))
    known = torch.from_numpy(stft.frequencies < 4000)
    torch.manual_seed(1)
    departed = x * (0.5 * law.draw(x, x.abs().square().mean().expand(1, *x.shape), known, stft)[0]).exp()
    for departure, least, most in ((law, 0.85, 0.94), (None, 0.5, 0.8)):
        narrow = stft.synthesis(x * known, len(wave))
        result = extend(narrow, 4000.0, _hiss, methods.hmc_em(20, settle=0, adapt=10, average=10), draws=24, departure=departure)
        low, high = result.interval(0.9)
        truth = departed.abs().numpy()[:, 300:]
        assert least < np.mean((truth > low[0, :, 300:]) & (truth < high[0, :, 300:])) < most


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    wave = _noise(8000)[0]
    audio.write(tmp_path / "in.wav", wave, 8000, subtype="FLOAT")
    run = CliRunner().invoke(app, ["extend", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav")])
    assert run.exit_code == 0 and "wrote" in run.output
    samples, rate = audio.read(tmp_path / "out.wav")
    powers = STFT().analysis(torch.from_numpy(samples[0])).abs().square().mean(0)
    assert rate == 16_000 and samples.shape == (1, 8000) and 0 < powers[250:].mean() < powers[:240].mean()
    assert CliRunner().invoke(app, ["extend", str(tmp_path / "in.wav"), "-o", str(tmp_path / "in.wav")]).exit_code == 2
    assert CliRunner().invoke(app, ["extend", str(tmp_path / "out.wav"), "-o", str(tmp_path / "wide.wav")]).exit_code == 1


def test_bad_input_is_refused() -> None:
    for cutoff in (0.0, 8001.0):
        with pytest.raises(ValueError, match="expected one above 0 and below 8000 Hz"):
            extend(_noise(16_000), cutoff)
    with pytest.raises(ValueError, match="give the cutoff above which it has no sound"):
        extend(_noise(16_000))
    with pytest.raises(ValueError, match="the prior has no latents"):
        extend(_noise(8000), prior=NMFNoise(2), method=methods.hmc_em(1), sample_rate=8000)
    with pytest.raises(ValueError, match="draws=0"):
        extend(_noise(8000), sample_rate=8000, draws=0)
