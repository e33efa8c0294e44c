"""Recordings below the rate of the model: which bins they have, and what becomes of the highest ones, which resampling takes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .stft import STFT


def band(stft: STFT, sample_rate: int, device: str) -> Tensor | None:
    """Bins that the recording can hold, (F,): those under its Nyquist frequency. None means all."""
    if sample_rate >= stft.sample_rate:
        return None
    return torch.from_numpy(stft.frequencies < 0.95 * sample_rate / 2).to(device)  # resampling filters fall off over the last twentieth


def edge_gain(loc: Tensor, x: Tensor, observed: Tensor) -> Tensor:
    """How much of the highest observed bins of x (T, F) the estimate of a source has, (T, 1); over all sources it sums to one."""
    n = int(observed.sum())
    edge = slice(n - max(1, n // 19), n)  # as wide as what is cut off above it
    power = x[:, edge].abs().square().sum(-1, keepdim=True)
    return (loc[:, edge] * x[:, edge].conj()).real.sum(-1, keepdim=True) / power.clamp_min(torch.finfo(power.dtype).tiny)


def share_rest(
    noisy: NDArray[np.float32], estimates: Mapping[str, NDArray[np.float32]], gains: Mapping[str, Tensor], stft: STFT, sample_rate: int,
) -> None:
    """Give what the estimates (N,) lack of the recording to them, in place, by the gains (T, 1) of :func:`edge_gain`."""
    rest = noisy - sum(estimates.values())
    for name, gain in gains.items():
        centres = stft.centres(len(gain)) * sample_rate
        estimates[name][:] += np.interp(np.arange(rest.size), centres, gain[:, 0].numpy()).astype(np.float32) * rest
