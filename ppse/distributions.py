"""The one distribution that the workbench adds to Pyro: the circular complex normal law."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class _Complex(constraints.Constraint):
    """Any complex number with no NaN."""

    def check(self, value: Tensor) -> Tensor:
        return value == value


class ComplexNormal(TorchDistribution):
    """Circular complex normal law: log CN(a; m, v) = -log(pi v) - |a - m|^2 / v.

    Real and imaginary parts are independent with variance v / 2 each. ``a + b`` is the law of the sum of
    two *independent* variables, which is all that a mixture of sources needs. ``var == 0`` means known.

    Args:
        loc: mean m, complex (or a Python number); broadcasts against ``var``.
        var: variance v = E|a - m|^2, real and not negative.

    >>> law = ComplexNormal(0j, torch.ones(3)) + ComplexNormal(1j, 2 * torch.ones(3))
    >>> law.var.tolist(), law.loc.imag.tolist()
    ([3.0, 3.0, 3.0], [1.0, 1.0, 1.0])
    """

    # A mean is any complex number; no constraint of torch describes that, so only the variance is checked.
    arg_constraints = {"var": constraints.nonnegative}
    support = _Complex()
    has_rsample = True

    def __init__(self, loc: Tensor | complex, var: Tensor, validate_args: bool | None = None) -> None:
        self.loc: Tensor = torch.as_tensor(loc, dtype=var.dtype.to_complex(), device=var.device)
        self.var: Tensor = var
        self.loc, self.var = torch.broadcast_tensors(self.loc, self.var)
        super().__init__(self.var.shape, torch.Size(), validate_args=validate_args)

    def __add__(self, other: ComplexNormal) -> ComplexNormal:
        return ComplexNormal(self.loc + other.loc, self.var + other.var)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> ComplexNormal:
        shape = torch.Size(batch_shape)
        return ComplexNormal(self.loc.expand(shape), self.var.expand(shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.var

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)  # E|noise|^2 = 1
        return self.loc + self.var.sqrt() * noise

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        error = value - self.loc
        power = error.real.square() + error.imag.square()
        return -math.log(math.pi) - self.var.log() - power / self.var
