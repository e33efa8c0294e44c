"""From any plated Pyro model to a batched log density: one value per block that may be accepted on its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint
from torch.distributions.transforms import Transform

from .blocks import choose, is_random

Position = dict[str, Tensor]
"""Unconstrained values of the latent sites, by name; the leading dims are the plates, chains among them."""

CHAINS_DIM = -2
"""Plate dim of chains and draws; utterances have -3, frames -1."""


@biject_to.register(MixtureSameFamilyConstraint)
def _of_components(support: MixtureSameFamilyConstraint) -> Transform:
    """A mixture lies where its components do; PyTorch does not say so."""
    return biject_to(support.base_constraint)


class LogDensity:
    """log p of a model as a function of the unconstrained latents, per block and chain. Made by :func:`log_density`.

    Attributes:
        block: names of the plates whose members are accepted one by one, besides chains and utterances.
        shape: shape of the value, aligned with the plates: (…, chains, frames), with 1 where a plate is summed.
        chains: number of chains.
        plates: latent site → the plates it lies in, with their dims.
        sizes: of all plates of the model, by name.
        transforms: latent site → the map from unconstrained space to its support.
        temperature, likelihood_power: as in :func:`log_density`.
    """

    def __init__(
        self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], chains: int,
        block: Sequence[str] | None, temperature: float | Tensor, likelihood_power: float | Tensor, verify: bool,
    ) -> None:
        self._model, self._args, self._kwargs = model, args, kwargs
        self.chains, self.temperature, self.likelihood_power = chains, temperature, likelihood_power
        trace: Any = self._trace(model)
        self.transforms: dict[str, Transform] = {}
        self.plates: dict[str, dict[str, int]] = {}
        self._start: Position = {}
        self._event_dims: dict[str, int] = {}
        for name, site in trace.nodes.items():
            if is_latent(site):
                transform = _transform(name, site["fn"].support)
                value = transform.inv(site["value"].detach())
                self.transforms[name] = transform
                self._start[name] = value
                self.plates[name] = plate_dims(site)
                batch = len(site["fn"].batch_shape)
                self._event_dims[name] = value.dim() - batch
        if not self._start:
            raise ValueError("log_density: the model has no latent site that is continuous; there is nothing to sample")
        # A site that is observed may lie deeper than all latents: a batch of utterances that share them.
        depth = max(-frame.dim for site in trace.nodes.values() if site["type"] == "sample" for frame in site["cond_indep_stack"])
        self._depth = max(depth, -CHAINS_DIM)
        self.sizes = _plate_sizes(trace)
        self.block: tuple[str, ...] = ()
        self.shape = torch.Size()
        choose(self, block, verify)

    def __call__(self, position: Position) -> Tensor:
        """log p per block at the position, shape :attr:`shape`; differentiable."""
        trace, log_jacobian = self._at(position)
        total = torch.zeros((), device=next(iter(position.values())).device)
        for name, site in trace.nodes.items():
            if not is_random(site):
                continue
            log_prob = site["log_prob"]
            if name in log_jacobian:
                log_prob = log_prob + log_jacobian[name]
            elif isinstance(self.likelihood_power, Tensor) or self.likelihood_power != 1.0:
                log_prob = log_prob * self.likelihood_power
            total = total + self._reduced(log_prob)
        return total.expand(self.shape) / self.temperature

    def value_and_grad(self, position: Position) -> tuple[Tensor, Position]:
        """log p per block, and its gradient for every site. As blocks are independent, one backward pass gives all."""
        # Leaves stay the tensors that they are: a source may know them (ppse.memo).
        leaves = {k: v if v.is_leaf and v.requires_grad else v.detach().requires_grad_() for k, v in position.items()}
        with torch.enable_grad():
            value = self(leaves)
            grads = torch.autograd.grad(value.sum(), list(leaves.values()))
        return value.detach(), dict(zip(leaves, grads, strict=True))

    def block_sum(self, values: Position) -> Tensor:
        """Sum per-coordinate values (shaped like a position) over what is inside each block, to :attr:`shape`."""
        total = torch.zeros((), device=next(iter(values.values())).device)
        for name, value in values.items():
            event = self._event_dims[name]
            inner = value.flatten(value.dim() - event).sum(-1) if event else value
            total = total + self._reduced(inner)
        return total.expand(self.shape)

    def spread(self, per_block: Tensor, name: str) -> Tensor:
        """A value per block, shaped to broadcast against the site of that name."""
        event = self._event_dims[name]
        lead = len(_batch_shape(self._start[name], event))
        trimmed = per_block.reshape(per_block.shape[per_block.dim() - lead :]) if per_block.dim() > lead else per_block
        return trimmed.reshape(*trimmed.shape, *(1,) * event)

    def shaped(self, name: str, value: Tensor) -> Tensor:
        """A value that broadcasts against the site of that name, in the shape of its position."""
        return value.expand(self._start[name].shape)

    def tempered(self, temperature: float | Tensor, likelihood_power: float | Tensor) -> LogDensity:
        """The same density with these in place of its own; see :func:`log_density`."""
        other = copy.copy(self)
        other.temperature, other.likelihood_power = temperature, likelihood_power
        return other

    def replicated(self, copies: int) -> LogDensity:
        """The same density under ``copies`` times as many chains. Random: one trace of the model.

        Raises:
            ValueError: when it was derived from another density, whose values it holds or maps, chain by chain.
        """
        if type(self) is not LogDensity:
            what = type(self).__name__
            raise ValueError(f"log_density: a {what} density cannot be replicated; replicate the one of log_density, and make kernels for that")
        chains = copies * self.chains  # which swaps will accept, so what was taken at its word is verified now
        return LogDensity(self._model, self._args, self._kwargs, chains, self.block, self.temperature, self.likelihood_power, verify=True)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the latent sites."""
        return tuple(self._start)

    def event_dim(self, name: str) -> int:
        """Number of event dims of the site of that name, in unconstrained space."""
        return self._event_dims[name]

    def chains_dim(self, name: str) -> int:
        """The dim of the chains in a position of the site of that name."""
        return CHAINS_DIM - self._event_dims[name]

    @property
    def blocks(self) -> tuple[str, ...]:
        """The plate of each dim of the value, in the order of :attr:`shape`; "" where a plate is summed."""
        dims = {name: dim for inside in self.plates.values() for name, dim in inside.items()}
        return by_dim({"chains": CHAINS_DIM} | {name: dims[name] for name in self.block}, len(self.shape))

    def init(self, values: Position | None = None, jitter: float = 0.0) -> Position:
        """A starting position: a draw from the prior, or the given *constrained* values, plus N(0, jitter^2).

        Args:
            values: by site, each broadcasts to the shape of the site under chains; others come from the prior.
            jitter: standard deviation of the noise that makes the chains differ. Random when positive.
        """
        start = {}
        for name, value in self._start.items():
            if values is not None and name in values:
                value = self.transforms[name].inv(values[name]).expand(value.shape)
            start[name] = value + jitter * torch.randn_like(value) if jitter else value.clone()
        return start

    def constrain(self, position: Position) -> Position:
        """The values of the sites, in their own support."""
        return self._constrain(position)[0]

    def trace(self, position: Position) -> poutine.Trace:
        """The trace of the model at the position, with the log density of every site."""
        return self._at(position)[0]

    def _at(self, position: Position) -> tuple[poutine.Trace, Position]:
        values, log_jacobian = self._constrain(position)
        return self._trace(poutine.condition(self._model, data=values)), log_jacobian

    def _constrain(self, position: Position) -> tuple[Position, Position]:
        values, log_jacobian = {}, {}
        for name, value in position.items():
            transform = self.transforms[name]
            values[name] = transform(value)
            log_abs_det = transform.log_abs_det_jacobian(value, values[name])
            batch = value.dim() - self._event_dims[name]
            log_jacobian[name] = log_abs_det.sum(tuple(range(batch, log_abs_det.dim()))) if log_abs_det.dim() > batch else log_abs_det
        return values, log_jacobian

    def _trace(self, model: Callable[..., Any]) -> poutine.Trace:
        # No validation: it costs time, and a density that is NaN is the business of the kernels, not worth a warning.
        with pyro.validation_enabled(False), pyro.plate("chains", self.chains, dim=CHAINS_DIM):
            trace = poutine.trace(model).get_trace(*self._args, **self._kwargs)
            trace.compute_log_prob()
        return trace

    def _reduced(self, log_prob: Tensor) -> Tensor:
        """Sum over every plate that is no block, chain or utterance, keeping the dims."""
        log_prob = log_prob.reshape((1,) * (self._depth - log_prob.dim()) + log_prob.shape)
        summed = [dim for dim in range(-self._depth, 0) if dim not in self._kept]
        return log_prob.sum(summed, keepdim=True) if summed else log_prob

    def set_block(self, names: set[str]) -> None:
        """Accept the members of these plates one by one from now on; :func:`ppse.infer.blocks.choose` finds out whether that is valid."""
        dims = {name: plates[name] for name in names for plates in self.plates.values() if name in plates}
        self._kept = {CHAINS_DIM, *dims.values()}
        self.block = tuple(sorted(names))
        sizes = {CHAINS_DIM: self.chains} | {dim: self.sizes[name] for name, dim in dims.items()}
        self.shape = torch.Size(sizes.get(dim, 1) for dim in range(-self._depth, 0))


