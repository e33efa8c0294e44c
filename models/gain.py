"""A gain per frame on any source: the loudness of the recording against that of the training data."""

from __future__ import annotations

import torch
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from ..distributions import ComplexNormal
from ..mixture import Frames, Updatable, over_draws
from ._multiplicative import per_draw_averages, scaled
from ._wrapper import Wrapper


class FrameGain(Wrapper):
    """g_t times the variance of another source, a wrapper: s_tf ~ CN(sqrt(g_t) m_tf, g_t v_tf).

    Parameter of one recording, made by :meth:`start`: ``gain`` (T,), or (B, 1, T) in a batch; 1 at first.

    Args:
        source: the source whose loudness is unknown, e.g. ``FrameGain(VAESpeech.pretrained())``.

    References:
        Leglaive, Girin & Horaud (2018), A variance modeling framework based on variational autoencoders
        for speech enhancement.
    """

    gain: Tensor

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """All gains 1; starts the wrapped source too. Not random by itself."""
        super().start(x, observed)
        self._reset(x)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """All gains 1 for the next stretch of the recording."""
        super().follow(x, observed)
        self._reset(x)

    def _reset(self, x: Tensor) -> None:
        self.gain = PyroParam(torch.ones(x.shape[:-1], dtype=x.real.dtype, device=x.device), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the scaled source, (…, T, F)."""
        # Not hasattr: that reads the gain outside of the frames plate, where a handler such as lift would then see it.
        if "gain" not in self._pyro_params:
            raise RuntimeError("FrameGain: no recording yet; call model.start(x) (enhance does) before running the model")
        law = self.source(frames)
        with frames:
            gain = self.gain.unsqueeze(-1)
        return law.scaled(gain)

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """One multiplicative step on every gain, then the update of the wrapped source; returns the new variance.

        Divided by the gains, power and variances are those of a mixture with the wrapped source itself. Assumes that
        it has zero mean. See :meth:`NMFNoise.update`.
        """
        a, b = per_draw_averages(power, others + own, observed)
        raise_, lower = (over_draws(own * v).sum(-1) for v in (a, b))
        old = self.gain
        self.gain = scaled(old, raise_, lower)
        gain, own = self.gain.unsqueeze(-1), own * (self.gain / old).unsqueeze(-1)
        if isinstance(self.source, Updatable):
            own = gain * self.source.update(power / gain, own / gain, others / gain, observed)
        return own
