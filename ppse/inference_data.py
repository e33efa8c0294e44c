"""Draws of MCMC, guides and EM as ArviZ data with named dims. ArviZ is imported when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from .convergence import OF_GROUP
from .infer import Draws, Info, Proposal
from .infer.blocks import is_random
from .infer.density import CHAINS_DIM, blocks_of, by_dim, is_latent, plate_dims
from .predictive import Sites, observed_summaries, posterior_predictive, prior_predictive
from .stft import STFT

if TYPE_CHECKING:
    from arviz import InferenceData

_DIMS = {"chains": "chain", "frames": "frame", "utterances": "utterance"}
_STATS = {"acceptance": "acceptance_rate", "log_density": "lp", "divergent": "diverging"}
_Variable = tuple[tuple[str, ...], NDArray[Any]]


def to_arviz(
    draws: Draws, model: Callable[..., Any] | None = None, x: Tensor | None = None, observed: Tensor | None = None, *,
    stft: STFT | None = None, dims: Mapping[str, Sequence[str]] | None = None, predictive: int = 0,
    seed: int = 0, moved: bool = False,
) -> InferenceData:
    """Draws as ArviZ InferenceData: for ``az.summary``, ``az.plot_trace``, ``az.loo``, :func:`ppse.runs.save_run` and :func:`ppse.verdict`.

    Groups: ``posterior``, dims (chain, draw, utterance, frame, …) as the plates of each site have them, and event dims, "latent"
    for the vector of a frame; ``sample_stats``, per block that was accepted on its own (acceptance_rate, accepted, lp, diverging,
    energy, step_size), for each group of a Gibbs sweep too (``diverging:speech.z``), or for draws of a guide lp and log_proposal;
    ``constant_data``; and with a model ``log_likelihood`` per frame and ``observed_data``, where a complex x has a last dim "part"
    (real, imag), as NetCDF knows no complex numbers. Costs one trace of the model per draw.

    With ``predictive``, also ``prior``, ``posterior_predictive`` and ``prior_predictive``. A replicated STFT for every draw would
    be larger than all else: of each, ``x.spectrum`` (mean power over frames, per frequency) and ``x.envelope`` (mean over frequencies,
    per frame) are kept, and ``observed_data`` has both of x itself. Only these groups are random.

    ``az.loo`` of it leaves out frames given the draws. It is sound for parameters that frames share (noise spectra, NMF
    dictionaries). A latent of a single frame is informed by little else than this frame: the Pareto k-hats of LOO say so.

    Args:
        draws: from :func:`ppse.infer.sample`, from a guide, or kept E-steps of EM.
        model: what was sampled, lifted if it was lifted; run as ``model(x)``, or ``model(x, observed)``, given every draw.
        x: mixture of unit level, (T, F) or (B, 1, T, F).
        observed: which bins count (see :meth:`ppse.Mixture.forward`).
        stft: of x; gives frames a ``time`` in seconds (of their centre) and frequencies in Hz.
        dims: site → names of its event dims, e.g. ``{"noise.W": ("freq", "pattern")}``.
        predictive: replicated data per chain, and draws from the prior; needs model and x.
        seed: of these; the global generator stays as it was.
        moved: whether parameters of the model moved between the draws, as in EM. It is noted, and the verdict says so; the
            log-likelihood is that under the parameters that the model has now.

    Raises:
        ValueError: when only one of model and x is given, or dims do not fit a site, or the model has other latent sites than the draws.
    """
    import arviz as az
    import xarray as xr

    if (model is None) != (x is None) or (x is None and (observed is not None or predictive)):
        raise ValueError("to_arviz: the log-likelihood, or predictive, needs both model and x (the STFT that was sampled on); give both or neither")
    if predictive < 0:
        raise ValueError(f"to_arviz: predictive={predictive}; expected 0 (none) or more")
    given = dims or {}
    groups: dict[str, dict[str, _Variable]] = {
        "posterior": _labelled(Sites(draws.values, draws.plates), _event_dims(draws, given)),
        "sample_stats": _sample_stats(draws),
    }
    if model is not None and x is not None:
        args = (x,) if observed is None else (x, observed)
        groups |= _likelihood(draws, model, args, given)
        if predictive:
            with poutine.seed(rng_seed=seed):
                more = _predictive(draws, model, args, predictive, given)
            for name, variables in more.items():
                groups[name] = variables | groups.get(name, {})
    sizes = {d: n for group in groups.values() for names, v in group.values() for d, n in zip(names, v.shape, strict=True)}
    groups["constant_data"] = _constants(sizes, stft, None if observed is None or x is None else observed.expand(x.shape))
    coords: dict[str, Any] = {"part": ["real", "imag"]}
    if stft is not None and sizes.get("freq") == stft.n_freqs:
        coords["freq"] = stft.frequencies
    attributes = {"inference_library": "ppse", "parameters_moved": int(moved)}  # attributes of NetCDF are no booleans
    made: dict[str, Any] = {}
    for name, variables in groups.items():
        if variables:
            lengths = {d: n for names, v in variables.values() for d, n in zip(names, v.shape, strict=True)}
            data = xr.Dataset(variables, {d: coords.get(d, np.arange(n)) for d, n in lengths.items()}, attributes)
            made[name] = data.transpose("chain", "draw", ..., missing_dims="ignore")
    return az.InferenceData(**made)


def _sample_stats(draws: Draws) -> dict[str, _Variable]:
    """What was noted of every step, in the blocks of the density; and of every group of a Gibbs sweep, in blocks of its own."""
    if draws.stats is None:
        return {}
    variables = _fields(draws.stats, draws.blocks)
    of_groups = draws.stats.groups if isinstance(draws.stats, Info) else None
    for group, info in (of_groups or {}).items():
        blocks = blocks_of(draws.plates.values(), info.acceptance.shape[1:])
        variables |= {f"{name}{OF_GROUP}{group}": variable for name, variable in _fields(info, blocks).items()}
    return variables


def _fields(stats: Info | Proposal, blocks: Sequence[str]) -> dict[str, _Variable]:
    noted = {_STATS.get(name, name): value for name, value in stats._asdict().items() if isinstance(value, Tensor)}
    return {name: _named(value, ("draw", *blocks), (), name) for name, value in noted.items()}


def _event_dims(draws: Draws, given: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Names of the event dims of every site. The vector of a frame is "latent"; where two sites differ in its size both add their name."""
    shapes = {name: value.shape[1 + len(draws.plates[name]) :] for name, value in draws.values.items()}
    vectors = {name: shape[0] for name, shape in shapes.items() if len(shape) == 1 and "frames" in draws.plates[name] and name not in given}
    latent = {name: "latent" if len(set(vectors.values())) == 1 else f"{name}_latent" for name in vectors}
    result = {}
    for name, shape in shapes.items():
        result[name] = tuple(given.get(name, (latent[name],) if name in latent else tuple(f"{name}_event_{i}" for i in range(len(shape)))))
        if len(result[name]) != len(shape):
            raise ValueError(f"to_arviz: dims of '{name}' are {result[name]}; its draws have {len(shape)} event dims, of shape {tuple(shape)}")
    return result


