"""Recordings to enhance: files of sound, and videos, whose sound is taken out and put back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from . import audio, video
from .audio import AudioError
from .video import is_video

SUFFIXES = (*audio.SUFFIXES, *video.CONTAINERS)
"""File types that recordings have, and can be written to."""


def find(inputs: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """As :func:`ppse.audio.find`, of sound and videos; in folders and patterns, without videos that have their sound beside them.

    Raises:
        AudioError: as there.
    """
    found: dict[Path, None] = {}
    for item in inputs:
        files = audio.find([item], SUFFIXES, "audio or video")
        if not Path(item).is_file():
            heard = {path.with_suffix("") for path in files if not is_video(path)}
            files = [path for path in files if not (is_video(path) and path.with_suffix("") in heard)]
        found |= dict.fromkeys(files)
    return list(found)


def read(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """As :func:`ppse.audio.read`, of sound or of a video. Raises AudioError as there, and when a video has no sound."""
    return video.sound(path) if is_video(path) else audio.read(path)


def read_checked(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """As :func:`ppse.audio.read_checked`, of sound or of a video.

    Raises:
        AudioError: as there, and when a video has no sound.
    """
    samples, rate = read(path)
    audio.check(samples, str(path))
    return samples, rate


def extent(path: str | os.PathLike[str]) -> tuple[float, int]:
    """Seconds and channels of a recording, as its header has them. Raises AudioError as :func:`ppse.audio.extent`."""
    return video.extent(path) if is_video(path) else audio.extent(path)


def encoding(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> str:
    """The sample format for writing the sound of a recording to a file, as :func:`ppse.audio.encoding`; "compressed" in a video.

    Raises:
        AudioError: when the source cannot be read, or the target cannot hold it, as pictures are missing for instance.
    """
    if is_video(target) and not is_video(source):
        raise AudioError(f"{target}: a video, but {source} has no pictures; give the output one of the suffixes {', '.join(audio.SUFFIXES)}")
    if not is_video(source):
        return audio.encoding(source, target)
    extent(source)
    if is_video(target):
        return "compressed"
    audio.check_type(target)
    return str(soundfile.default_subtype(Path(target).suffix[1:].upper()))


def write(
    path: str | os.PathLike[str], source: str | os.PathLike[str], samples: NDArray[np.floating], rate: int, subtype: str | None = None,
) -> None:
    """Write the sound (channels, N) of a recording, to a video beside the pictures of the source; atomically.

    Raises:
        AudioError: when it cannot be written.
    """
    if is_video(path):
        video.write(path, source, samples, rate)
    else:
        audio.write(path, samples, rate, subtype)


def pictures_of(path: str | os.PathLike[str]) -> Path | None:
    """The video of a recording: itself, or one of the same name beside it; None where there is none."""
    return Path(path) if is_video(path) else _beside(path, video.CONTAINERS)


def sound_of(path: str | os.PathLike[str]) -> Path:
    """The file with the sound of a video: one of the same name beside it, or itself."""
    return _beside(path, audio.SUFFIXES) or Path(path)


def _beside(path: str | os.PathLike[str], suffixes: Iterable[str]) -> Path | None:
    return next((file for suffix in suffixes if (file := Path(path).with_suffix(suffix)).is_file()), None)
