"""Sources that are one of several others in every frame: which one follows a Markov chain, or is chosen anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyro
import torch
from pyro.distributions import Dirichlet
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ..distributions import ComplexNormal
from ..mixture import Followable, Frames, Named, Source, Startable, reusable
from .markov_chain import MarkovChain

STAY = 0.95
"""Probability of staying in a state for another frame, unless a transition matrix is given."""

RAREST = 1e-6
"""Smallest probability that a learnt chain gives to anything: what is never expected could not be learnt again."""


class SwitchingSpeech(PyroModule):
    """m_1:T a Markov chain over M experts; s_t ~ what expert m_t says of frame t. The SwVAE, when the experts are VAEs.

    Sites: ``regime``, m_t, in the frames plate, and those of every expert under its place, ``expert0.z``, ``expert1.z``. The
    latents of an expert follow its own prior in the frames in which it is not chosen. With a Dirichlet prior also ``transition``.

    ``regime`` is discrete: the methods of :mod:`ppse.switching_methods` infer it exactly, and all others see the graph with it
    summed out (:func:`ppse.switching.collapsed`).

    Args:
        experts: two or more sources of one STFT, of any kind: ``SwitchingSpeech([VAESpeech.pretrained(), silence])``.
        transition: p(m_t = j | m_t-1 = i) at [i, j], (M, M), every row of sum 1; or the probability of staying, the others sharing
            the rest; or a Dirichlet law of the rows, of shape (M,) or (), event (M,): then the matrix is a latent of the recording.
        initial: p(m_1), (M,); uniform unless given.
        learn: whether the recording fits transition and initial law, from what is given (not with a Dirichlet law).

    Raises:
        ValueError: for fewer than two experts, experts of different STFTs, or numbers that are no probabilities.

    References:
        Sadeghi & Alameda-Pineda (2021), Switching variational auto-encoders for noise-agnostic audio-visual speech enhancement.

    >>> import pyro, torch
    >>> from ppse.models import StationaryNoise, VAESpeech
    >>> speech = SwitchingSpeech([VAESpeech(9, 2, (4,)), VAESpeech(9, 3, (4,))], transition=0.9)
    >>> tuple(speech(pyro.plate("frames", 5, dim=-1)).var.shape)
    (5, 9)
    """

    transition: Tensor
    initial: Tensor

    def __init__(
        self, experts: Sequence[Source], transition: Tensor | Sequence[Sequence[float]] | float | Dirichlet = STAY,
        initial: Tensor | Sequence[float] | None = None, *, learn: bool = False,
    ) -> None:
        super().__init__()
        name, count = type(self).__name__, len(experts)
        if count < 2:
            raise ValueError(f"{name}: {count} experts; expected two or more to choose from")
        sizes = [_n_freqs(expert) for expert in experts]
        if len(set().union(*sizes)) > 1:
            raise ValueError(f"{name}: the experts have {[sorted(size) for size in sizes]} frequencies; all have to be of one STFT")
        for i, expert in enumerate(experts):
            setattr(self, f"expert{i}", reusable(expert))
        self.n_experts, self.learn = count, learn
        self.prior = _rows_law(transition, count, name) if isinstance(transition, Dirichlet) else None
        if self.prior is not None and learn:
            raise ValueError(f"{name}: learn=True with a Dirichlet law of the transition; a latent is inferred, not fitted: leave learn out")
        rows = torch.full((count, count), 1 / count) if isinstance(transition, Dirichlet) else _matrix(transition, count, name)
        first = torch.full((count,), 1 / count) if initial is None else torch.as_tensor(initial, dtype=torch.get_default_dtype())
        if first.shape != (count,):
            raise ValueError(f"{name}: initial has shape {tuple(first.shape)}; expected ({count},), a probability for each expert")
        _check_rows(first, "initial", name)
        self.register_buffer("given_transition", rows / rows.sum(-1, keepdim=True))
        self.register_buffer("given_initial", first / first.sum(-1, keepdim=True))

    @property
    def experts(self) -> dict[str, Source]:
        """The experts by the names under which their sites are found."""
        return {name: getattr(self, name) for name in self._names()}

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Starts the experts, and the chain at what was given."""
        if self.learn:
            lead = (*x.shape[:-2], 1) if x.dim() > 2 else ()
            for name in ("transition", "initial"):
                value: Tensor = getattr(self, f"given_{name}").to(x.real.dtype)
                law = constraints.independent(constraints.simplex, 1) if name == "transition" else constraints.simplex
                setattr(self, name, PyroParam(_possible(value).expand(*lead, *value.shape).clone(), law))
        for expert in self.experts.values():
            if isinstance(expert, Startable):
                expert.start(x, observed)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """The experts go on with the next stretch of the recording; so does what was learnt of the chain."""
        for expert in self.experts.values():
            if isinstance(expert, Followable):
                expert.follow(x, observed)

    def fit_chain(self, first: Tensor, pairs: Tensor) -> None:
        """The M-step of a chain that is learnt; does nothing to another.

        Args:
            first: expected p(m_1 | x), (M,), or (B, M) for a batch.
            pairs: expected numbers of moves from i to j, (M, M) or (B, M, M).
        """
        if self.learn:
            left, before = pairs.sum(-1, keepdim=True), self.transition.detach().reshape(pairs.shape)
            self._set(first, torch.where(left > RAREST, pairs / left.clamp_min(RAREST), before))  # what is never left tells nothing

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the expert that is chosen, (…, T, F).

        Raises:
            ValueError: when the experts have different numbers of frequencies.
        """
        laws = []
        for name in self._names():
            with Named(name):
                laws.append(getattr(self, name)(frames))
        sizes = {law.var.shape[-1] for law in laws} - {1}
        if len(sizes) > 1:
            raise ValueError(f"{type(self).__name__}: the experts have {[law.var.shape[-1] for law in laws]} frequencies; all have to be of one STFT")
        initial = self._number("initial", laws[0].var)
        if self.prior is None:
            transition = self._number("transition", laws[0].var)
        else:
            concentration = self.prior.concentration.to(laws[0].var)
            transition = pyro.sample("transition", Dirichlet(concentration).to_event(1))
        with frames:
            regime = pyro.sample("regime", MarkovChain(initial, transition, frames.size))
            self.show(regime)
        return _chosen(laws, regime)

    def show(self, regime: Tensor) -> None:
        """What is observed of the regimes beside the sound, inside of the plate of frames; nothing here. A subclass adds its sites."""

    def _number(self, name: str, like: Tensor) -> Tensor:
        value: Tensor = getattr(self, name if name in self._pyro_params else f"given_{name}")
        return value.to(like)

    def _set(self, first: Tensor, rows: Tensor) -> None:
        self.initial = _possible(first.detach()).reshape(self.initial.shape)
        self.transition = _possible(rows.detach()).reshape(self.transition.shape)

    def _names(self) -> Iterator[str]:
        return (f"expert{i}" for i in range(self.n_experts))


class MixtureSpeech(SwitchingSpeech):
    """s_t ~ what expert m_t says of frame t, m_t chosen for every frame on its own: the MIX-VAE, when the experts are VAEs.

    It is the :class:`SwitchingSpeech` whose transition has the weights in every row.

    Args:
        experts: as there.
        weights: p(m_t), (M,); uniform unless given.
        learn: whether the recording fits the weights.

    Raises:
        ValueError: as there.

    References:
        Sadeghi & Alameda-Pineda (2020), Robust unsupervised audio-visual speech enhancement using a mixture of variational autoencoders.
    """

    def __init__(self, experts: Sequence[Source], weights: Tensor | Sequence[float] | None = None, *, learn: bool = False) -> None:
        count = len(experts)
        given = torch.full((count,), 1 / max(1, count)) if weights is None else torch.as_tensor(weights, dtype=torch.get_default_dtype())
        super().__init__(experts, given.expand(count, *given.shape), given, learn=learn)

    def fit_chain(self, first: Tensor, pairs: Tensor) -> None:
        """The M-step of weights that are learnt: how often each expert is expected."""
        if self.learn:
            counts = first + pairs.sum(-2)
            weights = counts / counts.sum(-1, keepdim=True)
            self._set(weights, weights.unsqueeze(-2).expand_as(pairs))


def _chosen(laws: Sequence[ComplexNormal], regime: Tensor) -> ComplexNormal:
    """The law of the expert whose number stands in the regime (…, T)."""
    number = regime.unsqueeze(-1)
    var, centred = laws[0].var, all(law.centred for law in laws)
    loc = laws[0].loc
    for i, law in enumerate(laws[1:], 1):
        var = torch.where(number == i, law.var, var)
        loc = loc if centred else torch.where(number == i, law.loc, loc)
    return ComplexNormal(0j if centred else loc, var)


def _n_freqs(expert: Source) -> set[int]:
    """The numbers of frequencies that the networks of an expert tell."""
    told = (getattr(module, "n_freqs", None) for module in expert.modules()) if isinstance(expert, nn.Module) else ()
    return {size for size in told if isinstance(size, int)}


def _matrix(transition: Tensor | Sequence[Sequence[float]] | float, count: int, name: str) -> Tensor:
    if isinstance(transition, int | float):
        if not 0 <= transition <= 1:
            raise ValueError(f"{name}: transition={transition}; expected a probability of staying, from 0 to 1, or a matrix")
        rows = torch.full((count, count), (1 - transition) / (count - 1))
        return rows.fill_diagonal_(transition)
    rows = torch.as_tensor(transition, dtype=torch.get_default_dtype())
    if rows.shape != (count, count):
        raise ValueError(f"{name}: transition has shape {tuple(rows.shape)}; expected ({count}, {count}) for {count} experts")
    _check_rows(rows, "transition", name)
    return rows


def _check_rows(rows: Tensor, what: str, name: str) -> None:
    if not bool((rows >= 0).all()) or not bool(((rows.sum(-1) - 1).abs() < 1e-4).all()):
        raise ValueError(f"{name}: {what} {rows.tolist()} is not stochastic; expected probabilities, every row of sum 1")


def _rows_law(law: Dirichlet, count: int, name: str) -> Dirichlet:
    if law.event_shape != (count,) or law.batch_shape not in {(), (count,)}:
        found = f"batch {tuple(law.batch_shape)}, event {tuple(law.event_shape)}"
        raise ValueError(f"{name}: the Dirichlet law of the transition has {found}; expected event ({count},), batch () or ({count},), one law a row")
    return Dirichlet(law.concentration.expand(count, count))


def _possible(probabilities: Tensor) -> Tensor:
    """The same, none of them quite 0."""
    raised = probabilities.clamp_min(RAREST)
    return raised / raised.sum(-1, keepdim=True)
