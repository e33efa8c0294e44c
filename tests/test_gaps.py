"""Lost samples given the rest, against the dense Gaussian law and against signals that are known."""

import math

import pytest
import torch

from ppse.distributions import power_of
from ppse.gaps import faded, fill, touching
from ppse.stft import STFT

SMALL = STFT(16, 4, 1000)


def test_frames_that_read_the_gap() -> None:
    wave = torch.zeros(100)
    wave[37:52] = 1.0
    assert torch.equal(touching(SMALL, SMALL.n_frames(100), 37, 52), SMALL.analysis(wave).abs().sum(-1) > 1e-6)


def test_frames_of_which_a_part_is_left_have_the_level_of_whole_ones() -> None:
    stft = STFT()
    wave = torch.randn(30, 8000)
    x, share = zip(*(faded(one, [(3000, 4500), (7900, 8000)], stft) for one in wave), strict=True)
    hit = touching(stft, len(share[0]), 3000 - 64, 4500 + 64) | touching(stft, len(share[0]), 7900 - 64, 8000)
    torch.testing.assert_close(share[0][~hit], torch.ones(int((~hit).sum())))
    assert 0 <= share[0][hit].min() < share[0][hit].max() < 1
    torch.testing.assert_close(torch.stack(x)[:, ~hit], stft.analysis(wave)[:, ~hit])
    partly = hit & (share[0] > 0.1)
    powers = torch.stack(x)[:, partly].abs().square().mean((0, 2)) / stft.analysis(wave)[:, partly].abs().square().mean((0, 2))
    assert partly.sum() > 5 and (powers - 1).abs().max() < 0.2
    spoilt = wave[0].clone()
    spoilt[3000:4500], spoilt[7900:] = torch.nan, torch.nan
    assert torch.equal(faded(spoilt, [(3000, 4500), (7900, 8000)], stft)[0], x[0])


def test_mean_and_covariance_are_those_of_the_product_of_the_bins() -> None:
    """Against the quadratic form of the log density by automatic differentiation."""
    n, start, end = 60, 21, 40
    wave, var = torch.randn(n, dtype=torch.float64), torch.rand(SMALL.n_frames(n), SMALL.n_freqs, dtype=torch.float64) + 0.1

    def log_density(lost: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([wave[:start], lost, wave[end:]])
        return -SMALL.hop / SMALL.n_fft * (power_of(SMALL.analysis(whole)) / var).sum()

    zero = torch.zeros(end - start, dtype=torch.float64)
    precision = -torch.autograd.functional.hessian(log_density, zero)
    slope = torch.autograd.functional.jacobian(log_density, zero)
    mean, draws = fill(wave, start, end, var, SMALL, draws=40_000)
    torch.testing.assert_close(mean, torch.linalg.solve(precision, slope))
    covariance = precision.inverse()
    spread = covariance.diagonal().sqrt()
    error = (draws.T.cov() - covariance).abs() / (spread.unsqueeze(-1) * spread) * math.sqrt(len(draws) / 2)
    assert error.max() < 5  # standard errors, over 361 entries
    assert ((draws.mean(0) - mean).abs() / spread).max() * math.sqrt(len(draws)) < 5


def test_white_noise_keeps_its_variance() -> None:
    wave = torch.zeros(400)
    var = torch.full((SMALL.n_frames(400), SMALL.n_freqs), 9.0 * SMALL.hop / SMALL.n_fft)
    draws = fill(wave, 100, 300, var, SMALL, draws=200)[1]
    assert abs(draws[:, 20:-20].var() / 9.0 - 1) < 0.1  # 0.12 would be bins 0 and Nyquist counted as complex


def test_a_tone_goes_on_through_a_gap_with_its_phase() -> None:
    stft = STFT()
    tone = torch.sin(2 * math.pi * 440 / 16_000 * torch.arange(8000, dtype=torch.float64))
    var = stft.analysis(tone).abs().square() + 1e-4
    mean, _ = fill(tone, 4000, 4320, var, stft)
    assert (mean - tone[4000:4320]).square().mean() < 1e-2 * tone.square().mean()


def test_bad_gaps_are_refused() -> None:
    wave, var = torch.zeros(4000), torch.ones(SMALL.n_frames(4000), SMALL.n_freqs)
    for start, end in ((10, 10), (-1, 5), (3990, 4001), (0, 300)):
        with pytest.raises(ValueError, match=f"a gap from sample {start} to {end} of 4000"):
            fill(wave, start, end, var, SMALL)
    with pytest.raises(ValueError, match="variances of shape"):
        fill(wave, 10, 20, var[1:], SMALL)
