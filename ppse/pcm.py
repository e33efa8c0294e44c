"""Raw 16-bit samples through a stream, from one pipe to another, as recorders, players and converters write and read them."""

from __future__ import annotations

import signal
from io import BufferedReader, BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .audio import AudioError
from .streaming import Stream

AT_ONCE = 1 << 16
"""Bytes taken at once, at most: what is there is never waited with."""

CONTAINERS = (b"RIFF", b"fLaC", b"OggS", b"ID3")
"""What audio files begin with, and raw samples next to never."""


class UntilInterrupted:
    """A source that ends at Ctrl-C, when what was read before is done: that is how a recording that goes on is stopped. For the main thread.

    Attributes:
        interrupted: whether it ended so. A second Ctrl-C is an error again.
    """

    def __init__(self, source: BufferedReader) -> None:
        self._source, self._waiting, self.interrupted = source, False, False
        signal.signal(signal.SIGINT, self._interrupt)

    def read1(self, size: int) -> bytes:
        """As that of the source; nothing once interrupted."""
        self._waiting = not self.interrupted
        try:
            return self._source.read1(size) if self._waiting else b""
        except KeyboardInterrupt:
            return b""
        finally:
            self._waiting = False

    def _interrupt(self, *_: object) -> None:
        again, self.interrupted = self.interrupted, True
        if self._waiting or again:
            raise KeyboardInterrupt


def pipe(stream: Stream, source: BufferedReader | BytesIO | UntilInterrupted, sink: BinaryIO) -> int:
    """Enhance signed 16-bit little-endian samples of one channel until the source ends; returns how many there were.

    Samples are written as soon as they are due. What goes beyond full scale is clipped.

    Raises:
        AudioError: when the source ends within a sample (all before it has been written), begins as an audio file does, or the sink cannot be
            written to.
        BrokenPipeError: when nobody reads the sink any more.
    """
    count, rest = 0, b""
    while given := source.read1(AT_ONCE):
        if not count and (rest + given).startswith(CONTAINERS):
            raise AudioError("the input: an audio file; expected raw signed 16-bit samples. To clean a file: ppse enhance FILE -o OUT")
        given = rest + given
        whole = len(given) - len(given) % 2
        rest = given[whole:]
        count += whole // 2
        _write(stream.push(np.frombuffer(given[:whole], "<i2").astype(np.int16)), sink)
    _write(stream.flush(), sink)
    if rest:
        raise AudioError(f"the input: half a sample behind the first {count}; expected raw signed 16-bit samples, little-endian, one channel")
    return count


def _write(samples: NDArray[np.float32], sink: BinaryIO) -> None:
    try:
        sink.write(np.clip(np.round(samples * 2.0**15), -(2**15), 2**15 - 1).astype("<i2").tobytes())
        sink.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AudioError(f"the output: cannot be written ({error.strerror}); see where it goes, and whether there is space left") from error
