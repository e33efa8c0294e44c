"""Enhancement: a recording and a model in, the waveforms of all sources out, however long the recording."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyro.poutine as poutine
from numpy.typing import NDArray
from torch import Tensor, nn

from . import audio, media, methods
from .channel import Channel
from .given import Given, Stretch, told
from .infer import Draws
from .inference import Keep, resume, side_by_side
from .inference_data import to_arviz
from .methods import Method
from .mixture import Mixture, Source
from .models import NMFNoise, VAESpeech
from .priors import Graph
from .source_posterior import averaged, in_turn
from .stft import STFT
from .stitching import starts_as_chains, windows_in_a_row
from .windows import OVERLAP, WINDOW, fade, windows

if TYPE_CHECKING:
    from arviz import InferenceData
    from matplotlib.figure import Figure

RANK, SPACING = 4, 16
"""Patterns of the NMF noise, and frames between the knots of its activations, unless a model is given."""


class Trace(NamedTuple):
    """How inference went on one window of one channel under one model: the objective per EM iteration (nats per bin), and the mean acceptance of
    every iteration that ran a Markov kernel (for :func:`ppse.infer.langevin`, which rejects nothing, the share of blocks that
    stayed finite). It is shorter than the objective where the latents rest at first, and empty for methods without kernels. ``model`` is the
    number of the model, from 0, where there are several."""

    channel: int
    start: float
    objective: list[float]
    acceptance: list[float]
    model: int = 0


class Run(NamedTuple):
    """The draws of one window of one channel, with all that is needed to look into them: the model as inference left it, lifted where
    parameters had priors, its data, at which second it starts, and whether parameters were fitted between the draws."""

    channel: int
    start: float
    draws: Draws
    model: Graph
    x: Tensor
    observed: Tensor | None
    moved: bool


@dataclass
class Enhancement:
    """Result of :func:`enhance`.

    Attributes:
        sample_rate: of all waveforms here, that of the input, in Hz.
        noisy: the input, (channels, N).
        estimates: posterior mean of every source by name, (channels, N), at the level of the input.
        std: posterior standard deviation of every source in the STFT domain of the model, (channels, T, F), in
            units of the waveform times ``STFT`` scaling; 0 in bins that the recording cannot hold; empty unless asked for.
        draws: waveforms drawn from the joint posterior of the sources, by name, (draws, channels, N): they sum to the input as the
            estimates do, and show what is uncertain; empty unless asked for.
        traces: per channel, window and model.
        runs: the draws of the latents per channel and window, kept if asked for; see :meth:`to_arviz`.
        seconds: processing time, model loading excluded.
        stft: the STFT of the model, at its own rate.
    """

    sample_rate: int
    noisy: NDArray[np.float32]
    estimates: dict[str, NDArray[np.float32]]
    std: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    draws: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    seconds: float = 0.0
    stft: STFT = field(default_factory=STFT)

    @property
    def real_time_factor(self) -> float:
        """Processing time over duration, every channel counted, as each is enhanced on its own: the one definition in use."""
        return self.seconds * self.sample_rate / max(1, self.noisy.size)

    def save(self, path: str | os.PathLike[str], source: str = "speech") -> None:
        """Write the estimate of a source to an audio file, atomically, at the rate of the input.

        What goes beyond full scale is kept, in 32-bit floats, where the type has them (wav), and clipped in flac.

        Raises:
            AudioError: when the file cannot be written.
        """
        samples = self.estimates[source]
        audio.write(path, samples, self.sample_rate, audio.unclipped(path, samples))

    def deviation(self, source: str = "speech") -> NDArray[np.float32]:
        """Posterior standard deviation of every sample of a source, (channels, N), from the draws.

        Raises:
            ValueError: with fewer than two draws.
        """
        drawn = self.draws.get(source)
        if drawn is None or len(drawn) < 2:
            raise ValueError(f"deviation: {0 if drawn is None else len(drawn)} draws of '{source}'; expected two or more: enhance(…, draws=20)")
        result: NDArray[np.float32] = drawn.std(0, ddof=1)
        return result

    def to_arviz(self, channel: int = 0, predictive: int = 0) -> InferenceData:
        """The latents of one channel as ArviZ data; see :func:`ppse.to_arviz`. Several starts count as chains, windows stand in a row.

        Args:
            predictive: replicated recordings per chain, for posterior-predictive checks.

        Raises:
            ValueError: when no run of the channel was kept: it was not asked for, the channel is silent, or the model has no latents.
        """
        parts = []
        for run in (run for run in self.runs if run.channel == channel):
            idata = to_arviz(run.draws, run.model, run.x, run.observed, stft=self.stft, predictive=predictive, moved=run.moved)
            parts.append((run.start, starts_as_chains(idata) if run.x.dim() == 4 else idata))
        if not parts:
            raise ValueError(
                f"to_arviz: no run of channel {channel} was kept. Ask for it, enhance(…, keep_run=True); a silent channel, or a model "
                f"without latents, has none"
            )
        return windows_in_a_row(parts)

    def plot(self, path: str | os.PathLike[str] | None = None, channel: int = 0) -> Figure:
        """Spectrograms on one scale, objective trace and acceptance; written to ``path`` when given."""
        from .plots import plot_enhancement

        return plot_enhancement(self, path, channel)


def enhance(
    recording: str | os.PathLike[str] | NDArray[Any] | Tensor, model: Mixture | Sequence[Mixture] | None = None, method: Method | None = None, *,
    sample_rate: int = 16_000, seed: int | None = 0, device: str = "cpu", std: bool = False, draws: int = 0, keep_run: bool = False,
    window: float = WINDOW, given: Sequence[Given] = (), report: Callable[[float], None] | None = None,
) -> Enhancement:
    """Separate a noisy recording into its sources by posterior inference.

    Args:
        recording: an audio file, a video with sound, or samples (N,) or (channels, N), full scale 1. Integer samples as audio files hold them
            (int16, int32, uint8) are scaled to that. Channels are enhanced one by one, each as if it were alone.
        model: the mixture; ``Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=4, spacing=16))`` unless
            given. It is copied, never changed. With several, of the same sources, the posterior is the mixture of theirs, each as likely
            as any other; ``std`` and draws then tell how far the models disagree, too.
        method: how to infer, :func:`ppse.methods.default` unless given.
        sample_rate: of samples in Hz; of a file it is read.
        seed: makes the result reproducible and leaves the global generator as it was; None draws from the latter.
        device: of the computation, e.g. "cuda".
        std: also return posterior standard deviations.
        draws: how many draws from the posterior of the waveforms to return. In the overlap of two windows they are blends
            of independent draws, and vary less.
        keep_run: also keep the draws of the latents, for :meth:`Enhancement.to_arviz`.
        window: seconds inferred at once. A longer recording goes through in windows, the parameters of the noise
            carried over, which bounds the memory.
        given: what is known of this recording, such as where nobody speaks (:func:`ppse.given.labelled`).
        report: called with the fraction done.

    Raises:
        AudioError: when the file is unreadable, or the samples are empty, not finite, or of a shape or type that no
            recording has.
        ValueError: when the window is too short, draws are negative, what is given does not fit, or inference fails, where the message says
            where; when there is a run to keep of several models, or these have other sources or another STFT than one another, or there is none.

    Content above 8 kHz is not modelled by 16 kHz priors: such a band comes out silent. For recordings below
    16 kHz the missing band is marked as not observed; their own highest frequencies, which the resampling filter
    takes, are shared out as those right below. Digital silence comes out as it is.
    """
    samples, sample_rate = opened(recording, sample_rate)
    models, method, stft = prepared(model, method, draws)
    if keep_run and len(models) > 1:
        raise ValueError(f"enhance: keep_run with {len(models)} models, which have a run each; enhance with one of them to look into its draws")
    if window * stft.sample_rate < 2 * stft.n_fft:
        raise ValueError(f"enhance: window={window:g} s; expected at least {2 * stft.n_fft / stft.sample_rate:g} s")
    for each in models:
        each.to(device)
    result = blank(samples, sample_rate, models[0], stft, draws)
    started = time.monotonic()
    for channel, wave in enumerate(samples):
        def progress(done: float, channel: int = channel) -> None:
            if report:
                report((channel + done) / len(samples))

        # The same seed and a fresh model for every channel: equal channels give equal results.
        with random_from(seed):
            _enhance_channel(result, channel, wave, copies(models), method, device, std, Keep(draws, keep_run), window, given, progress)
    result.seconds = time.monotonic() - started
    return result


def opened(recording: str | os.PathLike[str] | NDArray[Any] | Tensor, sample_rate: int) -> tuple[NDArray[np.float32], int]:
    """Samples (channels, N) of a file or an array, and their rate; refused where they cannot be a recording, as by :func:`enhance`."""
    if isinstance(recording, str | os.PathLike):
        return media.read_checked(recording)
    return _samples(recording), sample_rate


def prepared(model: Mixture | Sequence[Mixture] | None, method: Method | None, draws: int) -> tuple[list[Mixture], Method, STFT]:
    """The models as they are, the method, and their STFT; the defaults of :func:`enhance`, and its errors."""
    if model is None:
        model = Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(RANK, spacing=SPACING))
    if draws < 0:
        raise ValueError(f"enhance: draws={draws}; expected 0 (none) or more")
    if isinstance(model, nn.Module) and not isinstance(model, Mixture):
        raise ValueError(f"enhance: the model is a {type(model).__name__}; expected a Mixture of sources, such as Mixture(speech=…, noise=…)")
    models = [model] if isinstance(model, Mixture) else [*model]
    if wrong := [type(each).__name__ for each in models if not isinstance(each, Mixture)]:
        raise ValueError(f"enhance: a {wrong[0]} among the models; expected a Mixture of sources, such as Mixture(speech=…, noise=…), or several")
    if not isinstance(method, Method | None):
        raise ValueError(f"enhance: the method is {method!r}; expected what ppse.methods makes, such as methods.fast(), with the parentheses")
    if not models:
        raise ValueError("enhance: no model in the sequence of models; expected one or more, or None for the default")
    names = [sorted(each.sources) for each in models]
    if any(other != names[0] for other in names):
        raise ValueError(f"enhance: models of the sources {' and '.join(map(str, names))}; expected the same in each, as they are averaged")
    stfts = [stft_of(each) for each in models]
    if len(sizes := {stft.n_fft for stft in stfts}) > 1:
        raise ValueError(f"enhance: models for STFTs of {sorted(sizes)} samples; expected the same in each, as they are averaged")
    return models, method or methods.default(), stfts[0]


def copies(models: Sequence[Mixture]) -> list[Mixture]:
    """Of every model one of its own: what two of them share, such as a noise, each then fits for itself."""
    return [copy.deepcopy(each) for each in models]


def blank(samples: NDArray[np.float32], sample_rate: int, model: Mixture, stft: STFT, draws: int) -> Enhancement:
    """The result for a recording before anything is known: all sources silent."""
    result = Enhancement(sample_rate, samples, {name: np.zeros_like(samples) for name in model.sources}, stft=stft)
    if draws:
        result.draws = {name: np.zeros((draws, *samples.shape), np.float32) for name in model.sources}
    return result


def random_from(seed: int | None) -> AbstractContextManager[object]:
    """What is random in it is drawn from the seed, and the generator of the caller stays as it was; None draws from that one."""
    handler: AbstractContextManager[object] = nullcontext() if seed is None else poutine.seed(rng_seed=seed)
    return handler


def stft_of(model: Source) -> STFT:
    """The STFT that has as many frequencies as the networks of a mixture, or of one source; where there are none, the usual one.

    Raises:
        ValueError: when they differ in it.
    """
    modules = model.modules() if isinstance(model, nn.Module) else ()
    sizes = {size for module in modules if isinstance(size := getattr(module, "n_freqs", None), int)}
    if len(sizes) > 1:
        raise ValueError(f"enhance: sources of {sorted(sizes)} frequencies in one model; expected the same for all")
    return STFT.of_freqs(sizes.pop()) if sizes else STFT()


def _enhance_channel(
    result: Enhancement, channel: int, samples: NDArray[np.float32], models: list[Mixture], method: Method, device: str, std: bool, keep: Keep,
    window: float, given: Sequence[Given], progress: Callable[[float], None],
) -> None:
    """Fill in one channel of the result, window by window."""
    stft, share = result.stft, keep._replace(sources=-(-keep.sources // len(models)))
    parts = Channel(samples, result.sample_rate, models[0].sources, stft, std, keep.sources, device)
    length, observed = len(parts.wave), parts.observed
    stretches = windows(length, int(window * stft.sample_rate), int(min(OVERLAP, window / 4) * stft.sample_rate), stft.hop)
    followed = False
    for i, (first, last) in enumerate(stretches):
        if not parts.wave[first:last].any():
            progress((i + 1) / len(stretches))
            continue
        x = parts.stretch(first, last)
        laws, drawn = [], []
        for number, model in enumerate(models):
            whole = told(model, given, Stretch(x, first, last, length, parts.scale, stft))
            suited = method.suited(whole)  # what is given may switch
            (whole.follow if followed else whole.start)(*side_by_side(x, observed, suited.starts))

            def note(iteration: int, _: float, done: float = i + number / len(models), total: int = suited.all_iterations) -> None:
                progress((done + (iteration + 1) / total / len(models)) / len(stretches))

            inferred = resume(whole, x, suited, observed, keep=share, callback=note)
            laws.append(inferred.sources)
            drawn.append(inferred.source_draws)
            acceptance = [float(info.acceptance.mean()) for info in inferred.info]
            result.traces.append(Trace(channel, first / stft.sample_rate, inferred.objective, acceptance, number))
            if inferred.run is not None:
                data = side_by_side(x, observed, suited.starts)
                result.runs.append(Run(channel, first / stft.sample_rate, inferred.run, inferred.graph, *data, moved=not suited.priors))
                models[number] = copy.deepcopy(model)  # the run keeps the one of this window
        followed = True
        parts.add(first, fade(stretches, i), x, averaged(laws), in_turn(drawn, keep.sources))
    parts.write(result, channel)


def _samples(recording: NDArray[Any] | Tensor) -> NDArray[np.float32]:
    """Samples (channels, N) at full scale 1 from an array, refused where they cannot be a recording."""
    if isinstance(recording, Tensor):
        recording = (recording.float() if recording.is_floating_point() else recording).detach().cpu().numpy()
    array = np.asarray(recording)
    if array.ndim > 2:
        raise audio.AudioError(f"the samples: shape {array.shape}; expected (N,) or (channels, N), one recording at a time")
    array = np.atleast_2d(array)
    if array.shape[0] > array.shape[1] > 0:
        raise audio.AudioError(
            f"the samples: {array.shape[0]} channels of {array.shape[1]} samples; expected (channels, N). Transpose them if they are (N, channels)"
        )
    if array.dtype in (np.int16, np.int32):
        samples = array / -float(np.iinfo(array.dtype).min)
    elif array.dtype == np.uint8:
        samples = (array - 128.0) / 128.0  # 8-bit files are unsigned, silence in the middle
    elif array.dtype.kind == "f":
        samples = array
    else:
        raise audio.AudioError(f"the samples: type {array.dtype}; expected floats of full scale 1, or int16, int32, uint8 as in audio files")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is then refused
        result: NDArray[np.float32] = samples.astype(np.float32)
    audio.check(result, "the samples")
    return result
