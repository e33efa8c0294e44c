"""The graph: named sources, one frames plate, one observed mixture; and the posterior law of every source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Protocol, TypeAlias, runtime_checkable

import pyro
import torch
from pyro.distributions import Distribution
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.functional import threshold

from .distributions import ComplexNormal

VARIANCE_FLOOR = 1e-8
"""Smallest variance of an observed bin, for recordings of unit level: the one floor of the likelihood."""

Frames: TypeAlias = pyro.plate
"""The frames plate (dim -1) that a mixture hands to its sources."""


class Source(Protocol):
    """A source declares its sites given the frames plate and returns the law of its STFT, shape (…, T, F).

    A plain function is a source. One that owns parameters is a ``PyroModule``: its ``PyroParam`` attributes belong to the recording and
    are fitted to it; other parameters are weights of networks, which inference leaves alone. It may also have

    * ``start(x, observed)``: create the parameters of one recording, called when inference starts on it;
    * ``follow(x, observed)``: go on with the next stretch of the same recording;
    * ``update(power, own, others, observed)``: a closed-form M-step that returns its new variance (see
      :meth:`Mixture.update`). It answers for the parameters of its own module; those of modules without one are fitted by
      gradient.
    """

    def __call__(self, frames: Frames) -> ComplexNormal: ...


@runtime_checkable
class Startable(Protocol):
    """A source with parameters of one recording."""

    def start(self, x: Tensor, observed: Tensor | None = None) -> None: ...


@runtime_checkable
class Followable(Protocol):
    """A source with parameters of frames, to be made anew for every stretch of a long recording."""

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None: ...


@runtime_checkable
class Updatable(Protocol):
    """A source with a closed-form M-step."""

    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor: ...


def reusable(source: Source) -> Source:
    """The source, to be put into another module. Pyro refuses one with modules in it that has run elsewhere, until it has forgotten that."""
    for module in source.modules() if isinstance(source, nn.Module) else ():
        if isinstance(module, PyroModule):
            module._pyro_context = type(module._pyro_context)()
    return source


class Named(Messenger):
    """Gives the sites of a source its name, so that two of a kind can be side by side. Parameters of modules have it: they know their place."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _pyro_sample(self, msg: Any) -> None:
        msg["name"] = f"{self.name}.{msg['name']}"

    def _pyro_param(self, msg: Any) -> None:
        # They arrive as "noise.W" or "speech.experts.expert0.W"; a bare pyro.param("W") does not.
        if f".{self.name}." not in f".{msg['name']}":
            msg["name"] = f"{self.name}.{msg['name']}"


class Mixture(PyroModule):
    """x = sum of the sources in the STFT domain, each locally Gaussian given its latent variables.

    Axes: frames are the plate of dim -1, chains or draws of dim -2, utterances of dim -3; frequency is the
    event dim. One recording has x of shape (T, F); a batch has (B, 1, T, F). Site "z" of the source
    ``speech`` is called "speech.z" in the graph.

    Args:
        sources: by name, e.g. ``Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=4, spacing=16))``.

    Raises:
        ValueError: without any source, or when a source has a name that a module cannot have.

    >>> import torch
    >>> from ppse.models import StationaryNoise
    >>> model = Mixture(noise=StationaryNoise())
    >>> x = torch.randn(5, 9, dtype=torch.complex64)
    >>> model.start(x)
    >>> {name: tuple(law.var.shape) for name, law in model(x).items()}
    {'noise': (5, 9)}
    """

    def __init__(self, **sources: Source) -> None:
        super().__init__()
        if not sources:
            raise ValueError("Mixture: no source given; write Mixture(speech=…, noise=…)")
        for name, source in sources.items():
            if hasattr(self, name):
                raise ValueError(f"Mixture: a source cannot be called '{name}', a name that every module has; rename it")
            setattr(self, name, reusable(source))
        self._names = tuple(sources)

    @property
    def sources(self) -> dict[str, Source]:
        """The sources by name, in the order in which they were given."""
        return {name: getattr(self, name) for name in self._names}

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Create the parameters of one recording (or batch) in every source that has any.

        Random where a source starts at random. Changes the sources; copy the model first to keep it.
        """
        for source in self.sources.values():
            if isinstance(source, Startable):
                source.start(x, observed)

    def follow(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Go on with the next stretch x of the same recording: what describes the recording stays, what describes frames is new."""
        for source in self.sources.values():
            if isinstance(source, Followable):
                source.follow(x, observed)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> dict[str, ComplexNormal]:
        """Declare the graph for the mixture x and return the law of every source.

        Args:
            x: mixture STFT, (T, F), or (B, 1, T, F) for a batch of B utterances.
            observed: which bins count, boolean, broadcasts against x: False in the padding of a batch and
                above the Nyquist frequency of an upsampled recording. None means all.

        Returns:
            name → law, each of shape (…, T, F).

        Raises:
            ValueError: when x has a wrong shape, or a source another number of frequencies than x, or no law.
        """
        frames = pyro.plate("frames", x.shape[-2], dim=-1)
        with utterances(x):
            laws = {}
            for name, source in self.sources.items():
                with Named(name):
                    laws[name] = source(frames)
                if isinstance(laws[name], Tensor):
                    raise ValueError(f"Mixture: the source '{name}' gives a Tensor; expected a law, ComplexNormal(0j, power) of shape (…, T, F)")
                if laws[name].var.shape[-1] not in (1, x.shape[-1]):
                    raise ValueError(
                        f"Mixture: the source '{name}' has {laws[name].var.shape[-1]} frequencies, the recording {x.shape[-1]}; "
                        f"make both with the same STFT (n_fft = 2 n_freqs - 2)"
                    )
            total = _total(laws)
            # clamp_min, but with a derivative that takes a fifth of the time
            law = ComplexNormal(total.centre, threshold(total.var, VARIANCE_FLOOR, VARIANCE_FLOOR))
            with frames:
                pyro.sample("x", masked(law, observed), obs=x)
        return laws

    def update(self, x: Tensor, laws: Mapping[str, ComplexNormal], observed: Tensor | None = None) -> dict[str, ComplexNormal]:
        """Closed-form M-step of every source that has one, in turn, given laws under draws of the latents. Changes the sources.

        Each such source gets the power of the mixture without the means, its own variance, and the summed
        variance of the others (with the updates made so far), and returns its new variance.

        Args:
            laws: name → law of the sources that x is the sum of: all, or, for an x without the others, some.

        Returns:
            the laws after the updates.
        """
        power, updated = _total(laws).squared_error(x), dict(laws)
        for name, law in laws.items():
            source = self.sources[name]
            if isinstance(source, Updatable):
                others = [other.var for who, other in updated.items() if who != name]
                rest = sum(others[1:], others[0]).clamp_min(VARIANCE_FLOOR) if others else law.var.new_tensor(VARIANCE_FLOOR).expand_as(law.var)
                own = source.update(power, law.var, rest, observed)
                updated[name] = ComplexNormal(law.centre, own)
        return updated


