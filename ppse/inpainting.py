"""Inpainting: lost stretches of a clean recording, inferred under a prior of speech from what is around them."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import audio
from .enhance import opened, random_from, stft_of
from .gaps import LONGEST, faded, fill
from .guides import EncoderGuide, clean_guide
from .inference import Keep, infer
from .labels import read_track
from .methods import Method, hmc_em
from .mixture import Mixture, Source
from .models import CodePrior, PartiallyObserved
from .stft import STFT, level

CONTEXT = 0.3
"""Seconds on either side of a gap from which it is inferred."""

SHARE = 0.3
"""A frame is observed, raised to its level, if more than this share of its power lies outside of the gaps."""

SPREAD = 0.5
"""Deviation of codes that nothing observed tells of, to which the first steps are scaled."""


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


class BridgeGuide(EncoderGuide):
    """An encoder guide whose means go straight from the observed frame before a gap to the one after it, with the deviation :data:`SPREAD`."""

    def listen(self, x: Tensor, observed: Tensor | None = None) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor | None]:
        """As the method that it overrides; x is one recording, (T, F)."""
        laws, noise = super().listen(x, observed)
        if observed is None:
            return laws, noise
        known = observed.expand(x.shape).any(-1)
        bridged = {}
        for site, (mean, deviation) in laws.items():
            if mean.shape[-2:-1] == known.shape:  # of the frames, and not of the whole utterance
                deviation = torch.where(known.unsqueeze(-1), deviation, torch.full_like(deviation, SPREAD))
                mean = _interpolated(mean, known)
            bridged[site] = mean, deviation
        return bridged, noise


def bridge_guide(model: Mixture) -> EncoderGuide | None:
    """The encoders for clean speech, bridging what is not observed; None when no source has one."""
    guide = clean_guide(model)
    return None if guide is None else BridgeGuide(dict(zip(guide.sites, guide.children(), strict=True)))


def _interpolated(values: Tensor, known: Tensor) -> Tensor:
    """Values (T, L) of the known frames, and between them linear ones; beyond the first and last known frame, theirs."""
    at = known.nonzero().squeeze(-1).cpu().numpy()
    place = torch.from_numpy(np.interp(np.arange(len(known)), at, np.arange(len(at)))).to(values)
    before = place.long()
    after = (before + 1).clamp_max(len(at) - 1)
    return values[known][before].lerp(values[known][after], (place - before).unsqueeze(-1))


def default_method(iterations: int = 30) -> Method:
    """Hamiltonian Monte Carlo under the posterior itself, from the codes on either side of the gap; the latter half is kept."""
    method = hmc_em(iterations, steps=5, settle=0, adapt=iterations // 2, average=max(1, iterations // 2))
    return replace(method, name="inpaint", guide=bridge_guide)


def inpaint(
    recording: str | os.PathLike[str] | NDArray[Any] | Tensor, gaps: Sequence[Gap | tuple[float, float]], prior: Source | None = None,
    method: Method | None = None, *, sample_rate: int = 16_000, draws: int = 10, seed: int | None = 0, report: Callable[[float], None] | None = None,
) -> Inpainting:
    """Fill lost stretches of a clean recording: packets that did not arrive, clicks that were cut out.

    Speech is observed in the frames of which enough is left (:class:`ppse.models.PartiallyObserved`, :func:`ppse.gaps.faded`), its latents
    are inferred everywhere, and given the variances that they decode to, the lost samples follow a Gaussian law (:func:`ppse.gaps.fill`).

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
    prior, method = prior or CodePrior.pretrained(), method or default_method()
    stft = stft_of(prior)
    wanted = check_gaps(gaps, samples.shape[1] / sample_rate, stft)
    if draws < 2:
        raise ValueError(f"inpaint: draws={draws}; expected 2 or more, which the uncertainty is told from")
    result = Inpainting(sample_rate, samples.copy(), np.repeat(samples[None], draws, 0), wanted)
    for channel, wave in enumerate(samples):
        at_model = torch.from_numpy(audio.resample(_zeroed(wave, wanted, sample_rate), sample_rate, stft.sample_rate))
        with random_from(seed):
            for n, gap in enumerate(wanted):
                mean, drawn = _filled(at_model, gap, wanted, prior, method, stft, draws)
                start, end = (round(second * sample_rate) for second in gap)
                for found, target in zip([mean, *drawn], [result.estimate, *result.draws], strict=True):
                    back = audio.resample(found.numpy(), stft.sample_rate, sample_rate)
                    target[channel, start:end] = audio.fitted(back, wave.size)[start:end]
                at_model = mean  # the next gap hears what this one was filled with
                if report:
                    report((channel + (n + 1) / len(wanted)) / len(samples))
    return result


def read_gaps(path: str | os.PathLike[str]) -> list[Gap]:
    """The gaps that are marked in a file, whatever the marks say; for its types see :func:`ppse.labels.read_track`, which has the errors, too."""
    return [Gap(line.start, line.end) for line in read_track(path)]


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
            raise ValueError(f"inpaint: a gap of {length:g} s at {gap.start:g} s; expected {LONGEST:g} s at most, as its surroundings tell of it")
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
    around = [tuple(min(max(sample - low, 0), len(part)) for sample in _samples(other, stft, len(wave))) for other in gaps]
    x, share = faded(part, [(first, last) for first, last in around if first < last], stft)
    known = (share > SHARE).unsqueeze(-1)
    if not known.any():
        raise ValueError(f"inpaint: no frame around the gap at {gap.start:g} s is left, so nothing is observed; expected more of the recording")
    if not x[known.squeeze(-1)].any():
        return wave, [wave] * draws  # digital silence goes on
    scale = level(x[known.squeeze(-1)]).sqrt()
    variances = variances_given(prior, torch.where(known, x / scale, torch.zeros_like(x)), known, method, draws) * scale.square()
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


def variances_given(prior: Source, x: Tensor, known: Tensor, method: Method, count: int) -> Tensor:
    """Variances of speech under draws of its latents, (count, T, F), given the frames (T, F) that are known."""
    model = Mixture(speech=PartiallyObserved(copy.deepcopy(prior), x, known))
    inferred = infer(model, x, method, known.expand(x.shape), keep=Keep(run=True))
    if inferred.run is None:
        raise ValueError("the prior has no latents, so that what is known tells nothing of what is lost; use another")
    draws = {site: value.flatten(0, 1) for site, value in inferred.run.values.items()}
    total = len(next(iter(draws.values())))
    chosen = torch.linspace(0, total - 1, count).round().long()
    fitted = cast(Mixture, inferred.graph)
    plain = Mixture(speech=fitted.speech.source)  # known frames have a variance, too: of what is lost of them
    with torch.no_grad(), pyro.plate("draws", count, dim=-2):
        laws = poutine.block(poutine.condition(plain, data={site: value[chosen] for site, value in draws.items()}))(x)
    var: Tensor = laws["speech"].var
    return var.expand(count, *x.shape)
