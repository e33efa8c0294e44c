"""The one distribution that the workbench adds to Pyro: the circular complex normal law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.autograd import Function
from torch.distributions import constraints
from torch.utils.weak import WeakIdKeyDictionary

EXPECTED_LOG = -0.5772156649
"""Mean of the log of an exponential variable of mean 1, such as |a - m|^2 / v is: less Euler's constant."""


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

    Attributes:
        loc, var: both of the full shape.
        centre: the mean as it was given, which costs less to compute with: most sources have 0j.

    >>> law = ComplexNormal(0j, torch.ones(3)) + ComplexNormal(1j, 2 * torch.ones(3))
    >>> law.var.tolist(), law.loc.imag.tolist()
    ([3.0, 3.0, 3.0], [1.0, 1.0, 1.0])
    """

    # A mean is any complex number; no constraint of torch describes that, so only the variance is checked.
    arg_constraints = {"var": constraints.nonnegative}
    support = _Complex()
    has_rsample = True

    def __init__(self, loc: Tensor | complex, var: Tensor, validate_args: bool | None = None) -> None:
        self.centre = loc
        self.loc: Tensor = torch.as_tensor(loc, dtype=var.dtype.to_complex(), device=var.device)
        self.var: Tensor = var
        self.loc, self.var = torch.broadcast_tensors(self.loc, self.var)
        super().__init__(self.var.shape, torch.Size(), validate_args=validate_args)

    def __add__(self, other: ComplexNormal) -> ComplexNormal:
        return ComplexNormal(self.centre + other.centre, self.var + other.var)

    def scaled(self, power: Tensor) -> ComplexNormal:
        """The law of sqrt(power) times the variable; the power broadcasts against ``var``. A mean that is the number 0 stays that."""
        return ComplexNormal(self.centre if self.centred else power.sqrt() * self.loc, power * self.var)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> ComplexNormal:
        shape = torch.Size(batch_shape)
        return ComplexNormal(self.centre, self.var.expand(shape), validate_args=False)

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
        log_prob: Tensor = _LogDensity.apply(self.squared_error(value), self.var)
        return log_prob

    @property
    def centred(self) -> bool:
        """Whether the mean was given as the number 0."""
        return not isinstance(self.centre, Tensor) and self.centre == 0

    def squared_error(self, value: Tensor) -> Tensor:
        """|value - m|^2, real."""
        return _power_of_observed(value) if self.centred and value.is_complex() else power_of(value - self.loc)


def power_of(value: Tensor) -> Tensor:
    """|value|^2 of a complex or real tensor, real, of its shape."""
    return value.real.square() + value.imag.square() if value.is_complex() else value.square()


_powers = WeakIdKeyDictionary()
"""Tensor → its power, and the versions of both, for as long as the tensor is there."""


def _power_of_observed(value: Tensor) -> Tensor:
    """:func:`power_of` a tensor that is asked about over and over, as a recording is in every iteration.

    Found anew when either was changed in place (not when the memory that a tensor shares with NumPy was).
    """
    if value.requires_grad or value.is_inference() or torch.is_inference_mode_enabled():
        return power_of(value)
    power, *versions = _powers.get(value, (None,))
    if power is None or versions != [value._version, power._version]:
        power = power_of(value)
        _powers[value] = power, value._version, power._version
    return power


class _LogDensity(Function):
    """-log(pi v) - P / v of powers P and variances v that broadcast, with its derivatives in closed form.

    Every pass over (T, F) values counts here: this is half of the passes that automatic differentiation makes of the formula.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(power: Tensor, var: Tensor) -> Tensor:
        return (power / var).add_(var.log()).add_(math.log(math.pi)).neg_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        power, var = ctx.saved_tensors
        of_power, of_var = ctx.needs_input_grad
        slope = (-grad / var).sum_to_size(power.shape) if of_power else None
        return slope, (grad * ((power / var - 1) / var)).sum_to_size(var.shape) if of_var else None
