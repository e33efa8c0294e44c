"""What a prior does not know of a band that it has not seen: a field of log-power that sets out from what is seen at the cut-off."""

import math
import runpy
from pathlib import Path

import pytest
import torch

from ppse import STFT
from ppse.departure import SPEECH, Departure, Wander, above, seen, unexplained
from ppse.distributions import EXPECTED_LOG

STFT_ = STFT()
KNOWN = torch.from_numpy(STFT_.frequencies < 4000)


def _gaussian(var: torch.Tensor) -> torch.Tensor:
    return (var / 2).sqrt() * torch.complex(torch.randn(var.shape), torch.randn(var.shape))


def test_the_process_has_the_law_of_ornstein_and_uhlenbeck_from_zero() -> None:
    distance = torch.linspace(0.0, 6.0, 601, dtype=torch.float64)
    wander = Wander(2.0, 1.5)
    covariance = wander.covariance(distance)
    assert covariance[0].abs().max() == 0 and covariance[-1, -1] == pytest.approx(4.0, rel=1e-3)
    # Markov: given the value between, both sides are independent.
    i, j, k = 100, 250, 400
    assert covariance[i, k] * covariance[j, j] == pytest.approx(float(covariance[i, j] * covariance[j, k]), rel=1e-9)
    # dx = -x / reach dt + deviation sqrt(2 / reach) dw, by Euler's method.
    torch.manual_seed(0)
    x, step = torch.zeros(20_000, dtype=torch.float64), 0.01
    for _ in range(200):
        x = x - x / 1.5 * step + 2.0 * math.sqrt(2 / 1.5 * step) * torch.randn(20_000, dtype=torch.float64)
    assert float(x.var()) == pytest.approx(float(wander.covariance(torch.tensor([2.0]))), rel=0.04)


def test_draws_have_the_covariances_that_the_law_says() -> None:
    torch.manual_seed(0)
    law = Departure(recording=Wander(1.0, 3.0), frame=Wander(2.0, 5.0), memory=0.05)
    x = torch.ones(4, 513, dtype=torch.complex64)
    var = torch.full((3000, 4, 513), math.exp(0.5772156649))  # explained in the mean
    drawn = law.draw(x, var, KNOWN, STFT_)
    assert (drawn[..., KNOWN] == 0).all()
    distance = above(KNOWN, STFT_)
    low, high = 300, 500
    shared, alone = (p.covariance(distance[[low, high]]) for p in (law.recording, law.frame))
    memory = math.exp(-0.016 / 0.05)
    for lag, share in ((0, 1.0), (1, memory), (3, memory**3)):
        found = torch.cov(torch.stack([drawn[:, 0, low], drawn[:, lag, high]]))[0, 1]
        expected = float(shared[0, 1] + share * alone[0, 1])
        assert float(found) == pytest.approx(expected, abs=0.2)
    assert drawn[:, 2, [low, high]].var(0).tolist() == pytest.approx((shared + alone).diag().tolist(), rel=0.1)
    assert drawn[..., 480:].mean().abs() < 0.15


def test_what_is_seen_at_the_cutoff_is_carried_on() -> None:
    torch.manual_seed(0)
    var = torch.ones(2, 400, 513)
    x = _gaussian(torch.cat([var[0, :200], math.exp(-6.0) * var[0, 200:]]))  # pauses fainter than the decoder can say
    found = seen(x, var, KNOWN, STFT_)
    assert found[:, :200].mean().abs() < 0.1 and (found[:, 200:].mean() + 6).abs() < 0.1
    still = Departure(recording=Wander(1e-3, 1.0), frame=Wander(1e-3, 1.0), memory=0.1)
    drawn = still.draw(x, var, KNOWN, STFT_)
    torch.testing.assert_close(drawn[:, 250, ~KNOWN], found[:, 250, None].expand(2, int((~KNOWN).sum())), atol=0.02, rtol=0)


def test_where_the_filter_of_a_telephone_ends_nothing_is_carried_on() -> None:
    torch.manual_seed(0)
    var = torch.ones(2, 400, 513)
    x = _gaussian(torch.cat([var[0, :200], math.exp(-6.0) * var[0, 200:]]))
    x[:, above(KNOWN, STFT_) >= -2] *= 0.1
    found = seen(x, var, KNOWN, STFT_)
    assert found[:, :200].mean().abs() < 0.1 and (found[:, 200:].mean() + 6).abs() < 0.1


def test_digital_silence_is_finite_and_stays_faint() -> None:
    torch.manual_seed(0)
    drawn = SPEECH.draw(torch.zeros(5, 513, dtype=torch.complex64), torch.ones(8, 5, 513), KNOWN, STFT_)
    assert drawn.isfinite().all() and drawn[..., 300].mean() < -10


def test_unexplained_is_zero_in_the_mean_of_what_a_decoder_explains() -> None:
    torch.manual_seed(0)
    var = torch.rand(200, 513) + 0.1
    assert unexplained(_gaussian(var), var).mean().abs() < 0.02


def test_the_benchmark_finds_the_law_that_recordings_were_drawn_from() -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "departure.py"))
    torch.manual_seed(0)
    law = Departure(recording=Wander(1.5, 4.0), frame=Wander(3.0, 7.0), memory=0.1)
    places = torch.arange(260, 513, 20)
    var, recordings = torch.ones(1, 150, 513), []
    for _ in range(150):
        start = 4 * torch.randn(150, 1)
        x = (start + EXPECTED_LOG).exp().sqrt().repeat(1, 513) + 0j
        x[:, :100] = 1000.0  # all frames are as loud
        bands = law.draw(x, var, KNOWN, STFT_)[0, :, places]
        recordings.append(benchmark["Left"](seen(x, var, KNOWN, STFT_)[0], bands, torch.zeros_like(bands), above(KNOWN, STFT_)[places]))
    found = benchmark["fitted"]([recordings], STFT_)
    assert found.memory == pytest.approx(0.1, rel=0.2)
    assert [*found.recording, *found.frame] == pytest.approx([1.5, 4.0, 3.0, 7.0], rel=0.3)
