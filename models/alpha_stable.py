"""Noise with tails so heavy that it has no variance: alpha-stable, as a scale mixture of Gaussians."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..distributions import ComplexNormal
from ..mixture import Frames, Source
from ._latent_scale import LatentScale


class AlphaStable(LatentScale):
    """Isotropic complex alpha-stable noise around another source: n_tf | u ~ CN(m_tf, u v_tf), u positive (alpha / 2)-stable.

    Sites: ``angle``, uniform on (0, 1), and ``exponential``, one of each in every frame, or (T, F), in every bin. A stable law has no density
    in closed form, but u is a function of these two, which have one: the graph is exact, and any kernel runs on it. With both
    integrated out E exp(i Re(conj(w) (n - m))) = exp(-(sum |w|^2 v / 4)^(alpha / 2)), and P(|n| > r) falls like r^-alpha.

    A scale per frame is for clicks and bursts that fill all frequencies, a scale per bin for outliers one by one.

    Args:
        source: the Gaussian noise without the tails, e.g. ``AlphaStable(StationaryNoise())``; it has no latents of its own.
        alpha: characteristic exponent, in (0, 2); 1 is the Cauchy law, 2 would be the source itself.
        per_bin: draw a scale for every bin, not one for every frame.

    Raises:
        ValueError: when ``alpha`` is out of range; when a scale per bin is wanted from a source that gives only one frequency for all.

    References:
        Kanter (1975), Stable densities under change of scale and total variation inequalities (the function of two variables).
        Leglaive et al. (2019), Speech enhancement with variational autoencoders and alpha-stable distributions.
    """

    def __init__(self, source: Source, alpha: float = 1.8, per_bin: bool = False) -> None:
        super().__init__(source)
        if not 0 < alpha < 2:
            raise ValueError(f"AlphaStable: alpha={alpha}; expected a characteristic exponent in (0, 2) (for Gaussian noise leave the wrapper out)")
        self.alpha, self.per_bin = alpha, per_bin

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise given the scales, (…, T, F). The mean is not scaled."""
        law: ComplexNormal = self.source(frames)
        if self.per_bin and law.var.shape[-1] == 1:
            raise ValueError("AlphaStable: the source gives one variance for all frequencies; expand it to (…, T, F) to have a scale per bin")
        one = law.var.new_ones(law.var.shape[-1] if self.per_bin else 1)
        with frames:
            angle = pyro.sample("angle", dist.Uniform(0 * one, one).to_event(1))
            exponential = pyro.sample("exponential", dist.Exponential(one).to_event(1))
        return ComplexNormal(law.centre, positive_stable(self.alpha / 2, angle, exponential) * law.var)


def positive_stable(index: float, angle: Tensor, exponential: Tensor) -> Tensor:
    """The positive stable variable u with E exp(-s u) = exp(-s^index), from a uniform one on (0, 1) and an exponential one of mean 1.

    With w = pi (1 - angle): u = sin(index w) / sin(w)^(1 / index) * (sin((1 - index) w) / exponential)^((1 - index) / index).

    Not :class:`pyro.infer.reparam.LatentStableReparam`, which has the same two variables: it adds a shift to u that is only then taken off,
    so that small scales round to 0 or below. In logarithms they keep their digits.

    Args:
        index: in (0, 1).
        angle, exponential: of any shapes that broadcast.
    """
    w = math.pi * (1 - angle)
    sine = (math.pi * torch.minimum(angle, 1 - angle)).sin()  # of w, exact at both ends
    odds = (1 - index) / index
    log_scale = (index * w).sin().log() - sine.log() / index + odds * (((1 - index) * w).sin().log() - exponential.log())
    largest = math.log(torch.finfo(w.dtype).max) / 2  # with room for a variance: infinity would be NaN in the Wiener gain
    return log_scale.clamp(-largest, largest).exp()
