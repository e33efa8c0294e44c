"""Two exact views of a graph with a chain of regimes: summed out by the forward algorithm, or drawn by forward filtering, backward sampling.

For a model with one :class:`ppse.models.SwitchingSpeech` (or a source that keeps its contract: a site whose law is a
:class:`ppse.models.MarkovChain` and whose value picks the law of every frame).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions import Dirichlet, Independent, TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .distributions import ComplexNormal
from .infer import EStep, Expectation, Position
from .infer.density import is_latent
from .infer.discrete import Smoothed, filtered, forward_backward, sample_path
from .mixture import Mixture
from .models import MarkovChain, SwitchingSpeech

if TYPE_CHECKING:
    from .method import Problem

Graph = Callable[..., Any]
"""A mixture, or one under handlers (:func:`ppse.with_priors`)."""


class Regimes(NamedTuple):
    """A graph at some values of its continuous latents, in every regime.

    Attributes:
        site: name of the regime, e.g. "speech.regime".
        chain: its law.
        log_emission: log p(x_t | m_t = m, latents), (…, T, M), in the plates of the graph.
        laws: name → law of every source, with a first dim for the regimes: (M, …, T, F).
        trace: that of the graph, in which observed sites have such a dim, too.
    """

    site: str
    chain: MarkovChain
    log_emission: Tensor
    laws: dict[str, ComplexNormal]
    trace: poutine.Trace

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the functions of :mod:`ppse.infer.discrete` take."""
        return self.chain.log_initial, self.chain.log_transition, self.log_emission

    @property
    def prefix(self) -> str:
        """What the names of the sites of the source that switches begin with, e.g. "speech."."""
        return self.site.removesuffix("regime")

    @property
    def latents(self) -> list[str]:
        """Sites that are continuous and were not given."""
        return [name for name, site in self.trace.nodes.items() if is_latent(site) and name != self.site]

    def expert(self, site: str) -> int | None:
        """The number of the expert that a site belongs to; None when to none."""
        number = site.removeprefix(f"{self.prefix}expert").split(".")[0]
        return int(number) if number.isdecimal() else None


class _EveryRegime(Messenger):
    """Gives the chain all of its states at once, along a dim left of all plates, and hides it from what is outside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, MarkovChain]] = []

    @property
    def chain(self) -> MarkovChain:
        if len(self.found) != 1:
            names = [name for name, _ in self.found]
            raise ValueError(f"switching: the model has the chains {names}; expected one source that switches, SwitchingSpeech or MixtureSpeech")
        return self.found[0][1]

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], MarkovChain):
            self.found.append((msg["name"], msg["fn"]))
            states = torch.arange(msg["fn"].n_states, device=msg["fn"].initial.device)
            msg["value"], msg["done"], msg["stop"] = states.reshape(-1, *(1,) * _PLATES), True, True


_PLATES = 3
"""Dims of plates: utterances, chains, frames."""


class _SummedOut(_EveryRegime):
    """Gives every observed site that feels the chain the law of the frames of a hidden Markov model, given those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if _shows_regimes(msg) and self.found:
            law = HiddenMarkov(self.chain, msg["fn"], self.before)
            self.before = law.emissions(msg["value"])
            msg["fn"] = law


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
        path = self.chain.expand(shape).sample()
        drawn: Tensor = self.emission.expand(torch.Size((self.chain.n_states, *shape))).sample()
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


def collapsed(graph: Graph) -> Graph:
    """The graph with its regimes summed out: its latents are continuous, and its frames follow one another.

    The density is that which ``TraceEnum_ELBO`` makes of the graph by enumeration, but linear in the number of frames. Everything that
    infers continuous latents can be used on it: :func:`ppse.infer.log_density`, guides, SVI. It returns the laws of the
    sources in every regime, (M, …, T, F).
    """

    def summed(*args: Any, **kwargs: Any) -> dict[str, ComplexNormal]:
        with _SummedOut() as handler:
            laws = graph(*args, **kwargs)
        assert handler.chain
        return cast(dict[str, ComplexNormal], laws)

    return summed


def regimes(graph: Graph, args: tuple[Any, ...], values: Position, chains: int = 1) -> Regimes:
    """The graph in every regime, given values of its continuous latents (those that are missing are drawn); differentiable.

    Args:
        graph: a mixture that was started on the recording.
        args: x (T, F) or (B, 1, T, F), and observed where there is any, for the graph.
        values: by site, under ``chains`` chains.

    Raises:
        ValueError: unless exactly one source switches.
    """
    with _EveryRegime() as handler, pyro.validation_enabled(False), pyro.plate("chains", chains, dim=-2):
        trace: Any = poutine.trace(poutine.condition(graph, data=values)).get_trace(*args)
    chain = handler.chain
    trace.compute_log_prob(site_filter=lambda _, site: _shows_regimes(site))
    emission = torch.stack([site["log_prob"] for site in trace.nodes.values() if _shows_regimes(site)]).sum(0).movedim(0, -1)
    if args[0].dim() == 2:
        emission = emission.squeeze(0)  # no utterances
    return Regimes(handler.found[0][0], chain, emission, trace.nodes["_RETURN"]["value"], trace)


