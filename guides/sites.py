"""What a guide has to draw: the latent sites of a model, read off its graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, IndependentTransform, Transform

Start: TypeAlias = Mapping[str, tuple[Tensor, Tensor | float]]
"""Site → where its law starts: a value in its support, and a standard deviation in unconstrained space (for a positive site: of its logarithm)."""


class Plate(NamedTuple):
    """A plate of the model: its name, size and dim."""

    name: str
    size: int
    dim: int


class LatentSite(NamedTuple):
    """A latent site of a model that runs without chains.

    Attributes:
        plates: in which it lies.
        batch: its batch shape, one number for each plate dim from the outermost, 1 where it lies in none.
        event: its event shape in unconstrained space.
        transform: unconstrained space → support.
        zero: 0 in unconstrained space, of shape batch + event and the precision and device of the site.
    """

    name: str
    plates: tuple[Plate, ...]
    batch: torch.Size
    event: torch.Size
    transform: Transform
    zero: Tensor

    @property
    def constrained(self) -> bool:
        """Whether the support is anything but all real numbers."""
        transform = self.transform
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        return not (isinstance(transform, ComposeTransform) and not transform.parts)

    def start(self, start: Start | None, scale: float) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in unconstrained space, batch + event: as given for this site, or 0 and ``scale``.

        Raises:
            ValueError: when what is given has another shape, or is not in the support.
        """
        value, deviation = (start or {}).get(self.name, (None, scale))
        try:
            loc = self.zero if value is None else self.transform.inv(value.detach()).expand(self.zero.shape)
            spread = torch.as_tensor(deviation).detach().to(self.zero).expand(self.zero.shape)
        except RuntimeError as error:
            raise ValueError(f"guide: the start of '{self.name}' does not broadcast to its shape {tuple(self.zero.shape)}: {error}") from error
        if not bool(loc.isfinite().all() and (spread > 0).all() and spread.isfinite().all()):
            raise ValueError(f"guide: the start of '{self.name}' lies outside of its support, or its standard deviation is not positive")
        return loc.clone(), spread.clone()


def latent_sites(model: Callable[..., Any], args: tuple[Any, ...], start: Start | None = None) -> list[LatentSite]:
    """The latent sites of a model in the order in which it draws them. The global generator stays as it was.

    Args:
        args: handed to the model, which runs once; not under a plate of chains, as a guide gets that from outside when it is called.
        start: its names are checked.

    Raises:
        ValueError: when there is no latent site, one is discrete, or the start is for others.
    """
    with torch.no_grad(), torch.random.fork_rng(), poutine.block():
        trace: Any = poutine.trace(model).get_trace(*args)
    sites = []
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or node["is_observed"] or site_is_subsample(node):
            continue
        law = node["fn"]
        try:
            transform = biject_to(law.support)
        except NotImplementedError as error:  # what PyTorch raises for a support that no map from the real numbers reaches
            raise ValueError(f"guide: the latent '{name}' is not continuous; sum it out in the model, or condition on it") from error
        zero = torch.zeros_like(transform.inv(node["value"].detach()))
        plates = tuple(Plate(frame.name, frame.size, frame.dim) for frame in node["cond_indep_stack"])
        batch = law.batch_shape
        sites.append(LatentSite(name, plates, batch, zero.shape[len(batch) :], transform, zero))
    if not sites:
        raise ValueError("guide: the model has no latent site; there is nothing to draw")
    unknown = set(start or {}) - {site.name for site in sites}
    if unknown:
        raise ValueError(f"guide: start has {sorted(unknown)}; the latent sites of the model are {[site.name for site in sites]}")
    return sites


class Plates:
    """The plates of one run of a guide. Each is made once: a graph has one plate of a name, which may be entered many times."""

    def __init__(self) -> None:
        self._made: dict[Plate, pyro.plate] = {}

    @contextmanager
    def __call__(self, plates: tuple[Plate, ...]) -> Iterator[None]:
        """Enter these plates."""
        with ExitStack() as stack:
            for plate in plates:
                if plate not in self._made:
                    self._made[plate] = pyro.plate(plate.name, plate.size, dim=plate.dim)
                stack.enter_context(self._made[plate])
            yield
