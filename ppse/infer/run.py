"""The MCMC loop: run a kernel, keep the draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .density import LogDensity, Position, by_dim
from .kernels import Info, Kernel, State, combined


class Proposal(NamedTuple):
    """What is known of draws of a guide, per block: log density of model and guide at them; their difference is the log importance weight."""

    log_density: Tensor
    log_proposal: Tensor


class Draws(NamedTuple):
    """What a run kept.

    Attributes:
        values: site → constrained draws (draw, …, chain, …): a leading draw dim before the shape of the site.
        stats: the Info of every kept step, each field (draw, …, chain, frame) or None; or the Proposal of a guide; or None.
        state: where the chains stand, to go on from; None for draws of a guide, which have no chains.
        plates: site → the plate of each of its batch dims, between the leading draw dim and the event dims; "" where it is in none.
        blocks: the plate of each dim of the stats after the draw dim; "" where a plate is summed.
    """

    values: dict[str, Tensor]
    stats: Info | Proposal | None
    state: State | None
    plates: dict[str, tuple[str, ...]]
    blocks: tuple[str, ...]

    @property
    def chains(self) -> int:
        """How many chains there are."""
        name, plates = next(iter(self.plates.items()))
        return self.values[name].shape[1 + plates.index("chains")]


def sample(
    target: LogDensity, kernel: Kernel, start: Position | State, num_samples: int, *, warmup: int = 0, thin: int = 1,
    callback: Callable[[int, State, Info], None] | None = None,
) -> Draws:
    """Run a kernel and keep every ``thin``-th state after ``warmup`` steps. Random from the global generator.

    Args:
        target: density that the kernel was made for.
        start: a position (see :meth:`LogDensity.init`), or the state of an earlier run.
        num_samples: draws to keep, per chain.
        callback: called with (step, state, info) after every step.

    Raises:
        ValueError: when a number is not positive.
    """
    if num_samples < 1 or warmup < 0 or thin < 1:
        raise ValueError(f"sample: num_samples={num_samples}, warmup={warmup}, thin={thin}; expected >= 1, >= 0, >= 1")
    state = start if isinstance(start, State) else kernel.init(start)
    kept: list[Position] = []
    stats: list[Info] = []
    for step in range(warmup + num_samples * thin):
        state, info = kernel.step(state)
        if step >= warmup and (step - warmup + 1) % thin == 0:
            kept.append(target.constrain(state.position))
            stats.append(info)
        if callback:
            callback(step, state, info)
    return collected(target, {name: torch.stack([position[name] for position in kept]) for name in target.sites}, stats, state)


def collected(target: LogDensity, values: dict[str, Tensor], stats: Sequence[Info], state: State) -> Draws:
    """Draws from constrained values, each with a leading draw dim, the info of every draw, and the last state."""
    depths = {name: state.position[name].dim() - target.event_dim(name) for name in target.sites}
    plates = {name: by_dim(target.plates[name], depth) for name, depth in depths.items()}
    return Draws(values, combined(stats, torch.stack), state, plates, target.blocks)
