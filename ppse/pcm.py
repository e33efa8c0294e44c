"""Raw 16-bit samples through a stream, from one pipe to another, as recorders, players and converters write and read them."""

from __future__ import annotations

from io import BufferedReader, BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .audio import AudioError
from .streaming import Stream

AT_ONCE = 1 << 16
"""Bytes taken at once, at most: what is there is never waited with."""


def pipe(stream: Stream, source: BufferedReader | BytesIO, sink: BinaryIO) -> int:
    """Enhance signed 16-bit little-endian samples of one channel until the source ends; returns how many there were.

    Samples are written as soon as they are due. What goes beyond full scale is clipped.

    Raises:
        AudioError: when the source ends within a sample. All before it has been written.
    """
    count, rest = 0, b""
    while given := source.read1(AT_ONCE):
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
    sink.write(np.clip(np.round(samples * 2.0**15), -(2**15), 2**15 - 1).astype("<i2").tobytes())
    sink.flush()
