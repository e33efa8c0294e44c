"""The law of what is seen of a chain of discrete states, which is summed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from .infer.discrete import filtered, sample_path
from .models import MarkovChain

PLATES = 3
"""Dims of plates: utterances, chains, frames. Left of them lie the states."""


class HiddenMarkov(TorchDistribution):
    """What is seen of a chain: ``log_prob`` gives log p(x_t | x_<t) at the place of frame t, by the forward algorithm.

    Args:
        chain: law of the states, over T frames.
        emission: law of the frames in every state, batch shape (M, …, T).
        before: log-likelihoods (…, T, M) of what else has been seen of the chain; the law is that given it.
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self, chain: MarkovChain, emission: TorchDistribution, before: Tensor | None = None, batch_shape: torch.Size | None = None,
    ) -> None:
        self.chain, self.emission, self.before = chain, emission, before
        batch = _without_ones(emission.batch_shape[1:]) if batch_shape is None else batch_shape
        super().__init__(torch.Size(batch), emission.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.emission.support

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> HiddenMarkov:
        return HiddenMarkov(self.chain, self.emission, self.before, torch.Size(batch_shape))

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        shape = torch.Size((*sample_shape, *self.batch_shape))
        log_initial = self.chain.log_initial
        before = log_initial.new_zeros(self.chain.n_states) if self.before is None else self.before
        path = sample_path(log_initial, self.chain.log_transition, before.expand(*shape, self.chain.n_states))
        ones = (1,) * (len(self.emission.batch_shape) - 1 - len(shape))  # of the utterances, when there are none
        drawn: Tensor = self.emission.expand(torch.Size((self.chain.n_states, *ones, *shape))).sample()
        drawn = drawn.reshape(self.chain.n_states, *shape, *self.event_shape)
        index = path.reshape(1, *shape, *(1,) * self.event_dim).expand(1, *drawn.shape[1:])
        return drawn.gather(0, index).squeeze(0)

    def emissions(self, value: Tensor) -> Tensor:
        """Log-likelihoods of all that has been seen with the value, (…, T, M)."""
        of_value = _emissions(self.emission.log_prob(value), self.chain)
        return of_value if self.before is None else of_value + self.before

    def log_prob(self, value: Tensor) -> Tensor:
        numbers = self.chain.log_initial, self.chain.log_transition
        seen = filtered(*numbers, self.emissions(value))
        if self.before is not None:
            seen = seen - filtered(*numbers, self.before)
        frames = torch.cat([seen[..., :1], seen.diff(dim=-1)], -1)
        return frames.expand(torch.broadcast_shapes(frames.shape, self.batch_shape))


def _emissions(log_prob: Tensor, chain: MarkovChain) -> Tensor:
    """Log-likelihoods (M, …, T) as (…, T, M), without dims of size 1 in front."""
    moved = log_prob.expand(chain.n_states, *log_prob.shape[1:]).movedim(0, -1)
    return moved.reshape(*_without_ones(moved.shape[:-1]), moved.shape[-1])


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A batch shape without the dim of utterances when there is none."""
    return tuple(shape[1:]) if len(shape) == PLATES and shape[0] == 1 else tuple(shape)
