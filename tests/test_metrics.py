"""Scores: closed forms for SI-SDR, golden numbers on audio made here, and what happens where a score is not defined."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppse import metrics

RATE = 16_000


def speech(seconds: float = 2.0) -> np.ndarray:
    """Syllables of a voice: harmonics of a gliding pitch under a 4 Hz envelope. Nothing random."""
    t = np.arange(int(seconds * RATE)) / RATE
    phase = 2 * np.pi * (130 * t + 10 * np.sin(2 * np.pi * 0.7 * t))
    voice = sum(np.sin(k * phase) / k * (1 + np.cos(2 * np.pi * (1.5 * t + k / 9))) for k in range(1, 40))
    return 0.05 * voice * np.clip(np.sin(2 * np.pi * 2 * t), 0, None)


def noisy(snr: float = 10.0) -> tuple[np.ndarray, np.ndarray]:
    s = speech()
    n = np.random.default_rng(5).standard_normal(s.size)
    return s, s + n * math.sqrt((s @ s) / (n @ n) * 10 ** (-snr / 10))


@pytest.mark.parametrize("ratio", [-7.0, 0.0, 20.0])
def test_si_sdr_of_orthogonal_noise_is_the_power_ratio(ratio):
    rng = np.random.default_rng(0)
    s, n = rng.standard_normal(1000) + 0.3, rng.standard_normal(1000)
    n -= (n @ s) / (s @ s) * s
    n *= math.sqrt((s @ s) / (n @ n) * 10 ** (-ratio / 10))
    assert metrics.si_sdr(s, s + n) == pytest.approx(ratio, abs=1e-9)
    assert metrics.si_sdr(3 * s, -0.2 * (s + n)) == pytest.approx(ratio, abs=1e-9)


def test_si_sdr_removes_no_mean():
    s = np.sin(2 * np.pi * np.arange(100) / 100)  # orthogonal to a constant, of power 1/2
    assert metrics.si_sdr(s, s + 0.5) == pytest.approx(10 * math.log10(2), abs=1e-9)


def test_si_sdr_at_its_ends():
    s = speech(0.1)
    assert metrics.si_sdr(s, s) > 250
    assert metrics.si_sdr([1.0, 1.0], [2.0, 2.0]) == math.inf
    assert metrics.si_sdr(s, 0 * s) == -math.inf
    assert metrics.si_sdr([1.0, 1.0], [1.0, -1.0]) == -math.inf
    assert math.isnan(metrics.si_sdr(0 * s, s))


def test_golden_numbers():
    expected = {"si_sdr": 25.0033, "pesq_wb": 1.2954, "pesq_nb": 2.3518, "stoi": 0.9987, "estoi": 0.9927}
    s, x = noisy(25.0)
    found = metrics.score(s, x)
    assert list(found) == list(metrics.METRICS)
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_perfect_estimate_reaches_the_top_of_every_scale():
    s = speech()
    found = metrics.score(s, s, names=("pesq_wb", "pesq_nb", "stoi", "estoi"))
    assert found == pytest.approx({"pesq_wb": 4.644, "pesq_nb": 4.549, "stoi": 1.0, "estoi": 1.0}, abs=1e-3)


def test_every_score_falls_with_the_snr():
    scores = [metrics.score(*noisy(snr)) for snr in (20.0, 5.0, -10.0)]
    for name in metrics.METRICS:
        assert scores[0][name] > scores[1][name] > scores[2][name], name


def test_level_does_not_matter_where_it_should_not():
    s, x = noisy()
    assert metrics.score(s, 0.1 * x) == pytest.approx(metrics.score(s, x), abs=5e-3)


def test_other_rates_are_brought_to_16_khz():
    from ppse.audio import resample

    s, x = (resample(w.astype(np.float32), RATE, 48_000) for w in noisy())
    reference = metrics.score(*noisy())
    found = metrics.score(s, x, rate=48_000)
    assert {k: found[k] for k in ("stoi", "estoi")} == pytest.approx({k: reference[k] for k in ("stoi", "estoi")}, abs=5e-3)
    assert found["pesq_wb"] == pytest.approx(reference["pesq_wb"], abs=0.05)
    assert math.isnan(metrics.pesq_wb(s[::6], x[::6], rate=8000)), "8 kHz has no wide band"
    assert math.isfinite(metrics.pesq_nb(s[::6], x[::6], rate=8000))


@pytest.mark.parametrize("length", [1, 100, 1599, 3000])
def test_too_short_signals_have_no_perceptual_score(length):
    s, x = (w[10_000 : 10_000 + length] for w in noisy())
    found = metrics.score(s, x)
    assert not math.isnan(found["si_sdr"])
    assert all(math.isnan(found[name]) for name in ("pesq_wb", "pesq_nb", "stoi", "estoi"))


def test_silence():
    s, _ = noisy()
    silent = metrics.score(0 * s, s)
    assert all(math.isnan(value) for value in silent.values())
    nothing = metrics.score(s, 0 * s)
    assert nothing["si_sdr"] == -math.inf and math.isnan(nothing["pesq_wb"]) and math.isnan(nothing["pesq_nb"])
    assert nothing["stoi"] == pytest.approx(0, abs=0.05) and nothing["estoi"] == pytest.approx(0, abs=0.05)


def test_a_click_is_too_little_for_stoi():
    click = np.zeros(RATE)
    click[800] = 1.0
    assert math.isnan(metrics.stoi(click, click)) and math.isnan(metrics.estoi(click, click))


def test_scores_leave_the_global_generator_alone():
    s, x = noisy()
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first = metrics.estoi(s, x)
    assert np.random.random() == expected
    assert metrics.estoi(s, x) == first


@pytest.mark.parametrize(
    ("reference", "estimate", "message"),
    [
        (np.zeros(4), np.zeros(5), r"one length"),
        (np.zeros((2, 4)), np.zeros((2, 4)), r"two waveforms \(N,\)"),
        (np.ones(4), np.array([1, 1, np.nan, 1]), r"the estimate has 1 samples that are NaN or infinite, the first at index 2"),
        (np.array([np.inf, 1.0]), np.ones(2), r"the reference has 1"),
    ],
)
def test_unusable_signals_are_refused(reference, estimate, message):
    with pytest.raises(ValueError, match=message):
        metrics.score(reference, estimate)


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="no such metric: pesq; there are si_sdr, pesq_wb"):
        metrics.score(np.ones(4), np.ones(4), names=("pesq",))


def test_the_bootstrap_interval_is_that_of_the_normal_theory_for_many_values():
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    low, high = metrics.bootstrap_interval(values, seed=0)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert metrics.bootstrap_interval(values, seed=0) == (low, high)
    assert metrics.bootstrap_interval(values, seed=1) != (low, high)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered = []
    for trial in range(600):
        low, high = metrics.bootstrap_interval(rng.normal(1.0, size=60), seed=trial, draws=400)
        covered.append(low <= 1.0 <= high)
    # Percentiles are short by the factor of the 60 values' missing degree of freedom and normal tails: 0.94; standard error 0.01.
    assert 0.94 - 0.04 <= np.mean(covered) <= 0.94 + 0.04


def test_bootstrap_interval_of_special_values():
    assert all(math.isnan(end) for end in metrics.bootstrap_interval([math.nan]))
    assert metrics.bootstrap_interval([2.0, math.nan, 2.0]) == (2.0, 2.0)
    assert metrics.bootstrap_interval([-math.inf, 1.0])[0] == -math.inf
