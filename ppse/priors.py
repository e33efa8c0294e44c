"""Be Bayesian about any parameter: priors by site name, over the very graph that EM fits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions import Distribution, Gamma
from torch import Tensor
from torch.distributions import constraints

from .distributions import ComplexNormal
from .mixture import Mixture

Graph = Callable[..., dict[str, ComplexNormal]]
"""What a mixture is to inference: called with (x, observed), it declares the sites and returns the laws of the sources."""


def with_priors(model: Mixture, priors: Mapping[str, Distribution], x: Tensor, observed: Tensor | None = None) -> Graph:
    """The graph in which some parameters are latent variables, each entry independent a priori.

    The model itself stays as it is, and so do its other parameters: those that EM has found, or the start. Hand the result to
    :func:`ppse.infer.log_density`, to a guide, or to any inference of Pyro.

    Args:
        model: started on x, since the parameters of a recording have its size.
        priors: site name → law of one entry of the parameter, e.g. ``{"noise.W": Gamma(0.1, 0.1), "noise.H": Gamma(1.0, 1.0)}``;
            a law with a batch shape that broadcasts against the parameter of one recording (and frame) is for its entries.
        x, observed: as in :meth:`Mixture.forward`.

    Raises:
        ValueError: when the model has no such parameter, the law does not fit its shape, or may be where the parameter may not; or when
            a parameter that frames share is read inside of their plate.

    >>> import pyro.distributions as dist
    >>> from ppse.models import NMFNoise
    >>> model, x = Mixture(noise=NMFNoise(rank=2)), torch.randn(5, 9, dtype=torch.complex64)
    >>> model.start(x)
    >>> bayesian = with_priors(model, {"noise.W": dist.Gamma(0.1, 0.1), "noise.H": dist.Gamma(1.0, 1.0)}, x)
    >>> trace = poutine.trace(bayesian).get_trace(x)
    >>> {name: tuple(trace.nodes[name]["value"].shape) for name in ("noise.W", "noise.H")}
    {'noise.W': (9, 2), 'noise.H': (5, 2)}
    """
    parameters = parameter_sites(_trace(model, x, observed))
    for name in priors:
        if name not in parameters:
            raise ValueError(f"with_priors: the model has no parameter '{name}'; it has {', '.join(sorted(parameters)) or 'none'}")
    laws = {name: _expanded(name, law, parameters[name]) for name, law in priors.items()}
    # When lift makes a sample site of a parameter, the plates inside of it have had their turn: without broadcast one draw would serve all frames.
    bayesian: Graph = poutine.broadcast(poutine.lift(model, prior=laws))
    return bayesian


def weak_priors(model: Mixture, x: Tensor, observed: Tensor | None = None, shape: float = 1.0) -> dict[str, Distribution]:
    """A weak prior for every positive parameter of the recording: Gamma of that shape, its mean that of all entries as they stand.

    Only the order of magnitude comes from the recording. Parameters that may be negative, or have other bounds, have no prior here.

    Args:
        model: started on x, or fitted to it.
        x, observed: as in :meth:`Mixture.forward`.
        shape: 1 is the exponential law; below 1 most entries are near 0.
    """
    sites = parameter_sites(_trace(model, x, observed))
    positive = {name: site["value"] for name, site in sites.items() if _is_positive(site["kwargs"].get("constraint"))}
    return {name: Gamma(value.new_tensor(shape), shape / value.mean()) for name, value in positive.items()}


def parameters_of(model: Mixture, x: Tensor, observed: Tensor | None = None) -> dict[str, Tensor]:
    """The parameters of the recording as they stand, by site name."""
    return {name: site["value"].detach() for name, site in parameter_sites(_trace(model, x, observed)).items()}


def _trace(model: Mixture, x: Tensor, observed: Tensor | None) -> Any:
    with torch.no_grad(), torch.random.fork_rng():
        return poutine.trace(model).get_trace(x, observed)


def parameter_sites(trace: poutine.Trace) -> dict[str, dict[str, Any]]:
    """The parameters in a trace by name, but for the weights of networks ("net$$$0.weight"), which nobody lifts one by one."""
    return {name: site for name, site in trace.nodes.items() if site["type"] == "param" and "$$$" not in name}


def _expanded(name: str, law: Distribution, site: Mapping[str, Any]) -> Distribution:
    """The law of a whole parameter: of the dims that no plate holds."""
    event = _event(name, site)
    try:
        whole = law.to_event(0).expand(event).to_event(len(event))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"with_priors: the law of '{name}' has shape {tuple(law.batch_shape)}; expected one that broadcasts to {tuple(event)}"
        ) from error
    constraint = site["kwargs"].get("constraint", constraints.real)
    with torch.random.fork_rng():
        allowed = constraint.check(law.sample(torch.Size((1000,))))
    if not bool(torch.as_tensor(allowed).all()):
        raise ValueError(f"with_priors: the law of '{name}' may take values that the parameter may not; expected {constraint}")
    return _unvalidated(whole)


def _is_positive(constraint: Any) -> bool:
    """By what it says, as a copy of a module has a copy of its constraints."""
    return isinstance(constraint, type(constraints.positive)) and bool(constraint.lower_bound == 0)


def _event(name: str, site: Mapping[str, Any]) -> torch.Size:
    """The shape of a parameter without its plates. One that was made before it met a batch has none there; every utterance then draws its own."""
    shape: torch.Size = site["value"].shape
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"]}
    depth = max((-dim for dim in sizes), default=0)
    if len(shape) >= depth and all(shape[dim + depth] in (1, sizes.get(dim, 1)) for dim in range(-depth, 0)):
        return shape[depth:]
    if any(frame.name == "frames" for frame in site["cond_indep_stack"]):
        raise ValueError(
            f"with_priors: '{name}' has shape {tuple(shape)}, none of it for the frames, and is read inside of their plate, where every frame "
            f"would draw its own; let the source read it before it enters the plate"
        )
    return shape


def _unvalidated(law: Distribution) -> Distribution:
    """A law that gives NaN a density of NaN, which kernels reject, where it would else stop the run."""
    law = copy.copy(law)
    law._validate_args = False
    if hasattr(law, "base_dist"):
        law.base_dist = _unvalidated(law.base_dist)
    return law
