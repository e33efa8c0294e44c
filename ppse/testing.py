"""Contract checks for people who write a source or a kernel, and a statistical check of draws.

Each check raises an ``AssertionError`` that says what is wrong; a source or kernel that passes can be used
with everything else in the package. For use in tests, not in inference.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor, nn
from torch.distributions import transform_to

from .distributions import ComplexNormal
from .infer import Kernel, LogDensity, Position, State, log_density
from .mixture import Frames, Mixture, Source, Startable, Updatable

KernelFactory = Callable[[LogDensity, float | Tensor], Kernel]

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


def check_kernel(factory: KernelFactory, adjusted: bool = True) -> None:
    """Check that a kernel keeps the contract of :mod:`ppse.infer.kernels`. Random from the global generator.

    Init / step protocol and names; cached value and gradient equal their recomputation; acceptance goes to 1
    for tiny and to 0 for huge steps; a target that is NaN or infinite is never entered and never disturbs
    another block; a chain does not depend on the others; the step size is a number or one per block.

    Args:
        factory: (target, step_size) → kernel, e.g. ``mala``.
        adjusted: False for kernels that accept every step; acceptance and dead ends are then not checked.

    Raises:
        AssertionError: which clause is broken.

    >>> from ppse.infer import mala
    >>> check_kernel(mala)
    """
    assert list(inspect.signature(factory).parameters)[:2] == ["target", "step_size"], "a kernel factory starts with (target, step_size)"
    target, start = _toy_target()
    kernel = factory(target, 0.1)
    for function, expected in ((kernel.init, "position"), (kernel.step, "state")):
        found = list(inspect.signature(function).parameters)
        assert found == [expected], f"{function.__name__} takes ({expected}), found {found}"
    state = kernel.init(start)
    assert all(torch.equal(state.position[k], start[k]) for k in start), "init moved the position"
    _assert_cache(target, state)
    for _ in range(5):
        state, info = kernel.step(state)
        _assert_cache(target, state)
        for name, value in info._asdict().items():
            assert value.shape == target.shape, f"Info.{name} has shape {tuple(value.shape)}, expected one value per block {tuple(target.shape)}"
        assert info.accepted.dtype == info.divergent.dtype == torch.bool, "Info.accepted and Info.divergent must be boolean"
        assert ((info.acceptance >= 0) & (info.acceptance <= 1)).all(), "Info.acceptance must be a probability"
    if adjusted:
        for size, low, high in ((1e-8, 0.99, 1.0), (1e8, 0.0, 0.01)):
            acceptance = factory(target, size).step(factory(target, size).init(start))[1].acceptance.mean().item()
            assert low <= acceptance <= high, f"acceptance is {acceptance:.3f} at step size {size}, expected {low} to {high}"
    _check_dead_ends(factory, adjusted)
    moved = {k: v + torch.tensor([0.0, 3.0, 0.0]).reshape(-1, *(1,) * (v.dim() - 1)) for k, v in start.items()}
    for k, v in _steps(factory, target, moved).items():
        same = _steps(factory, target, start)[k]
        assert torch.equal(v[0], same[0]) and torch.equal(v[2], same[2]), "a chain depends on where another chain starts"
    _check_step_sizes(factory, target, start)


def assert_moments(
    draws: Tensor, mean: Tensor, second_moment: Tensor, sigmas: float = 5.0, minimum_ess: float = 400.0,
) -> None:
    """Assert E[z] and E[z^2] of MCMC draws: |average - expected| < sigmas * sd / sqrt(ESS), each coordinate.

    The effective sample size (ESS) must be at least ``minimum_ess``, or the bound would say nothing. At 5 sigmas one
    comparison gives a false alarm with probability 6e-7; the whole suite makes fewer than 2000 of them, so a
    change of the random numbers breaks a right sampler about once in a thousand runs.

    Args:
        draws: (draw, chain, …), of a chain in equilibrium.
        mean, second_moment: exact values, (…).

    Raises:
        AssertionError: which moment is off, by how many standard errors; or that the ESS is too small.
    """
    for what, values, expected in (("mean", draws, mean), ("second moment", draws.square(), second_moment)):
        array = values.detach().transpose(0, 1).cpu().double().numpy()
        ess = torch.as_tensor(az.ess(az.convert_to_dataset({"z": array}), method="mean")["z"].values)
        lowest = ess.min().item()
        assert lowest >= minimum_ess, f"effective sample size of the {what} is {lowest:.0f}, below {minimum_ess:.0f}: take more draws"
        found = torch.as_tensor(array).flatten(0, 1)
        errors = (found.mean(0) - expected.double()).abs() / (found.std(0) / ess.sqrt())
        worst = errors.max().item()
        assert worst < sigmas, f"{what} is off by {worst:.1f} standard errors, more than {sigmas}; draws {found.mean(0)}, expected {expected}"


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


def _run(model: Any, *shape: Any, chains: int = 0) -> tuple[ComplexNormal, poutine.Trace]:
    """Law and trace of the model (under handlers) for a recording of this shape, and of the dtype that comes last."""
    *sizes, dtype = shape
    x = _recording(dtype, *sizes)
    with torch.no_grad(), pyro.plate("chains", chains, dim=-2) if chains else poutine.block(hide=[]):
        traced = poutine.trace(model)
        law = traced(x)["source"]
    return law, traced.trace


def _assert_law(law: ComplexNormal, shape: tuple[int, ...], source: Source, dtype: torch.dtype) -> None:
    assert isinstance(law, ComplexNormal), f"the source returned a {type(law).__name__}, expected a ComplexNormal"
    found = tuple(law.var.shape)
    assert len(found) <= len(shape) and torch.broadcast_shapes(found, shape) == shape and found[-2:] == shape[-2:], (
        f"the law has shape {found}, expected {shape}, i.e. (…, T, F), with 1 allowed in plates before T. A parameter that is "
        f"read outside of the frames plate is (C, 1) + E under chains: give it its dims by unsqueeze before it meets frequency"
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
    dtype = torch.complex128
    single = _started(source, _recording(dtype, n_frames, n_freqs))
    lead = (BATCH, 1) if batched else ()
    model = _started(source, _recording(dtype, *lead, n_frames, n_freqs))
    shapes = {name: site["value"].shape for name, site in _params(_run(single, n_frames, n_freqs, dtype)[1])}
    taken = {1, n_frames, n_freqs, BATCH} | {size for shape in shapes.values() for size in shape}
    chains = next(c for c in range(2, 100) if c not in taken)
    params = dict(_params(_run(model, *lead, n_frames, n_freqs, dtype)[1]))
    # Read outside of every plate, a parameter is all event; read inside of "frames", its first dim is that plate.
    priors = {name: _prior(site, shapes[name]) for name, site in params.items()} if lifted else {}
    handled = poutine.lift(model, prior=priors) if priors else model
    law, trace = _run(handled, *lead, n_frames, n_freqs, dtype, chains=chains)
    full = (*(lead[:1]), chains, n_frames, n_freqs)
    where = f"under {chains} chains{f' and {BATCH} utterances' if batched else ''}{', every parameter lifted' if lifted else ''}"
    try:
        _assert_law(law, full, source, dtype)
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample" and not site["is_observed"]}
    for name, site in list(sites.items()):
        if type(site["fn"]).__name__ == "_Subsample":
            del sites[name]
        spare = {frame.name for frame in site["cond_indep_stack"]} - {"chains", "utterances", "frames"}
        assert not spare, f"site '{name}' lies in the plates {sorted(spare)}; a source may use the frames plate that it is given, and no other"
    var, loc = law.var.expand(full), law.loc.expand(full)
    for b, c in product(range(BATCH if batched else 1), range(chains)):
        values = {name: _member(site, b, c, batched) for name, site in sites.items()}
        for name, site in params.items():
            if name not in priors:
                value = site["value"]
                values[name] = value if value.shape == shapes[name] else value[b]
            values[name] = values[name].reshape(shapes[name])
        one = poutine.condition(poutine.substitute(single, data={k: v for k, v in values.items() if k in params}), data=values)
        expected = _run(one, n_frames, n_freqs, dtype)[0]
        index = (b, c) if batched else (c,)
        for what, found, wanted in (("variance", var[index], expected.var), ("mean", loc[index], expected.loc)):
            assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-10), (
                f"{where}: the {what} of member {index} is not what the source gives on its own (shape {tuple(law.var.shape)}); "
                f"a parameter or latent meets the dim of another plate"
            )


def _params(trace: poutine.Trace) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "param")
