"""The law of a chain of discrete states along frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class MarkovChain(TorchDistribution):
    """m_1 ~ initial, m_t | m_t-1 ~ transition[m_t-1]: one of M states in every frame, whole numbers from 0.

    Frames are the last dim of the batch shape, so that the chain can lie in their plate: ``log_prob`` gives log p(m_t | m_t-1) at the
    place of m_t, and the sum over that dim is the log probability of the path.

    Args:
        initial: (M,), or, with a chain for each member of plates, (…, 1, M): dims of plates, that of the frames of size 1.
        transition: (M, M), or (…, 1, M, M) likewise; every row sums to 1.
        n_frames: T.

    >>> import torch
    >>> chain = MarkovChain(torch.tensor([1.0, 0.0]), torch.tensor([[0.9, 0.1], [0.0, 1.0]]), 4)
    >>> chain.log_prob(torch.tensor([0, 0, 1, 1])).exp()
    tensor([1.0000, 0.9000, 0.1000, 1.0000])
    """

    arg_constraints = {"initial": constraints.simplex, "transition": constraints.independent(constraints.simplex, 1)}

    def __init__(self, initial: Tensor, transition: Tensor, n_frames: int, validate_args: bool | None = None) -> None:
        self.initial, self.transition = torch.as_tensor(initial), torch.as_tensor(transition)
        shape = torch.broadcast_shapes(self._lead(self.initial, 1), self._lead(self.transition, 2))
        super().__init__(torch.Size((*shape, n_frames)), torch.Size(), validate_args=validate_args)

    @property
    def n_states(self) -> int:
        """M."""
        return self.initial.shape[-1]

    @property
    def log_initial(self) -> Tensor:
        """(…, M), for :mod:`ppse.infer.discrete`: dims of plates without that of the frames."""
        return self.initial.reshape(*self._lead(self.initial, 1), self.n_states).log()

    @property
    def log_transition(self) -> Tensor:
        """(…, M, M), likewise."""
        return self.transition.reshape(*self._lead(self.transition, 2), self.n_states, self.n_states).log()

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.n_states - 1)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> MarkovChain:
        expanded = MarkovChain(self.initial, self.transition, batch_shape[-1], validate_args=False)
        expanded._batch_shape = torch.Size(batch_shape)
        return expanded

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        *lead, n_frames = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(n_frames, *lead, 1, dtype=self.initial.dtype, device=self.initial.device)
        first = self.log_initial.exp().cumsum(-1).expand(*lead, self.n_states)
        later = self.log_transition.exp().cumsum(-1).expand(*lead, self.n_states, self.n_states)
        path = [(uniform[0] > first[..., :-1]).sum(-1)]
        for u in uniform[1:]:
            row = later.gather(-2, path[-1][..., None, None].expand(*lead, 1, self.n_states)).squeeze(-2)
            path.append((u > row[..., :-1]).sum(-1))
        return torch.stack(path, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        value, lead = value.expand(shape), shape[:-1]
        first = self.log_initial.expand(*lead, self.n_states).gather(-1, value[..., :1])
        moves = value[..., :-1] * self.n_states + value[..., 1:]
        return torch.cat([first, self.log_transition.flatten(-2).expand(*lead, self.n_states**2).gather(-1, moves)], -1)

    @staticmethod
    def _lead(value: Tensor, event: int) -> tuple[int, ...]:
        """Dims of plates but the frames."""
        return tuple(value.shape[: -1 - event]) if value.dim() > event else ()
