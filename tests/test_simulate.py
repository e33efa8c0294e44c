import math
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor

from ppse import STFT
from ppse.corpus import Speech
from ppse.simulate import crowd, nmf_variance, noise, stationary_carrier

SMALL = STFT(128, 32)


@pytest.fixture
def speech(tmp_path: Path) -> Speech:
    paths = []
    for i in range(3):
        wave = torch.randn(8000, generator=torch.Generator().manual_seed(i)).numpy()
        paths.append(tmp_path / f"v{i}-0.wav")
        soundfile.write(paths[-1], 0.1 * wave, 16_000)
    return Speech(paths, SMALL)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_has_unit_power_and_comes_from_the_generator_alone(speech: Speech) -> None:
    before = torch.random.get_rng_state()
    x = noise(speech, 30, 20, _generator(1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert x.shape == (30, 20, SMALL.n_freqs) and x.dtype == torch.complex64 and x.isfinite().all()
    torch.testing.assert_close(x.abs().square().mean((-2, -1)), torch.ones(30))
    assert torch.equal(x, noise(speech, 30, 20, _generator(1))) and not torch.equal(x, noise(speech, 30, 20, _generator(2)))


def test_variances_are_positive_and_diverse() -> None:
    v = nmf_variance(SMALL, 60, 30, _generator())
    assert v.shape == (60, 30, SMALL.n_freqs) and (v > 0).all() and v.isfinite().all()
    spectra = v.mean(1)
    tilt = (spectra[:, :16].mean(-1) / spectra[:, -16:].mean(-1)).log()
    change = v.sum(-1).log().std(-1)
    assert tilt.std() > 0.5 and change.min() < 0.05 and change.max() > 0.3  # some noise is steady, some is not


def test_carrier_is_white_noise_of_unit_power_with_the_correlation_of_overlapping_frames() -> None:
    x = stationary_carrier(SMALL, 100, 40, _generator())[..., 2:-2]
    assert abs(x.abs().square().mean().item() - 1) < 5 / math.sqrt(100 * 10 * 30)
    window: Tensor = SMALL.window(torch.zeros(1))
    # |E conj(x_t) x_{t+1}| = sum_n w(n) w(n + hop) / sum_n w(n)^2: the phase turns with the frequency, so per bin.
    expected = (window[32:] * window[:-32]).sum() / window.square().sum()
    found = (x[:, 1:] * x[:, :-1].conj()).mean((0, 1)).abs()
    assert (found - expected).abs().max() < 0.1


def test_a_crowd_is_a_sum_of_segments_of_speech(speech: Speech) -> None:
    x = crowd(speech, 40, 12, _generator())
    assert x.shape == (40, 12, SMALL.n_freqs)
    power = x.abs().square().mean((-2, -1))
    # Three to ten talkers of unit level, each with E exp(2 * 0.5 n) = e^0.5 times the power.
    assert power.min() > 1 and 6.5 * math.exp(0.5) * 0.6 < power.mean() < 6.5 * math.exp(0.5) * 1.6
