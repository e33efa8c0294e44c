"""Many files: enhance each, keep what is done, go on when one fails, and say of each how it went."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from . import audio, media, video
from .enhance import Enhancement, enhance
from .given import Given
from .methods import Method
from .mixture import Mixture
from .runs import save_run
from .together import batches, enhance_batch
from .windows import WINDOW

FOREIGN = (".aac", ".aif", ".avi", ".m4a", ".mka", ".mkv", ".opus", ".webm", ".wma", *(f".{kind.lower()}" for kind in soundfile.available_formats()))
"""Suffixes that mean a file, of types that are not written, but for :data:`ppse.media.SUFFIXES`."""


PREDICTIVE = 20
"""Replicated recordings per chain in a run that is saved, for posterior-predictive checks."""


class Extras(NamedTuple):
    """What to write beside the speech ``NAME.wav``.

    The noise (``NAME.noise.wav``), the deviation (``NAME.std.npz``), a figure (``NAME.png``), so many draws of the speech
    (``NAME.draw1.wav``, …), and the run for ``ppse diagnose`` (``NAME.nc``; ``NAME.channel2.nc``, … for further channels that are
    not silent), or where ``run_file`` says.
    """

    noise: bool = False
    std: bool = False
    plot: bool = False
    draws: int = 0
    run: bool = False
    run_file: Path | None = None

    def files(self, output: Path) -> list[Path]:
        """All files that belong to the enhanced file ``output``, which comes last; of the runs only the first."""
        wanted = {".noise.wav": self.noise, ".std.npz": self.std, ".png": self.plot}
        suffixes = [suffix for suffix, asked in wanted.items() if asked] + [f".draw{n + 1}.wav" for n in range(self.draws)]
        runs = [self.run_file or output.with_suffix(".nc")] if self.run else []
        return [*(output.with_suffix(suffix) for suffix in suffixes), *runs, output]


class Outcome(NamedTuple):
    """What became of an input: its output, a note or the reason of the failure, processing time, and seconds of audio (channels added)."""

    file: Path
    output: Path | None
    status: Literal["done", "skipped", "failed", "left"]
    note: str = ""
    seconds: float = 0.0
    audio_seconds: float = 0.0

    @property
    def message(self) -> str:
        """What the user should know at once; empty when all is as expected."""
        if self.status == "failed":
            return f"failed: {self.note}"
        return f"note: {self.file}: {self.note}" if self.status == "done" and self.note else ""


def plan(
    inputs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], extras: Extras | None = None,
) -> tuple[dict[Path, Path], list[Outcome]]:
    """Input → output file, and the inputs that cannot be used.

    One input file and an ``out`` with the suffix of audio or video is a file; else ``out`` is a folder, in which files from a
    folder or pattern keep their place. Files keep their type if it is one of :data:`ppse.media.SUFFIXES` and can be
    written, else they become wav. What lies in ``out`` already is no input.

    Raises:
        AudioError: when ``out`` is a file, a file name for several inputs, or one of a type that is not written.
    """
    target, extras = Path(out), extras or Extras()
    tasks: dict[Path, Path] = {}
    failed: list[Outcome] = []
    as_file = target.suffix.lower() in media.SUFFIXES and not target.is_dir()
    single = len(inputs) == 1 and Path(inputs[0]).is_file()
    if target.suffix and not as_file and not target.is_dir() and (single or target.suffix.lower() in FOREIGN):
        raise audio.AudioError(
            f"{target}: '{target.suffix}' is no type that outputs can have; use {', '.join(media.SUFFIXES)}, or make the folder {target.name} first"
        )
    if as_file and len(inputs) == 1 and not Path(inputs[0]).is_dir():
        files = media.find(inputs)
        if len(files) == 1:
            return {files[0]: target}, []
    if as_file or target.is_file():
        raise audio.AudioError(f"{target}: is a file; for a folder or several recordings give an output folder")
    owner: dict[Path, Path] = {}
    for item in inputs:
        try:
            files = media.find([item])
        except audio.AudioError as error:
            failed.append(Outcome(Path(item), None, "failed", str(error)))
            continue
        root = _root(Path(item))
        inside = target.resolve() != root.resolve() and target.resolve().is_relative_to(root.resolve())
        for file in files:
            if file in tasks or (inside and file.resolve().is_relative_to(target.resolve())):
                continue
            output = target / file.relative_to(root).with_suffix(_suffix(file))
            rival = next((owner[path] for path in extras.files(output) if path in owner), None)
            if rival:
                reason = f"{file}: its outputs in {output.parent} would replace those of {rival}; enhance them into different folders"
                failed.append(Outcome(file, None, "failed", reason))
                continue
            owner |= dict.fromkeys(extras.files(output), file)
            tasks[file] = output
    return tasks, failed


def enhance_files(
    tasks: Mapping[Path, Path], model: Mixture | Sequence[Mixture], method: Method, *, seed: int = 0, device: str = "cpu", overwrite: bool = False,
    extras: Extras | None = None, size: int = 1, given: Callable[[Path], Sequence[Given]] | None = None,
    report: Callable[[Path, float], None] | None = None,
) -> Iterator[Outcome]:
    """Enhance every file of a plan; yields what became of it. What exists is skipped, and a failure does not stop the next file.

    Every output appears whole or not at all, the speech last, so a run that was interrupted goes on where it was.

    Args:
        model: one, or several whose posteriors are averaged; see :func:`ppse.enhance`.
        size: how many recordings to infer side by side at most (:func:`ppse.enhance_together`), those of similar length, which then come
            first. With 1 the result of a file does not depend on what else there is to do; with more, what an interruption left is inferred
            beside the same files again. A run that is saved goes alone, and so does what something is given of.
        given: what is known of a file beside its samples; what it raises is told as the reason why this file failed.
        report: called with (file, fraction of it done).
    """
    extras = extras or Extras()
    for group in _groups([*tasks], 1 if extras.run or given else size):
        done = [] if overwrite else [file for file in group if _done(file, tasks[file], extras)]
        for file in done:
            yield Outcome(file, tasks[file], "skipped", "is there already; overwrite (--overwrite) to redo it, or delete it")
        due = [file for file in group if file not in done]
        ready: dict[Path, str] = {}
        read: dict[Path, tuple[NDArray[np.float32], int]] = {}
        for file in due:
            try:
                subtype = _checked(file, tasks[file], extras)
                if len(group) > 1:
                    read[file] = media.read_checked(file)
                ready[file] = subtype
            except Exception as error:  # whatever befalls one file, the others get done
                yield Outcome(file, tasks[file], "failed", audio.failure(error, file))
        if ready and len(group) > 1:
            for file in done:  # beside them the others come out as they would have
                with suppress(Exception):
                    read[file] = media.read_checked(file)
        side_by_side: dict[Path, Enhancement] = {}
        if len(read) > 1:
            members = [file for file in group if file in read]
            with suppress(Exception):  # each is then tried alone, which tells whose fault it was
                found = enhance_batch(
                    [read[file] for file in members], model, method, seed=seed, device=device, std=extras.std, draws=extras.draws,
                    report=partial(report, next(iter(ready))) if report else None,
                )
                share = len(members) / len(ready)  # the time of those that were inferred once more, too
                side_by_side = {file: replace(result, seconds=share * result.seconds) for file, result in zip(members, found, strict=True)}
        for file, subtype in ready.items():
            try:
                result = side_by_side.pop(file, None) or enhance(
                    file, model, method, seed=seed, device=device, std=extras.std, draws=extras.draws, keep_run=extras.run,
                    given=given(file) if given else (), report=partial(report, file) if report else None,
                )
                note = _write(result, file, tasks[file], subtype, extras)
            except Exception as error:
                yield Outcome(file, tasks[file], "failed", audio.failure(error, file))
                continue
            yield Outcome(file, tasks[file], "done", note, result.seconds, result.noisy.size / result.sample_rate)


def _groups(files: Sequence[Path], size: int) -> list[list[Path]]:
    """Files to enhance side by side, whether they are done or not; each by itself, in their order, for size 1."""
    if size == 1:
        return [[file] for file in files]
    seconds = []
    for file in files:
        try:
            length, channels = media.extent(file)
        except audio.AudioError:  # told when its turn comes
            length, channels = math.inf, 1
        seconds.append(length if channels == 1 else math.inf)
    return [[files[i] for i in group] for group in batches(seconds, size, WINDOW)]


def _done(file: Path, output: Path, extras: Extras) -> bool:
    """Whether all outputs are there."""
    return all(path.is_file() for path in extras.files(output)) and output.resolve() != file.resolve()


def _checked(file: Path, output: Path, extras: Extras) -> str:
    """Refuse outputs that cannot be written; returns the sample format of the speech."""
    if any(path.resolve() == file.resolve() for path in extras.files(output)):
        raise audio.AudioError(f"{file}: output equals input, and the recording would be lost; choose another folder")
    for path in extras.files(output):
        audio.check_writable(path)
    return media.encoding(file, output)


def left(tasks: Mapping[Path, Path], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The files of a plan that an interruption left undone."""
    known = {outcome.file for outcome in outcomes}
    return [Outcome(file, output, "left", "interrupted; the same command goes on here") for file, output in tasks.items() if file not in known]