def posterior(laws: Mapping[str, ComplexNormal], x: Tensor) -> dict[str, ComplexNormal]:
    """Law of every source given the mixture x and the latents: ``.loc`` is the Wiener estimate.

    s_j | x ~ CN(m_j + g_j (x - sum m), g_j (v - v_j)) with g_j = v_j / v, v the summed variance. The
    estimates add up to x. Nothing is random.

    Args:
        laws: name → law of the source, (…, T, F).
        x: mixture, broadcasts against the laws.

    >>> import torch
    >>> one = torch.ones(1, 1)
    >>> laws = {"s": ComplexNormal(0j, 3 * one), "n": ComplexNormal(0j, one)}
    >>> posterior(laws, one + 0j)["s"].loc.real.item()
    0.75
    """
    residual = x if all(law.centred for law in laws.values()) else x - _total(laws).loc
    result = {}
    for name, (gain, var) in gains(laws).items():
        law, own = laws[name], gain * residual
        result[name] = ComplexNormal(own if law.centred else law.loc + own, var)
    return result


def gains(laws: Mapping[str, ComplexNormal]) -> dict[str, tuple[Tensor, Tensor]]:
    """By source, its Wiener gain g_j = v_j / v and its variance given the mixture, g_j (v - v_j); see :func:`posterior`."""
    var = _total(laws).var.clamp_min(VARIANCE_FLOOR)
    found = {name: law.var / var for name, law in laws.items()}
    return {name: (gain, gain * (var - laws[name].var)) for name, gain in found.items()}


def draw_sources(laws: Mapping[str, ComplexNormal], x: Tensor) -> dict[str, Tensor]:
    """One joint draw of all sources given the mixture x and the latents, by name, (…, T, F); they add up to x. Random.

    Sources drawn from their laws, put right by what their sum lacks, each by its share of the variance (Matheron's rule).

    Args:
        laws, x: as in :func:`posterior`.
    """
    total = _total(laws)
    variance = total.var.clamp_min(VARIANCE_FLOOR)
    # A law may have one value for all frequencies, or for all draws of the latents of another source; the draws differ.
    shape = torch.broadcast_shapes(variance.shape, x.shape)
    drawn = {name: law.expand(shape).sample() for name, law in laws.items()}
    lacking = x - sum(drawn.values())
    return {name: drawn[name] + law.var / variance * lacking for name, law in laws.items()}


def masked(law: ComplexNormal, observed: Tensor | None) -> Distribution:
    """The law of frames, batch shape (…, T), of which only the observed bins count. Whole frames are masked as such, which is cheaper."""
    if observed is None:
        return law.to_event(1)
    if observed.shape[-1] == 1:
        return law.to_event(1).mask(observed.squeeze(-1).expand(law.batch_shape[:-1]))
    return law.mask(observed.expand(law.batch_shape)).to_event(1)


def _total(laws: Mapping[str, ComplexNormal]) -> ComplexNormal:
    iterator: Iterator[ComplexNormal] = iter(laws.values())
    total = next(iterator)
    for law in iterator:
        total = total + law
    return total


def over_draws(value: Tensor) -> Tensor:
    """Mean over the chains (dim -3), kept as a dim for a batch: (C, T, F) -> (T, F), (B, C, T, F) -> (B, 1, T, F)."""
    if value.dim() <= 2:
        return value
    mean = value if value.shape[-3] == 1 else value.mean(-3, keepdim=True)
    return mean.squeeze(-3) if value.dim() == 3 else mean


def utterances(x: Tensor) -> Any:
    """The plate of a batch (B, 1, T, F); nothing for one recording (T, F)."""
    if x.dim() == 2:
        return nullcontext()
    if x.dim() == 4 and x.shape[1] == 1:
        return pyro.plate("utterances", x.shape[0], dim=-3)
    raise ValueError(f"Mixture: x has shape {tuple(x.shape)}; expected (T, F) for one recording or (B, 1, T, F) for a batch")
