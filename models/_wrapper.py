"""What all sources around another source share: it is started, and goes on, with them."""

from __future__ import annotations

from pyro.nn import PyroModule
from torch import Tensor

from ..mixture import Followable, Source, Startable, reusable


class Wrapper(PyroModule):
    """Base of sources that change the law of another one.

    Args:
        source: the one that is wrapped; it keeps its parameters, start and follow.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = reusable(source)

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Starts the wrapped source."""
        if isinstance(self.source, Startable):
            self.source.start(x, observed)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """The wrapped source goes on with the next stretch of the recording."""
        if isinstance(self.source, Followable):
            self.source.follow(x, observed)
