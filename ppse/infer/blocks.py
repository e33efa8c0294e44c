"""Which parts of a model may be accepted on their own: read off the graph, and checked by numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

if TYPE_CHECKING:
    from .density import LogDensity


class BlockError(ValueError):
    """The requested blocks are not independent in this model, so accepting them one by one would be wrong."""


def choose(target: LogDensity, wanted: Sequence[str] | None, verify: bool = True) -> None:
    """Set the blocks of a density: the wanted plates, or (None) the finest ones that the graph declares and that hold numerically.

    Wanted ones are taken at their word unless they are to be verified; the finest ones always are.

    Raises:
        BlockError: when they are not independent; the message names the site.
    """
    shared = set.intersection(*(set(plates) for plates in target.plates.values())) - {"chains"}
    utterances = {"utterances"} & shared
    for name in wanted or ():
        if name not in target.sizes:
            raise BlockError(f"log_density: block '{name}' is no plate of the model; its plates are {sorted(target.sizes)}")
        for site, plates in target.plates.items():
            if name not in plates:
                raise BlockError(
                    f"log_density: site '{site}' is outside of plate '{name}', so its members share it and cannot be "
                    f"accepted one by one. Use block=() or condition on '{site}'."
                )
    if wanted is not None:
        target.set_block(set(wanted) | utterances)
        if verify:
            _verify(target)
        return
    for candidate in (shared, utterances, set()):
        target.set_block(candidate)
        try:
            return _verify(target)
        except BlockError:
            continue
    raise BlockError("log_density: the chains of this model depend on one another; a site mixes the dims of its plates")


def is_random(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is a random variable, observed or not."""
    return bool(site["type"] == "sample" and not site_is_subsample(site))


def _verify(target: LogDensity) -> None:
    """Refuse blocks that the graph declares independent and that are not."""
    if target.shape.numel() == 1:  # all is one block
        return
    leaves = {name: value.requires_grad_() for name, value in target.init().items()}
    with torch.enable_grad():
        trace = target.trace(leaves)
    inside = set(target.block)
    for name, site in trace.nodes.items():
        if not is_random(site):
            continue
        plates = {frame.name for frame in site["cond_indep_stack"]}
        if not inside <= plates and site["log_prob"].requires_grad:
            missing = sorted(inside - plates)[0]
            raise BlockError(
                f"log_density: site '{name}' is outside of plate '{missing}' but depends on the latents; accepting "
                f"the members of '{missing}' one by one would be invalid. Use block=() or condition on '{name}'."
            )
    if _coupled(target, leaves):
        names = ", ".join(f"'{name}'" for name in target.sites)
        raise BlockError(
            f"log_density: moving {names} in one member of {list(target.block) or ['chains']} changes the density of "
            f"others, although the graph declares them independent (a recurrent decoder does this). Accepting them "
            f"one by one would be invalid. Use block=() to accept whole utterances."
        )


def _coupled(target: LogDensity, leaves: dict[str, Tensor]) -> bool:
    """Whether the value of a block depends on the latents of another: by slopes, and by moving every second block."""
    with torch.enable_grad():
        value = target(leaves)
        if value.requires_grad:
            # If every block feels its own latents alone, weights on the values come back as weights on the slopes.
            weight = 0.5 + torch.rand_like(value)
            keys, inputs = list(leaves), list(leaves.values())
            plain, weighted = (
                torch.autograd.grad(v.sum(), inputs, retain_graph=True, materialize_grads=True) for v in (value, weight * value)
            )
            for name, one, other in zip(keys, plain, weighted, strict=True):
                error = (other - target.spread(weight, name) * one).abs()
                if bool((error > 1e-4 * one.nan_to_num(posinf=0.0, neginf=0.0).abs().max()).any()):
                    return True
    # What has no slope, such as a threshold on a neighbour, shows when that one moves.
    with torch.no_grad():
        before = value.detach()
        index = torch.stack(torch.meshgrid(*(torch.arange(n, device=before.device) for n in target.shape), indexing="ij")).sum(0)
        for still in (index % 2 == 0, index % 2 == 1):
            moved = {k: torch.where(target.spread(still, k), v, v + torch.randn_like(v)) for k, v in leaves.items()}
            change = (target(moved) - before).abs()
            if bool((change > 1e-3 * before.abs().clamp_min(1.0))[still].any()):
                return True
    return False
