"""The level of a recording that goes on: what is known of it so far."""

from __future__ import annotations

import torch
from torch import Tensor

from .stft import active_mean


class RunningLevel:
    """:func:`ppse.stft.active_mean` over the last frames. Not random.

    Args:
        frames: how many.

    Attributes:
        scale: square root of the level; 1 until something was heard. In silence it stays as it was.
    """

    def __init__(self, frames: int) -> None:
        self._frames, self._powers = frames, torch.zeros(0)
        self.scale = 1.0

    def __call__(self, power: Tensor) -> float:
        """Note the power of the next frames (T,); returns by what powers at unit level are to be multiplied, as the unit is another now."""
        self._powers = torch.cat([self._powers, power])[-self._frames :]
        before = self.scale
        if self._powers.any():
            self.scale = float(active_mean(self._powers).sqrt())
        return (before / self.scale) ** 2
