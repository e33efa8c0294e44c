"""Draws from the prior: the law of the latent path, and phases that fit."""

from __future__ import annotations

import pytest
import torch

from ppse import STFT
from ppse.models import VAESpeech
from ppse.sampling import griffin_lim, latent_path, sample_speech


@pytest.mark.parametrize("smoothness", [0.0, 0.5, 0.95])
def test_every_latent_of_a_path_is_standard_normal_and_neighbours_correlate(smoothness: float) -> None:
    z = torch.stack([latent_path(15, 3, smoothness) for _ in range(2000)])  # 6000 values a frame
    assert z.mean((0, 2)).abs().max() < 5 / 6000**0.5
    assert (z.square().mean((0, 2)) - 1).abs().max() < 5 * (2 / 6000) ** 0.5
    for lag in (1, 4):
        correlation = (z[:, lag:] * z[:, :-lag]).mean()
        assert abs(correlation - smoothness**lag) < 0.02


def test_griffin_lim_finds_a_wave_of_that_magnitude() -> None:
    stft = STFT(256, 64)
    wave = torch.sin(torch.arange(8000) * 0.1) + torch.sin(torch.arange(8000) * 0.37)
    magnitude = stft.analysis(wave).abs()

    def misfit(iterations: int) -> float:
        found = stft.analysis(griffin_lim(magnitude, stft, 8000, iterations)).abs()
        return ((found - magnitude).square().sum() / magnitude.square().sum()).item()

    assert misfit(100) < 0.02 < misfit(0)


def test_a_sample_has_length_and_peak_and_follows_its_seed() -> None:
    vae = VAESpeech(513, 4, (16,))
    before = torch.random.get_rng_state()
    a, b, c = (sample_speech(vae, 0.3, seed, iterations=3) for seed in (1, 1, 2))
    assert a.shape == (4800,) and torch.equal(a, b) and not torch.equal(a, c)
    assert a.abs().max() == pytest.approx(0.9, abs=1e-5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_sample_has_the_spectrum_of_the_prior() -> None:
    vae = VAESpeech(513, 4, (16,))
    with torch.no_grad():
        last = vae.decoder[-1]
        last.weight.zero_()
        last.bias.copy_(torch.linspace(0, -8, 513))
        wave = sample_speech(vae, 2.0, smoothness=0.0, iterations=20)
    power = STFT().analysis(wave).abs().square()[5:-5].mean(0).log()
    slope = (power[400] - power[100]) / 300
    assert slope == pytest.approx(-8 / 512, rel=0.1)


def test_impossible_numbers_are_refused() -> None:
    for smoothness in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"expected a correlation in \[0, 1\)"):
            latent_path(3, 2, smoothness)
    with pytest.raises(ValueError, match="seconds=0; expected more than 0"):
        sample_speech(VAESpeech(513, 4, (16,)), 0)