def summary(outcomes: Sequence[Outcome], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a whole batch, for a JSON file: settings, counts, real-time factor (None when nothing was enhanced), and every outcome."""
    total = sum(o.audio_seconds for o in outcomes)
    return {
        "settings": dict(settings),
        **{status: sum(o.status == status for o in outcomes) for status in ("done", "skipped", "failed", "left")},
        "real_time_factor": sum(o.seconds for o in outcomes) / total if total else None,
        "files": [o._asdict() | {"file": str(o.file), "output": str(o.output) if o.output else None} for o in outcomes],
    }


def sentence(summary: Mapping[str, Any]) -> str:
    """A :func:`summary` in one line."""
    there = f"{summary['skipped']} there already{' (--overwrite redoes them)' if summary['skipped'] else ''}"
    left = f", {summary['left']} left" if summary["left"] else ""
    speed = f"; real-time factor {summary['real_time_factor']:.2f}" if summary["done"] else ""
    return f"{summary['done']} enhanced, {there}, {summary['failed']} failed{left}{speed}"


def _write(result: Enhancement, file: Path, output: Path, subtype: str, extras: Extras) -> str:
    """Write all files of a result; returns what the user should know about them."""
    notes = []
    if extras.noise:
        noise = sum((wave for name, wave in result.estimates.items() if name != "speech"), np.zeros_like(result.noisy))
        audio.write(output.with_suffix(".noise.wav"), noise, result.sample_rate, subtype="FLOAT")
    if extras.std:
        deviation, stft = result.std["speech"], result.stft
        time = stft.centres(deviation.shape[-2])
        audio.atomically(output.with_suffix(".std.npz"), lambda to: np.savez_compressed(to, std=deviation, time=time, frequency=stft.frequencies))
    if extras.plot:
        result.plot(output.with_suffix(".png"))
    for n, drawn in enumerate(result.draws.get("speech", ())):
        audio.write(output.with_suffix(f".draw{n + 1}.wav"), drawn, result.sample_rate, subtype="FLOAT")
    if extras.run:
        first = extras.run_file or output.with_suffix(".nc")
        for channel in range(len(result.noisy)):
            path = first if channel == 0 else first.with_suffix(f".channel{channel + 1}.nc")
            if any(run.channel == channel for run in result.runs):
                save_run(result.to_arviz(channel, PREDICTIVE), path)
            else:
                notes.append(f"channel {channel + 1} is silent, or the model has no latents: no run to save")
    speech = result.estimates["speech"]
    beyond = int((np.abs(speech) > 1).sum())
    if beyond and subtype not in ("FLOAT", "DOUBLE", "VORBIS"):
        notes.append(f"{beyond} samples beyond full scale were clipped, as the file holds no more")
    if output.suffix.lower() != file.suffix.lower():
        notes.append(f"{file.suffix or 'the type of the input'} became {output.suffix}")
    media.write(output, file, speech, result.sample_rate, subtype)
    return "; ".join(notes)


def _root(item: Path) -> Path:
    """The folder that the places of files are relative to: a folder itself, that of a file, or the fixed part of a pattern."""
    if item.is_dir():
        return item
    if item.exists():
        return item.parent
    fixed = [i for i, part in enumerate(item.parts) if set(part) & set("*?[")]
    return Path(*item.parts[: fixed[0]]) if fixed else item.parent


def _suffix(file: Path) -> str:
    """The type of the output: that of the input, where it can be written."""
    known = video.is_video(file) or (file.suffix.lower() in audio.SUFFIXES and file.suffix[1:].upper() in soundfile.available_formats())
    return file.suffix if known else ".wav"