def row_priors(found: Regimes) -> dict[str, Dirichlet]:
    """The Dirichlet laws of the transition and the initial law where they are latents, by site.

    Raises:
        ValueError: when such a latent has another law, which the counts of a chain would not update in closed form.
    """
    priors = {}
    for name in (f"{found.prefix}initial", f"{found.prefix}transition"):
        if name in found.trace.nodes and found.trace.nodes[name]["type"] == "sample":
            law = found.trace.nodes[name]["fn"]
            law = law.base_dist if isinstance(law, Independent) else law
            if not isinstance(law, Dirichlet):
                raise ValueError(f"switching: the prior of '{name}' is a {type(law).__name__}; expected a Dirichlet law")
            priors[name] = law
    return priors


def drawn(found: Regimes) -> Tensor:
    """A path of regimes from p(m | x, latents), (…, T), in the plates of the graph. Random from the global generator."""
    return sample_path(*found.numbers)


def fit_chain(model: Mixture, smoothed: Smoothed, batched: bool) -> None:
    """The M-step of a chain that is learnt, from its posterior under some draws.

    Args:
        smoothed: of dims (chains, T, M), or (B, chains, T, M) when ``batched``.
    """
    first, pairs = smoothed.marginals[..., 0, :], smoothed.pairs.sum(-3)
    for source in model.modules():
        if isinstance(source, SwitchingSpeech):
            source.fit_chain(*(_over_chains(value, size, batched) for value, size in ((first, 1), (pairs, 2))))


def complete(e_step: Callable[[Problem], EStep]) -> Callable[[Problem], EStep]:
    """An E-step of continuous latents as one of a graph that switches: on the collapsed graph, the regimes drawn given what it drew.

    A chain that is learnt is updated by every E-step, in closed form.
    """

    def build(problem: Problem) -> EStep:
        hold_chain(problem.model)
        found = {name: value for name, value in problem.found.items() if not name.endswith("regime")}
        with torch.no_grad():
            nothing = not regimes(problem.graph, problem.args, {}).latents
        inner = (lambda _: Expectation({})) if nothing else e_step(problem._replace(graph=collapsed(problem.graph), found=found))

        def step(iteration: int) -> Expectation:
            expectation = inner(iteration)
            chains = next(iter(expectation.draws.values())).shape[0 if problem.x.dim() == 2 else 1] if expectation.draws else 1
            with torch.no_grad():
                found = regimes(problem.graph, problem.args, expectation.draws, chains)
                path = drawn(found)
                fit_chain(problem.model, forward_backward(*found.numbers), problem.x.dim() > 2)
            return expectation._replace(draws=expectation.draws | {found.site: path})

        return step

    return build


def hold_chain(model: Mixture) -> None:
    """Chains that are learnt have a closed-form M-step here: keep gradient steps from them."""
    for source in model.modules():
        if isinstance(source, SwitchingSpeech) and source.learn:
            for name in ("transition", "initial"):
                getattr(source, f"{name}_unconstrained").requires_grad_(False)


def _shows_regimes(site: Any) -> bool:
    """Whether a site is what is seen of the frames in every regime."""
    return bool(site["type"] == "sample" and site["is_observed"] and len(site["fn"].batch_shape) > _PLATES)


def _emissions(log_prob: Tensor, chain: MarkovChain) -> Tensor:
    """Log-likelihoods (M, …, T) as (…, T, M), without dims of size 1 in front."""
    moved = log_prob.expand(chain.n_states, *log_prob.shape[1:]).movedim(0, -1)
    return moved.reshape(*_without_ones(moved.shape[:-1]), moved.shape[-1])


def _without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A batch shape without the dim of utterances when there is none."""
    return tuple(shape[1:]) if len(shape) == _PLATES and shape[0] == 1 else tuple(shape)


def _over_chains(value: Tensor, event_dim: int, batched: bool) -> Tensor:
    """The mean over all leading dims but that of utterances."""
    lead = value.dim() - event_dim
    inner = value.flatten(int(batched and lead > 1), lead - 1).mean(int(batched and lead > 1)) if lead > int(batched) else value
    return inner
