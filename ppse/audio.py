"""Audio files: find them, read them at the rate of the models, write them whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
"""File types that folders are searched for."""

Wave = NDArray[np.float32]


class AudioError(ValueError):
    """A recording cannot be used; the message says which, why, and what to do."""


def find(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Audio files among files, folders (searched recursively) and glob patterns, sorted within each input.

    Raises:
        AudioError: when an input does not exist, or a folder or pattern has no audio.
    """
    found: list[Path] = []
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not p.name.startswith("."))
            if not files:
                raise AudioError(f"{path}: a folder without audio files ({', '.join(SUFFIXES)})")
        elif path.exists():
            files = [path]
        else:
            files = sorted(p for p in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if p.is_file())
            if not files:
                raise AudioError(f"{path}: no such file, folder or pattern")
        found += [file for file in files if file not in found]
    return found


def read(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """All samples of an audio file, (channels, N) float32, and its rate in Hz.

    Raises:
        AudioError: when the file is missing, empty, or no audio.
    """
    if not Path(path).exists():
        raise AudioError(f"{path}: no such file")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise AudioError(f"{path}: not readable as audio ({_reason(error)}); expected {', '.join(SUFFIXES)}") from error
    return np.ascontiguousarray(samples.T), int(rate)


def check(samples: NDArray[np.floating], where: str) -> None:
    """Refuse samples (channels, N) that no inference can use.

    Raises:
        AudioError: when there is no sample, or one is NaN or infinite (the message gives the time index).
    """
    if samples.ndim != 2 or samples.size == 0:
        raise AudioError(f"{where}: no samples (shape {samples.shape}); expected a recording of at least one sample")
    broken = ~np.isfinite(samples)
    if broken.any():
        first = int(np.argwhere(broken.any(0))[0, 0])
        raise AudioError(f"{where}: {int(broken.sum())} samples are NaN or infinite, the first at index {first}; repair or re-export the file")


def read_mono(path: str | os.PathLike[str], rate: int = 16_000) -> Wave:
    """An audio file at the given rate, its channels averaged, (N,) float32."""
    samples, found = read(path)
    return resample(samples.mean(0), found, rate)


def resample(wave: Wave, source: int, target: int) -> Wave:
    """A waveform (N,) from one rate to another, very high quality: ceil(N * target / source) samples."""
    if source == target or wave.size == 0:
        return wave
    result: Wave = soxr.resample(wave, source, target, quality="VHQ").astype(np.float32)
    length = -(-wave.size * target // source)
    return np.pad(result[:length], (0, max(0, length - result.size)))  # the resampler may be a sample off


def write(path: str | os.PathLike[str], samples: NDArray[np.floating], rate: int, subtype: str | None = None) -> None:
    """Write (N,) or (channels, N) to an audio file of the type its suffix names, atomically.

    Raises:
        AudioError: when the folder cannot be written to, the disk is full, or the type does not exist.
    """
    kind = Path(path).suffix.lower().lstrip(".").upper()
    if kind not in soundfile.available_formats():
        raise AudioError(f"{path}: '{Path(path).suffix}' is no audio type that can be written; use {', '.join(SUFFIXES)}")
    _atomically(path, lambda file: soundfile.write(file, np.asarray(samples).T, rate, subtype=subtype, format=kind))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically. Raises AudioError as :func:`write` does."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically. Raises AudioError as :func:`write` does."""
    _atomically(path, lambda file: file.write(data))


def _atomically(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object]) -> None:
    """Fill a temporary file beside the target, then move it there: the target is whole, or as it was."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            try:
                fill(file)
                file.close()
                os.chmod(file.name, 0o644)
                os.replace(file.name, target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except (soundfile.LibsndfileError, OSError, ValueError, TypeError) as error:
        raise AudioError(f"{target}: cannot be written ({_reason(error)}); check the folder, its permissions and the free space") from error


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "error_string", None) or error).rstrip(".")
