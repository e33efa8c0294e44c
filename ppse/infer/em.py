"""Expectation maximisation: any way to draw the latents, any way to update the parameters, in turn."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from .adapt import StepSizeAdapter
from .density import CHAINS_DIM, LogDensity, Position, blocks_of, by_dim, is_latent, plate_dims
from .kernels import Info, Kernel, State, combined
from .run import Draws


class Expectation(NamedTuple):
    """Result of an E-step: constrained draws by site, (…, chains, frames, …), and what the kernel said in its last step.

    A draw may be a leaf that wants a gradient, for the sake of the next E-step; detach what is to be kept.
    ``sources``: by name, laws that an E-step has in closed form, where it has also made the M-step that goes with them.
    """

    draws: Position
    info: Info | None = None
    sources: Any = None


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

    Raises:
        ValueError: when the step size is no positive number.
    """
    if not 0 < step_size < math.inf:
        raise ValueError(f"mcmc_e_step: step_size={step_size}; expected a positive number")
    adapter = StepSizeAdapter(step_size, target_acceptance)
    state = State(_leaves(start), None, None)
    current = torch.as_tensor(step_size)

    def e_step(iteration: int) -> Expectation:
        nonlocal state, current
        if iteration < settle:
            return Expectation(_constrained(target, state.position))
        if adapt and iteration >= adapt:
            current = adapter.step_size
        # The parameters have moved since the last E-step, so cached densities and gradients are void. What caches none may remember a momentum.
        if state.log_density is not None or state.memory is None:
            with torch.no_grad():
                state = kernel(current).init(state.position)
        kept = []
        for step in range(burn_in + draws):
            state, info = kernel(current).step(state)
            if iteration < adapt:
                current = adapter(info.acceptance)
            if step == burn_in + draws - 1 and (state.gradient is not None or state.log_density is None):  # a kernel that takes gradients
                state = state._replace(position=_leaves(state.position))
            if step >= burn_in:
                kept.append(_constrained(target, state.position))
        with torch.no_grad():
            return Expectation({k: _joined([p[k] for p in kept], target.event_dim(k)) for k in target.sites}, info)

    return e_step


def last_draws(model: Callable[..., Any], args: tuple[Any, ...], expectations: Sequence[Expectation]) -> Draws | None:
    """The last draw of every chain in each of some E-steps, as one run; None when they drew nothing. The global generator stays as it was.

    The parameters moved between them. Draws of a guide or a point estimate count as chains of their own, and have no stats.

    Args:
        model, args: what the E-steps drew the latents of; says in which plates these lie.
        expectations: those of a kernel in which it rested are left out.
    """
    expectations = [e for e in expectations if e.info is not None] or expectations
    if not expectations or not expectations[0].draws:
        return None
    infos = [e.info for e in expectations if e.info is not None]
    with torch.no_grad(), torch.random.fork_rng(), pyro.plate("chains", 1, dim=CHAINS_DIM):
        trace: Any = poutine.trace(model).get_trace(*args)
    values, plates = {}, {}
    for name, drawn in expectations[-1].draws.items():
        site = trace.nodes[name]
        dim = CHAINS_DIM - site["fn"].event_dim
        chains = infos[0].acceptance.shape[CHAINS_DIM] if infos else drawn.shape[dim]
        values[name] = torch.stack([e.draws[name].detach().narrow(dim, e.draws[name].shape[dim] - chains, chains) for e in expectations])
        plates[name] = by_dim(plate_dims(site), drawn.dim() - site["fn"].event_dim)
    if not infos:
        return Draws(values, None, None, plates, ())
    return Draws(values, combined(infos, torch.stack), None, plates, blocks_of(plates.values(), infos[0].acceptance.shape))


def point_e_step(target: LogDensity, start: Position, *, steps: int = 10, learning_rate: float = 0.01) -> EStep:
    """An E-step that climbs to a mode of log p(z | x) by Adam and takes it for the whole posterior: cheap, biased.

    Where the gradient is not finite a coordinate rests: one NaN in the memory of Adam would never leave it.
    """
    leaves = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimiser = torch.optim.Adam(leaves.values(), lr=learning_rate)

    def e_step(iteration: int) -> Expectation:
        for _ in range(steps):
            gradient = target.value_and_grad(leaves)[1]
            for k, leaf in leaves.items():
                leaf.grad = -torch.nan_to_num(gradient[k], nan=0.0, posinf=0.0, neginf=0.0)
            optimiser.step()
        return Expectation(target.constrain({k: v.detach() for k, v in leaves.items()}))

    return e_step


