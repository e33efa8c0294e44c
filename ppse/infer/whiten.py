"""Kernels on a whitened target: correlated coordinates made round by a change of variables, whatever the kernel."""

from __future__ import annotations

from collections.abc import Callable

import pyro.poutine as poutine
import torch
from torch import Tensor

from .density import LogDensity, Position
from .kernels import Info, Kernel, State, _choose


class Whitened(LogDensity):
    """The density of u, where the position is factor * u. Its log-Jacobian is constant, and left out."""

    def __init__(self, target: LogDensity, factor: Position) -> None:
        self.__dict__.update(vars(target))
        self._target, self._factor = target, factor

    def _at(self, position: Position) -> tuple[poutine.Trace, Position]:
        return self._target._at({name: self.map(name, value) for name, value in position.items()})

    def shaped(self, name: str, value: Tensor) -> Tensor:
        return self._target.shaped(name, value)

    def map(self, name: str, value: Tensor, *, transpose: bool = False, inverse: bool = False) -> Tensor:
        """The factor, its transpose, its inverse or both, times the last event dim of a value shaped like the site of that name."""
        if name not in self._factor:
            return value
        scalar = not self.event_dim(name)
        columns = (value.unsqueeze(-1) if scalar else value).unsqueeze(-1)
        matrix = self._factor[name].mT if transpose else self._factor[name]
        found = torch.linalg.solve_triangular(matrix, columns, upper=transpose) if inverse else matrix @ columns
        return (found.squeeze(-1) if scalar else found).squeeze(-1)


def whitened(target: LogDensity, factor: Position, kernel: Callable[[LogDensity], Kernel]) -> Kernel:
    """A kernel that moves as if the target had been whitened: it walks in u, where the position is factor * u.

    With the Cholesky factor of the covariance of a block, HMC and MALA take the same steps along all axes of its posterior, which their
    ``scale`` can do only for axes of coordinates. Positions and gradients in the State are those of the target.

    Args:
        target: to be moved.
        factor: site → lower triangular matrix (…, L, L) for the L coordinates of its last event dim (1 for a site without any), which
            broadcasts against a position with a dim more. Sites that are not in it stay as they are.
        kernel: makes the kernel, e.g. ``lambda t: hmc(t, 0.3)``.

    Raises:
        ValueError: at the first position, when the kernel has a memory, which holds positions of its own.

    References:
        Neal (2011), MCMC using Hamiltonian dynamics, section 4.1: linear transformations, or a full mass matrix.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import hmc, log_density, sample
    >>> tril = torch.tensor([[1.0, 0.0], [0.99, 0.1]])
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril))
    >>> target = log_density(model, chains=2)
    >>> kernel = whitened(target, {"z": tril}, lambda t: hmc(t, 0.5))
    >>> tuple(sample(target, kernel, target.init(), 10).values["z"].shape)
    (10, 2, 3, 2)
    """
    white = Whitened(target, factor)
    inner = kernel(white)

    def into(position: Position) -> Position:
        return {k: white.map(k, v, inverse=True) for k, v in position.items()}

    def init(position: Position) -> State:
        state = inner.init(into(position))
        if state.memory is not None:
            raise ValueError("whitened: the kernel has a memory, which would not be whitened; wrap the whitened kernel by it instead")
        return _outside(white, state)._replace(position=position)

    def step(state: State) -> tuple[State, Info]:
        gradient = state.gradient and {k: white.map(k, v, transpose=True) for k, v in state.gradient.items()}
        new, info = inner.step(State(into(state.position), state.log_density, gradient))
        moved = _outside(white, new)
        # What did not move stays to the last digit: there and back again, rounding errors would add up.
        position = _choose(target, info.accepted, moved.position, state.position)
        kept = moved.gradient and state.gradient and _choose(target, info.accepted, moved.gradient, state.gradient)
        return State(position, moved.log_density, kept), info

    return Kernel(init, step)


def _outside(white: Whitened, state: State) -> State:
    """A state of the whitened density as one of the target."""
    gradient = state.gradient and {k: white.map(k, v, transpose=True, inverse=True) for k, v in state.gradient.items()}
    return State({k: white.map(k, v) for k, v in state.position.items()}, state.log_density, gradient)
