"""The truth for samplers of coupled frames: the posterior of a linear-Gaussian state-space model, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Smoothed(NamedTuple):
    """The normal law p(z_1:T | x_1:T): mean and covariance of every z_t, (T, L) and (T, L, L), and Cov(z_t, z_t+1), (T - 1, L, L)."""

    mean: Tensor
    covariance: Tensor
    neighbours: Tensor


def kalman_smoother(x: Tensor, transition: Tensor, process: Tensor, decoder: Tensor, noise: Tensor, start: Tensor) -> Smoothed:
    """The posterior of z_t = A z_t-1 + N(0, Q), x_t = D z_t + N(0, R), with z_1 ~ N(0, P). Not random.

    A recurrent decoder is one of these, too: its state is what it remembers of the latents.

    Args:
        x: what was observed, (T, M).
        transition, process: A and Q, (L, L).
        decoder, noise: D, (M, L), and R, (M, M).
        start: P, (L, L).

    References:
        Rauch, Tung & Striebel (1965), Maximum likelihood estimates of linear dynamic systems.
    """
    mean, covariance = torch.zeros_like(transition[0]), start
    predicted, filtered = [], []
    for t, observation in enumerate(x):
        if t:
            mean, covariance = transition @ mean, transition @ covariance @ transition.mT + process
        predicted.append((mean, covariance))
        gain = torch.linalg.solve(decoder @ covariance @ decoder.mT + noise, decoder @ covariance).mT
        mean, covariance = mean + gain @ (observation - decoder @ mean), covariance - gain @ decoder @ covariance
        filtered.append((mean, covariance))
    means, covariances, neighbours = [mean], [covariance], []
    for (here, spread), (ahead, ahead_spread) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        gain = torch.linalg.solve(ahead_spread, transition @ spread).mT
        neighbours.append(gain @ covariances[-1])
        means.append(here + gain @ (means[-1] - ahead))
        covariances.append(spread + gain @ (covariances[-1] - ahead_spread) @ gain.mT)
    pairs = torch.stack(neighbours[::-1]) if neighbours else start.new_empty(0, *start.shape)
    return Smoothed(torch.stack(means[::-1]), torch.stack(covariances[::-1]), pairs)
