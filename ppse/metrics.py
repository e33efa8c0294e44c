"""Scores of an enhanced recording against the clean one: SI-SDR, PESQ (which band is always said), STOI, ESTOI, and their uncertainty.

A score that is not defined for a pair of signals is NaN: PESQ when the estimate is silent, or when it finds no utterance or
less than a quarter of a second, STOI when fewer than 30 frames (0.4 s) are left without the pauses, everything when the
reference is silent.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pesq
from numpy.typing import ArrayLike, NDArray

from .audio import resample

METRICS = ("si_sdr", "pesq_wb", "pesq_nb", "stoi", "estoi")
"""Names of the scores in tables and files. SI-SDR is in dB, PESQ is MOS-LQO (P.862.1 and .2), STOI and ESTOI are correlations."""

RATE = 16_000
"""Rate at which PESQ and STOI are taken, in Hz."""

Signal = NDArray[np.float64]


def si_sdr(reference: ArrayLike, estimate: ArrayLike) -> float:
    """Scale-invariant signal-to-distortion ratio of two waveforms (N,), in dB. No mean is removed.

    10 log10(||a s||² / ||a s - e||²) with a = <s, e> / ||s||². A perfect estimate scores inf, one that has nothing of the
    reference (silence, for one) -inf; NaN when the reference is silent.

    >>> round(si_sdr([1.0, 1, 1, 1], [2.1, 1.9, 2.1, 1.9]), 4)
    26.0206

    References:
        Le Roux et al. (2019), SDR – half-baked or well done?
    """
    s, e = _pair(reference, estimate)
    power = float(s @ s)
    if power == 0:
        return math.nan
    target = float(s @ e) / power * s
    signal, distortion = float(target @ target), float(((target - e) ** 2).sum())
    if signal == 0:
        return -math.inf
    return 10 * math.log10(signal / distortion) if distortion > 0 else math.inf


def pesq_wb(reference: ArrayLike, estimate: ArrayLike, rate: int = RATE) -> float:
    """Wide-band PESQ (P.862.2, MOS-LQO, about 1 to 4.6) of two waveforms (N,); NaN below 16 kHz, which has no wide band."""
    return _pesq(reference, estimate, rate, "wb") if rate >= RATE else math.nan


def pesq_nb(reference: ArrayLike, estimate: ArrayLike, rate: int = RATE) -> float:
    """Narrow-band PESQ (P.862 mapped by P.862.1, about 1 to 4.5) of two waveforms (N,)."""
    return _pesq(reference, estimate, rate, "nb")


def stoi(reference: ArrayLike, estimate: ArrayLike, rate: int = RATE) -> float:
    """Short-time objective intelligibility of two waveforms (N,), at most 1 (Taal et al. 2011)."""
    return _stoi(reference, estimate, rate, extended=False)


def estoi(reference: ArrayLike, estimate: ArrayLike, rate: int = RATE) -> float:
    """Extended STOI of two waveforms (N,), at most 1 (Jensen & Taal 2016).

    The measure adds noise of relative size 1e-16 to empty bands from NumPy's global generator, which is restored here.
    """
    return _stoi(reference, estimate, rate, extended=True)


def score(reference: ArrayLike, estimate: ArrayLike, rate: int = RATE, names: Sequence[str] = METRICS) -> dict[str, float]:
    """Scores of two waveforms (N,) by name, in the order of ``names``.

    Args:
        reference: clean speech.
        estimate: what is judged, of the same length and alignment.
        rate: of both, in Hz. PESQ and STOI are taken at 16 kHz.
        names: which of :data:`METRICS`.

    Raises:
        ValueError: lengths differ, a sample is NaN or infinite, or an unknown name.
    """
    spare = set(names) - set(METRICS)
    if spare:
        raise ValueError(f"no such metric: {', '.join(sorted(spare))}; there are {', '.join(METRICS)}")
    reference, estimate = _pair(reference, estimate)
    values = {
        "si_sdr": lambda: si_sdr(reference, estimate),
        "pesq_wb": lambda: pesq_wb(reference, estimate, rate),
        "pesq_nb": lambda: pesq_nb(reference, estimate, rate),
        "stoi": lambda: stoi(reference, estimate, rate),
        "estoi": lambda: estoi(reference, estimate, rate),
    }
    return {name: values[name]() for name in names}


def bootstrap_interval(values: ArrayLike, seed: int = 0, level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap confidence interval of the mean of ``values``; NaN are left out. Random from ``seed`` alone.

    (NaN, NaN) without a value; an infinite value gives infinite ends.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    given = given[~np.isnan(given)]
    if given.size == 0:
        return math.nan, math.nan
    picks = np.random.default_rng(seed).integers(given.size, size=(draws, given.size))
    with np.errstate(invalid="ignore"):  # inf - inf
        means = given[picks].mean(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)


def _pair(reference: ArrayLike, estimate: ArrayLike) -> tuple[Signal, Signal]:
    s, e = np.asarray(reference, dtype=np.float64), np.asarray(estimate, dtype=np.float64)
    if s.ndim != 1 or s.shape != e.shape:
        raise ValueError(f"reference {s.shape} and estimate {e.shape}: expected two waveforms (N,) of one length; cut or align them first")
    for name, wave in (("reference", s), ("estimate", e)):
        broken = np.flatnonzero(~np.isfinite(wave))
        if broken.size:
            raise ValueError(f"the {name} has {broken.size} samples that are NaN or infinite, the first at index {broken[0]}")
    return s, e


def _perceptual(reference: ArrayLike, estimate: ArrayLike, rate: int) -> tuple[Signal, Signal]:
    """Both waveforms at 16 kHz."""
    s, e = (resample(wave.astype(np.float32), rate, RATE).astype(np.float64) for wave in _pair(reference, estimate))
    return s, e


def _pesq(reference: ArrayLike, estimate: ArrayLike, rate: int, mode: str) -> float:
    s, e = _perceptual(reference, estimate, rate)
    if not s.any() or not e.any():
        return math.nan
    try:
        return float(pesq.pesq(RATE, s, e, mode))
    except (pesq.NoUtterancesError, pesq.BufferTooShortError):
        return math.nan


def _stoi(reference: ArrayLike, estimate: ArrayLike, rate: int, extended: bool) -> float:
    import pystoi  # here, as all of scipy.signal comes with it, which takes half a second of every start

    s, e = _perceptual(reference, estimate, rate)
    if not s.any() or s.size < RATE // 10:  # shorter than the frames that it is cut into
        return math.nan
    generator = np.random.get_state()
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
            return float(pystoi.stoi(s, e, RATE, extended=extended))
    except RuntimeWarning:  # it would return 1e-5, which is no score
        return math.nan
    finally:
        np.random.set_state(generator)
