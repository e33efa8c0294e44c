"""How far frames reach into one another: read off the density by its slopes, and checked by moving single frames."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import BlockError
from .density import LogDensity

FRAMES = "frames"
"""The plate of frames, in dim -1 by the axis law."""

PROBES = 8
"""Frames that are looked at one by one, both ends among them."""

LARGEST = 64
"""Frames that a term may reach in all, before and after its own. What reaches further counts as reaching everything: to check it would cost
more than windows side by side bring, and recurrent networks forget so slowly that their reach is a matter of rounding."""


class ReceptiveField(NamedTuple):
    """The term of frame t depends on the latents of frames t - before … t + after.

    A Gaussian chain with a frame decoder has (1, 0), independent frames (0, 0); a recurrent decoder reaches all frames.
    """

    before: int
    after: int


def receptive_field(target: LogDensity) -> ReceptiveField:
    """How many frames before and after its own the log density of a frame depends on, with the parameters as they are.

    The slopes of the terms of some frames, those at both ends among them, tell it: a frame is out of reach when they are exactly 0. Then
    it is checked for all frames, by random weights on the terms of frames so far apart that their reaches do not touch, and by moving
    frames one by one, for what has no slope. When the check fails, and for a reach above :data:`LARGEST`, all frames count as in
    reach, which is always safe.

    Cost: one evaluation with 2 (before + after) + 10 backward passes, and 9 evaluations. Random: a position from the prior.

    Raises:
        BlockError: when a latent lies outside of the frames; the message names it.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import log_density
    >>> def moving_average():
    ...     with pyro.plate("frames", 9, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z + 0.5 * z.roll(1, -1) * (torch.arange(9) > 0), 1.0), obs=torch.ones(9))
    >>> receptive_field(log_density(moving_average, block=()))
    ReceptiveField(before=1, after=0)
    """
    terms = frame_terms(target)
    count = terms.shape[-1]
    leaves = {name: value.requires_grad_() for name, value in terms.init().items()}
    with torch.enable_grad():
        value = terms(leaves)
    ahead = behind = 0
    probes = sorted({round(i * (count - 1) / (PROBES - 1)) for i in range(PROBES)})
    for t in probes:
        felt = _slopes(terms, value, leaves, torch.arange(count, device=value.device) == t).any(0).nonzero().flatten().tolist()
        behind, ahead = max([behind, *(t - u for u in felt)]), max([ahead, *(u - t for u in felt)])
    field = ReceptiveField(behind, ahead)
    if sum(field) <= LARGEST and _holds_by_slopes(terms, value, leaves, field) and _holds_by_moves(terms, leaves, field, probes):
        return field
    return ReceptiveField(count - 1, count - 1)


def frame_terms(target: LogDensity) -> LogDensity:
    """The density with a value for every frame, (…, chains, frames), whether or not the frames are independent; so no density for kernels.

    Terms outside of the frames are in every frame.

    Raises:
        BlockError: when a latent lies outside of the frames; the message names it.
    """
    for name, plates in target.plates.items():
        if plates.get(FRAMES) != -1:
            raise BlockError(
                f"windows: site '{name}' is outside of the plate '{FRAMES}' (dim -1), so no frames of it can move alone. Give it a group "
                f"of its own in gibbs, and name the sites that lie in the frames, e.g. frame_windows(target, 8, sites=('z',))"
            )
    terms = copy.copy(target)
    shared = set.intersection(*(set(plates) for plates in target.plates.values()))
    terms.set_block({FRAMES} | ({"utterances"} & shared))
    return terms


def _slopes(terms: LogDensity, value: Tensor, leaves: dict[str, Tensor], weight: Tensor) -> Tensor:
    """Gradient of the weighted sum of the terms, (coordinates, frames)."""
    if not value.requires_grad:
        return value.new_zeros(1, value.shape[-1])
    grads = torch.autograd.grad((value * weight).sum(), list(leaves.values()), retain_graph=True, materialize_grads=True)
    return torch.cat([g.movedim(-1 - terms.event_dim(name), -1).flatten(0, -2) for name, g in zip(leaves, grads, strict=True)])


def _holds_by_slopes(terms: LogDensity, value: Tensor, leaves: dict[str, Tensor], field: ReceptiveField) -> bool:
    """Terms so far apart that each latent feels one of them at most: weights on the terms must come back as weights on the slopes."""
    count, spacing = value.shape[-1], sum(field) + 1
    if spacing >= count:
        return True
    index = torch.arange(count, device=value.device)
    for first in range(spacing):
        chosen = index % spacing == first
        # The term that reaches frame u is the chosen one in u - after … u + before; near the ends there may be none.
        owner = index - field.after + (first - index + field.after) % spacing
        weight = 0.5 + torch.rand(count, dtype=value.dtype, device=value.device)
        expected = torch.where((owner >= 0) & (owner < count), weight[owner.clamp(0, count - 1)], 0.0)
        plain, weighted = _slopes(terms, value, leaves, chosen), _slopes(terms, value, leaves, chosen * weight)
        tolerance = 1e3 * torch.finfo(plain.dtype).eps * plain.abs().max()
        if not bool(((weighted - expected * plain).abs() <= tolerance).all()):  # so NaN does not pass
            return False
    return True


def _holds_by_moves(terms: LogDensity, leaves: dict[str, Tensor], field: ReceptiveField, probes: list[int]) -> bool:
    """What has no slope, such as a threshold on a latent far away, shows when that one moves."""
    with torch.no_grad():
        before = terms(leaves)
        index = torch.arange(before.shape[-1], device=before.device)
        for u in probes:
            there = (index == u).expand(before.shape)
            moved = {k: torch.where(terms.spread(there, k), v + torch.randn_like(v), v) for k, v in leaves.items()}
            change = (terms(moved) - before).abs()
            quiet = (index < u - field.after) | (index > u + field.before)
            if not bool((change <= 1e-3 * before.abs().clamp_min(1.0))[..., quiet].all()):
                return False
    return True
