"""Whether uncertainty means something: where the truth lies in the law that inference reports, and how often intervals hold it.

The currency is the *probability integral transform* (PIT) of the truth: the probability that the law gives to less than the true
value. Under the right law it is uniform on (0, 1), and the central interval of level c holds the truth when the PIT is
within c / 2 of a half. Magnitudes are those of an STFT bin; |s| of s ~ CN(m, v) has the Rice law.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import chndtr, chndtrix, ndtr, ndtri
from torch import Tensor

from . import audio
from .distributions import ComplexNormal

if TYPE_CHECKING:
    from .enhance import Enhancement

Array = NDArray[np.float64]

LEVELS = (0.5, 0.8, 0.95)
"""Levels of intervals that reports show."""

LARGE = 1e4
"""Noncentrality 2 |m|^2 / v above which the Rice law is normal, to 1e-5 in probability, and its series is slow."""


def stft_law(result: Enhancement, source: str = "speech", channel: int = 0) -> ComplexNormal:
    """The law CN(estimate, std^2) of every bin of the STFT of a source, (T, F), at the rate of the model and the level of the recording.

    Its mean is the STFT of the estimated waveform. Of the true waveform, neighbouring bins share samples; the law is that of each bin alone.

    Raises:
        ValueError: when there is no deviation of such a source.
    """
    if source not in result.std:
        raise ValueError(f"stft_law: no deviation of '{source}', there is one of {sorted(result.std)}; ask for it: enhance(…, std=True)")
    wave = audio.resample(result.estimates[source][channel], result.sample_rate, result.stft.sample_rate)
    return ComplexNormal(result.stft.analysis(torch.from_numpy(wave)), torch.from_numpy(result.std[source][channel]).square())


def magnitude_pit(law: ComplexNormal, truth: Tensor) -> Array:
    """PIT of the true magnitudes |s| under the law of s, of the shape of the law. Nothing is random.

    Where the variance is 0 it is 0, 1/2 or 1: the truth is less, equal or more.

    >>> law = ComplexNormal(0j, torch.ones(2))
    >>> magnitude_pit(law, torch.tensor([0j, 1 + 0j])).round(3).tolist()  # 1 - exp(-|s|^2)
    [0.0, 0.632]
    """
    mean, deviation = _standard(law)
    true = np.abs(truth.detach().cpu().numpy().astype(np.complex128))
    known = deviation == 0
    scale = np.where(known, 1.0, deviation)
    a, b = true / scale, mean / scale
    normal = ndtr(a - b - 0.5 / np.maximum(b, 1.0))
    rice = chndtr(a**2, 2, np.minimum(b**2, LARGE))
    result: Array = np.where(known, 0.5 + 0.5 * np.sign(true - mean), np.where(b**2 > LARGE, normal, rice))
    return result


def magnitude_quantile(law: ComplexNormal, probability: ArrayLike) -> Array:
    """Magnitudes below which |s| lies with the given probabilities, of the shape of the law, which they broadcast against.

    >>> magnitude_quantile(ComplexNormal(0j, torch.ones(1)), 0.5).round(4).tolist()  # sqrt(log 2)
    [0.8326]
    """
    mean, deviation = _standard(law)
    known = deviation == 0
    b = mean / np.where(known, 1.0, deviation)
    large = b**2 > LARGE
    p = np.broadcast_to(np.asarray(probability, np.float64), b.shape)
    rice = np.sqrt(chndtrix(p, 2, np.where(large, 0.0, b**2)))
    quantile: Array = np.where(known, mean, deviation * np.where(large, b + 0.5 / np.maximum(b, 1.0) + ndtri(p), rice))
    return quantile


def magnitude_interval(law: ComplexNormal, level: float = 0.95) -> tuple[Array, Array]:
    """Central interval of |s| of that level, in every bin: lower and upper ends, of the shape of the law.

    Raises:
        ValueError: when the level is not between 0 and 1.
    """
    check_level(level)
    return magnitude_quantile(law, (1 - level) / 2), magnitude_quantile(law, (1 + level) / 2)


def draws_pit(draws: ArrayLike, truth: ArrayLike, seed: int = 0) -> Array:
    """PIT of true values by their rank among draws, of the shape of the truth.

    The rank of n draws leaves an interval of width 1 / (n + 1); a place in it is drawn (from ``seed`` alone), so that the PIT is exactly
    uniform when truth and draws come from one law.

    Args:
        draws: real values, (n, …); give magnitudes for those of an STFT.
        truth: (…).

    Raises:
        ValueError: when the shapes do not match.

    References:
        Czado, Gneiting & Held (2009), Predictive model assessment for count data.
    """
    drawn, true = np.asarray(draws), np.asarray(truth)
    if drawn.shape[1:] != true.shape or not len(drawn):
        raise ValueError(f"draws_pit: draws of shape {drawn.shape}, truth of {true.shape}; expected (n, …) and (…)")
    place: Array = np.random.default_rng(seed).random(true.shape)
    result: Array = ((drawn < true).sum(0) + place) / (len(drawn) + 1)
    return result


def coverage(pit: ArrayLike, levels: Sequence[float] = LEVELS, where: ArrayLike | None = None) -> dict[float, float]:
    """Share of the truth in the central interval of every level; level → share, equal to the level when uncertainty is right.

    The converse does not hold: central intervals that lie too high may hold the truth as often. Doubling the variance of a bin of mean
    0 leaves the share of its magnitudes almost as it is; of the samples of a waveform it does not. A histogram of the PIT shows both.

    Args:
        pit: of the truth, any shape (:func:`magnitude_pit`, :func:`draws_pit`).
        where: which entries count, boolean; all unless given.

    Raises:
        ValueError: when a level is not between 0 and 1, or nothing counts.
    """
    values = np.asarray(pit, np.float64)
    counted = values.ravel() if where is None else values[np.broadcast_to(np.asarray(where, bool), values.shape)]
    if not counted.size:
        raise ValueError("coverage: no value counts, so there is no share of them")
    for level in levels:
        check_level(level)
    return {level: float(np.mean(np.abs(2 * counted - 1) <= level)) for level in levels}


def error_correlation(deviation: ArrayLike, error: ArrayLike) -> float:
    """Rank correlation (Spearman) of the reported deviation and the actual absolute error.

    Even under the right law it is below one, as errors are random: compare with errors drawn from the law.
    """
    from scipy.stats import spearmanr  # here, as it takes long to import

    return float(spearmanr(np.ravel(deviation), np.abs(np.ravel(error))).statistic)


def check_level(level: float) -> None:
    """Raise ValueError when a level of an interval is not between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a probability between 0 and 1, e.g. 0.95")


def _standard(law: ComplexNormal) -> tuple[Array, Array]:
    """Magnitude of the mean, and deviation of each of the two parts, in double precision."""
    loc, var = law.loc.detach().cpu().numpy().astype(np.complex128), law.var.detach().cpu().numpy().astype(np.float64)
    return np.abs(loc), np.sqrt(var / 2)
