"""EM on the mixture graph: the posterior of every source of one STFT, or of a batch of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule
from torch import Tensor

from .distributions import ComplexNormal
from .infer import Draws, Expectation, Info, em, gradient_m_step, last_draws
from .infer.density import is_latent
from .methods import Method, Problem
from .mixture import Mixture, Updatable
from .priors import Graph, with_priors
from .source_posterior import Moments, SourceDraws

OPEN_RATE = 0.02
"""Learning rate (Adam) of parameters without a closed-form M-step, in their unconstrained space."""


class Inference(NamedTuple):
    """What inference on one STFT gave.

    Posterior laws by source, the objective per iteration (nats per observed bin), the last draws, kernel Info per iteration; what was
    asked to be kept: draws of the sources (draws, T, F) or (draws, B, 1, T, F), and the run, draws of the latents (:class:`Keep`);
    the graph that was inferred: the model, lifted where parameters had priors. With several starts, draws, Info and run are of a
    batch of (starts * B) recordings.
    """

    sources: dict[str, ComplexNormal]
    objective: list[float]
    draws: dict[str, Tensor]
    info: list[Info]
    source_draws: dict[str, Tensor]
    run: Draws | None
    graph: Graph


class Keep(NamedTuple):
    """What to keep beside moments: how many draws of the sources, and whether the draws of the latents.

    These are of the latter half of the iterations, or of those that are averaged, if more; of full Bayes, whose draws follow the
    posterior after the warm-up, of those that are averaged.
    """

    sources: int = 0
    run: bool = False


def infer(
    model: Mixture, x: Tensor, method: Method, observed: Tensor | None = None, *, keep: Keep | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Inference:
    """Posterior of the sources of a mixture STFT, by the EM method. Random from the global generator.

    Args:
        model: is copied; neither its parameters nor its networks are changed.
        x: mixture of unit level, (T, F), or (B, 1, T, F) for a batch of recordings that do not touch one another.
        observed: which bins count (see :meth:`Mixture.forward`).
        keep: nothing unless given.
        callback: called with (iteration, objective).

    Raises:
        ValueError: when the likelihood is no longer finite; the message says where.
    """
    model, method = copy.deepcopy(model), method.suited(model)
    model.start(*side_by_side(x, observed, method.starts))
    return resume(model, x, method, observed, keep=keep, callback=callback)


def resume(
    model: Mixture, x: Tensor, method: Method, observed: Tensor | None = None, *, keep: Keep | None = None,
    callback: Callable[[int, float], None] | None = None,
) -> Inference:
    """As :func:`infer`, but on a model that was started on :func:`side_by_side` of x; its parameters of the recording are updated in place.

    Those are what the closed forms of the sources update, and the PyroParams of modules that have none. Weights of
    networks stay as they are, whether frozen or not.
    """
    method = method.suited(model)
    found, single = dict[str, Tensor](), x
    if method.before:
        before = replace(method.before, starts=method.starts)
        found = resume(model, x, before, observed, callback=callback).draws
    x, observed = side_by_side(x, observed, method.starts)
    graph = with_priors(model, method.priors(model, x, observed), x, observed) if method.priors else model
    problem = Problem(model, graph, x, observed, method.guide(model), found)
    passed = method.all_iterations - method.iterations
    with pyro.validation_enabled(False):
        e_step = method.e_step(problem) if _has_latents(problem) else lambda _: Expectation({})
        open_form = [] if method.priors else _open_parameters(model)
        optimiser = torch.optim.Adam(open_form, lr=OPEN_RATE) if open_form else None
        moments, averaging = Moments(), False
        given = Expectation({})

        def expect(iteration: int) -> Expectation:
            nonlocal given
            given = e_step(iteration)
            return given

        infos: list[Info] = []
        kept: list[Expectation] = []
        last: dict[str, Tensor] = {}
        keep = keep or Keep()
        span = method.average if method.priors else max(method.average, method.iterations // 2)
        source_draws = SourceDraws(keep.sources, method.average, method.starts)

        def m_step(draws: dict[str, Tensor]) -> float:
            chains = _n_draws(draws, x)
            with torch.no_grad(), pyro.plate("chains", chains, dim=-2):
                trace: Any = poutine.trace(poutine.condition(graph, data=draws)).get_trace(x, observed)
                laws, value = trace.nodes["_RETURN"]["value"], _fit_per_bin(trace, x, observed)
                if averaging:
                    if given.sources:
                        moments.add(given.sources)
                    else:
                        moments.add_given(laws, x)
                    source_draws.add(laws, x)
                if not method.priors and given.sources is None:
                    model.update(x, laws, observed)
            if optimiser is not None:
                gradient_m_step(model, (x, observed), optimiser, chains, steps=method.open_steps)(draws)
            return value

        def note(iteration: int, value: float, expectation: Expectation) -> None:
            if not math.isfinite(value):
                raise ValueError(
                    f"{method.name}: the log-likelihood is {value} in iteration {iteration + 1} of {method.iterations}; expected a finite number. "
                    "Use a smaller step size or learning rate, or another method (ppse.methods.default); "
                    "where a source is your own, see that its powers are finite"
                )
            if expectation.info is not None:
                infos.append(expectation.info)
            if keep.run and iteration >= method.iterations - span:
                kept.append(expectation)
            last.update({name: value.detach() for name, value in expectation.draws.items()})
            if callback:
                callback(passed + iteration, value)

        warm_up = method.iterations - method.average
        objective = em(expect, m_step, warm_up, tolerance=method.tolerance, callback=note) if warm_up else []
        averaging = True
        # However early that converged: the E-step is told the numbers of the last iterations, at which its own warm-up is over.
        objective += em(lambda i: expect(warm_up + i), m_step, method.average, callback=lambda i, *what: note(warm_up + i, *what))
    run = last_draws(graph, (x, observed), kept) if keep.run else None
    return Inference(_pooled(moments.laws(), method.starts, single), objective, last, infos, source_draws.values(single), run, graph)


def side_by_side(x: Tensor, observed: Tensor | None, starts: int) -> tuple[Tensor, Tensor | None]:
    """Every recording (T, F) or (B, 1, T, F) that many times, (starts * B, 1, T, F), and its mask; as they are for one."""
    if starts == 1:
        return x, observed

    def repeated(value: Tensor) -> Tensor:
        return (value if value.dim() == 4 else value[None, None]).repeat_interleave(starts, 0)

    return repeated(x), None if observed is None else repeated(observed.expand(x.shape))


def _pooled(laws: dict[str, ComplexNormal], starts: int, x: Tensor) -> dict[str, ComplexNormal]:
    """Laws of x, each the mixture of those that the starts ended with."""
    if starts == 1:
        return laws
    moments, shape = Moments(), (-1, starts, *x.shape[-2:])
    moments.add({name: ComplexNormal(law.loc.reshape(shape), law.var.reshape(shape)) for name, law in laws.items()})
    return {name: ComplexNormal(law.loc.reshape(x.shape), law.var.reshape(x.shape)) for name, law in moments.laws().items()}


def _has_latents(problem: Problem) -> bool:
    """Whether there is anything to draw, as there is where a guide proposes it; a mixture of noises may have none."""
    if problem.guide is not None:
        return True
    with torch.no_grad(), torch.random.fork_rng():
        trace: Any = poutine.trace(problem.graph).get_trace(*problem.args)
    return any(is_latent(site) for site in trace.nodes.values())


def _open_parameters(model: Mixture) -> list[torch.nn.Parameter]:
    """Parameters of the recording (PyroParams) that no closed form answers for; never weights of networks.

    A closed form is that of a module, and is asked for through its source: what is inside of a source without one is open, too.
    """
    found = [
        getattr(module, f"{name}_unconstrained")
        for source in model.sources.values() if isinstance(source, torch.nn.Module)
        for module in source.modules() if isinstance(module, PyroModule) and not (isinstance(module, Updatable) and isinstance(source, Updatable))
        for name in module._pyro_params
    ]
    return [p for p in found if p.requires_grad]


def _n_draws(draws: dict[str, Tensor], x: Tensor) -> int:
    """Size of the draws dim: the first for one recording, the second for a batch."""
    return max((v.shape[0 if x.dim() == 2 else 1] for v in draws.values()), default=1)


def _fit_per_bin(trace: poutine.Trace, x: Tensor, observed: Tensor | None) -> float:
    """Log-likelihood of the mixture per observed bin, mean over the draws, as the graph has it."""
    trace.compute_log_prob(site_filter=lambda name, _: name == "x")
    log_prob = trace.nodes["x"]["log_prob"]
    draws = log_prob.numel() // x[..., 0].numel()
    bins = x.numel() if observed is None else int(observed.expand(x.shape).sum())
    return float(log_prob.sum() / (draws * max(1, bins)))
