"""Video files: their frames in grey, their sound, and the sound put back beside the same pictures. Needs the extra ``ppse[av]``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from . import audio, files

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mpg": "mpeg", ".mpeg": "mpeg"}
"""File types that are taken for video, and what FFmpeg calls them."""

BIT_RATE = 128_000
"""Of the sound in a video that is written, per channel, in bits per second."""

MPEG_BITS = 0.3
"""Of MPEG-1 pictures, per pixel."""

HOLE = 0.1, 600.0
"""Seconds of sound that are missing: shorter holes are how exact times are, longer ones are times that are broken."""

COPIED = ("h264", "hevc", "mpeg4")
"""Codecs whose frames are passed on as they are from one file of the mp4 family to another; others are encoded anew."""


class VideoError(audio.AudioError):
    """A video cannot be used; the message says which, why, and what to do."""


class Picture(NamedTuple):
    """A frame of a video: when it is shown, in seconds from the start of the sound, and its grey values (height, width), 0 to 255."""

    time: float
    grey: NDArray[np.uint8]


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a file is taken for a video, by its suffix."""
    return Path(path).suffix.lower() in CONTAINERS


def pictures(path: str | os.PathLike[str]) -> Iterator[Picture]:
    """The frames of a video one by one, upright, colours and transparency dropped, at the times that the file gives them.

    The clock is that of the sound; of a video without sound, that of its first frame. Frames that are damaged are left out, and
    so are those that are not shown later than the one before.

    Raises:
        VideoError: when the file is missing, no video, or has no frame that can be decoded.
    """
    with _opened(path) as container:
        stream = _video_stream(container, path)
        start = _start(container.streams.audio[0]) if container.streams.audio else None
        last = -np.inf
        for packet in container.demux(stream):
            for frame in _decoded(packet):
                time = frame.time
                if time is None or time <= last:
                    continue
                last, start = time, time if start is None else start
                grey = np.rot90(frame.to_ndarray(format="gray"), frame.rotation // 90)
                yield Picture(time - start, np.ascontiguousarray(grey))
        if last == -np.inf:
            raise VideoError(f"{path}: no frame of it can be decoded; repair or re-export the file")


def sound(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], int]:
    """The sound of a video, (channels, N) float32, and its rate in Hz. Where it is damaged or missing there is silence, in time with the pictures.

    Raises:
        VideoError: when the file is missing, no video, or without sound.
    """
    with _opened(path) as container:
        from av.audio.resampler import AudioResampler  # which is there, as it opened the file

        stream = _sound_stream(container, path)
        to_floats = AudioResampler(format="fltp")
        rate, start, parts, count = stream.rate, _start(stream), list[NDArray[np.float32]](), 0
        for packet in container.demux(stream):
            for frame in _decoded(packet):
                missing = 0 if frame.time is None else round((frame.time - start) * rate) - count
                waves = [np.asarray(part.to_ndarray(), np.float32) for part in to_floats.resample(frame)]
                if waves and HOLE[0] * rate < missing < HOLE[1] * rate:
                    waves = [np.zeros((len(waves[0]), missing), np.float32), *waves]
                count += sum(wave.shape[-1] for wave in waves)
                parts += waves
    if not parts:
        raise VideoError(f"{path}: its sound cannot be decoded, or is empty; repair or re-export the file")
    return np.concatenate(parts, -1), rate


def extent(path: str | os.PathLike[str]) -> tuple[float, int]:
    """Seconds and channels of the sound of a video, as its header has them; of types that count no stream's time, of the whole file.

    Raises:
        VideoError: when the file is missing, no video, or without sound.
    """
    with _opened(path) as container:
        stream = _sound_stream(container, path)
        whole = (container.duration or 0) / 1_000_000  # in the unit of FFmpeg
        seconds = whole if stream.duration is None else float(stream.duration * (stream.time_base or 0))
        return seconds, stream.channels


def write(path: str | os.PathLike[str], source: str | os.PathLike[str], samples: NDArray[np.floating], rate: int) -> None:
    """Write a video with the pictures of ``source`` and another sound, atomically.

    H.264, HEVC and MPEG-4 pictures are copied unchanged between files of the mp4 family, others encoded anew, in H.264 (MPEG-1 for
    mpg). The sound is compressed, AAC (MP2 for mpg) of 128 kbit/s a channel, and begins when that of the source does.

    Args:
        samples: (channels, N), full scale 1.
        rate: in Hz; what the codec cannot hold becomes 48 kHz.

    Raises:
        VideoError: when the source cannot be read, or the output not be written.
    """
    if not is_video(path):
        raise VideoError(f"{path}: '{Path(path).suffix}' is no type of video that can be written; use {', '.join(CONTAINERS)}")
    with _opened(source) as container:
        import av  # which is there, as it opened the source

        pictures_of = _video_stream(container, source)

        def fill(file: IO[bytes]) -> None:
            with av.open(file, "w", format=CONTAINERS[Path(path).suffix.lower()]) as output:
                _mux(output, container, pictures_of, samples, rate)

        try:
            files.atomically(path, fill)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise VideoError(
                f"{path}: cannot be written ({error}); check the folder and the free space, or write the sound alone, to a .wav file"
            ) from error


