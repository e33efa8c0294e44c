"""One decode per iteration, one hearing of a recording: what networks made of what they were last asked, for whoever asks the same again."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class _Forgetful:
    """Its copies, and what is stored of it, are empty."""

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class Memo(_Forgetful):
    """The last value of frozen networks, kept until they are asked of another tensor.

    An M-step decodes the latents at which the next E-step takes a gradient. Where these are a leaf that wants one, the graph is built
    even while gradients are off. It serves one way back: then the value is forgotten, as the graph is used up. Networks that are being
    trained are asked every time.
    """

    def __init__(self) -> None:
        self._z: Tensor | None = None
        self._weights: list[Tensor] = []
        self._key: object = None
        self._value: Tensor | None = None

    def __call__(self, decode: Callable[[Tensor], Tensor], z: Tensor, networks: Sequence[nn.Module], told: object = None) -> Tensor:
        """``decode(z)``: a function of z, the parameters of the networks, and what else it is ``told``.

        Another z, another parameter or another thing told is seen, and so is a change in place, unless it goes through ``.data``.
        """
        weights: list[Tensor] = [weight for network in networks for weight in network.parameters()]
        wanted = torch.is_grad_enabled()
        # What is made in inference mode serves nowhere else, and has no versions.
        if z.is_inference() or torch.is_inference_mode_enabled() or (wanted and any(weight.requires_grad for weight in weights)):
            self._forget()
            return decode(z)
        key = z._version, told, _versions(weights)
        known = z is self._z and key == self._key and _same(weights, self._weights)
        if self._value is None or not known or (wanted and z.requires_grad and not self._value.requires_grad):
            self._forget()
            with torch.set_grad_enabled(wanted or (z.is_leaf and z.requires_grad)):
                value = decode(z)
            if value.requires_grad:
                memo = weakref.ref(self)  # else value and memo would hold each other, out of sight of the garbage collector
                value.register_hook(lambda _: None if (mine := memo()) is None else mine._forget())
            self._z, self._weights, self._key, self._value = z, weights, key, value
        return self._value if wanted else self._value.detach()

    def _forget(self) -> None:
        self._z, self._weights, self._key, self._value = None, [], None, None


class Recall(_Forgetful, Generic[T]):
    """What a network without gradients made of a recording, kept until it is asked of one with other values.

    The model starts by hearing the recording, inference by hearing a copy. Where gradients are on, the network is asked every time, and what was
    known is forgotten: a fused optimiser changes weights unseen.
    """

    def __init__(self) -> None:
        self._known: tuple[Sequence[Tensor | None], list[Tensor], list[int | None], T] | None = None

    def __call__(self, make: Callable[[], T], given: Sequence[Tensor | None], network: nn.Module) -> T:
        """``make()``: a function of what is given and of the parameters of the network.

        Other parameters are seen, and so is a change in place, unless it goes through ``.data``.
        """
        weights: list[Tensor] = [*network.parameters()]
        made_in_inference = any(each is not None and each.is_inference() for each in (*given, *weights))
        if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or made_in_inference:
            self._known = None
            return make()
        if self._known is not None:
            heard, by, versions, value = self._known
            if _same(weights, by) and versions == _versions([*heard, *by]) and all(map(_equal, heard, given)):
                return value
        value = make()
        self._known = given, weights, _versions([*given, *weights]), value
        return value


def _same(weights: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether these are the very same tensors."""
    return len(weights) == len(others) and all(map(operator.is_, weights, others))


def _versions(tensors: Sequence[Tensor | None]) -> list[int | None]:
    return [None if each is None else each._version for each in tensors]


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
