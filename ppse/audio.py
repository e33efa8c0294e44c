"""Audio files: find them, read them at the rate of the models, write them whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from . import files

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""File types that folders are searched for."""

MAX_PEAK = 1e12
"""Largest sample that is taken for sound: beyond, powers leave the range of 32-bit floats."""

Wave = NDArray[np.float32]


class AudioError(ValueError):
    """A recording cannot be used; the message says which, why, and what to do."""


def find(inputs: Iterable[str | os.PathLike[str]], suffixes: Collection[str] = SUFFIXES, kind: str = "audio") -> list[Path]:
    """Audio files among files, folders (searched recursively) and glob patterns, each once, sorted within each input.

    Args:
        suffixes, kind: those of the files, and what they are, when others than audio are looked for.

    Raises:
        AudioError: when an input does not exist, or a folder or pattern has no such file.
    """
    found: dict[Path, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            files = [p for p in path.rglob("*") if _has_suffix(p, suffixes)]
            if not files:
                raise AudioError(f"{path}: a folder without {kind} files ({', '.join(suffixes)})")
        elif path.exists():
            files = [path]
        else:
            try:
                files = [p for p in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if _has_suffix(p, suffixes)]
            except (ValueError, NotImplementedError):  # what pathlib raises for a pattern that can match nothing
                files = []
            if not files:
                raise AudioError(f"{path}: no such file or folder, and no pattern that {kind} files match ({', '.join(suffixes)})")
        found |= dict.fromkeys(sorted(files))
    return list(found)


def _has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    """Has one of the suffixes, and is not hidden (an unfinished output is)."""
    return path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()


def read(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """All samples of an audio file, (channels, N) float32, and its rate in Hz.

    Raises:
        AudioError: when the file is missing, empty, or no audio.
    """
    with _readable(path):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return np.ascontiguousarray(samples.T), int(rate)


def read_checked(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """As :func:`read`, of a recording that inference can use.

    Raises:
        AudioError: also when :func:`check` refuses the samples.
    """
    samples, rate = read(path)
    check(samples, str(path))
    return samples, rate


def extent(path: str | os.PathLike[str]) -> tuple[float, int]:
    """Seconds and channels of an audio file, as its header has them.

    Raises:
        AudioError: when the file is missing, empty, or no audio.
    """
    with _readable(path):
        header = soundfile.info(path)
    return header.frames / header.samplerate, header.channels


def encoding(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """The sample format ("PCM_16", …) for writing what a file holds to another: its own where the type has it, else that of the type.

    Compressed samples keep their format within one type of file alone. What is found is tried on a moment of silence.

    Raises:
        AudioError: when the source cannot be read; or when the type of the target does not exist, or cannot hold this
            rate or number of channels.
    """
    kind = _kind(target)
    with _readable(source):
        found = soundfile.info(source)
    own = found.subtype if found.format == kind or found.subtype.startswith(("PCM", "FLOAT", "DOUBLE")) else None
    reason = ""
    for subtype in filter(None, (own, soundfile.default_subtype(kind))):
        try:
            soundfile.write(io.BytesIO(), np.zeros((2048, found.channels), np.float32), found.samplerate, subtype=subtype, format=kind)
            return str(subtype)
        except (soundfile.LibsndfileError, ValueError) as error:
            reason = _reason(error)
    raise AudioError(
        f"{target}: {kind} cannot hold {found.channels} channels at {found.samplerate} Hz ({reason}); give the output the suffix .wav, which can"
    )


def unclipped(path: str | os.PathLike[str], samples: NDArray[np.floating], subtype: str | None = None) -> str | None:
    """The sample format for writing samples to a file: as given, but 32-bit floats where they go beyond full scale and its type has floats.

    Raises:
        AudioError: when the type does not exist.
    """
    beyond = np.abs(samples).max(initial=0) > 1 and subtype != "DOUBLE"
    return "FLOAT" if beyond and soundfile.check_format(_kind(path), "FLOAT") else subtype


def check(samples: NDArray[np.floating], where: str) -> None:
    """Refuse samples (channels, N) that no inference can use.

    Raises:
        AudioError: when there is no sample, or one is NaN, infinite (the message gives the time index) or absurdly large.
    """
    if samples.ndim != 2 or samples.size == 0:
        raise AudioError(f"{where}: no samples (shape {samples.shape}); expected a recording of at least one sample")
    broken = ~np.isfinite(samples)
    if broken.any():
        first = int(np.argwhere(broken.any(0))[0, 0])
        raise AudioError(f"{where}: {int(broken.sum())} samples are NaN or infinite, the first at index {first}; repair or re-export the file")
    peak = float(np.abs(samples).max())
    if peak > MAX_PEAK:
        raise AudioError(f"{where}: samples up to {peak:.1e}, full scale is 1; no recording is so loud, re-export the file")


def read_mono(path: str | os.PathLike[str], rate: int = 16_000) -> Wave:
    """An audio file at the given rate, its channels averaged, (N,) float32."""
    samples, found = read(path)
    return resample(samples.mean(0), found, rate)


def resample(wave: Wave, source: int, target: int) -> Wave:
    """A waveform (N,) from one rate to another, very high quality: ceil(N * target / source) samples."""
    if source == target or wave.size == 0:
        return wave
    result: Wave = soxr.resample(wave, source, target, quality="VHQ").astype(np.float32)
    return fitted(result, -(-wave.size * target // source))  # the resampler may be a sample off


def fitted(wave: Wave, length: int) -> Wave:
    """Cut or zero-padded to the length."""
    return np.pad(wave[:length], (0, max(0, length - wave.size)))


def write(path: str | os.PathLike[str], samples: NDArray[np.floating], rate: int, subtype: str | None = None) -> None:
    """Write (N,) or (channels, N) to an audio file of the type its suffix names, atomically.

    Raises:
        AudioError: when the folder cannot be written to, the disk is full, or the type does not exist.
    """
    kind = _kind(path)
    encoded = io.BytesIO()  # not straight to the file: the library would not say that the disk is full
    with _explained(path):
        soundfile.write(encoded, np.asarray(samples).T, rate, subtype=subtype, format=kind)
    atomically(path, lambda file: file.write(encoded.getbuffer()))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically. Raises AudioError as :func:`write` does."""
    atomically(path, lambda file: file.write(text.encode()))


def failure(error: Exception, path: str | os.PathLike[str]) -> str:
    """Why one of many files failed, in a line that names it."""
    return str(error) if isinstance(error, AudioError) else f"{path}: {type(error).__name__}: {error}"


def check_type(path: str | os.PathLike[str]) -> None:
    """Refuse a file to be written whose suffix names no type of audio. Raises AudioError."""
    _kind(path)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file that is to be written, and try it: better now than after an hour of work.

    Raises:
        AudioError: as :func:`write` does, and when a folder is in the place of the file.
    """
    if Path(path).is_dir():
        raise AudioError(f"{path}: a folder, expected a file to write; give another name, or move the folder away")
    if files.flows(path):
        return
    with _explained(path):
        folder = Path(os.path.realpath(path)).parent
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def atomically(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object]) -> None:
    """Fill a file as :func:`ppse.files.atomically` does. Raises AudioError as :func:`write` does."""
    with _explained(path):
        files.atomically(path, fill)


def _kind(path: str | os.PathLike[str]) -> str:
    """The type of an audio file by its suffix, as the library calls it."""
    kind = Path(path).suffix.lstrip(".").upper()
    if kind not in soundfile.available_formats() or kind == "RAW":
        raise AudioError(f"{path}: '{Path(path).suffix}' is no audio type that can be written; use {', '.join(SUFFIXES)}")
    return kind


@contextmanager
def _readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong when a file is read into an AudioError."""
    if not Path(path).is_file():
        raise AudioError(f"{path}: {'a folder, expected an audio file' if Path(path).is_dir() else 'no such file'}")
    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        empty = "the file is empty" if _is_empty(path) else _reason(error)
        raise AudioError(f"{path}: not readable as audio ({empty}); expected {', '.join(SUFFIXES)}") from error


@contextmanager
def _explained(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong when a file is written into an AudioError."""
    try:
        yield
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        raise AudioError(f"{path}: cannot be written ({_reason(error)}); check the folder, its permissions and the free space") from error


def _is_empty(path: str | os.PathLike[str]) -> bool:
    return Path(path).stat().st_size == 0


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "error_string", None) or error).rstrip(".")
