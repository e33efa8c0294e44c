"""Guides that draw several latents together: their unconstrained values side by side, in one vector per member of some plates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from .mean_field import MeanField
from .sites import LatentSite, Plate, Plates, Start, latent_sites

Law = Callable[[Tensor, Tensor], nn.Module]
"""Mean and standard deviation (…, D) of the vectors at the start → module that returns their law: batch shape (…), event (D,)."""


class Joint(PyroModule):
    """Draws the unconstrained values of some latents as vectors, one for each member of the plates kept, of all else together.

    The vector is the auxiliary site ``joint``; those latents are functions of it. For z (T, L) and u (T,), L + 1 numbers for each
    frame with the plate "frames" kept, or T (L + 1) numbers without. Other latents have the mean-field law.

    Args:
        sites: all latents of the model, in its order.
        together: those that the vector holds, at least one.
        law: of the vectors.
        keep: names of the plates kept; the sites of the vector lie in them.
        start, scale: as in :func:`ppse.guides.mean_field`.
    """

    def __init__(
        self, sites: list[LatentSite], together: Callable[[LatentSite], bool], law: Law, keep: set[str], start: Start | None, scale: float,
    ) -> None:
        super().__init__()
        self.sites = sites
        self.vector = [site for site in sites if together(site)]
        self.kept = tuple(plate for plate in self.vector[0].plates if plate.name in keep)
        starts = [[self._flat(site, value) for value in site.start(start, scale)] for site in self.vector]
        self.law = law(*(torch.cat(parts, -1) for parts in zip(*starts, strict=True)))
        self.rest = MeanField([site for site in sites if not together(site)], start, scale)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent, in its own support; shapes as in the model."""
        inside = Plates()
        with inside(self.kept):
            vector = pyro.sample("joint", self.law(), infer={"is_auxiliary": True})
        sizes = [math.prod(plate.size for plate in self._folded(site)) * site.event.numel() for site in self.vector]
        parts = {site.name: part for site, part in zip(self.vector, vector.split(sizes, -1), strict=True)}
        rest = {site.name: i for i, site in enumerate(self.rest.sites)}
        # In the order of the model, on which TraceMeanField_ELBO insists.
        return {
            site.name: self._placed(site, parts[site.name], inside) if site.name in parts else self.rest.draw(rest[site.name], inside)
            for site in self.sites
        }

    def _placed(self, site: LatentSite, part: Tensor, inside: Plates) -> Tensor:
        """Declare a latent at its part of the vector."""
        free = self._unflat(site, part)
        value = site.transform(free)
        n_batch = free.dim() - len(site.event)
        with inside(site.plates):
            value = pyro.sample(site.name, dist.Delta(value, event_dim=value.dim() - n_batch))
            if site.constrained:
                # A site of its own, as TraceMeanField_ELBO does not look at the log_density of a Delta.
                slope = site.transform.log_abs_det_jacobian(free, value)
                inner = tuple(range(n_batch, slope.dim()))
                shrinkage = dist.Unit(-slope.sum(inner) if inner else -slope, has_rsample=True)
                pyro.sample(f"{site.name}_jacobian", shrinkage, infer={"is_auxiliary": True})
        return value

    def _folded(self, site: LatentSite) -> list[Plate]:
        """The plates of a site that are in the vector."""
        return [plate for plate in site.plates if plate not in self.kept]

    def _flat(self, site: LatentSite, value: Tensor) -> Tensor:
        """(plates, event) → (plates kept, size), with 1 or nothing for the others."""
        value = self._swapped(site, value.reshape((*site.batch, *(1 for _ in self._folded(site)), *site.event)))
        depth = max((-plate.dim for plate in self.kept), default=0)
        return value.reshape((*value.shape[len(site.batch) - depth : len(site.batch)], -1))

    def _unflat(self, site: LatentSite, vector: Tensor) -> Tensor:
        """The way back; plates from outside (chains) are where they are in the vector."""
        lead = (1,) * (len(site.batch) - vector.dim() + 1) + tuple(vector.shape[:-1])
        value = self._swapped(site, vector.reshape((*lead, *(plate.size for plate in self._folded(site)), *site.event)))
        return value.reshape((*value.shape[: len(lead)], *site.event))

    def _swapped(self, site: LatentSite, value: Tensor) -> Tensor:
        """Plate dims, slots for the folded plates, event dims: each folded plate changes places with its slot."""
        folded = self._folded(site)
        inner = len(folded) + len(site.event)
        for slot, plate in enumerate(folded):
            value = value.transpose(plate.dim - inner, slot - inner)
        return value


def joint_in_frames(model: Callable[..., Any], args: tuple[Any, ...], law: Law, start: Start | None, scale: float) -> Joint:
    """The latents of every frame together, independent of other frames; latents that frames share have the mean-field law.

    Raises:
        ValueError: when no latent lies in the plate "frames".
    """
    sites = latent_sites(model, args, start)
    within = [site for site in sites if _in_frames(site)]
    if not within:
        raise ValueError(f"guide: none of the latents {[site.name for site in sites]} lies in the plate 'frames'; use mean_field or low_rank")
    return Joint(sites, _in_frames, law, common_plates(within), start, scale)


def _in_frames(site: LatentSite) -> bool:
    return any(plate.name == "frames" for plate in site.plates)


def common_plates(sites: list[LatentSite]) -> set[str]:
    """Names of the plates in which all the sites lie."""
    return set.intersection(*({plate.name for plate in site.plates} for site in sites))
