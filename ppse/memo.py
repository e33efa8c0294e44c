"""One decode per iteration: what a network made of the last latents, for whoever asks about the very same latents again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Memo:
    """The last value of frozen networks, kept until they are asked of another tensor.

    An M-step decodes the latents at which the next E-step takes a gradient. Where these are a leaf that wants one, the graph is built
    even while gradients are off. It serves one way back: then the value is forgotten, as the graph is used up. Networks that are being
    trained are asked every time. A copy of a memo is empty.
    """

    def __init__(self) -> None:
        self._z: Tensor | None = None
        self._key: object = None
        self._value: Tensor | None = None

    def __call__(self, decode: Callable[[Tensor], Tensor], z: Tensor, networks: Sequence[nn.Module], told: object = None) -> Tensor:
        """``decode(z)``: a function of z, the weights of the networks, and what else it is ``told``. A change of any of these is seen."""
        weights = [weight for network in networks for weight in network.parameters()]
        wanted = torch.is_grad_enabled()
        if z.is_inference() or (wanted and any(weight.requires_grad for weight in weights)):  # inference mode counts no versions
            self._forget()
            return decode(z)
        key = z._version, told, [(id(weight), weight._version) for weight in weights]
        if self._value is None or z is not self._z or key != self._key or (wanted and z.requires_grad and not self._value.requires_grad):
            self._forget()
            with torch.set_grad_enabled(wanted or (z.is_leaf and z.requires_grad)):
                value = decode(z)
            if value.requires_grad:
                value.register_hook(lambda _: self._forget())
            self._z, self._key, self._value = z, key, value
        return self._value if wanted else self._value.detach()

    def _forget(self) -> None:
        self._z = self._key = self._value = None

    def __deepcopy__(self, _: dict[int, Any]) -> Memo:
        return Memo()

    def __reduce__(self) -> tuple[type[Memo], tuple[()]]:
        return Memo, ()