def _named(value: Tensor, plates: Sequence[str], event: Sequence[str], name: str) -> _Variable:
    """A tensor as an array with the names of its dims; dims of size 1 in no plate are dropped."""
    array: NDArray[Any] = value.detach().cpu().resolve_conj().numpy()
    kept = [i for i, n in enumerate(array.shape) if i >= len(plates) or plates[i] or n > 1]
    labels = [_DIMS.get(p, p) or f"{name}_batch_{i}" for i, p in enumerate(plates)] + list(event)
    return tuple(labels[i] for i in kept), array.reshape([array.shape[i] for i in kept])


def _likelihood(
    draws: Draws, model: Callable[..., Any], args: tuple[Tensor, ...], given: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, _Variable]]:
    """The groups log_likelihood and observed_data, of every observed site of the model given each draw."""
    kept: dict[str, list[Tensor]] = {}
    for i in range(len(next(iter(draws.values.values())))):
        conditioned = poutine.condition(model, data={name: value[i] for name, value in draws.values.items()})
        with torch.no_grad(), pyro.validation_enabled(False), pyro.plate("chains", draws.chains, dim=CHAINS_DIM):
            trace: Any = poutine.trace(conditioned).get_trace(*args)
            seen = [name for name, site in trace.nodes.items() if is_random(site) and site["is_observed"] and name not in draws.values]
            trace.compute_log_prob(site_filter=lambda name, _, seen=seen: name in seen)
        other = {name for name, site in trace.nodes.items() if is_latent(site)} | (set(draws.values) - set(trace.nodes))
        if other:
            raise ValueError(
                f"to_arviz: the sites {sorted(other)} are not in both the model and the draws; give the model that was sampled, lifted alike"
            )
        for name in seen:
            kept.setdefault(name, []).append(trace.nodes[name]["log_prob"])
    log_likelihood, observed = {}, {}
    for name, values in kept.items():
        site = trace.nodes[name]
        inside = plate_dims(site)
        log_likelihood[name] = _named(torch.stack(values), ("draw", *by_dim(inside, values[0].dim())), (), name)
        value, n_event = site["value"], site["fn"].event_dim
        event = given.get(name, _data_dims(name, value, n_event, args))
        plates = by_dim({plate: dim for plate, dim in inside.items() if dim != CHAINS_DIM}, value.dim() - n_event)
        parts = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        observed[name] = _named(parts, plates, (*event, "part") if value.is_complex() else event, name)
    return {"log_likelihood": log_likelihood, "observed_data": observed}


