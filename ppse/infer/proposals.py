"""Draws of a guide with what they weigh: the log densities of model and guide, per independent block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .blocks import is_random
from .density import CHAINS_DIM, Position, by_dim, is_latent, log_density
from .run import Draws, Proposal


class Proposals:
    """Draws of a guide under a plate of chains, with log p and log q of every block, differentiable.

    The blocks are those of the model (:func:`ppse.infer.log_density`) in which the guide draws independently too, by its plates: a guide
    that couples frames which the model leaves independent has whole recordings as blocks.

    Args:
        model, guide, args: same signature.
        chains: how many draws side by side.

    Attributes:
        shape: of the log densities, (…, chains, frames), 1 where a plate is summed.
        blocks: the plate of each of these dims; "" where it is summed.
        plates: latent site → the plate of each batch dim of its draws.

    Raises:
        ValueError: when the guide does not draw every latent of the model.
    """

    def __init__(self, model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], chains: int) -> None:
        self.model, self.guide, self.args, self._chains = model, guide, args, chains
        with torch.no_grad():
            guide(*args)  # automatic guides make their parameters on the first call
            target = log_density(model, *args, chains=chains)
            proposed, graph = self._traces()
        latent = {name: site for name, site in graph.nodes.items() if is_latent(site)}
        missing = sorted(set(latent) - set(proposed.nodes))
        if missing:
            raise ValueError(f"guide: it does not draw the latents {missing} of the model, which would then come from the prior; add them to it")
        own = [{frame.name for frame in site["cond_indep_stack"]} for site in proposed.nodes.values() if is_random(site)]
        target.set_block(set(target.block).intersection(*own))
        self.shape = target.shape
        self.blocks = target.blocks
        self.plates = {name: by_dim(target.plates[name], site["value"].dim() - site["fn"].event_dim) for name, site in latent.items()}

    def __call__(self) -> tuple[Position, Proposal]:
        """Values of the latents, (…, chains, frames, …), and their log densities. Random from the global generator."""
        proposed, graph = self._traces()
        values = {name: proposed.nodes[name]["value"] for name in self.plates}
        return values, Proposal(self._per_block(graph), self._per_block(proposed))

    def _traces(self) -> tuple[Any, Any]:
        with pyro.plate("chains", self._chains, dim=CHAINS_DIM):
            proposed: Any = poutine.trace(self.guide).get_trace(*self.args)
            graph: Any = poutine.trace(poutine.replay(self.model, trace=proposed)).get_trace(*self.args)
        return proposed, graph

    def _per_block(self, trace: Any) -> Tensor:
        """Sum of the log densities of all sites; what all blocks share (a constant, by the choice of blocks) is spread evenly."""
        trace.compute_log_prob()
        total: Tensor | float = 0.0
        for site in trace.nodes.values():
            if not is_random(site):
                continue
            value = site["log_prob"].reshape((1,) * (len(self.shape) - site["log_prob"].dim()) + site["log_prob"].shape)
            summed = [d for d in range(-len(self.shape), 0) if self.shape[d] == 1 and value.shape[d] > 1]
            value = value.sum(summed, keepdim=True) if summed else value
            shares = math.prod(n for d, n in enumerate(self.shape, -len(self.shape)) if d != CHAINS_DIM and value.shape[d] == 1)
            total = total + value / shares
        return torch.as_tensor(total).expand(self.shape)


def guide_draws(model: Callable[..., Any], guide: Callable[..., Any], *args: Any, num_samples: int = 1000, chains: int = 1) -> Draws:
    """Independent draws of a fitted guide, with their log densities, as an MCMC run gives them. Random from the global generator.

    The stats are a :class:`Proposal` per block: those of the model, as far as the guide draws them independently too (by the plates
    that it declares). log_density - log_proposal is the log importance weight, of x and z together.

    Args:
        model, guide: same signature; called with ``args``.
        num_samples: draws per chain.
        chains: draws made side by side, each a chain of its own in the result: faster for small models.

    Raises:
        ValueError: when a number is below 1, or the guide does not draw every latent; the message names the site.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))
    >>> def guide():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         pyro.sample("z", dist.Normal(0.5, 0.5**0.5))
    >>> draws = guide_draws(model, guide, num_samples=5, chains=2)
    >>> tuple(draws.values["z"].shape), draws.plates["z"], draws.blocks
    ((5, 2, 3), ('chains', 'frames'), ('chains', 'frames'))
    """
    if num_samples < 1 or chains < 1:
        raise ValueError(f"guide_draws: num_samples={num_samples}, chains={chains}; expected 1 or more")
    propose = Proposals(model, guide, args, chains)
    with torch.no_grad():
        kept, stats = zip(*(propose() for _ in range(num_samples)), strict=True)
    values = {name: torch.stack([values[name] for values in kept]) for name in propose.plates}
    return Draws(values, Proposal(*(torch.stack(field) for field in zip(*stats, strict=True))), None, propose.plates, propose.blocks)
