"""Memory over frames: an LSTM between dense layers, and the law of latents whose present depends on their past."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

Lengths = tuple[int, ...]
"""For every utterance of a batch, the number of frames up to its last observed one; what is behind is padding."""

State = Any
"""What a network remembers of the frames so far; None before the first."""


class Layers(NamedTuple):
    """Sizes of a :class:`Recurrence`: dense layers ``before``, ``depth`` LSTM layers of ``size``, and dense layers ``after`` it."""

    size: int = 128
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    depth: int = 1


class Recurrence(nn.Module):
    """Dense layers, each with an activation, then an LSTM over frames: (…, T, n_in) → (…, T, n_out). Nothing is random.

    Args:
        n_in: size of the input.
        layers: sizes; ``after`` is for whoever reads the output.
        backward, forward: which way to go through the frames; both ways doubles the output.
        activation: class of the activation.

    Attributes:
        n_out: size of the output.
    """

    def __init__(self, n_in: int, layers: Layers, *, forward: bool = True, backward: bool = False, activation: type[nn.Module] = nn.Tanh) -> None:
        super().__init__()
        self.reversed = not forward
        self.before = dense([n_in, *layers.before], activation)
        self.memory = nn.LSTM([n_in, *layers.before][-1], layers.size, layers.depth, batch_first=True, bidirectional=forward and backward)
        self.n_out = layers.size * (1 + (forward and backward))

    def forward(self, frames: Tensor, lengths: Lengths | None = None) -> Tensor:
        """All frames at once. Padding, given the ``lengths`` of the utterances (dim 0), changes no other frame."""
        flat, many = flattened(frames), None
        if lengths is not None:
            many = torch.tensor(lengths).repeat_interleave(flat.shape[0] // len(lengths))
        flat = self.before(flat)
        if not self.reversed:
            return remember(self.memory, flat, many).reshape(*frames.shape[:-1], -1)
        turn = _turned(flat, many)
        return self.memory(flat.gather(1, turn.expand_as(flat)))[0].gather(1, turn.expand(-1, -1, self.n_out)).reshape(*frames.shape[:-1], -1)

    def advance(self, frames: Tensor, state: State = None) -> tuple[Tensor, State]:
        """The next frames of a network that only looks back: from what it remembers, to the output and what it remembers then."""
        hidden, state = advance(self.memory, self.before(flattened(frames)), state)
        return hidden.reshape(*frames.shape[:-1], -1), state


STRETCH = 32
"""Frames of a path of means that are found in turn; stretches of so many go side by side."""

RUN_UP = 16
"""Frames before a stretch in which the network goes towards the path, from a memory of nothing."""

Network = Callable[[Tensor, Tensor, State], tuple[Tensor, Tensor, State]]
"""(z_t-1, context_t, memory) → (mean, standard deviation, memory) of z_t, for the next frame or for the next T at once."""


class RecurrentNormal(TorchDistribution):
    """z_t ~ N(m_t, diag s_t^2), with (m_t, s_t) from a network that goes through z_0, …, z_t-1 and a context; z_-1 = 0.

    A law of shape (…, T, L) with the frames in dim -2, as :class:`ppse.models.Autoregressive`: ``log_prob`` has log p(z_t | z_<t) at the
    place of z_t, all from one call of the network. A draw goes frame by frame. ``mean`` and ``variance`` are those along the path of means,
    on which every z_t is the mean given the ones before: a place to start from, not the moments of the marginal law. Stretches of
    that path are found side by side, each with a run-up from nothing (:data:`STRETCH`, :data:`RUN_UP`; docs/costs.md).

    Args:
        network: what gives the law of the next frames; called with (…, T, L), (…, T, H) and a memory that is None at first.
        n_latent: L.
        context: what else the network is told of every frame, (…, T, H); H = 0 for a prior that is told nothing.

    References:
        Girin et al. (2021), Dynamical variational autoencoders: a comprehensive review (section 2).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real
    has_rsample = True

    def __init__(self, network: Network, n_latent: int, context: Tensor, validate_args: bool | None = None) -> None:
        self.network, self.context = network, context
        self._drawn: tuple[Tensor, Normal] | None = None
        super().__init__(torch.Size((*context.shape[:-1], n_latent)), torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> RecurrentNormal:
        shape = torch.Size(batch_shape)
        return RecurrentNormal(self.network, shape[-1], self.context.expand(*shape[:-1], -1), validate_args=False)

    def given(self, value: Tensor) -> Normal:
        """The law of every z_t given the z_<t of this value, (…, T, L)."""
        if self._drawn is not None and self._drawn[0] is value:
            return self._drawn[1]
        context = self.context.expand(*torch.broadcast_shapes(value.shape[:-1], self.context.shape[:-1]), -1)
        past = before(value).expand(*context.shape[:-1], -1)
        loc, scale, _ = self.network(past, context, None)
        return Normal(loc, scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return cast(Tensor, self.given(value).log_prob(value))

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.context.dtype, device=self.context.device)
        value, law = self._path(noise)
        self._drawn = value, law  # the density of what was just drawn costs nothing
        return value

    @property
    def mean(self) -> Tensor:
        return cast(Tensor, self._means.loc)

    @property
    def variance(self) -> Tensor:
        return cast(Tensor, self._means.scale.square())

    @cached_property
    def _means(self) -> Normal:
        frames = self.context.shape[-2]
        if frames <= RUN_UP + STRETCH:
            return self._path(None)[1]
        padded = pad(self.context, (0, 0, 0, (RUN_UP - frames) % STRETCH))
        stretches = padded.unfold(-2, RUN_UP + STRETCH, STRETCH).mT  # (…, stretches, RUN_UP + STRETCH, H)
        law = RecurrentNormal(self.network, self.batch_shape[-1], stretches, validate_args=False)._path(None)[1]
        return Normal(*(_joined(value, RUN_UP)[..., :frames, :] for value in (law.loc, law.scale)), validate_args=False)

    def _path(self, noise: Tensor | None) -> tuple[Tensor, Normal]:
        """z_t = m_t + s_t noise_t for all frames in turn, and their law; without noise z_t = m_t."""
        context = self.context if noise is None else self.context.expand(*noise.shape[:-1], -1)
        last, state = context.new_zeros(*context.shape[:-2], 1, self.batch_shape[-1]), None
        values: list[Tensor] = []
        locs: list[Tensor] = []
        scales: list[Tensor] = []
        for t, told in enumerate(context.split(1, -2)):
            loc, scale, state = self.network(last, told, state)
            last = loc if noise is None else loc + scale * noise[..., t : t + 1, :]
            for kept, new in ((values, last), (locs, loc), (scales, scale)):
                kept.append(new)
        return torch.cat(values, -2), Normal(torch.cat(locs, -2), torch.cat(scales, -2), validate_args=False)


def _joined(stretches: Tensor, overlap: int) -> Tensor:
    """Stretches (…, n, T, L), each of which repeats frames of the one before, in a row; the repetition is left out."""
    return torch.cat([stretches[..., 0, :overlap, :], stretches[..., overlap:, :].flatten(-3, -2)], -2)


def before(frames: Tensor) -> Tensor:
    """Of every frame (…, T, n) the one before; zeros before the first."""
    return pad(frames[..., :-1, :], (0, 0, 1, 0))


def dense(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of the sizes, each with an activation behind it; none when there is one size."""
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    return nn.Sequential(*(module for pair in pairs for module in (nn.Linear(*pair), activation())))


def advance(memory: nn.LSTM, frames: Tensor, state: State = None) -> tuple[Tensor, State]:
    """The next frames (N, T, n) of an LSTM that only looks back; see :meth:`Recurrence.advance`."""
    if frames.shape[1] > 1 or memory.num_layers > 1:
        return cast(tuple[Tensor, State], memory(frames, state))
    # By cells, which takes a fifth of the time for one frame.
    weights = cast(list[Tensor], [getattr(memory, f"{kind}_l0") for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")])
    last = (frames.new_zeros(frames.shape[0], memory.hidden_size),) * 2 if state is None else (state[0][0], state[1][0])
    hidden, cell = torch.lstm_cell(frames[:, 0], last, *weights)
    return hidden.unsqueeze(1), (hidden.unsqueeze(0), cell.unsqueeze(0))


def remember(memory: nn.RNNBase, frames: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Recurrent layers over (N, T, n); each sequence ends at its length (N,), where the way back begins."""
    if lengths is None or not memory.bidirectional or int(lengths.min()) == frames.shape[1]:
        return cast(Tensor, memory(frames)[0])
    packed, _ = memory(pack_padded_sequence(frames, lengths.clamp_min(1).cpu(), batch_first=True, enforce_sorted=False))
    return pad_packed_sequence(packed, batch_first=True, total_length=frames.shape[1])[0]


def lengths(observed: Tensor | None, x: Tensor) -> Lengths | None:
    """Where every utterance of x, (T, F) or (B, 1, T, F), ends: behind its last frame with an observed bin. None when all are whole."""
    if observed is None:
        return None
    seen = observed.expand(x.shape).any(-1).reshape(-1, x.shape[-2])
    ends = (seen * torch.arange(1, x.shape[-2] + 1, device=seen.device)).amax(-1).clamp_min(1)
    return None if int(ends.min()) == x.shape[-2] else tuple(ends.tolist())


def flattened(frames: Tensor) -> Tensor:
    """Sequences (N, T, n) of (…, T, n)."""
    return frames.reshape(-1, *frames.shape[-2:])


def _turned(frames: Tensor, lengths: Tensor | None) -> Tensor:
    """Index (N, T, 1) of the frames in reverse, where padding stays behind. It is its own inverse."""
    index = torch.arange(frames.shape[1], device=frames.device).expand(frames.shape[0], -1)
    ends = torch.full_like(index[:, :1], frames.shape[1]) if lengths is None else lengths.to(frames.device).unsqueeze(1)
    return torch.where(index < ends, ends - 1 - index, index).unsqueeze(-1)
