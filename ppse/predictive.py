"""What a model says the data should look like: replicated mixtures under draws, and under the prior, as power spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from .infer import Draws
from .infer.blocks import is_random
from .infer.density import CHAINS_DIM, by_dim, plate_dims


class Sites(NamedTuple):
    """Values of sites (draw, …plates, event), and the plate of each batch dim between, as in :class:`ppse.infer.Draws`."""

    values: dict[str, Tensor]
    plates: dict[str, tuple[str, ...]]


def posterior_predictive(
    draws: Draws, model: Callable[..., Any], args: Sequence[Tensor], count: int, weight: Tensor | None = None,
) -> Sites:
    """Summaries (:func:`power_summaries`) of data replicated under ``count`` draws of every chain, evenly spread. Random.

    Args:
        draws: of the latent sites of the model.
        model, args: what was sampled.
        weight: see :func:`power_summaries`.
    """
    rows = torch.linspace(0, len(next(iter(draws.values.values()))) - 1, count).round().long().unique()
    replicated = poutine.uncondition(model)
    made = []
    for row in rows:
        conditioned = poutine.condition(replicated, {name: value[row] for name, value in draws.values.items()})
        made.append(_data(_run(conditioned, args, draws.chains), "value", weight))
    return _stacked(made)


def prior_predictive(model: Callable[..., Any], args: Sequence[Tensor], count: int, weight: Tensor | None = None) -> tuple[Sites, Sites]:
    """``count`` draws of the latent sites from their prior, and summaries of data replicated under them. Random.

    Parameters without a prior keep their values: with parameters fitted to a recording this is no prior of recordings.
    """
    runs = [_run(poutine.uncondition(model), args, 1) for _ in range(count)]
    return _stacked([_latents(run) for run in runs]), _stacked([_data(run, "value", weight) for run in runs])


def observed_summaries(model: Callable[..., Any], args: Sequence[Tensor], weight: Tensor | None = None) -> Sites:
    """The same summaries of what was observed, without the leading draw dim: what replicated data are to be compared with."""
    return _data(_run(poutine.uncondition(model), args, None), "observed", weight)


def power_summaries(name: str, value: Tensor, plates: tuple[str, ...], weight: Tensor | None = None) -> Sites:
    """The power of an STFT: ``name.spectrum``, its mean over frames, per frequency, and ``name.envelope``, its mean over frequencies, per frame.

    A replicated STFT has as many values as the recording, for every draw; these two are what can be kept and looked at.

    Args:
        value: (…, T, F), its batch dims in ``plates``, the last one of frames.
        weight: which bins count, broadcasts against value; NaN comes out where none does.
    """
    power = value.abs().square()
    counted = torch.ones_like(power) if weight is None else weight.to(power.dtype).expand(power.shape)
    seen = torch.where(counted > 0, power, torch.zeros_like(power))
    spectrum, envelope = seen.sum(-2) / counted.sum(-2), seen.sum(-1) / counted.sum(-1)
    return Sites({f"{name}.spectrum": spectrum, f"{name}.envelope": envelope}, {f"{name}.spectrum": plates[:-1], f"{name}.envelope": plates})


class _Site(NamedTuple):
    """A random site of one run: its value, and what was observed there, if anything was; ``infer={"counted": mask}`` says which bins of it."""

    value: Tensor
    observed: Tensor | None
    event_dim: int
    plates: Mapping[str, int]
    counted: Tensor | None


def _run(model: Callable[..., Any], args: Sequence[Tensor], chains: int | None) -> dict[str, _Site]:
    """One run of a model whose data are drawn; the sites that were drawn."""
    with torch.no_grad(), pyro.validation_enabled(False), nullcontext() if chains is None else pyro.plate("chains", chains, dim=CHAINS_DIM):
        trace: Any = poutine.trace(model).get_trace(*args)
    return {
        name: _Site(site["value"], site["infer"].get("obs"), site["fn"].event_dim, plate_dims(site), site["infer"].get("counted"))
        for name, site in trace.nodes.items() if is_random(site) and not site["is_observed"]
    }


def _latents(run: Mapping[str, _Site]) -> Sites:
    latents = {name: site for name, site in run.items() if site.observed is None}
    return Sites({name: site.value for name, site in latents.items()}, {name: _plates(site, site.value) for name, site in latents.items()})


def _data(run: Mapping[str, _Site], which: str, weight: Tensor | None) -> Sites:
    """Data that were drawn ("value"), or "observed", of one run; STFTs as their summaries, other complex data as their power."""
    data = Sites({}, {})
    for name, site in run.items():
        if site.observed is None:
            continue
        value = getattr(site, which)
        plates = _plates(site, value)
        if site.event_dim == 1 and plates[-1:] == ("frames",):
            made = power_summaries(name, value, plates, weight if site.counted is None else site.counted)
        elif value.is_complex():  # NetCDF knows no complex numbers
            made = Sites({f"{name}.power": value.abs().square()}, {f"{name}.power": plates})
        else:
            made = Sites({name: value}, {name: plates})
        data.values.update(made.values)
        data.plates.update(made.plates)
    return data


def _plates(site: _Site, value: Tensor) -> tuple[str, ...]:
    return by_dim(site.plates, value.dim() - site.event_dim)


def _stacked(runs: Sequence[Sites]) -> Sites:
    return Sites({name: torch.stack([run.values[name] for run in runs]) for name in runs[0].values}, runs[0].plates)
