"""Knowledge of what a source is in some bins: clean speech is a variable that is sometimes observed."""

from __future__ import annotations

import pyro
import torch
from torch import Tensor
from torch.nn.functional import threshold

from ..distributions import ComplexNormal
from ..mixture import VARIANCE_FLOOR, Frames, Source, Updatable, masked
from ._wrapper import Wrapper
from .heard_speech import HeardSpeech


class PartiallyObserved(Wrapper):
    """Another source s, known in some bins: p(s_known | z) is scored, and there the law is the known value; elsewhere it stays as it was.

    In a mixture x = s + n the graph then is log p(s_known | z) + log p(x - s_known | n) where s is known, and the usual
    CN(0, v_s + v_n) where not: the noise is fitted to what is left of x, latents hear the clean bins, and what is unknown stays
    integrated out. All bins known is training on clean speech, none is the source itself.

    Sites: those of the source, and ``clean``, which is observed.

    Args:
        source: any source, e.g. ``PartiallyObserved(VAESpeech.pretrained(), clean, known)``.
        clean: STFT of the source at the level of the recording, (T, F), or (B, 1, T, F) for a batch; its bins that are not known are
            not read. Zeros say that the source is silent.
        known: boolean, which bins are known; with ``clean`` it broadcasts to (…, T, F), so that (T, 1) are frames, (F,) a band of all
            frames, and (B, 1, 1, 1) whole utterances.

    Raises:
        ValueError: when ``clean`` is not complex, or not finite where known, ``known`` is not boolean, or the shapes do not fit; when the
            model runs on a recording that has another number of frames.

    References:
        Kingma, Rezende, Mohamed & Welling (2014), Semi-supervised learning with deep generative models (a variable that is sometimes
        observed, under one objective).
    """

    parts: Tensor
    known: Tensor
    before: Tensor | None

    def __init__(self, source: Source, clean: Tensor, known: Tensor) -> None:
        super().__init__(source)
        shapes = f"clean is {clean.dtype} {tuple(clean.shape)}, known {known.dtype} {tuple(known.shape)}"
        try:
            shape = torch.broadcast_shapes(clean.shape, known.shape)
        except RuntimeError:
            shape = torch.Size()
        if not clean.is_complex() or known.dtype != torch.bool or not (len(shape) == 2 or (len(shape) == 4 and shape[1] == 1)):
            raise ValueError(f"PartiallyObserved: {shapes}; expected a complex and a boolean tensor that broadcast to (T, F) or (B, 1, T, F)")
        clean = torch.where(known, clean, torch.zeros_like(clean))
        if not torch.view_as_real(clean).isfinite().all():
            raise ValueError("PartiallyObserved: clean is NaN or infinite in bins that are known; expected finite numbers, or leave them unknown")
        # As real numbers: a module that changes its precision casts complex buffers to real ones.
        self.register_buffer("parts", torch.view_as_real(clean))
        self.register_buffer("known", known)
        self.register_buffer("before", None, persistent=False)  # variance of the source itself in the last run, for its M-step

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Starts the wrapped source on its own value where that is known, and on the recording elsewhere; ears hear all of the recording."""
        super().start(*self._told(x, observed))

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """The wrapped source goes on with the next stretch of the recording, of which ``clean`` and ``known`` must be."""
        super().follow(*self._told(x, observed))

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the source, (…, T, F): mean ``clean`` and variance 0 where it is known."""
        law: ComplexNormal = self.source(frames)
        clean, known = self._aligned(law.var, frames.size)
        scored = ComplexNormal(law.centre, threshold(law.var, VARIANCE_FLOOR, VARIANCE_FLOOR), validate_args=False)
        whole = torch.broadcast_shapes(clean.shape, known.shape, law.var.shape[-2:])
        scored = scored.expand(torch.broadcast_shapes(law.var.shape, whole))
        with frames:
            pyro.sample("clean", masked(scored, known), obs=clean.expand(whole), infer={"counted": known})
        if isinstance(self.source, Updatable):
            self.before = law.var.detach()
        return ComplexNormal(torch.where(known, clean, law.loc), torch.where(known, torch.zeros_like(law.var), law.var))

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """The M-step of the wrapped source, told by its known bins too; returns the new variance, 0 there. See :meth:`NMFNoise.update`."""
        if not isinstance(self.source, Updatable):
            return own
        assert self.before is not None, "the model runs before its M-step"
        clean, known = self._aligned(own, own.shape[-2])
        power = torch.where(known, torch.view_as_real(clean).square().sum(-1), power)
        # With the floor of the scored law, and no other source.
        others = torch.where(known, (VARIANCE_FLOOR - self.before).clamp_min(0), others)
        told = None if observed is None else observed | known
        self.before = self.source.update(power, torch.where(known, self.before, own), others, told)
        return torch.where(known, torch.zeros_like(self.before), self.before)

    def _told(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The recording with the source itself where it is known, and the bins that count."""
        if x.shape[-2] != self._n_frames:
            return x, observed  # a source can be started on any recording; that this one has other frames is told when the model runs
        if isinstance(self.source, HeardSpeech):
            return x, observed  # ears hear the recording, of which those parts tell most that are noise alone
        clean, known = self._aligned(x, x.shape[-2])
        return torch.where(known, clean.to(x.dtype), x), None if observed is None else (observed | known).expand(x.shape)

    @property
    def _n_frames(self) -> int:
        return torch.broadcast_shapes(self.parts.shape[:-1], self.known.shape)[-2]

    def _aligned(self, like: Tensor, n_frames: int) -> tuple[Tensor, Tensor]:
        """``clean`` and ``known`` for a tensor (…, T, F): of a batch that holds every recording several times, side by side, too."""
        if self._n_frames != n_frames:
            raise ValueError(
                f"PartiallyObserved: clean and known have {self._n_frames} frames, and the recording, or this window of it, has {n_frames}; give "
                f"one of every frame (STFT().analysis of as many samples), and infer in one window (enhance(…, window=…))"
            )
        clean, known = torch.view_as_complex(self.parts), self.known
        rows = max((len(v) for v in (clean, known) if v.dim() == 4), default=1)
        if like.dim() == 4 and rows > 1 and len(like) != rows:
            if len(like) % rows:
                raise ValueError(f"PartiallyObserved: clean and known are of {rows} utterances, the batch has {len(like)}; expected as many")
            copies = len(like) // rows
            clean, known = (v.repeat_interleave(copies, 0) if v.dim() == 4 and len(v) > 1 else v for v in (clean, known))
        return clean, known
