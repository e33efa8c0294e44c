"""Expectation maximisation: any way to draw the latents, any way to update the parameters, in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from .adapt import StepSizeAdapter
from .density import CHAINS_DIM, LogDensity, Position
from .kernels import Info, Kernel


class Expectation(NamedTuple):
    """Result of an E-step: constrained draws by site, (…, chains, frames, …), and what the kernel said in its last step."""

    draws: Position
    info: Info | None = None


EStep = Callable[[int], Expectation]
"""iteration → draws from (an approximation of) p(z | x) under the present parameters. Keeps its own state."""

MStep = Callable[[Position], float]
"""draws → the objective before the update, in nats; updates the parameters."""


def em(
    e_step: EStep, m_step: MStep, iterations: int, *, tolerance: float = 0.0, window: int = 10,
    callback: Callable[[int, float, Expectation], None] | None = None,
) -> list[float]:
    """Alternate E and M steps; returns the objective of every iteration.

    Args:
        tolerance: stop when the mean objective of the last ``window`` iterations is no more than this above
            the mean of the ``window`` before. 0 never stops early.
        callback: called with (iteration, objective, expectation) after each.

    Raises:
        ValueError: when there is nothing to do.
    """
    if iterations < 1 or window < 1 or tolerance < 0:
        raise ValueError(f"em: iterations={iterations}, window={window}, tolerance={tolerance}; expected >= 1, >= 1, >= 0")
    objective: list[float] = []
    for iteration in range(iterations):
        expectation = e_step(iteration)
        objective.append(m_step(expectation.draws))
        if callback:
            callback(iteration, objective[-1], expectation)
        if tolerance and len(objective) >= 2 * window:
            recent, before = sum(objective[-window:]), sum(objective[-2 * window : -window])
            if recent - before <= tolerance * window:
                break
    return objective


def mcmc_e_step(
    target: LogDensity, kernel: Callable[[float | Tensor], Kernel], start: Position, *, step_size: float,
    draws: int = 1, burn_in: int = 0, settle: int = 0, adapt: int = 0, target_acceptance: float = 0.574,
) -> EStep:
    """An E-step by MCMC, its chains going on where the last one ended.

    Args:
        target: density of the model; sees the parameters as they are when it is called.
        kernel: step size → kernel, e.g. ``lambda e: mala(target, e)``.
        start: unconstrained position of the chains at first.
        step_size: of the kernel, or the first guess.
        draws, burn_in: steps kept and steps not kept per E-step. Kept draws join the chains in dim -2.
        settle: in the first so many E-steps the chains stay at the start, while the M-steps find parameters that suit it.
        adapt: in the first so many E-steps the step size of each block is tuned; then it is frozen.
        target_acceptance: what to tune it for.
    """
    adapter = StepSizeAdapter(step_size, target_acceptance)
    position: Position = start
    current = torch.as_tensor(step_size)

    def e_step(iteration: int) -> Expectation:
        nonlocal position, current
        if iteration < settle:
            return Expectation(target.constrain(position))
        # The parameters have moved since the last E-step, so cached densities and gradients are void.
        state = kernel(current).init(position)
        kept = []
        for step in range(burn_in + draws):
            state, info = kernel(current).step(state)
            if iteration < adapt:
                current = adapter(info.acceptance)
            if step >= burn_in:
                kept.append(target.constrain(state.position))
        if iteration == adapt - 1:
            current = adapter.step_size
        position = state.position
        return Expectation({k: _joined([p[k] for p in kept], target.event_dim(k)) for k in target.sites}, info)

    return e_step


def point_e_step(target: LogDensity, start: Position, *, steps: int = 10, learning_rate: float = 0.01) -> EStep:
    """An E-step that climbs to a mode of log p(z | x) by Adam and takes it for the whole posterior: cheap, biased."""
    leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=learning_rate)

    def e_step(iteration: int) -> Expectation:
        for _ in range(steps):
            gradient = target.value_and_grad(leaves)[1]
            for k, leaf in leaves.items():
                leaf.grad = -gradient[k]
            optimiser.step()
        return Expectation(target.constrain({k: v.detach() for k, v in leaves.items()}))

    return e_step


def guide_e_step(
    model: Callable[..., Any], guide: nn.Module, args: tuple[Any, ...], *, draws: int = 1, steps: int = 1, learning_rate: float = 5e-3,
) -> EStep:
    """Variational E-step: fine-tunes a *copy* of the guide on this recording by the ELBO, then draws from it.

    Args:
        model, args: what the ELBO is of; the guide has the same signature.
        guide: its parameters are the start; it is not changed.
        draws: how many to hand to the M-step.
        steps, learning_rate: Adam steps per E-step; ``steps=0`` uses the guide as it is.
    """
    own = copy.deepcopy(guide).requires_grad_(True)
    optimiser = torch.optim.Adam(own.parameters(), lr=learning_rate)
    elbo = Trace_ELBO()

    def e_step(_: int) -> Expectation:
        for _step in range(steps):
            optimiser.zero_grad()
            elbo.differentiable_loss(model, own, *args).backward()
            optimiser.step()
        with torch.no_grad(), pyro.plate("chains", draws, dim=CHAINS_DIM):
            trace: Any = poutine.trace(own).get_trace(*args)
        return Expectation({name: site["value"] for name, site in trace.nodes.items() if _drawn(site)})

    return e_step


def gradient_m_step(
    model: Callable[..., Any], args: tuple[Any, ...], parameters: Iterable[nn.Parameter], chains: int, *, steps: int = 5,
    learning_rate: float = 0.02,
) -> MStep:
    """An M-step for any parameters: Adam on the expected log joint density, by the graph conditioned on ``chains`` draws."""
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)

    def m_step(draws: Position) -> float:
        first = 0.0
        for step in range(steps):
            optimiser.zero_grad()
            with torch.enable_grad(), pyro.validation_enabled(False), pyro.plate("chains", chains, dim=CHAINS_DIM):
                trace: Any = poutine.trace(poutine.condition(model, data=draws)).get_trace(*args)
                value = trace.log_prob_sum() / chains
            (-value).backward()
            optimiser.step()
            first = first if step else value.item()
        return first

    return m_step


def _joined(kept: list[Tensor], event_dim: int) -> Tensor:
    return kept[0] if len(kept) == 1 else torch.cat(kept, dim=CHAINS_DIM - event_dim)


def _drawn(site: dict[str, Any]) -> bool:
    return bool(site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample")
