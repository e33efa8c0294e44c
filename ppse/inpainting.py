"""Inpainting: lost stretches of a clean recording, inferred under a prior of speech from what is around them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio
from .enhance import opened, prepared
from .gaps import LONGEST, fill, touching
from .given import reusable
from .guides import clean_guide
from .inference import Keep, infer
from .methods import Method, langevin_em
from .mixture import Mixture, Source
from .models import CodePrior, PartiallyObserved
from .stft import STFT, level

CONTEXT = 0.4
"""Seconds on either side of a gap from which it is inferred."""


class Gap(NamedTuple):
    """A lost stretch, from start to end in seconds."""

    start: float
    end: float


@dataclass
class Inpainting:
    """Result of :func:`inpaint`.

    Attributes:
        sample_rate: in Hz, that of the input.
        estimate: the recording with its gaps filled by the posterior mean, (channels, N).
        draws: the recording with its gaps filled by draws from the posterior, (draws, channels, N). In long gaps the mean
            fades out, as phases are lost; a draw has the power of speech.
        gaps: as given, in the order of time.
    """

    sample_rate: int
    estimate: NDArray[np.float32]
    draws: NDArray[np.float32]
    gaps: list[Gap]

    def deviation(self) -> NDArray[np.float32]:
        """Posterior standard deviation of every sample, (channels, N), from the draws: 0 outside of the gaps."""
        result: NDArray[np.float32] = (self.draws - self.estimate).std(0, ddof=1)
        return result

    def save(self, path: str | os.PathLike[str], draw: int | None = None) -> None:
        """Write the estimate, or a draw, to an audio file, atomically.

        Raises:
            AudioError: when the file cannot be written.
        """
        samples = self.estimate if draw is None else self.draws[draw]
        audio.write(path, samples, self.sample_rate, audio.unclipped(path, samples))


def default_method(iterations: int = 40) -> Method:
    """Langevin steps of two chains under the full posterior, from the encoder for clean speech; the latter half is kept."""
    method = langevin_em(iterations, chains=2, likelihood_power=1.0, average=max(1, iterations // 2))
    return replace(method, name="inpaint", guide=clean_guide)


def inpaint(
    recording: str | os.PathLike[str] | NDArray[Any] | Tensor, gaps: Sequence[Gap | tuple[float, float]], prior: Source | None = None,
    method: Method | None = None, *, sample_rate: int = 16_000, draws: int = 10, seed: int | None = 0, report: Callable[[float], None] | None = None,
) -> Inpainting:
    """Fill lost stretches of a clean recording: packets that did not arrive, clicks that were cut out.

    Speech is observed in the frames that no gap touches (:class:`ppse.models.PartiallyObserved`), its latents are inferred everywhere,
    and given the variances that they decode to, the lost samples follow a Gaussian law (:func:`ppse.gaps.fill`).

    Args:
        recording: as for :func:`ppse.enhance`.
        gaps: (start, end) in seconds, of 0.25 s at most, one STFT window (64 ms) or more apart.
        prior: one with memory, so that frames on both sides tell of those between them: ``CodePrior.pretrained()`` unless given.
        method: how to infer the latents; :func:`default_method` unless given.
        sample_rate: of samples, in Hz.
        draws: how many.
        seed: as for :func:`ppse.enhance`.
        report: called with the fraction done.

    Raises:
        AudioError: when the recording cannot be used.
        ValueError: when a gap is too long, outside of the recording, or too near to another, or draws are fewer than two.
    """
    samples, sample_rate = opened(recording, sample_rate)
    prior = prior or CodePrior.pretrained()
    stft = prepared(Mixture(speech=reusable(copy.deepcopy(prior))), None, 0)[2]
    wanted = check_gaps(gaps, samples.shape[1] / sample_rate, stft)
    if draws < 2:
        raise ValueError(f"inpaint: draws={draws}; expected 2 or more, which the uncertainty is told from")
    result = Inpainting(sample_rate, samples.copy(), np.repeat(samples[None], draws, 0), wanted)
    for channel, wave in enumerate(samples):
        at_model = torch.from_numpy(audio.resample(_zeroed(wave, wanted, sample_rate), sample_rate, stft.sample_rate))
        with poutine.seed(rng_seed=seed) if seed is not None else nullcontext():
            for n, gap in enumerate(wanted):
                mean, drawn = _filled(at_model, gap, wanted, prior, method or default_method(), stft, draws)
                start, end = (round(second * sample_rate) for second in gap)
                for found, target in zip([mean, *drawn], [result.estimate, *result.draws], strict=True):
                    back = audio.resample(found.numpy(), stft.sample_rate, sample_rate)
                    target[channel, start:end] = audio.fitted(back, wave.size)[start:end]
                at_model = mean  # the next gap hears what this one was filled with
                if report:
                    report((channel + (n + 1) / len(wanted)) / len(samples))
    return result


def check_gaps(gaps: Sequence[Gap | tuple[float, float]], seconds: float, stft: STFT) -> list[Gap]:
    """The gaps in the order of time.

    Raises:
        ValueError: as :func:`inpaint` does.
    """
    ordered = sorted(Gap(*gap) for gap in gaps)
    if not ordered:
        raise ValueError("inpaint: no gaps; expected (start, end) in seconds of what is lost")
    apart = stft.n_fft / stft.sample_rate
    for gap in ordered:
        if not 0 <= gap.start < gap.end <= seconds:
            raise ValueError(f"inpaint: a gap from {gap.start:g} s to {gap.end:g} s in {seconds:g} s; expected start < end, within the recording")
        if gap.end - gap.start > LONGEST:
            length = gap.end - gap.start
            raise ValueError(f"inpaint: a gap of {length:g} s at {gap.start:g} s; expected {LONGEST:g} s at most, so that what is around it tells of it")
    for before, after in zip(ordered, ordered[1:], strict=False):
        if after.start - before.end < apart:
            raise ValueError(
                f"inpaint: gaps that end at {before.end:g} s and start at {after.start:g} s; expected {apart:g} s between two, so join them into one"
            )
    return ordered


def _filled(
    wave: Tensor, gap: Gap, gaps: Sequence[Gap], prior: Source, method: Method, stft: STFT, draws: int,
) -> tuple[Tensor, list[Tensor]]:
    """The waveform (N,), at the rate of the model, with one gap filled: by the mean, and by each draw."""
    low = max(0, int((gap.start - CONTEXT) * stft.sample_rate) // stft.hop * stft.hop)
    part = wave[low : int((gap.end + CONTEXT) * stft.sample_rate)]
    x = stft.analysis(part)
    lost = torch.zeros(len(x), dtype=torch.bool)
    for other in gaps:
        lost |= touching(stft, len(x), *(sample - low for sample in _samples(other, stft, len(wave))))
    if lost.all():
        raise ValueError(f"inpaint: no whole frame around the gap at {gap.start:g} s, so nothing is observed; expected more of the recording")
    scale = level(x[~lost]).sqrt()
    known = ~lost.unsqueeze(-1)
    variances = _variances(prior, torch.where(known, x / scale, torch.zeros_like(x)), known, method, draws) * scale.square()
    start, end = _samples(gap, stft, len(wave))
    found = [fill(part, start - low, end - low, var, stft, 1) for var in variances]

    def whole(value: Tensor) -> Tensor:
        return torch.cat([wave[:start], value, wave[end:]])

    return whole(torch.stack([mean for mean, _ in found]).mean(0)), [whole(drawn[0]) for _, drawn in found]


def _samples(gap: Gap, stft: STFT, length: int) -> tuple[int, int]:
    return int(gap.start * stft.sample_rate), min(math.ceil(gap.end * stft.sample_rate), length)


def _zeroed(wave: NDArray[np.float32], gaps: Sequence[Gap], rate: int) -> NDArray[np.float32]:
    """The samples with silence in the gaps: whatever is there must not reach beyond them, as it would when the rate is changed."""
    wave = wave.copy()
    for gap in gaps:
        wave[round(gap.start * rate) : round(gap.end * rate)] = 0
    return wave


def _variances(prior: Source, x: Tensor, known: Tensor, method: Method, count: int) -> Tensor:
    """Variances of speech under draws of its latents, (count, T, F), given the frames (T, F) that are known."""
    model = Mixture(speech=PartiallyObserved(reusable(copy.deepcopy(prior)), x, known))
    inferred = infer(model, x, method, known.expand(x.shape), keep=Keep(run=True))
    if inferred.run is None:
        raise ValueError("inpaint: the prior has no latents, so that what is known tells nothing of what is lost; use one with memory")
    draws = {site: value.flatten(0, 1) for site, value in inferred.run.values.items()}
    total = len(next(iter(draws.values())))
    chosen = torch.linspace(0, total - 1, count).round().long()
    with torch.no_grad(), pyro.plate("draws", count, dim=-2):
        laws: Any = poutine.condition(model, data={site: value[chosen] for site, value in draws.items()})
        trace: Any = poutine.trace(laws).get_trace(x)
    var: Tensor = trace.nodes["_RETURN"]["value"]["speech"].var
    return var
