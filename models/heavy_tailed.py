"""Noise with heavy tails, such as clicks: Student-t as a scale mixture of Gaussians."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist

from ..distributions import ComplexNormal
from ..mixture import Frames, Source
from ._latent_scale import LatentScale


class HeavyTailed(LatentScale):
    """Student-t noise around another source: u ~ InverseGamma(dof / 2, dof / 2), n_tf | u ~ CN(m_tf, u v_tf).

    Site: ``scale``, the u of every frame, or (T, F), of every bin. With u integrated out a frame (or bin) of D complex values has the
    density Gamma(a + D) / (Gamma(a) a^D pi^D prod v) (1 + sum |n - m|^2 / (a v))^-(a + D), a = dof / 2.

    A scale per frame is for clicks and bursts that fill all frequencies, a scale per bin for outliers one by one.

    Args:
        source: the Gaussian noise without the tails, e.g. ``HeavyTailed(StationaryNoise())``; it has no latents of its own.
        dof: degrees of freedom; 1 is a Cauchy law, infinity the source itself. The variance is finite above 2.
        per_bin: draw a scale for every bin, not one for every frame.

    Raises:
        ValueError: when ``dof`` is not a positive number; when a scale per bin is wanted from a source that gives only one
            frequency for all.

    References:
        Yoshii, Itoyama & Goto (2016), Student's t nonnegative matrix factorization and positive semidefinite tensor
        factorization for single-channel audio source separation.
    """

    def __init__(self, source: Source, dof: float = 4.0, per_bin: bool = False) -> None:
        super().__init__(source)
        if not 0 < dof < math.inf:
            raise ValueError(f"HeavyTailed: dof={dof}; expected degrees of freedom above 0 and finite (for Gaussian noise leave the wrapper out)")
        self.dof, self.per_bin = dof, per_bin

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise given the scales, (…, T, F). The mean is not scaled."""
        law: ComplexNormal = self.source(frames)
        if self.per_bin and law.var.shape[-1] == 1:
            raise ValueError("HeavyTailed: the source gives one variance for all frequencies; expand it to (…, T, F) to have a scale per bin")
        half = law.var.new_full((law.var.shape[-1],) if self.per_bin else (1,), self.dof / 2)
        with frames:
            scale = pyro.sample("scale", dist.InverseGamma(half, half).to_event(1))
        return ComplexNormal(law.centre, scale * law.var)