def guide_e_step(
    model: Callable[..., Any], guide: nn.Module, args: tuple[Any, ...], *, draws: int = 1, steps: int = 1, learning_rate: float = 5e-3,
) -> EStep:
    """Variational E-step: fine-tunes a *copy* of the guide on this recording by the ELBO, then draws from it.

    Args:
        model, args: what the ELBO is of; the guide has the same signature.
        guide: its parameters are the start; it is not changed, but set up if it is an automatic guide that has not run yet.
        draws: how many to hand to the M-step.
        steps, learning_rate: Adam steps per E-step; ``steps=0`` uses the guide as it is.

    Raises:
        ValueError: when the guide does not draw every latent of the model; the message names the site.
    """
    with torch.no_grad():
        with pyro.plate("chains", draws, dim=CHAINS_DIM):
            graph: Any = poutine.trace(model).get_trace(*args)
        guide(*args)  # automatic guides make their parameters on the first call
        proposed: Any = poutine.trace(guide).get_trace(*args)
    shapes = {name: site["value"].shape for name, site in graph.nodes.items() if is_latent(site)}
    for name in shapes:
        if name not in proposed.nodes:
            raise ValueError(
                f"guide_e_step: the guide does not draw the latent '{name}' of the model, which would then come from its prior every "
                f"time; add it to the guide, or draw by MCMC (mcmc_e_step, or a method such as mala_em)"
            )
    own = _copied(guide).requires_grad_(True)
    optimiser = torch.optim.Adam(own.parameters(), lr=learning_rate)
    elbo = Trace_ELBO()

    def e_step(_: int) -> Expectation:
        for _step in range(steps):
            descend(optimiser, elbo.differentiable_loss(model, own, *args))
        with torch.no_grad(), pyro.plate("chains", draws, dim=CHAINS_DIM):
            trace: Any = poutine.trace(own).get_trace(*args)
        # A guide that is not random (AutoDelta) gives one value for all draws. Its auxiliary sites are none of the model's.
        return Expectation({name: trace.nodes[name]["value"].expand(shape) for name, shape in shapes.items()})

    return e_step


def gradient_m_step(
    model: Callable[..., Any], args: tuple[Any, ...], optimiser: torch.optim.Optimizer, chains: int, *, steps: int = 5,
) -> MStep:
    """An M-step for any parameters: the optimiser climbs the expected log joint density, by the graph conditioned on ``chains`` draws.

    Args:
        optimiser: of the parameters to fit; hand in the same one every time, as it remembers earlier steps. Others stay.
    """

    def m_step(draws: Position) -> float:
        first = 0.0
        for step in range(steps):
            with torch.enable_grad(), pyro.validation_enabled(False), pyro.plate("chains", chains, dim=CHAINS_DIM):
                trace: Any = poutine.trace(poutine.condition(model, data=draws)).get_trace(*args)
                value = trace.log_prob_sum() / chains
            descend(optimiser, -value)
            first = first if step else value.item()
        return first

    return m_step


def descend(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss; no gradient is left on anything but what the optimiser has, and what the loss does not depend on stays."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
        parameter.grad = gradient
    optimiser.step()


def _copied(guide: nn.Module) -> nn.Module:
    """A deep copy. Pyro's automatic guides forget their model while they are copied, so what they held is put back."""
    held = dict(guide.__dict__)
    own = copy.deepcopy(guide)
    guide.__dict__.update(held)
    return own


def _leaves(position: Position) -> Position:
    """The same values as leaves that want a gradient. The M-step then decodes them for the next E-step, too, which asks for one (ppse.memo)."""
    return {k: v.detach().requires_grad_() for k, v in position.items()}


def _constrained(target: LogDensity, position: Position) -> Position:
    """Draws in their own support; where that is all real numbers they are the leaves themselves."""
    with torch.no_grad():
        return target.constrain(position)


def _joined(kept: list[Tensor], event_dim: int) -> Tensor:
    return kept[0] if len(kept) == 1 else torch.cat(kept, dim=CHAINS_DIM - event_dim)

