"""Several encoders of one latent, each frame listening most to the one that serves it best."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import MixtureOfDiagNormals
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ..mixture import utterances


class EncoderMixture(PyroModule):
    """q(z_t | x) = sum_k w_tk q_k(z_t | x), the q_k laws that encoders return: a guide, of the same signature as :class:`ppse.Mixture`.

    The weights are learnt by what fits the guide, e.g. :func:`ppse.infer.fit`, with pathwise gradients through the draws of the mixture;
    so are the encoders, unless they are frozen. With an encoder of sound and one of lips it is the encoder of MIN-VAE.

    Args:
        site: of the latents, a vector in every frame, e.g. "speech.z".
        encoders: called as those of :class:`ppse.guides.EncoderGuide`; laws are Normal, of shape (…, T, L).
        weights: w at first, (K,); equal unless given.
        per_frame: whether every frame of the recording has weights of its own, which :meth:`start` makes; else all share them.

    Raises:
        ValueError: for fewer than two encoders, or weights that are not as many positive numbers.

    References:
        Sadeghi & Alameda-Pineda (2021), Mixture of inference networks for VAE-based audio-visual speech enhancement. There the weights
        are those of training; here those of a recording, too.
    """

    weights: Tensor

    def __init__(self, site: str, encoders: Sequence[nn.Module], weights: Sequence[float] | None = None, *, per_frame: bool = True) -> None:
        super().__init__()
        count = len(encoders)
        given = torch.full((count,), 1 / max(1, count)) if weights is None else torch.tensor(list(weights))
        if count < 2 or given.shape != (count,) or not (given > 0).all():
            raise ValueError(f"EncoderMixture: {count} encoders with weights {given.tolist()}; expected two or more, and as many positive numbers")
        self.site, self.per_frame = site, per_frame
        for i, encoder in enumerate(encoders):
            setattr(self, f"encoder{i}", encoder)
        self.given = given / given.sum()
        self._set(self.given)

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Weights for the frames of a recording (T, F), or batch (B, 1, T, F), each at those given."""
        if self.per_frame:
            self._set(self.given.to(x.real).expand(*x.shape[:-1], -1))

    def _set(self, weights: Tensor) -> None:
        self.weights = PyroParam(weights.clone(), constraints.simplex)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Draw the latents; (…, T, L).

        Raises:
            RuntimeError: when the weights are of another number of frames.
        """
        given = (x,) if observed is None else (torch.where(observed, x, torch.zeros_like(x)), observed)
        laws = [encoder(*given) for name, encoder in self._modules.items() if encoder is not None]  # not getattr, see EncoderGuide
        locs, scales = (torch.stack(torch.broadcast_tensors(*moments), -2) for moments in zip(*((q.mean, q.stddev) for q in laws), strict=True))
        with utterances(x), pyro.plate("frames", x.shape[-2], dim=-1):
            logits = self.weights.log().expand(*locs.shape[:-2], -1) if self.weights.dim() == 1 else self.weights.log()
            if logits.shape[-2] != x.shape[-2]:
                raise RuntimeError(f"EncoderMixture: weights of {logits.shape[-2]} frames, x has {x.shape[-2]}; call start(x) with this recording")
            drawn: Tensor = pyro.sample(self.site, MixtureOfDiagNormals(locs, scales, logits))
        return drawn
