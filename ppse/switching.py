"""Two exact views of a graph with a chain of regimes: summed out by the forward algorithm, or drawn by forward filtering, backward sampling.

For a model with one :class:`ppse.models.SwitchingSpeech` (or a source that keeps its contract: a site whose law is a
:class:`ppse.models.MarkovChain` and whose value picks the law of every frame).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions import Dirichlet, Independent
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .distributions import ComplexNormal
from .hidden_markov import PLATES, HiddenMarkov
from .infer import EStep, Expectation, Position
from .infer.density import is_latent
from .infer.discrete import Smoothed, forward_backward, sample_path
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
        log_heard: log p(x_t | m_t = m, latents), (…, T, M), in the plates of the graph.
        log_seen: the same of all else that is observed and feels the regime, such as the pictures of a video; 0 where there is nothing.
        laws: name → law of every source, with a first dim for the regimes: (M, …, T, F).
        trace: that of the graph, in which observed sites have such a dim, too.
    """

    site: str
    chain: MarkovChain
    log_heard: Tensor
    log_seen: Tensor
    laws: dict[str, ComplexNormal]
    trace: poutine.Trace

    @property
    def log_emission(self) -> Tensor:
        """Of all that is observed, (…, T, M)."""
        return self.log_heard + self.log_seen

    @property
    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the functions of :mod:`ppse.infer.discrete` take."""
        return self.chain.log_initial, self.chain.log_transition, self.log_emission

    @property
    def prefix(self) -> str:
        """What the names of the sites of the source that switches begin with, e.g. "speech."."""
        return self.site.removesuffix("regime")

    @property
    def source(self) -> str:
        """The name of the source that switches."""
        return self.prefix.removesuffix(".")

    @property
    def others(self) -> dict[str, ComplexNormal]:
        """The laws of all other sources."""
        return {name: law for name, law in self.laws.items() if name != self.source}

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
            msg["value"], msg["done"], msg["stop"] = states.reshape(-1, *(1,) * PLATES), True, True


class _SummedOut(_EveryRegime):
    """Gives every observed site that feels the chain the law of the frames of a hidden Markov model, given those before it.

    Emissions of the last one, the sound, are the dear ones, and not asked for here: its log-probability has them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[HiddenMarkov, Tensor] | None = None

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if _shows_regimes(msg) and self.found:
            before = self.last[0].emissions(self.last[1]) if self.last else None
            msg["fn"] = HiddenMarkov(self.chain, msg["fn"], before)
            self.last = msg["fn"], msg["value"]


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
    *seen, heard = (site["log_prob"].movedim(0, -1) for site in trace.nodes.values() if _shows_regimes(site))  # the sound comes last
    shown = sum(seen, torch.zeros_like(heard))
    if args[0].dim() == 2:
        heard, shown = heard.squeeze(0), shown.squeeze(0)  # no utterances
    return Regimes(handler.found[0][0], chain, heard, shown, trace.nodes["_RETURN"]["value"], trace)


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
    return bool(site["type"] == "sample" and site["is_observed"] and len(site["fn"].batch_shape) > PLATES)


def _over_chains(value: Tensor, event_dim: int, batched: bool) -> Tensor:
    """The mean over all leading dims but that of utterances."""
    lead = value.dim() - event_dim
    inner = value.flatten(int(batched and lead > 1), lead - 1).mean(int(batched and lead > 1)) if lead > int(batched) else value
    return inner
