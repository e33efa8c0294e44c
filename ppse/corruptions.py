"""Lips made bad on purpose, in stretches of an utterance: to test and train what should see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .lips import SIZE, Lips

SHARE = 1 / 3
"""Of an utterance that is corrupted."""

Corruption = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Makes frames (V, 88, 88) bad where (V,) is True; what else it needs to draw comes from the generator."""


class Corrupted(NamedTuple):
    """Lips with bad stretches, and in which frames (V,) they are. ``lips.good`` is as it was: what is bad is to be found out."""

    lips: Lips
    where: Tensor


def corrupt(lips: Lips, corruption: Corruption, share: float = SHARE, runs: int = 1, seed: int = 0) -> Corrupted:
    """Corrupt a share of the frames, in contiguous runs at random places.

    Args:
        corruption: :func:`occluded`, :func:`frozen`, :func:`shuffled`, :func:`noisy`, :func:`dropped`, or what :func:`swapped` and
            :func:`late` return.
        share: of the frames, 0 to 1; a third as in the literature on switching between audio and video.
        runs: how many stretches they form, with a good frame between them at least.
        seed: same seed, same stretches and draws. The global generator is left alone.

    Raises:
        ValueError: when the share is none, or so many runs do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    where = stretches(len(lips), share, runs, generator)
    frames = torch.where(where[:, None, None], corruption(lips.frames, where, generator), lips.frames)
    return Corrupted(replace(lips, frames=frames), where)


def stretches(count: int, share: float, runs: int, generator: torch.Generator) -> Tensor:
    """Which of ``count`` frames lie in ``runs`` stretches of about equal length that take the share: (count,), all placements equally likely.

    Raises:
        ValueError: as :func:`corrupt`.
    """
    if not 0 <= share <= 1 or runs < 1:
        raise ValueError(f"stretches: share={share:g}, runs={runs}; expected a share from 0 to 1 in one run or more")
    total = round(share * count)
    free = count - total - (runs - 1)
    if total < runs or free < 0:
        if total == 0:
            return torch.zeros(count, dtype=torch.bool)
        raise ValueError(f"stretches: {total} of {count} frames in {runs} runs do not fit; take fewer runs")
    # Of the frames outside, those that need not part two runs fall before, between and after them.
    cuts = torch.randperm(free + runs, generator=generator)[:runs].sort().values - torch.arange(runs)
    where = torch.zeros(count, dtype=torch.bool)
    done = 0
    for run in range(runs):
        length = (total - done) // (runs - run)
        begin = int(cuts[run]) + done + run
        where[begin : begin + length] = True
        done += length
    return where


def occluded(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
    """A dark patch over the mouth, as of a hand or a microphone: half as wide as the crop or more, at a place that stays within a run."""
    result = frames.clone()
    for run in _runs(where):
        height, width = (int(torch.randint(SIZE // 2, SIZE * 3 // 4, (), generator=generator)) for _ in range(2))
        # It covers the middle of the crop, where the lips are.
        top, left = (int(torch.randint(max(0, SIZE // 2 - side + 8), min(SIZE - side, SIZE // 2 - 8) + 1, (), generator=generator))
                     for side in (height, width))
        grey = 0.3 * torch.rand((), generator=generator).item()
        result[run, top : top + height, left : left + width] = grey
    return result


def frozen(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
    """The last frame before the run stays; at the start, the first frame of the run."""
    result = frames.clone()
    for run in _runs(where):
        result[run] = frames[max(0, int(run[0]) - 1)]
    return result


def shuffled(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
    """The frames of a run in random order."""
    result = frames.clone()
    for run in _runs(where):
        result[run] = frames[run[torch.randperm(len(run), generator=generator)]]
    return result


def noisy(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
    """White Gaussian noise of standard deviation 0.3 (full scale 1), cut off at black and white."""
    return (frames + 0.3 * torch.randn(frames.shape, generator=generator).to(frames)).clamp(0, 1)


def dropped(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
    """Nothing arrives: black frames."""
    return torch.zeros_like(frames)


def swapped(other: Lips) -> Corruption:
    """The wrong video: frames of another, from a random one on, over again where it is short."""
    def corruption(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
        first = int(torch.randint(len(other), (), generator=generator))
        return other.frames[(first + torch.arange(len(frames))) % len(other)].to(frames)

    return corruption


def late(count: int) -> Corruption:
    """Pictures that come ``count`` frames late, early where negative; at the ends the first or last frame stays."""
    def corruption(frames: Tensor, where: Tensor, generator: torch.Generator) -> Tensor:
        return frames[(torch.arange(len(frames)) - count).clamp(0, len(frames) - 1)]

    return corruption


def _runs(where: Tensor) -> list[Tensor]:
    """The frames of every stretch of True, one after the other."""
    places = where.nonzero().flatten()
    breaks = (places.diff() > 1).nonzero().flatten() + 1
    return [run for run in places.tensor_split(breaks.tolist()) if len(run)]