def log_density(
    model: Callable[..., Any], *args: Any, chains: int = 1, block: Sequence[str] | None = None,
    temperature: float | Tensor = 1.0, likelihood_power: float | Tensor = 1.0, verify: bool = True, **kwargs: Any,
) -> LogDensity:
    """A Pyro model as a log density per block and chain, for the kernels of :mod:`ppse.infer`.

    The target is (p(z) p(x | z)^likelihood_power)^(1 / temperature). One trace of the model under a plate of
    chains (dim -2) gives all values. The blocks are those plates in which every latent site lies; that they
    are independent is checked on the graph and by moving half of them.

    Args:
        model: any model whose latent sites are continuous and whose plates follow the axis law (frames -1,
            chains -2, utterances -3). It must leave dim -2 free.
        args, kwargs: handed to the model.
        chains: number of chains that run side by side.
        block: plates whose members are accepted one by one, e.g. ``("frames",)``; ``()`` for whole
            utterances; None to read the finest valid blocks off the graph.
        temperature: 1 is the posterior; above 1 is flatter. A number, or a tensor that broadcasts against the blocks.
        likelihood_power: exponent of all observed sites, e.g. 0.5 for the published Langevin EM. A number, or a tensor that
            broadcasts against the plates, such as (chains, 1).
        verify: False takes the blocks that were asked for at their word, chains and utterances among them, and saves some decodes: for what
            accepts nothing, with models that keep the contract of sources (:func:`ppse.testing.check_source`).

    Raises:
        BlockError: when blocks that were asked for are not independent; the message names the site.
        ValueError: when there is no latent site, nothing to take at its word, or a number is out of its range.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     with pyro.plate("frames", 3, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))
    >>> target = log_density(model, chains=2)
    >>> target.block, tuple(target({"z": torch.zeros(2, 3)}).shape)
    (('frames',), (2, 3))
    """
    if block is None and not verify:
        raise ValueError("log_density: verify=False without blocks to take at their word; give block=…, or () for whole utterances")
    if type(chains) is not int or chains < 1:
        raise ValueError(f"log_density: chains={chains!r}; expected a whole number, 1 or more")
    for name, value in (("temperature", temperature), ("likelihood_power", likelihood_power)):
        if not isinstance(value, Tensor) and not 0 < value < math.inf:
            raise ValueError(f"log_density: {name}={value}; expected a positive number")
    return LogDensity(model, args, kwargs, chains, block, temperature, likelihood_power, verify)


