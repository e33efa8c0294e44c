"""The contract of a kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from ..infer import Kernel, LogDensity, Position, State, log_density

KernelFactory = Callable[[LogDensity, float | Tensor], Kernel]


def check_kernel(factory: KernelFactory, adjusted: bool = True) -> None:
    """Check that a kernel keeps the contract of :mod:`ppse.infer.kernels`. Random from the global generator.

    Init / step protocol and names; cached value and gradient equal their recomputation; a step depends on its state and
    the random numbers alone, and leaves that state as it was; acceptance goes to 1 for tiny and to 0 for huge steps; a
    target that is NaN or infinite is never entered and never disturbs another block; a chain does not depend on the
    others; the step size is a number or one per block.

    Args:
        factory: (target, step_size) → kernel, e.g. ``mala``.
        adjusted: False for kernels that accept every step; acceptance and dead ends are then not checked.

    Raises:
        AssertionError: which clause is broken.

    >>> from ppse.infer import mala
    >>> check_kernel(mala)
    """
    assert list(inspect.signature(factory).parameters)[:2] == ["target", "step_size"], "a kernel factory starts with (target, step_size)"
    target, start = _toy_target()
    kernel = factory(target, 0.1)
    for function, expected in ((kernel.init, "position"), (kernel.step, "state")):
        found = list(inspect.signature(function).parameters)
        assert found == [expected], f"{function.__name__} takes ({expected}), found {found}"
    state = kernel.init(start)
    assert all(torch.equal(state.position[k], start[k]) for k in start), "init moved the position"
    _assert_cache(target, state)
    for _ in range(5):
        state, info = kernel.step(state)
        _assert_cache(target, state)
        for name, value in info._asdict().items():
            shape = value.shape if isinstance(value, Tensor) else target.shape  # groups have blocks of their own
            assert shape == target.shape, f"Info.{name} has shape {tuple(shape)}, expected one value per block {tuple(target.shape)}"
        assert info.accepted.dtype == info.divergent.dtype == torch.bool, "Info.accepted and Info.divergent must be boolean"
        assert ((info.acceptance >= 0) & (info.acceptance <= 1)).all(), "Info.acceptance must be a probability"
    _check_pure(kernel, state)
    if adjusted:
        for size, low, high in ((1e-8, 0.99, 1.0), (1e8, 0.0, 0.01)):
            acceptance = factory(target, size).step(factory(target, size).init(start))[1].acceptance.mean().item()
            assert low <= acceptance <= high, f"acceptance is {acceptance:.3f} at step size {size}, expected {low} to {high}"
    _check_dead_ends(factory, adjusted)
    moved = {k: v + torch.tensor([0.0, 3.0, 0.0]).reshape(-1, *(1,) * (v.dim() - 1)) for k, v in start.items()}
    for k, v in _steps(factory, target, moved).items():
        same = _steps(factory, target, start)[k]
        assert torch.equal(v[0], same[0]) and torch.equal(v[2], same[2]), "a chain depends on where another chain starts"
    _check_step_sizes(factory, target, start)


def _toy_target(spoil: float | None = None) -> tuple[LogDensity, Position]:
    """Five frames of two latents under three chains; with ``spoil``, leaving 0 in frame 2 costs that much (NaN, inf)."""
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("frames", 5, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.7), obs=x)
            if spoil is not None:
                bad = (z.detach() != 0).any(-1) & (torch.arange(5) == 2)
                pyro.factor("spoilt", (z * torch.where(bad, spoil, 0.0).unsqueeze(-1)).sum(-1))

    start = torch.randn(3, 5, 2, dtype=torch.float64)
    start[:, 2] = 0
    return log_density(model, chains=3, block=("frames",)), {"z": start}


def _assert_cache(target: LogDensity, state: State) -> None:
    value, gradient = target.value_and_grad(state.position)
    if state.log_density is not None:
        assert torch.allclose(state.log_density, value), "State.log_density is not the density at State.position"
    if state.gradient is not None:
        same = all(torch.allclose(state.gradient[k], gradient[k]) for k in gradient)
        assert same, "State.gradient is not the gradient at State.position"


def _check_pure(kernel: Kernel, state: State) -> None:
    before = {k: v.clone() for k, v in state.position.items()}
    ends = []
    for _ in range(2):
        with poutine.seed(rng_seed=0):
            ends.append(kernel.step(state)[0].position)
        assert all(torch.equal(state.position[k], v) for k, v in before.items()), "step changed the state that it was given"
    assert all(torch.equal(ends[0][k], v) for k, v in ends[1].items()), "two steps from one state, with the same random numbers, end apart"


def _steps(factory: KernelFactory, target: LogDensity, start: Position, step_size: float | Tensor = 0.1) -> Position:
    """Where five steps of the kernel lead, always with the same random numbers."""
    kernel = factory(target, step_size)
    with poutine.seed(rng_seed=0):
        state = kernel.init(start)
        for _ in range(5):
            state = kernel.step(state)[0]
    return state.position


def _check_dead_ends(factory: KernelFactory, adjusted: bool) -> None:
    for spoil in (torch.nan, torch.inf, -torch.inf):
        target, start = _toy_target(spoil)
        found, clean = (_steps(factory, t, start)["z"] for t in (target, _toy_target()[0]))
        others = [0, 1, 3, 4]
        assert torch.equal(found[:, others], clean[:, others]), f"a block whose density is {spoil} disturbs other blocks"
        assert found.isfinite().all(), f"a target that is {spoil} leads the position to NaN"
        assert not adjusted or (found[:, 2] == 0).all(), f"a proposal whose density is {spoil} was accepted"


def _check_step_sizes(factory: KernelFactory, target: LogDensity, start: Position) -> None:
    number, per_block = (_steps(factory, target, start, size)["z"] for size in (0.1, torch.full(target.shape, 0.1, dtype=torch.float64)))
    assert torch.allclose(number, per_block), "a step size per block is not the same as a number when all are equal"
    sizes = torch.full((1, 5), 0.1, dtype=torch.float64)
    sizes[:, 0] = 1e-16
    move = (_steps(factory, target, start, sizes)["z"] - start["z"]).abs().amax((0, 2))
    assert move[0] < 1e-5 and (move[1:] > 1e-4).all(), "a step size per block does not reach its own block"
