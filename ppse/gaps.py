"""Lost samples of a waveform, given those around them and the variances of its STFT: a Gaussian law, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .stft import STFT

LONGEST = 0.25
"""Seconds of the longest gap: its covariance is a full matrix, and nothing around it tells of its middle."""

FADE = 0.004
"""Seconds in which samples fade out before a gap, and in after it."""


def touching(stft: STFT, n_frames: int, start: int, end: int) -> Tensor:
    """Which frames of a waveform read the samples from start to end, (T,)."""
    first = torch.arange(n_frames) * stft.hop - (stft.n_fft - stft.hop)
    return (first < end) & (first + stft.n_fft > start)


def faded(wave: Tensor, gaps: Sequence[tuple[int, int]], stft: STFT) -> tuple[Tensor, Tensor]:
    """The STFT of what is left of a waveform, and how much of the power of every frame that is, (T, F) and (T,).

    The samples fade out before a gap and in after it (:data:`FADE`), as an edge would spread over all frequencies; a frame of which
    a part is left is raised to the level of a whole one.

    Args:
        wave: (N,); what it has in the gaps is not read.
        gaps: (start, end) in samples.
        stft: to make.
    """
    left = torch.ones_like(wave)
    ramp = torch.sin(torch.linspace(0, math.pi / 2, int(FADE * stft.sample_rate) + 2, dtype=wave.dtype))[1:-1]
    for start, end in gaps:
        before, after = min(len(ramp), start), min(len(ramp), len(wave) - end)
        left[start - before : start] *= ramp.flip(0)[len(ramp) - before :]
        left[end : end + after] *= ramp[:after]
        left[start:end] = 0
    share = _power_in_frames(left, stft) / _power_in_frames(torch.ones_like(wave), stft)
    x = stft.analysis(torch.where(left > 0, wave, torch.zeros_like(wave)) * left)
    return x / share.clamp_min(torch.finfo(share.dtype).eps).sqrt().unsqueeze(-1), share


def _power_in_frames(left: Tensor, stft: STFT) -> Tensor:
    """Power (T,) of the frames of white noise under these gains."""
    lead = stft.n_fft - stft.hop
    total = (stft.n_frames(len(left)) - 1) * stft.hop + stft.n_fft
    frames = pad(left.square(), (lead, total - lead - len(left))).unfold(-1, stft.n_fft, stft.hop)
    return frames @ stft.window(left).square()


def fill(wave: Tensor, start: int, end: int, var: Tensor, stft: STFT, draws: int = 0) -> tuple[Tensor, Tensor]:
    """The lost samples from start to end: their mean, and draws of them. Random only if draws are asked for.

    The density of a waveform w is the product of the laws CN(0, v_tf) of its STFT, as in the rest of the package, to the power of hop over
    window length, as overlapping frames tell the same several times over; white noise then has its own law. In w this is a
    Gaussian, and so is what is lost given the rest: where the gap is short, its phases go on from both sides.

    Args:
        wave: (N,); what it has in the gap is not read.
        start, end: samples; at most :data:`LONGEST` seconds.
        var: variances v of the STFT, (T, F), at the level of the waveform.
        stft: of the variances.
        draws: how many.

    Returns:
        the mean (end - start,), and (draws, end - start), in the precision of the wave.

    References:
        Janssen, Veldhuis & Vries (1986), Adaptive interpolation of discrete-time signals that can be modeled as autoregressive processes
        (the same with one spectrum for all frames).
    """
    n_frames, lead = var.shape[0], stft.n_fft - stft.hop
    if not 0 <= start < end <= len(wave) or end - start > LONGEST * stft.sample_rate + 1:  # one that ends within a sample
        longest = LONGEST * stft.sample_rate
        raise ValueError(f"fill: a gap from sample {start} to {end} of {len(wave)}; expected one within the waveform, of {longest:g} samples at most")
    if tuple(var.shape) != (stft.n_frames(len(wave)), stft.n_freqs):
        raise ValueError(f"fill: variances of shape {tuple(var.shape)}; expected {(stft.n_frames(len(wave)), stft.n_freqs)}, (T, F) of the waveform")
    padded = torch.zeros((n_frames - 1) * stft.hop + stft.n_fft, dtype=torch.float64)
    padded[lead : lead + len(wave)] = wave
    padded[lead + start : lead + end] = 0
    window = stft.window(padded)
    precision = torch.zeros(end - start, end - start, dtype=torch.float64)
    pull = torch.zeros(end - start, dtype=torch.float64)
    lag = (torch.arange(stft.n_fft).unsqueeze(-1) - torch.arange(stft.n_fft)).abs()
    for t in touching(stft, n_frames, start, end).nonzero().squeeze(-1).tolist():
        # sum_f |X_f|^2 / v_f over the bins of one frame, as a quadratic form of its samples
        weight = var[t].double().reciprocal()
        cosines = torch.fft.irfft(torch.cat([2 * weight[:1], weight[1:-1], 2 * weight[-1:]]), stft.n_fft) / 2
        form = cosines[lag] * window.unsqueeze(-1) * window
        at = t * stft.hop - lead  # first sample of the frame, counted in the waveform
        inside = slice(max(start - at, 0), min(end - at, stft.n_fft))
        gap = slice(at + inside.start - start, at + inside.stop - start)
        precision[gap, gap] += form[inside, inside]
        pull[gap] -= form[inside] @ padded[t * stft.hop : t * stft.hop + stft.n_fft]
    precision, pull = (2 * stft.hop / stft.n_fft * value for value in (precision, pull))
    root = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve(pull.unsqueeze(-1), root)
    spread = torch.linalg.solve_triangular(root.mT, torch.randn(end - start, draws, dtype=torch.float64), upper=True)
    return mean.squeeze(-1).to(wave.dtype), (mean + spread).mT.to(wave.dtype)