def _mux(output: OutputContainer, source: InputContainer, stream: VideoStream, samples: NDArray[np.floating], rate: int) -> None:
    """Write pictures and sound by turns, each when it is due."""
    family = "mp4" in source.format.name and output.format.name in ("mp4", "mov")
    if stream.codec_context.name in COPIED and family:
        seen = _copied(source, stream, output.add_stream_from_template(stream))
    else:
        seen = _encoded(source, stream, output)
    begin = _start(source.streams.audio[0]) if source.streams.audio else _start(stream)
    heard = _sound_packets(output, samples, rate, begin)
    picture, tone = next(seen, None), next(heard, None)  # asked for first, as this adds their streams
    while picture or tone:
        if picture and (tone is None or _due(picture) <= _due(tone)):
            output.mux(picture)
            picture = next(seen, None)
        elif tone:
            output.mux(tone)
            tone = next(heard, None)


def _copied(source: InputContainer, stream: VideoStream, target: VideoStream) -> Iterator[Packet]:
    """The pictures as they are."""
    for packet in source.demux(stream):
        if packet.dts is not None:  # the last one is empty
            packet.stream = target
            yield packet


def _encoded(source: InputContainer, stream: VideoStream, output: OutputContainer) -> Iterator[Packet]:
    """The pictures encoded anew, at the same times; in types of one rate, at the nearest that are free."""
    from av.video.frame import PictureType

    fixed = output.format.name == "mpeg"
    rate = stream.guessed_rate or Fraction(25)
    target = cast("VideoStream", output.add_stream(output.default_video_codec, rate))
    target.width, target.height = stream.codec_context.width // 2 * 2, stream.codec_context.height // 2 * 2  # colours have half of it
    target.pix_fmt = "yuv420p"
    if fixed:  # the other encoder aims at a quality
        target.bit_rate = int(MPEG_BITS * target.width * target.height * rate)
    base = target.codec_context.time_base = 1 / rate if fixed else Fraction(1, 90_000)
    last = -1
    for packet in source.demux(stream):
        for frame in _decoded(packet):
            if frame.time is not None and round(frame.time / base) > last:
                if last < 0 and frame.rotation:
                    target.set_display_rotation(frame.rotation)
                last = round(frame.time / base)
                frame.pts, frame.time_base, frame.pict_type = last, base, PictureType.NONE
                yield from target.encode(frame)
    yield from target.encode(None)


def _sound_packets(output: OutputContainer, samples: NDArray[np.floating], rate: int, begin: float) -> Iterator[Packet]:
    """The sound encoded, its first sample due at ``begin`` seconds."""
    from av import AudioFrame, Codec

    codec = output.default_audio_codec
    rates = Codec(codec, "w").audio_rates
    if rates and rate not in rates:
        samples, rate = np.stack([audio.resample(np.asarray(wave, np.float32), rate, 48_000) for wave in samples]), 48_000
    layout = {1: "mono", 2: "stereo", 6: "5.1"}.get(len(samples))
    if layout is None or (len(samples) > 2 and codec == "mp2"):
        raise ValueError(f"{len(samples)} channels of sound, which {codec} does not hold")
    target = cast("AudioStream", output.add_stream(codec, rate, layout=layout))
    target.bit_rate = min(BIT_RATE * len(samples), 160_000 if codec == "mp2" and rate < 32_000 else 384_000)  # all that MP2 has
    for first in range(0, samples.shape[-1], rate):
        part = np.ascontiguousarray(samples[:, first : first + rate], np.float32)
        frame = AudioFrame.from_ndarray(part, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(begin * rate) + first
        yield from target.encode(frame)
    yield from target.encode(None)


def _due(packet: Packet) -> float:
    """When a packet is to be in the file, in seconds."""
    return float((packet.dts or packet.pts or 0) * (packet.time_base or 0))


def _start(stream: AudioStream | VideoStream) -> float:
    """When a stream begins on the clock of its file, in seconds."""
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _decoded(packet: Packet) -> list[Any]:
    """The frames of a packet; none where it is damaged."""
    import av

    try:
        return packet.decode()
    except av.FFmpegError:
        return []


def _video_stream(container: InputContainer, path: str | os.PathLike[str]) -> VideoStream:
    """The first video stream that is no cover picture."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    raise VideoError(f"{path}: a file without moving pictures; give sound alone as {', '.join(audio.SUFFIXES)}")


def _sound_stream(container: InputContainer, path: str | os.PathLike[str]) -> AudioStream:
    """The sound of a video."""
    _video_stream(container, path)
    if not container.streams.audio:
        raise VideoError(f"{path}: a video without sound; there is nothing to enhance")
    return container.streams.audio[0]


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[InputContainer]:
    """A video file open for reading; what goes wrong becomes a VideoError."""
    try:
        import av
    except ImportError as error:
        raise VideoError(f"{path}: videos need PyAV and OpenCV; install ppse[av]") from error
    if not Path(path).is_file():
        raise VideoError(f"{path}: {'a folder, expected a video file' if Path(path).is_dir() else 'no such file'}")
    try:
        container = av.open(os.fspath(path))
    except (av.FFmpegError, OSError) as error:
        empty = Path(path).stat().st_size == 0
        raise VideoError(f"{path}: not readable as video ({'the file is empty' if empty else error}); expected {', '.join(CONTAINERS)}") from error
    with container:
        yield container
