"""The contract of a source."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.distributions import transform_to

from ..distributions import ComplexNormal
from ..infer.density import is_latent
from ..mixture import Frames, Mixture, Source, Startable, Updatable
from ..priors import parameter_sites

BATCH = 2
"""Utterances in the batches of :func:`check_source`."""


def check_source(source: Source, n_frames: int = 7, n_freqs: int = 11, aside: Sequence[str] = ()) -> None:
    """Check everything that a mixture asks of a source. Random from the global generator; the source is not changed.

    * The law is a ComplexNormal (…, T, F), var >= 0, in the precision of the recording; device follows ``.to()``.
    * Under a plate of chains, of utterances, and of both, the law equals the loop over their members, given
      the same latents; so it does when every parameter is lifted to a latent (a parameter of event shape E
      is then (C, 1) + E).
    * Sample sites lie in the plates chains, utterances and frames alone.
    * Gradients reach every trainable parameter.
    * ``start`` on one recording leaves nothing to the next.
    * ``update``, if there is one, returns the new variance and never lowers the expected log-likelihood.

    A bare function cannot know the recording, so its precision is its own affair.

    Args:
        source: to be checked; what :class:`ppse.Mixture` takes.
        n_frames, n_freqs: T and F; F must suit the source.
        aside: submodules that guides use and the law does not, e.g. ``("encoder",)`` of a VAE.

    Raises:
        AssertionError: which clause is broken, and where.

    >>> from ppse.models import StationaryNoise
    >>> check_source(StationaryNoise())
    """
    _check_plain_tensors(source)
    for dtype in (torch.complex64, torch.complex128):
        law = _run(_started(source, _recording(dtype, n_frames, n_freqs)), n_frames, n_freqs, dtype)[0]
        _assert_law(law, (n_frames, n_freqs), source, dtype)
    for batched, lifted in product((False, True), (False, True)):
        _check_plates(source, n_frames, n_freqs, batched, lifted)
    _check_gradients(source, n_frames, n_freqs, aside)
    _check_start(source, n_frames, n_freqs)
    if isinstance(source, Updatable):
        _check_update(source, n_frames, n_freqs)


def _recording(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def _started(source: Source, x: Tensor) -> Mixture:
    """A copy of the source, alone in a mixture, in the precision of x, started on it."""
    own = copy.deepcopy(source)
    if isinstance(own, nn.Module):
        own = own.to(x.real.dtype)
    model = Mixture(source=own)
    model.start(x)
    return model


def _run(model: Any, *shape: Any, chains: int = 0) -> tuple[ComplexNormal, Any]:
    """Law and trace of the model (under handlers) for a recording of this shape, and of the dtype that comes last."""
    *sizes, dtype = shape
    x = _recording(dtype, *sizes)
    with torch.no_grad(), pyro.plate("chains", chains, dim=-2) if chains else nullcontext():
        traced = poutine.trace(model)
        try:
            law = traced(x)["source"]
        except (RuntimeError, ValueError) as error:
            raise AssertionError(f"the source fails in a mixture with x of shape {tuple(sizes)}: {error}") from error
    return law, traced.trace


def _assert_law(law: ComplexNormal, shape: tuple[int, ...], source: Source, dtype: torch.dtype) -> None:
    assert isinstance(law, ComplexNormal), f"the source returned a {type(law).__name__}, expected a ComplexNormal"
    found = tuple(law.var.shape)
    assert len(found) <= len(shape) and torch.broadcast_shapes(found, shape) == shape and found[-2:] == shape[-2:], (
        f"the law has shape {found}, expected {shape}, i.e. (…, T, F), with 1 allowed in plates before T"
    )
    assert (law.var >= 0).all(), "the variance is negative or NaN somewhere"
    if isinstance(source, nn.Module):
        assert law.var.dtype == dtype.to_real(), f"the variance is {law.var.dtype} for a {dtype} recording; make tensors with x.new_* or as buffers"


def _check_plain_tensors(source: Source) -> None:
    for name, module in source.named_modules() if isinstance(source, nn.Module) else ():
        plain = [key for key, value in vars(module).items() if isinstance(value, Tensor)]
        assert not plain, f"'{name or type(module).__name__}' keeps {plain} as plain tensors, which do not follow .to(device); use register_buffer"


def _check_plates(source: Source, n_frames: int, n_freqs: int, batched: bool, lifted: bool) -> None:
    """The law under plates equals the loop over their members, given the same latents and parameters."""
    dtype, lead = torch.complex128, (BATCH, 1) if batched else ()
    x = _recording(dtype, *lead, n_frames, n_freqs)
    model, singles = _started(source, x), [_started(source, member) for member in (x.squeeze(1) if batched else [x])]
    params = parameter_sites(_run(singles[0], n_frames, n_freqs, dtype)[1])
    given = parameter_sites(_run(model, *lead, n_frames, n_freqs, dtype)[1])
    taken = {1, n_frames, n_freqs, BATCH} | {size for site in params.values() for size in site["value"].shape}
    chains = next(c for c in range(2, 100) if c not in taken)
    where = f"under {chains} chains{f' and {BATCH} utterances' if batched else ''}{', every parameter lifted' if lifted else ''}"
    handled = poutine.lift(model, prior={k: _prior(site) for k, site in params.items()}) if lifted and params else model
    full = (*lead[:1], chains, n_frames, n_freqs)
    try:
        law, trace = _run(handled, *lead, n_frames, n_freqs, dtype, chains=chains)
        _assert_law(law, full, source, dtype)
    except AssertionError as error:
        raise AssertionError(
            f"{where}: {error}. A parameter that is read outside of the frames plate is (C, 1) + E under chains: give it its dims "
            f"by unsqueeze before it meets frames or frequency; and read one of every frame inside of the plate first"
        ) from error
    latents = {k: site for k, site in trace.nodes.items() if is_latent(site)}
    for name, site in latents.items():
        spare = {frame.name for frame in site["cond_indep_stack"]} - {"chains", "utterances", "frames"}
        assert not spare, f"site '{name}' lies in the plates {sorted(spare)}; a source may use the frames plate that it is given, and no other"
    for b, c in product(range(BATCH if batched else 1), range(chains)):
        index = (b, c) if batched else (c,)
        values = {k: site["value"][index] if _in_frames(site) else site["value"][index].squeeze(0) for k, site in latents.items()}
        for name, site in params.items():
            value, shape = given[name]["value"], site["value"].shape
            values.setdefault(name, value if value.shape == shape else value[b].reshape(shape))
        with poutine.substitute(data={k: values[k] for k in params}), poutine.condition(data=values):
            expected = _run(singles[b], n_frames, n_freqs, dtype)[0]
        for what, found, wanted in (("variance", law.var, expected.var), ("mean", law.loc, expected.loc)):
            assert torch.allclose(found.expand(full)[index], wanted, rtol=1e-8, atol=1e-10), (
                f"{where}: the {what} of member {index} is not what the source gives for it alone; the law has shape "
                f"{tuple(law.var.shape)}, so a parameter or latent meets the dim of another plate"
            )


def _prior(site: dict[str, Any]) -> dist.Distribution:
    """A law on the support of a parameter, of its event shape: all of it, but for the dim of a frames plate it is read in."""
    event = site["value"].shape[1:] if _in_frames(site) else site["value"].shape
    transform = transform_to(site["kwargs"].get("constraint", dist.constraints.real))
    zero = torch.zeros(transform.inverse_shape(event), dtype=site["value"].dtype)
    law = dist.TransformedDistribution(dist.Normal(zero, 0.5 + zero), [transform])
    return law.to_event(len(law.batch_shape))


def _in_frames(site: dict[str, Any]) -> bool:
    return any(frame.name == "frames" for frame in site["cond_indep_stack"])


def _check_gradients(source: Source, n_frames: int, n_freqs: int, aside: Sequence[str]) -> None:
    x = _recording(torch.complex128, n_frames, n_freqs)
    model = _started(source, x)
    parameters = {name.removeprefix("source."): p for name, p in model.named_parameters() if p.requires_grad}
    trace: Any = poutine.trace(model).get_trace(x)
    value = trace.log_prob_sum()
    if value.requires_grad:
        value.backward()
    for name, parameter in parameters.items():
        if not any(name == a or name.startswith(f"{a}.") for a in aside):
            reached = parameter.grad is not None and bool(parameter.grad.any())
            assert reached, f"no gradient of the log-likelihood reaches the parameter '{name}'; name it in aside=… if only a guide uses it"


def _check_start(source: Source, n_frames: int, n_freqs: int) -> None:
    """Starting on a second recording, of another length, gives what starting on it alone gives."""
    first, second = _recording(torch.complex128, n_frames + 2, n_freqs), _recording(torch.complex128, n_frames, n_freqs)
    fresh, used = _started(source, second), _started(source, 10 * first)
    if not isinstance(source, Startable):
        return
    for model in (fresh, used):
        with poutine.seed(rng_seed=0):
            model.start(second)
    alone = dict(fresh.named_parameters())
    for name, parameter in used.named_parameters():
        own = name.removeprefix("source.").removesuffix("_unconstrained")
        assert name in alone and torch.equal(parameter, alone[name]), (
            f"start on a second recording leaves the parameter '{own}' as the first one made it; set it in start"
        )


def _check_update(source: Source, n_frames: int, n_freqs: int, chains: int = 3) -> None:
    """Ten updates against the graph: the source beside a background whose level is a latent of every frame."""

    def background(frames: Frames) -> ComplexNormal:
        with frames:
            level = pyro.sample("level", dist.LogNormal(torch.zeros((), dtype=torch.float64), 1.0))
        return ComplexNormal(0j, level.unsqueeze(-1).expand(*level.shape, n_freqs))

    x = _recording(torch.complex128, n_frames, n_freqs)
    started = _started(source, x)
    own: Any = started.sources["source"]
    model = Mixture(source=own, background=background)
    with torch.no_grad(), pyro.plate("chains", chains, dim=-2):
        trace: Any = poutine.trace(model).get_trace(x)
    draws = {k: s["value"] for k, s in trace.nodes.items() if is_latent(s)}

    def evaluate() -> tuple[float, dict[str, ComplexNormal]]:
        with torch.no_grad(), pyro.plate("chains", chains, dim=-2):
            conditioned: Any = poutine.trace(poutine.condition(model, data=draws))
            laws = conditioned(x)
        return conditioned.trace.log_prob_sum(lambda _, site: site["is_observed"]).item(), laws

    before, laws = evaluate()
    for step in range(10):
        residual = x - laws["source"].loc - laws["background"].loc
        with torch.no_grad():
            returned = own.update(residual.abs().square(), laws["source"].var, laws["background"].var)
        after, laws = evaluate()
        assert torch.allclose(returned.expand(laws["source"].var.shape), laws["source"].var, rtol=1e-6), (
            "update must return the new variance of the source, as the graph then gives it"
        )
        assert after >= before - 1e-9 * abs(before), f"update {step} lowers the expected log-likelihood from {before:.9g} to {after:.9g}"
        before = after
