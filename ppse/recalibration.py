"""Recalibration: what intervals and deviations must become to hold as often as they say, learnt where the truth is known.

The posterior is that of a model, and real speech is not drawn from it: speech is sparser than any Gaussian of smooth variance. What a
method reports is put right by how far the truth was off on held-out mixtures, in classes of the *relative uncertainty* of a bin, the
posterior variance over the posterior mean power, which lies between 0 (known) and 1 (the mean says nothing):

1. no bin is surer than ``FLOOR``: what is fitted to the recording, not inferred, counts as known too often;
2. deviations are scaled by root mean square error over root mean square deviation (geometric mean over recordings), one factor a class;
3. intervals of another level are used: the monotone map from probabilities to held-out frequencies, one a class.

It is never applied unasked, and describes errors on average over speakers, noises and SNRs like those that it was fitted on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor

from .distributions import ComplexNormal
from .uncertainty import Array, check_level, magnitude_pit, magnitude_quantile

FLOOR = 0.01
"""Least relative uncertainty of a bin: a variance 20 dB below its power."""

EDGES = (0.1, 0.5, 0.9)
"""Relative uncertainties that part the classes."""

PROBABILITIES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)
"""Where the map of probabilities is fitted: the ends of the intervals of levels 0.5, 0.8 and 0.95. It is linear between them, in normal scores."""

SHIPPED = Path(__file__).parent / "data" / "recalibration.json"

Case = tuple[ComplexNormal, Tensor]
"""A law of STFT bins and the true values, of equal shapes."""


class Recalibration(NamedTuple):
    """Corrections of one method, fitted by :func:`fit`.

    Attributes:
        scores: class → normal scores that the truth had under the law with the probabilities ``PROBABILITIES``, increasing.
        deviation: class → factor of the deviation of an STFT bin.
        waveform: factor of the deviation of a sample of the waveform, with which +-1.28 deviations held 80 % of the truth.
        provenance: what it was fitted on.
    """

    scores: list[list[float]]
    deviation: list[float]
    waveform: float
    provenance: str

    def pit(self, law: ComplexNormal, truth: Tensor) -> Array:
        """:func:`ppse.uncertainty.magnitude_pit`, recalibrated."""
        law = floored(law)
        raw, classes = _scores(magnitude_pit(law, truth)), _classes(law)
        result = np.empty(raw.shape)
        for index, scores in enumerate(self.scores):
            result[classes == index] = _line(scores, ndtri(PROBABILITIES), raw[classes == index])
        return ndtr(result)

    def interval(self, law: ComplexNormal, level: float = 0.95) -> tuple[Array, Array]:
        """:func:`ppse.uncertainty.magnitude_interval`, recalibrated. Levels beyond 0.95 are extrapolated.

        Raises:
            ValueError: when the level is not between 0 and 1.
        """
        check_level(level)
        law = floored(law)
        classes = _classes(law)
        ends = []
        for probability in ((1 - level) / 2, (1 + level) / 2):
            per_class = [_line(ndtri(PROBABILITIES), scores, ndtri(probability)) for scores in self.scores]
            ends.append(magnitude_quantile(law, np.clip(ndtr(per_class), *SAFE)[classes]))
        return ends[0], ends[1]

    def std(self, law: ComplexNormal) -> Array:
        """Deviation of every bin, of the shape of the law, equal to the root mean square error on average over a class."""
        law = floored(law)
        result: Array = np.asarray(self.deviation)[_classes(law)] * np.sqrt(law.var.detach().cpu().numpy().astype(np.float64))
        return result


def fit(cases: Sequence[Case], deviations: Sequence[NDArray[np.floating]], errors: Sequence[NDArray[np.floating]], provenance: str) -> Recalibration:
    """Learn what is to be put right from recordings whose truth is known. Nothing is random.

    Args:
        cases: of every recording the law of its STFT (:func:`ppse.uncertainty.stft_law`) and the truth.
        deviations: of every recording the deviation of the samples (:meth:`ppse.Enhancement.deviation`).
        errors: of every recording what the samples are off.
        provenance: what these recordings are, in words.

    Raises:
        ValueError: when a class has too few distinct values; more recordings are needed, not gated to digital silence.
    """
    pooled: list[list[Array]] = [[] for _ in range(len(EDGES) + 1)]
    ratios: list[Array] = []
    for law, truth in cases:
        law = floored(law)
        raw, classes, variance = _scores(magnitude_pit(law, truth)), _classes(law), law.var.numpy()
        error = (truth - law.loc).abs().square().numpy()
        for index, scores in enumerate(pooled):
            scores.append(raw[classes == index])
        sums = [np.bincount(classes.ravel(), values.ravel(), len(pooled)) for values in (error, variance)]
        ratios.append(np.divide(sums[0], sums[1], out=np.full(len(pooled), np.nan), where=sums[1] > 0))
    quantiles = []
    for index, scores in enumerate(pooled):
        values = np.concatenate(scores)
        found = np.quantile(values, PROBABILITIES) if values.size else np.zeros(len(PROBABILITIES))
        if np.any(np.diff(found) <= 0):
            raise ValueError(
                f"fit: the {values.size} bins of class {index + 1} of {len(pooled)} have no distinct quantiles; give more recordings, "
                f"whose truth is not digital silence"
            )
        quantiles.append([round(float(score), 3) for score in found])
    # Every recording counts the same, however loud: a mean of logarithms.
    factors = np.exp(np.nanmean(np.log(ratios), 0) / 2)
    spread = np.concatenate([np.abs(error[deviation > 0] / deviation[deviation > 0]) for error, deviation in zip(errors, deviations, strict=True)])
    waveform = np.quantile(spread, 0.8) / ndtri(0.9)
    return Recalibration(quantiles, [round(float(factor), 3) for factor in factors], round(float(waveform), 3), provenance)


def shipped(method: str) -> Recalibration:
    """What was fitted for a method of :mod:`ppse.methods` with the default model, by its name, e.g. ``shipped("fast")``.

    Raises:
        ValueError: when there is none for it.
    """
    stored = json.loads(SHIPPED.read_text())
    if method not in stored:
        raise ValueError(f"shipped: no recalibration of '{method}'; there is one of {', '.join(sorted(stored))}. Fit one with ppse.recalibration.fit")
    return Recalibration(**stored[method])


def relative_uncertainty(law: ComplexNormal) -> Array:
    """Posterior variance over posterior mean power, between 0 and 1; 0 in bins known to be silent."""
    variance, mean = law.var.detach().cpu().numpy().astype(np.float64), law.loc.detach().abs().cpu().numpy().astype(np.float64)
    power = variance + mean**2
    return np.divide(variance, power, out=np.zeros_like(power), where=power > 0)


def floored(law: ComplexNormal) -> ComplexNormal:
    """The law with a variance of ``FLOOR`` times the posterior mean power at least."""
    return ComplexNormal(law.loc, law.var.maximum(FLOOR * (law.loc.abs().square() + law.var)))


SAFE = (1e-300, 1 - 1e-15)
"""Probabilities whose normal scores are finite."""


def _scores(pit: Array) -> Array:
    """Normal scores of probabilities."""
    scores: Array = ndtri(np.clip(pit, *SAFE))
    return scores


def _classes(law: ComplexNormal) -> NDArray[np.intp]:
    return np.digitize(relative_uncertainty(law), EDGES)


def _line(x: Sequence[float], y: Sequence[float], at: Array) -> Array:
    """The line through points, straight on beyond the ends."""
    from scipy.interpolate import make_interp_spline  # here, as it takes long to import

    values: Array = make_interp_spline(x, y, k=1)(at)
    return values
