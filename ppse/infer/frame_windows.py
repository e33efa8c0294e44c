"""Window blocks: some frames move while the others stay, and are accepted by the terms that depend on them; exact for coupled frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import pyro.poutine as poutine
import torch
from torch import Tensor

from .blocks import is_random
from .density import LogDensity, Position, plate_dims
from .gibbs import Conditional, _per_block
from .kernels import Info, Kernel, State, _without_gradient
from .receptive_field import FRAMES, ReceptiveField, frame_terms, receptive_field


class Windows(NamedTuple):
    """How the frames of a recording are cut into windows. ``str()`` says why as many move side by side as do.

    Attributes:
        size: frames of a window.
        parallel: windows that move at once, each accepted on its own: so many that no term of the density depends on two of them.
        moves: per sweep, so that a frame moves once on average.
        frames: of the recording.
        reach: of the terms of the density (:func:`receptive_field`).
        sites: latent sites that move.
    """

    size: int
    parallel: int
    moves: int
    frames: int
    reach: ReceptiveField
    sites: tuple[str, ...]

    def __str__(self) -> str:
        before, after = self.reach
        reach = f"the density of a frame depends on {before} frames before and {after} after it"
        if min(self.reach) >= self.frames - 1:  # as receptive_field says of whatever reaches far, one way or both
            reach = "the density of a frame reaches far, so that it counts as depending on all others"
        many = f"{self.parallel} windows of {self.size} frames move side by side; {self.moves} moves a sweep of {self.frames} frames"
        if self.parallel > 1:
            return f"{many}, as {reach}"
        if self.size == self.frames:
            return f"one window holds all {self.frames} frames"
        return f"windows of {self.size} frames move one after another, {self.moves} moves a sweep of {self.frames} frames, as {reach}"


def frame_windows(target: LogDensity, size: int = 8, sites: tuple[str, ...] | None = None) -> Windows:
    """Cut the frames into windows for :func:`windowed`, as many side by side as the receptive field of the density allows.

    The receptive field is read off the graph and checked (:func:`receptive_field`), so do this once and not in a loop.

    Args:
        target: density that has all latents in the plate "frames".
        size: frames of a window. A recording that is no longer is one window.
        sites: those of a group of :func:`gibbs`, which then gets the windows, when not all latents lie in the frames. None for all.

    Raises:
        ValueError: when the size is no whole number, or below 1.
        BlockError: when a latent lies outside of the frames; the message names it.
    """
    if type(size) is not int or size < 1:
        raise ValueError(f"frame_windows: size={size!r}; expected a whole number of frames from 1 on, e.g. 8")
    target = target if sites is None else Conditional(target, sites)
    reach, frames = receptive_field(target), target.sizes[FRAMES]
    size = min(size, frames)
    count = max(1, frames // (size + sum(reach)))
    return Windows(size, count, max(1, round(frames / (count * size))), frames, reach, target.sites)


class WindowDensity(LogDensity):
    """The density of the frames in some windows given all other frames, with the windows as blocks: shape (…, chains, windows).

    Of every site it has one row per window, (…, chains, windows, frames of a window * event), so that a covariance of that last dim is
    one of all that moves together. Frames are counted round the end of the recording to its beginning, so all windows are as long.
    """

    def __init__(self, joint: LogDensity, windows: Windows) -> None:
        terms = frame_terms(joint)
        for what, value in (("temperature", joint.temperature), ("likelihood power", joint.likelihood_power)):
            if isinstance(value, Tensor) and value.dim() and value.shape[-1] > 1:
                raise ValueError(f"windowed: a {what} of shape {tuple(value.shape)}; expected one for all frames, such as (chains, 1)")
        self.__dict__.update(vars(terms))
        self._joint, self._windows, self._held = joint, windows, joint.init()
        self._event_dims = dict.fromkeys(joint.sites, 1)
        self.plates = {name: {k: v for k, v in inside.items() if k != FRAMES} | {"windows": -1} for name, inside in joint.plates.items()}
        self.block = tuple(sorted((set(terms.block) - {FRAMES}) | {"windows"}))
        self.shape = torch.Size((*terms.shape[:-1], windows.parallel))
        self._device = next(iter(self._held.values())).device
        self._place(0)
        self._start = self.local(self._held)

    def at(self, first: int, held: Position) -> WindowDensity:
        """The windows that start at this frame and evenly from there on, given the frames around them."""
        other = copy.copy(self)
        other._held = held
        other._place(first)
        return other

    def local(self, values: Position) -> Position:
        """What belongs to the windows of a position of the joint density, or of what broadcasts against it, such as a scale."""
        return {name: self.shaped(name, value) for name, value in values.items()}

    def whole(self, position: Position) -> Position:
        """The position of the joint density: the windows where they are given, the frames around them as they are held."""
        return {name: self._put(name, value) for name, value in position.items()}

    def over_frames(self, per_window: Tensor) -> Tensor:
        """A value per window in each of its frames, 0 in the frames of no window, (…, chains, frames)."""
        empty = per_window.new_zeros(*per_window.shape[:-1], self._windows.frames)
        return empty.index_copy(-1, self._frames, per_window.repeat_interleave(self._windows.size, -1))

    def shaped(self, name: str, value: Tensor) -> Tensor:
        value = self._joint.shaped(name, value)
        dim = value.dim() - 1 - self._joint.event_dim(name)
        return value.index_select(dim, self._frames).unflatten(dim, (self._windows.parallel, -1)).flatten(dim + 1)

    def _at(self, position: Position) -> tuple[poutine.Trace, Position]:
        trace, log_jacobian = self._joint._at(self.whole(position))
        inside = {name for name, site in trace.nodes.items() if is_random(site) and FRAMES in plate_dims(site)}
        for name, site in trace.nodes.items():
            if is_random(site):
                site["log_prob"] = self._by_window(site["log_prob"], name in inside)
        return trace, {name: self._by_window(value, name in inside) for name, value in log_jacobian.items()}

    def _by_window(self, terms: Tensor, inside: bool) -> Tensor:
        """The sum of the terms that depend on each window. Terms outside of the frames do so if there is one window; else they are constant."""
        if not inside:
            return terms.sum(-1, keepdim=True) if terms.dim() else terms
        return terms.index_select(-1, self._terms).unflatten(-1, (self._windows.parallel, -1)).sum(-1)

    def _put(self, name: str, value: Tensor) -> Tensor:
        held = self._held[name]
        dim = held.dim() - 1 - self._joint.event_dim(name)
        rows = value.unflatten(-1, (self._windows.size, -1)).reshape(*held.shape[:dim], len(self._frames), *held.shape[dim + 1 :])
        return held.index_copy(dim, self._frames, rows)

    def _place(self, first: int) -> None:
        size, count, frames = self._windows.size, self._windows.parallel, self._windows.frames
        before, after = self._windows.reach
        starts = first + torch.arange(count, device=self._device).unsqueeze(-1) * frames // count

        def span(length: int, shift: int) -> Tensor:
            return ((starts + shift + torch.arange(length, device=self._device)) % frames).flatten()

        self._frames, self._terms = span(size, 0), span(min(size + before + after, frames), -after)


def windowed(target: LogDensity, windows: Windows, kernel: Callable[[WindowDensity], Kernel], steps: int = 1) -> Kernel:
    """A kernel that moves windows of frames while all other frames stay. Random from the global generator.

    One step is a sweep. It starts at a random frame and goes on to the left or to the right, so that the seams between windows are
    elsewhere every time, and is its own time reversal. In each move the windows that lie side by side are accepted one by one, each by
    the sum of the terms of the density that depend on it, so that the target is left invariant. Cost: per move that of the steps and
    one evaluation more, of the whole recording. Where the reach of the density leaves one window only (a recurrent decoder), a sweep
    takes frames / size moves; whole utterances as blocks are then cheaper as a rule.

    Info, in the blocks of ``target``: the mean acceptance over all frames that moved, whether any was accepted, whether any was divergent.

    Args:
        target: density of the recording; coupled or not. In :func:`gibbs`, that of a group.
        windows: of :func:`frame_windows`.
        kernel: makes the kernel of each move, e.g. ``lambda t: hmc(t, 0.3, scale=t.local(scale))``. It must leave its target invariant and
            keep no memory. To whiten each frame whiten the target, ``whitened(target, factor, lambda w: windowed(w, …))``; to
            whiten a window as a whole whiten what moves, ``lambda t: whitened(t, {"z": factor}, …)`` with the factor of its last dim.
        steps: of the kernel, per move. The first costs an evaluation more than the others.

    Raises:
        ValueError: when the windows were made for another number of frames or for other sites, or a number is below 1.
        BlockError: when a latent lies outside of the frames; the message names it.

    References:
        Liu (2001), Monte Carlo strategies in scientific computing, for moves of blocks given the rest; Shestopaloff & Neal (2018), Sampling
        latent states for high-dimensional non-linear state space models, for why not to move all frames at once.

    >>> import pyro, pyro.distributions as dist
    >>> from ppse.infer import hmc, log_density, sample
    >>> def moving_average():
    ...     with pyro.plate("frames", 9, dim=-1):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z + 0.5 * z.roll(1, -1) * (torch.arange(9) > 0), 1.0), obs=torch.ones(9))
    >>> target = log_density(moving_average, chains=2)
    >>> windows = frame_windows(target, size=2)
    >>> print(windows)
    3 windows of 2 frames move side by side; 2 moves a sweep of 9 frames, as the density of a frame depends on 1 frames before and 0 after it
    >>> tuple(sample(target, windowed(target, windows, lambda t: hmc(t, 0.3)), target.init(), 10).values["z"].shape)
    (10, 2, 9)
    """
    if windows.frames != target.sizes.get(FRAMES) or windows.sites != target.sites or steps < 1:
        raise ValueError(
            f"windowed: windows of {windows.frames} frames and the sites {windows.sites} with steps={steps}, for a target of "
            f"{target.sizes.get(FRAMES)} frames and the sites {target.sites}; make them by frame_windows for this target, and take a step or more"
        )
    density = WindowDensity(target, windows)

    def init(position: Position) -> State:
        return _without_gradient(target, position)

    def step(state: State) -> tuple[State, Info]:
        position, seen = state.position, list[Tensor]()
        first, direction = int(torch.randint(windows.frames, ())), 2 * int(torch.randint(2, ())) - 1
        for move in range(windows.moves):
            moving = density.at(first + direction * move * windows.size, position)
            made = kernel(moving)
            inner = made.init(moving.local(position))
            if inner.memory is not None:
                raise ValueError("windowed: the kernel has a memory, which would be lost with every move; wrap the windowed kernel by it instead")
            for _ in range(steps):
                inner, info = made.step(inner)
                now = (info.acceptance, info.accepted, info.divergent, torch.ones_like(info.acceptance))
                seen.append(torch.stack([moving.over_frames(v.to(info.acceptance)) for v in now]))
            position = moving.whole(inner.position)
        new = init(position)
        assert new.log_density is not None
        acceptance, accepted, divergent, visits = (_per_block(v, target) for v in torch.stack(seen).sum(0))
        return new, Info(acceptance / visits.clamp_min(1), accepted > 0, new.log_density, divergent > 0)

    return Kernel(init, step)
