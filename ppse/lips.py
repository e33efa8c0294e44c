"""Lips: what a camera saw of a mouth, frame by frame, and where between its frames a moment of sound lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SIZE = 88
"""Height and width of a crop in pixels, as usual in lip reading."""

GAP = 3.0
"""Frames further apart than so many usual periods have something missing between them."""


class Alignment(NamedTuple):
    """Where moments of sound lie in a video: ``place`` (T,) counts video frames, with a fraction to interpolate by; where ``good`` (T,) is
    False the frames around it show no mouth to rely on, or the video has not begun or has ended and its nearest frame is held."""

    place: Tensor
    good: Tensor


@dataclass(frozen=True, eq=False)
class Lips:
    """Crops of the mouth of one speaker.

    Args:
        frames: (V, 88, 88), grey, 0 black to 1 white.
        times: (V,), when each was shown, in seconds from the start of the sound, increasing.
        good: (V,), whether each can be relied on: False where no face was found, the mouth moved too fast, or it is blurred.

    Raises:
        ValueError: when the shapes or types do not fit, values are out of range, or times do not increase.

    >>> lips = Lips.at_rate(torch.zeros(50, 88, 88), 25.0)
    >>> tuple(lips.frames.shape), lips.seconds
    ((50, 88, 88), 2.0)
    """

    frames: Tensor
    times: Tensor
    good: Tensor

    def __post_init__(self) -> None:
        count = len(self.frames)
        if self.frames.shape[1:] != (SIZE, SIZE) or count == 0 or not self.frames.is_floating_point():
            found = f"{self.frames.dtype} of shape {tuple(self.frames.shape)}"
            raise ValueError(f"Lips: frames are {found}; expected floats (V, {SIZE}, {SIZE}), V >= 1; see ppse.mouth.find_lips")
        low, high = self.frames.min().item(), self.frames.max().item()
        if not 0 <= low <= high <= 1:  # false for NaN too
            raise ValueError(f"Lips: frames from {low:g} to {high:g}; expected grey values from 0 to 1 (divide bytes by 255)")
        if self.times.shape != (count,) or not self.times.is_floating_point() or not self.times.isfinite().all():
            raise ValueError(f"Lips: times {self.times.dtype} {tuple(self.times.shape)}; expected {count} finite floats, in seconds")
        if (self.times.diff() <= 0).any():
            first = int((self.times.diff() <= 0).nonzero()[0]) + 1
            raise ValueError(f"Lips: frame {first} is shown at {self.times[first]:g} s, no later than the one before; expected increasing times")
        if self.good.shape != (count,) or self.good.dtype != torch.bool:
            raise ValueError(f"Lips: good is {self.good.dtype} {tuple(self.good.shape)}; expected {count} of torch.bool")

    @classmethod
    def at_rate(cls, frames: Tensor, rate: float) -> Lips:
        """Ready-made crops at a constant rate in Hz from second 0 on, all good: (V, 88, 88) floats from 0 to 1, or bytes.

        Raises:
            ValueError: as the class does, and when the rate is not positive.
        """
        if not rate > 0:
            raise ValueError(f"Lips: rate={rate:g} Hz; expected a positive number, such as 25")
        frames = frames / 255 if frames.dtype == torch.uint8 else frames
        return cls(frames, torch.arange(len(frames), dtype=torch.float64) / rate, torch.ones(len(frames), dtype=torch.bool))

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def period(self) -> float:
        """The usual time between frames in seconds: the median; 1/25 for a single frame."""
        return self.times.diff().median().item() if len(self) > 1 else 1 / 25

    @property
    def seconds(self) -> float:
        """How long they are shown, the last frame for one period."""
        return (self.times[-1] - self.times[0]).item() + self.period

    def between(self, begin: float, end: float) -> Lips:
        """Those shown from ``begin`` to ``end`` in seconds, and one more on either side, at times counted from ``begin``.

        Of lips that are not seen then the nearest frame is left, at its time before or after.
        """
        first = int(torch.searchsorted(self.times, begin, right=True)) - 1
        last = int(torch.searchsorted(self.times, end)) + 1
        part = slice(max(0, min(first, len(self) - 1)), max(1, last))
        return Lips(self.frames[part], self.times[part] - begin, self.good[part])

    def align(self, moments: Tensor, offset: float = 0.0) -> Alignment:
        """Where moments of sound lie among the frames.

        Args:
            moments: (T,), in seconds from the start of the sound; of an STFT, ``torch.as_tensor(stft.centres(T))``.
            offset: seconds by which the picture is late: sound at ``s`` belongs to what is shown at ``s + offset``.

        Embeddings ``e`` (V, …) follow the sound as ``e[i].lerp(e[i + 1], place - i)`` with ``i`` the whole part of ``place``. Times are
        used, not a rate, so that frames may come unevenly.
        """
        at = moments.to(self.times) + offset
        held = at.clamp(self.times[0].item(), self.times[-1].item())
        before = (torch.searchsorted(self.times, held, right=True) - 1).clamp(0, max(0, len(self) - 2))
        after = (before + 1).clamp_max(len(self) - 1)
        between = self.times[after] - self.times[before]
        fraction = torch.where(between > 0, (held - self.times[before]) / between.clamp_min(1e-12), torch.zeros_like(held))
        alone_before, alone_after = fraction < 1e-3, fraction > 1 - 1e-3  # a frame of next to no weight has no say
        reliable = (self.good[before] | alone_after) & (self.good[after] | alone_before)
        near = (between <= GAP * self.period) | alone_before | alone_after
        inside = (at > self.times[0] - self.period) & (at < self.times[-1] + self.period)
        return Alignment(before + fraction, reliable & near & inside)