def _predictive(
    draws: Draws, model: Callable[..., Any], args: tuple[Tensor, ...], count: int, given: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, _Variable]]:
    """The groups of what is replicated, and what to compare it with for observed_data."""
    weight = args[1].expand(args[0].shape) if len(args) > 1 else None
    prior, prior_data = prior_predictive(model, args, count, weight)
    replicated, found = posterior_predictive(draws, model, args, count, weight), observed_summaries(model, args, weight)
    latent_dims = _event_dims(Draws(prior.values, draws.stats, None, prior.plates, ()), given)
    data_dims = {name: given.get(name, _data_dims(name, v, v.dim() - len(found.plates[name]), args)) for name, v in found.values.items()}
    return {
        "prior": _labelled(prior, latent_dims),
        "posterior_predictive": _labelled(replicated, data_dims),
        "prior_predictive": _labelled(prior_data, data_dims),
        "observed_data": {name: _named(v, found.plates[name], data_dims[name], name) for name, v in found.values.items()},
    }


def _labelled(sites: Sites, event: Mapping[str, Sequence[str]]) -> dict[str, _Variable]:
    return {name: _named(value, ("draw", *sites.plates[name]), event[name], name) for name, value in sites.values.items()}


def _data_dims(name: str, value: Tensor, n_event: int, args: tuple[Any, ...]) -> tuple[str, ...]:
    """Names of the event dims of data: a vector is a spectrum, where it is as long as those of the recording, the first of the arguments."""
    spectrum = n_event == 1 and not (args and value.shape[-1] != args[0].shape[-1])
    return ("freq",) if spectrum else tuple(f"{name}_event_{i}" for i in range(n_event))


def _constants(sizes: Mapping[str, int], stft: STFT | None, observed: Tensor | None) -> dict[str, _Variable]:
    """Settings of the STFT, the time of every frame, and which bins count."""
    constants: dict[str, _Variable] = {}
    if stft is not None:
        constants = {name: ((), np.array(value)) for name, value in vars(stft).items()}
        if "frame" in sizes:
            constants["time"] = ("frame",), stft.centres(sizes["frame"])
    if observed is not None:
        constants["observed"] = _named(observed, ("utterances", "", "frames")[1 - observed.dim() :], ("freq",), "observed")
    return constants
