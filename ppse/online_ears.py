"""What is heard of a recording that goes on: by ears that hear its last frames anew in every block, or by ears that remember."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .models.causal_listener import CONTEXT, CausalListener, running_mean
from .models.encoders import CleanedEncoder, Heard, NoisyEncoder, log_power

EAR = 24
"""Frames that an encoder without memory hears at once, beside the average of the context; more of them cost time and bring nothing."""


class Ears(Protocol):
    """Hear the end of a recording. Not random.

    Args:
        x: the last frames of it (T, F), of unit level.
        new: how many of them are new.
        observed: which are not muted, (T, 1).
        change: by what powers in the units of the call before are to be multiplied, as the level is another now.

    Returns:
        what is heard in the last frames, as many as may still be of interest, or in all.
    """

    def __call__(self, x: Tensor, new: int, observed: Tensor, change: float) -> Heard: ...


def forgetful(encoder: NoisyEncoder | CleanedEncoder) -> Ears:
    """Ears of a listener that goes both ways: it hears the last :data:`EAR` frames, and is told what is steady in all of x."""

    def hear(x: Tensor, new: int, observed: Tensor, change: float) -> Heard:
        return encoder.hear(x[-EAR:], observed[-EAR:], encoder.steady(x, observed))

    return hear


class Remembering:
    """Ears of a :class:`ppse.models.causal_listener.CausalListener`, which hears every frame once and keeps what it makes of it.

    Args:
        listener: whose memory is carried on.
        window: frames of interest.
    """

    def __init__(self, listener: CausalListener, window: int) -> None:
        self._listener, self._window = listener, window
        self._state: Tensor | None = None
        self._features = self._means = self._memory = self._units = torch.zeros(0)

    def __call__(self, x: Tensor, new: int, observed: Tensor, change: float) -> Heard:
        """See :class:`Ears`."""
        if self._state is None:
            new = min(len(x), self._window)
        features, seen = log_power(x[-new:]), observed[-new:]
        # A muted frame says nothing: in its place there is what usually is.
        usual = features[seen.flatten()].mean(0, keepdim=True) if self._state is None else self._means[-1:]
        features = torch.where(seen, features, usual)
        self._features = _behind(self._features, features)[-(CONTEXT - 1 + new) :]
        means = running_mean(self._features, CONTEXT)[-new:]
        memory, self._state = self._listener.remember(features.unsqueeze(0), means.unsqueeze(0), self._state)
        self._memory, self._means = (_behind(*parts)[-self._window :] for parts in ((self._memory, memory.squeeze(0)), (self._means, means)))
        self._units = _behind(self._units * change, torch.ones(new, 1))[-self._window :]  # every frame was heard in the units of its time
        heard = self._listener.tell(self._memory, self._means)
        return heard._replace(noise=heard.noise * self._units)


def _behind(kept: Tensor, new: Tensor) -> Tensor:
    return torch.cat([kept, new]) if len(kept) else new
