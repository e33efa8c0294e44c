"""Long recordings in windows that overlap and are cross-faded, so that memory does not grow with their length."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WINDOW, OVERLAP = 60.0, 4.0
"""Seconds of a recording that are inferred at once, and by which neighbouring windows overlap."""


def windows(length: int, window: int, overlap: int, hop: int) -> list[tuple[int, int]]:
    """Stretches of equal length, starts on the frame grid, that overlap by at least ``overlap`` samples and cover all.

    All arguments are in samples; returns (first, last + 1) of every stretch.
    """
    if length <= window:
        return [(0, length)]
    count = math.ceil((length - overlap) / (window - overlap))
    stride = math.ceil((length - overlap) / count / hop) * hop
    return [(i * stride, min(i * stride + stride + overlap, length)) for i in range(count)]


def fade(stretches: list[tuple[int, int]], i: int) -> Tensor:
    """Weights of the samples of stretch i: linear cross-fades over its overlaps; all stretches sum to one."""
    first, last = stretches[i]
    weight = torch.ones(last - first)
    if i > 0:
        lap = stretches[i - 1][1] - first
        weight[:lap] *= (torch.arange(lap) + 0.5) / lap
    if i + 1 < len(stretches):
        lap = last - stretches[i + 1][0]
        weight[-lap:] *= 1 - (torch.arange(lap) + 0.5) / lap
    return weight


def add_frames(total: Tensor, values: Tensor, first: int, weight: Tensor) -> None:
    """Cross-fade what the frames of a stretch have, (T, F), into the recording; ``first`` is its first frame there."""
    count = min(values.shape[0], total.shape[0] - first)
    # The frames that reach beyond the end: all of a stretch that is the last, nothing of one that has faded out by then.
    beyond = (weight[-1:] == 1).to(weight).expand(max(0, count - len(weight)))
    weight = torch.cat([weight, beyond])[:count]
    total[first : first + count] += weight.unsqueeze(-1) * values[:count]
