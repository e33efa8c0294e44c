"""EM on the mixture graph: the posterior of every source of one STFT, or of a batch of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .distributions import ComplexNormal
from .infer import Expectation, Info, em, gradient_m_step
from .methods import Method, Problem
from .mixture import Mixture, posterior


class Moments:
    """Running mean and variance of the sources over draws, by the law of total variance.

    E[s] is the mean of the means per draw; Var[s] the mean of the variances plus the variance of the means.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, laws: dict[str, ComplexNormal]) -> None:
        """Note the posterior laws of all sources under some draws; a dim of draws before (T, F) is averaged out."""
        self._count += 1
        for name, law in laws.items():
            terms = law.loc, _squared(law.loc), law.var
            averaged = [t.mean(-3, keepdim=t.dim() > 3) if t.dim() > 2 else t for t in terms]
            before = self._sums.get(name)
            now = averaged if before is None else [b + a for a, b in zip(averaged, before, strict=True)]
            self._sums[name] = (now[0], now[1], now[2])

    def laws(self) -> dict[str, ComplexNormal]:
        """The posterior of every source, (T, F) or (B, 1, T, F)."""
        result = {}
        for name, sums in self._sums.items():
            loc, square, var = (s / self._count for s in sums)
            result[name] = ComplexNormal(loc, var + (square - _squared(loc)).clamp_min(0))
        return result


class Inference(NamedTuple):
    """What inference on one STFT gave.

    Posterior laws by source, the objective per iteration (nats per observed bin), the last draws, kernel Info per iteration.
    """

    sources: dict[str, ComplexNormal]
    objective: list[float]
    draws: dict[str, Tensor]
    info: list[Info]


def infer(
    model: Mixture, x: Tensor, method: Method, observed: Tensor | None = None, *, callback: Callable[[int, float], None] | None = None,
) -> Inference:
    """Posterior of the sources of a mixture STFT, by the EM method. Random from the global generator.

    Args:
        model: is copied; neither its parameters nor its networks are changed.
        x: mixture of unit level, (T, F), or (B, 1, T, F) for a batch of recordings that do not touch one another.
        observed: which bins count (see :meth:`Mixture.forward`).
        callback: called with (iteration, objective).
    """
    model = copy.deepcopy(model)
    model.start(x, observed)
    return resume(model, x, method, observed, callback=callback)


def resume(
    model: Mixture, x: Tensor, method: Method, observed: Tensor | None = None, *, callback: Callable[[int, float], None] | None = None,
) -> Inference:
    """As :func:`infer`, but on a model that was started; its parameters of the recording are updated in place."""
    problem = Problem(model, x, observed, method.guide(model))
    with pyro.validation_enabled(False):
        e_step = method.e_step(problem)
        moments, infos = Moments(), []
        iterations = method.iterations
        averaging = False

        def m_step(draws: dict[str, Tensor]) -> float:
            chains = _n_draws(draws, x)
            with torch.no_grad(), pyro.plate("chains", chains, dim=-2):
                laws = poutine.condition(model, data=draws)(x, observed)
            value = _fit_per_bin(laws, x, observed)
            if averaging:
                moments.add(posterior(laws, x))
            with torch.no_grad():
                open_form = model.update(x, laws, observed)
            if open_form:
                parameters = [p for name in open_form for p in _parameters(model, name)]
                if parameters:
                    gradient_m_step(model, (x, observed), parameters, chains, steps=method.open_steps)(draws)
            return value

        def note(iteration: int, value: float, expectation: Expectation) -> None:
            nonlocal averaging
            averaging = iteration + 1 >= iterations - method.average
            if expectation.info is not None:
                infos.append(expectation.info)
            if callback:
                callback(iteration, value)
            last.update(expectation.draws)

        last: dict[str, Tensor] = {}
        averaging = iterations <= method.average
        objective = em(e_step, m_step, iterations, tolerance=method.tolerance, callback=note)
    return Inference(moments.laws(), objective, last, infos)


def _parameters(model: Mixture, name: str) -> list[torch.nn.Parameter]:
    source = getattr(model, name)
    return [p for p in source.parameters() if p.requires_grad] if isinstance(source, torch.nn.Module) else []


def _n_draws(draws: dict[str, Tensor], x: Tensor) -> int:
    """Size of the draws dim: the first for one recording, the second for a batch."""
    return max((v.shape[0 if x.dim() == 2 else 1] for v in draws.values()), default=1)


def _fit_per_bin(laws: dict[str, ComplexNormal], x: Tensor, observed: Tensor | None) -> float:
    total = None
    for law in laws.values():
        total = law if total is None else total + law
    assert total is not None
    log_prob = total.log_prob(x)
    if observed is not None:
        mask = observed.expand(log_prob.shape)
        return float(log_prob[mask].mean())
    return float(log_prob.mean())


def _squared(value: Tensor) -> Tensor:
    return value.real.square() + value.imag.square()
