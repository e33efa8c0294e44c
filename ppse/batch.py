"""Many files: enhance each, keep what is done, go on when one fails, and say at the end how it went."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from . import audio
from .enhance import Enhancement, enhance
from .methods import Method
from .mixture import Mixture


@dataclass
class Summary:
    """What became of the files of a batch: those done now, those done before, and the failures with their reasons."""

    done: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)
    seconds: float = 0.0
    audio_seconds: float = 0.0


@dataclass(frozen=True)
class Extras:
    """What to write beside the speech: the noise (``NAME.noise.wav``), the deviation (``NAME.std.npz``), a figure (``NAME.png``)."""

    noise: bool = False
    std: bool = False
    plot: bool = False


def plan(inputs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Input → output file, and inputs that cannot be used → reason.

    One input file and an ``out`` with the suffix of audio is a file; else ``out`` is a folder, in which files from
    a folder keep their place. MP3 stays MP3.

    Raises:
        AudioError: when ``out`` is a file, or nothing usable is among the inputs.
    """
    target, tasks, failed = Path(out), {}, {}
    if len(inputs) == 1 and Path(inputs[0]).is_file() and target.suffix.lower() in audio.SUFFIXES and not target.is_dir():
        return {Path(inputs[0]): target}, {}
    if target.is_file():
        raise audio.AudioError(f"{target}: is a file; for several recordings give a folder")
    for item in inputs:
        try:
            files = audio.find([item])
        except audio.AudioError as error:
            failed[Path(item)] = str(error)
            continue
        root = Path(item) if Path(item).is_dir() else None
        for file in files:
            place = file.relative_to(root) if root else Path(file.name)
            suffix = file.suffix if file.suffix.lower() in audio.SUFFIXES else ".wav"
            tasks[file] = target / place.with_suffix(suffix)
    by_output: dict[Path, Path] = {}
    for file, output in list(tasks.items()):
        if output in by_output:
            failed[file] = f"{file}: would be written to {output}, as would {by_output[output]}; enhance them into different folders"
            del tasks[file]
        by_output.setdefault(output, file)
    return tasks, failed


def enhance_files(
    tasks: dict[Path, Path], model: Mixture, method: Method, *, seed: int = 0, device: str = "cpu", overwrite: bool = False,
    extras: Extras | None = None, failed: dict[Path, str] | None = None, report: Callable[[Path, float], None] | None = None,
) -> Summary:
    """Enhance every file of a plan. What exists is skipped, a failure is noted and the next file goes on.

    Every output appears whole or not at all, the speech last, so a run that was interrupted goes on where it was.

    Args:
        failed: failures that are known already, to appear in the summary.
        report: called with (file, fraction of it done).
    """
    summary, extras = Summary(failed=dict(failed or {})), extras or Extras()
    for file, output in tasks.items():
        if output.resolve() == file.resolve():
            summary.failed[file] = f"{file}: output equals input, and the recording would be lost; choose another folder"
            continue
        if output.exists() and not overwrite:
            summary.skipped.append(file)
            continue
        try:
            told = partial(report, file) if report else None
            result = enhance(file, model, method, seed=seed, device=device, std=extras.std, report=told)
            _write(result, file, output, extras)
        except (audio.AudioError, RuntimeError, MemoryError) as error:
            summary.failed[file] = str(error) or type(error).__name__
            continue
        summary.done.append(file)
        summary.seconds += result.seconds
        summary.audio_seconds += result.noisy.shape[-1] / result.sample_rate * len(result.noisy)
    return summary


def _write(result: Enhancement, file: Path, output: Path, extras: Extras) -> None:
    subtype = _subtype(file, output)
    others = sorted(set(result.estimates) - {"speech"})
    if extras.noise:
        noise = sum(result.estimates[name] for name in others)
        audio.write(output.with_suffix(".noise.wav"), np.asarray(noise), result.sample_rate, subtype="FLOAT")
    if extras.std:
        stft = result.stft
        buffer = io.BytesIO()
        frames = result.std["speech"].shape[-2]
        np.savez_compressed(
            buffer, std=result.std["speech"], time=(np.arange(frames) + 0.5) * stft.hop / stft.sample_rate - stft.n_fft / 2 / stft.sample_rate,
            frequency=np.arange(stft.n_freqs) * stft.sample_rate / stft.n_fft,
        )
        audio.write_bytes(output.with_suffix(".std.npz"), buffer.getvalue())
    if extras.plot:
        result.plot(output.with_suffix(".png"))
    speech = result.estimates["speech"]
    if subtype and subtype.startswith("PCM") and np.abs(speech).max(initial=0.0) > 1:
        speech = np.clip(speech, -1, 1)  # the level of the input is kept; an integer file holds no more than full scale
    audio.write(output, speech, result.sample_rate, subtype)


def _subtype(file: Path, output: Path) -> str | None:
    """The sample format of the input, where the type of the output has it."""
    found = soundfile.info(file)
    kind = output.suffix.lstrip(".").upper()
    return found.subtype if soundfile.check_format(kind, found.subtype) else None
