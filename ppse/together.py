"""Several recordings side by side in one inference: what makes a graphics processor, or a prior with memory, worth its time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from .audio import AudioError
from .channel import Channel
from .distributions import ComplexNormal
from .enhance import Enhancement, Trace, blank, copies, enhance, opened, prepared, random_from
from .inference import Keep, infer
from .methods import Method
from .mixture import Mixture
from .source_posterior import averaged, in_turn
from .windows import WINDOW


def enhance_together(
    recordings: Sequence[str | os.PathLike[str] | NDArray[Any] | Tensor], model: Mixture | Sequence[Mixture] | None = None,
    method: Method | None = None, *, sample_rate: int = 16_000, seed: int | None = 0, device: str = "cpu", std: bool = False, draws: int = 0,
    size: int = 16, window: float = WINDOW, report: Callable[[float], None] | None = None,
) -> list[Enhancement]:
    """Separate many recordings, as :func:`ppse.enhance` does one; those of about equal length are inferred as a batch.

    The recordings of a batch do not touch one another: each has its own parameters, chains and step sizes, and what pads it to the
    length of the longest does not count. What is random is drawn for all of them at once, though, so that a recording does not come
    out with the random numbers that it has alone. A trace has the mean objective of its batch.

    Args:
        recordings: files or samples. Those of several channels go alone, so that equal channels stay equal, and so do those
            longer than a window.
        sample_rate: of all that are samples, in Hz.
        size: recordings in a batch at most.
        window: seconds that are inferred of one recording at once; a batch has at most twice as many, padding included. Bounds the memory.
        report: called with the fraction done.
        model, method, seed, device, std, draws: as for :func:`ppse.enhance`. The seed is that of every batch.

    Returns:
        the results in the order of the recordings; ``seconds`` is the share of a recording in the time of its batch.

    Raises:
        AudioError, ValueError: as :func:`ppse.enhance`, at the first recording that cannot be used; :func:`ppse.batch.enhance_files`
            goes on without it.
    """
    read = []
    for number, recording in enumerate(recordings):
        try:
            read.append(opened(recording, sample_rate))
        except AudioError as error:
            raise error if isinstance(recording, str | os.PathLike) else AudioError(f"recordings[{number}]: {error}") from None
    results: dict[int, Enhancement] = {}
    for members in batches([samples.size / rate if len(samples) == 1 else math.inf for samples, rate in read], size, window):
        def progress(done: float) -> None:
            if report:
                report((len(results) + done * len(members)) / len(read))  # noqa: B023  (called at once)

        if len(members) == 1:
            samples, rate = read[members[0]]
            found = [enhance(
                samples, model, method, sample_rate=rate, seed=seed, device=device, std=std, draws=draws, window=window, report=progress,
            )]
        else:
            found = enhance_batch([read[i] for i in members], model, method, seed=seed, device=device, std=std, draws=draws, report=progress)
        results |= zip(members, found, strict=True)
    return [results[i] for i in range(len(read))]


def batches(seconds: Sequence[float], size: int, window: float) -> list[list[int]]:
    """Which recordings to infer side by side, by their lengths: neighbours in length, so that at most half of a batch is padding.

    Args:
        seconds: length of every recording; infinity for one that must go alone.
        size: recordings in a batch at most.
        window: half of the seconds in a batch at most, the padding included; what is longer than a window is a batch by itself.

    Raises:
        ValueError: when the size is below 1.

    >>> batches([5.0, 1.0, 30.0, 4.0, 5.0], size=16, window=6.0)
    [[1], [3, 0], [4], [2]]
    """
    if size < 1:
        raise ValueError(f"batches: size={size}; expected 1 or more")
    result: list[list[int]] = []
    for i in sorted(range(len(seconds)), key=lambda i: seconds[i]):
        last = result[-1] if result else []
        if last and len(last) < size and (len(last) + 1) * seconds[i] <= 2 * window and seconds[i] <= 2 * seconds[last[0]]:
            last.append(i)
        else:
            result.append([i])
    return result


def enhance_batch(
    read: Sequence[tuple[NDArray[np.float32], int]], model: Mixture | Sequence[Mixture] | None = None, method: Method | None = None, *,
    seed: int | None = 0, device: str = "cpu", std: bool = False, draws: int = 0, report: Callable[[float], None] | None = None,
) -> list[Enhancement]:
    """One inference for recordings of one channel, (samples (1, N), rate) each, whatever their lengths; the rest as :func:`enhance_together`."""
    started = time.monotonic()
    models, method, stft = prepared(model, method, draws)
    models = copies(models)
    for each in models:
        each.to(device)
    results = [blank(samples, rate, models[0], stft, draws) for samples, rate in read]
    parts = [Channel(result.noisy[0], result.sample_rate, models[0].sources, stft, std, draws, device) for result in results]
    heard = [i for i, part in enumerate(parts) if part.wave.any()]  # digital silence comes out as it is
    if heard:
        x, observed = _padded([parts[i].stretch(0, len(parts[i].wave)) for i in heard], [parts[i].observed for i in heard])
        laws, drawn = [], []
        with random_from(seed):
            for number, each in enumerate(models):
                suited = method.suited(each)

                def note(iteration: int, _: float, number: int = number, total: int = suited.all_iterations) -> None:
                    if report:
                        report((number + (iteration + 1) / total) / len(models))

                inferred = infer(each, x, suited, observed, keep=Keep(-(-draws // len(models))), callback=note)
                laws.append(inferred.sources)
                drawn.append(inferred.source_draws)
                for row, i in enumerate(heard):
                    acceptance = [_mean_of_recording(info.acceptance, row, len(heard), suited.starts) for info in inferred.info]
                    results[i].traces.append(Trace(0, 0.0, inferred.objective, acceptance, number))
        sources, chosen = averaged(laws), in_turn(drawn, draws)
        for row, i in enumerate(heard):
            _add(parts[i], sources, chosen, row, x)
    for part, result in zip(parts, results, strict=True):
        part.write(result, 0)
    taken, seconds = time.monotonic() - started, [result.noisy.size / result.sample_rate for result in results]
    for result, own in zip(results, seconds, strict=True):
        result.seconds = taken * own / sum(seconds)
    return results


def _padded(xs: Sequence[Tensor], bands: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """STFTs (T, F) as a batch (B, 1, T, F), and which of its bins count: (B, 1, T, 1), or (B, 1, T, F) where one is of a narrow band."""
    longest = max(len(x) for x in xs)
    x = torch.stack([pad(x, (0, 0, 0, longest - len(x))) for x in xs]).unsqueeze(1)
    seen = torch.stack([torch.arange(longest, device=x.device) < len(x) for x in xs])[:, None, :, None]
    if any(band is not None for band in bands):
        every = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
        return x, seen & torch.stack([every if band is None else band for band in bands])[:, None, None]
    return x, None if bool(seen.all()) else seen


def _add(part: Channel, sources: Mapping[str, ComplexNormal], draws: Mapping[str, Tensor], row: int, x: Tensor) -> None:
    """What was inferred of a row of a batch, without its padding, to its channel."""
    n_frames, length = part.stft.n_frames(len(part.wave)), len(part.wave)
    laws = {name: ComplexNormal(law.loc[row, 0, :n_frames], law.var[row, 0, :n_frames]) for name, law in sources.items()}
    drawn = {name: values[:, row, 0, :n_frames] for name, values in draws.items()}
    part.add(0, torch.ones(length), x[row, 0, :n_frames], laws, drawn)


def _mean_of_recording(value: Tensor, row: int, count: int, starts: int) -> float:
    """Mean of a value per block, (starts * B, chains, frames), over the rows of one recording; over all where blocks span recordings."""
    own = value[row * starts : (row + 1) * starts] if value.dim() == 3 and len(value) == count * starts else value
    return float(own.mean())