def is_latent(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is a random variable that was not observed."""
    return is_random(site) and not site["is_observed"]


def _transform(name: str, support: Constraint) -> Transform:
    """The map from unconstrained space to a support."""
    try:
        return biject_to(support)
    except NotImplementedError as error:  # what PyTorch raises for a support that no map from the real numbers reaches
        raise ValueError(
            f"log_density: the latent '{name}' is not continuous; sum it out (ppse.switching.collapsed does so for regimes), or condition on it"
        ) from error


def by_dim(plates: Mapping[str, int], depth: int) -> tuple[str, ...]:
    """The names of plates in the order of their dims, from -depth to -1; "" for a dim without one."""
    names = {dim: name for name, dim in plates.items()}
    return tuple(names.get(dim, "") for dim in range(-depth, 0))


def blocks_of(plates: Iterable[Sequence[str]], shape: Sequence[int]) -> tuple[str, ...]:
    """The plate of each dim of values of such a shape, from those of the batch dims of all sites; "" for a dim of size 1 but that of chains."""
    names = {dim: name for inside in plates for dim, name in zip(range(-len(inside), 0), inside, strict=True) if name}
    return tuple(names.get(dim, "") if shape[dim] > 1 or dim == CHAINS_DIM else "" for dim in range(-len(shape), 0))


def plate_dims(site: Mapping[str, Any]) -> dict[str, int]:
    """The plates that a site of a trace lies in, by name, with their dims."""
    return {frame.name: frame.dim for frame in site["cond_indep_stack"]}


def _batch_shape(value: Tensor, event_dim: int) -> torch.Size:
    return value.shape[: value.dim() - event_dim]


def _plate_sizes(trace: poutine.Trace) -> dict[str, int]:
    return {
        frame.name: frame.size
        for site in trace.nodes.values() if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
    }
