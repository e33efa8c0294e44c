"""Whether ranks are uniform: an exact test of their empirical distribution function, and a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def uniformity(ranks: Tensor, draws: int) -> float:
    """p-value of the hypothesis that independent ranks are uniform on 0 … draws. Exact, not random.

    The number of ranks up to k is binomial for every k. The statistic is the smallest of the two-sided tail probabilities of these
    counts; under uniformity its law follows from a walk of Poisson steps that is conditioned on where it ends. Ranks that lean to
    one side, pile up at both ends (draws too narrow) or in the middle (too wide) are all seen.

    Args:
        ranks: whole numbers, (replicate,).
        draws: the largest rank there can be.

    Raises:
        ValueError: when there is no rank, or one is out of range.

    References:
        Säilynoja, Bürkner & Vehtari (2022), Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation
        and multiple sample comparison.

    >>> import torch
    >>> even = torch.arange(200) % 10
    >>> uniformity(even, 9) > 0.99, uniformity(even // 2, 9) < 1e-9
    (True, True)
    """
    from scipy.stats import binom, poisson

    if ranks.dim() != 1 or not len(ranks) or ranks.min() < 0 or ranks.max() > draws:
        raise ValueError(f"uniformity: ranks of shape {tuple(ranks.shape)} for {draws} draws; expected a vector of whole numbers from 0 to {draws}")
    total = len(ranks)
    found = np.bincount(ranks.cpu().numpy(), minlength=draws + 1).cumsum()[:-1]
    count, below = np.arange(total + 1), np.arange(1, draws + 1)[:, None] / (draws + 1)
    tail = np.minimum(binom.cdf(count, total, below), binom.sf(count - 1, total, below))  # (k, number of ranks up to k)
    extreme = tail[np.arange(draws), found].min()
    inside = tail > extreme * (1 + 1e-9)
    step = poisson.pmf(count, total / (draws + 1))
    walk = np.zeros(total + 1)
    walk[0] = 1
    for allowed in inside:
        walk = np.convolve(walk, step)[: total + 1] * allowed
    within = walk @ step[::-1] / poisson.pmf(total, total)  # the last step leads to all ranks
    return float(np.clip(1 - within, 0, 1))


def plot_ranks(ranks: Mapping[str, Tensor], draws: int, bins: int = 10) -> Figure:
    """Histograms of ranks, one panel each, over the band that holds 99 % of the bars when they are uniform; not shown.

    Args:
        ranks: name → whole numbers from 0 to draws, (replicate,).
        bins: at most; as many as ranks can be shared out to evenly.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state
    from scipy.stats import binom

    bins = next(n for n in range(bins, 0, -1) if (draws + 1) % n == 0)
    figure = Figure(figsize=(2.6 * max(2, len(ranks)), 2.4), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(ranks), squeeze=False)[0], ranks.items(), strict=True):
        low, high = binom.ppf((0.005, 0.995), len(values), 1 / bins)
        axes.axhspan(low, high, color="0.9")
        axes.hist(values.cpu().numpy(), bins=bins, range=(-0.5, draws + 0.5), color="tab:blue", rwidth=0.9)
        axes.set(title=f"{name}\np = {uniformity(values, draws):.2g}", xlabel="rank")
    return figure
