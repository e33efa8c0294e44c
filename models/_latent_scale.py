"""What the sources with a random scale share: another source, its variance times a latent of every frame or bin."""

from __future__ import annotations

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ..mixture import Updatable
from ._wrapper import Wrapper


class LatentScale(Wrapper):
    """Base of the wrappers n_tf ~ CN(m_tf, u v_tf): the source that is wrapped gives m and v, and the forward of the wrapper draws u > 0.

    Args:
        source: a source without latents of its own; it keeps its parameters, start, follow and M-step.
    """

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        """The M-step of the wrapped source under draws of the scale; returns the new variance. See :meth:`NMFNoise.update`.

        Divided by the scale of each draw, power and variances are those of a mixture with the wrapped source itself.

        Raises:
            ValueError: when the wrapped source has latents, as then its variance under the draws cannot be told from the scales.
        """
        if not isinstance(self.source, Updatable):
            return own
        with poutine.block(), torch.no_grad():
            traced = poutine.trace(self.source)
            var = traced(pyro.plate("frames", own.shape[-2], dim=-1)).var
        drawn = [name for name, site in traced.trace.nodes.items() if site["type"] == "sample" and not site_is_subsample(site)]
        if drawn:
            raise ValueError(
                f"{type(self).__name__}: the wrapped {type(self.source).__name__} has latents of its own, {drawn}, so its M-step cannot be "
                f"done through the scale; wrap the other way round, or the noise alone"
            )
        scale = own / var
        return scale * self.source.update(power / scale, var.expand(own.shape), others / scale, observed)
