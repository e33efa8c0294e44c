"""Raw samples through a pipe, as a recorder and a player would have it."""

from __future__ import annotations

import subprocess
import sys
from io import BufferedReader, BytesIO, RawIOBase

import numpy as np
import pytest
import torch

from ppse import Mixture
from ppse.audio import AudioError
from ppse.models import NMFNoise, VAESpeech
from ppse.pcm import pipe
from ppse.streaming import Stream


def tiny_stream() -> Stream:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Stream(Mixture(speech=VAESpeech(33, 3, (8,), context=4), noise=NMFNoise(2)), context=0.05)


def recorded(count: int) -> np.ndarray:
    return (3000 * np.random.default_rng(0).normal(size=count)).astype("<i2")


class Dripping(RawIOBase):
    """Gives an odd number of bytes at a time."""

    def __init__(self, content: bytes) -> None:
        self._left = BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]  # any writable buffer
        some = self._left.read(min(31, len(buffer)))
        buffer[: len(some)] = some
        return len(some)


def test_pipe() -> None:
    samples, sink = recorded(500), BytesIO()
    assert pipe(tiny_stream(), BytesIO(samples.tobytes()), sink) == 500
    stream = tiny_stream()
    expected = np.concatenate([stream.push(samples.astype(np.int16)), stream.flush()])
    result = np.frombuffer(sink.getvalue(), "<i2")
    np.testing.assert_array_equal(result, np.round(expected * 2.0**15).astype("<i2"))
    assert np.abs(result).max() > 100
    dripped = BytesIO()
    assert pipe(tiny_stream(), BufferedReader(Dripping(samples.tobytes())), dripped) == 500
    assert dripped.getvalue() == sink.getvalue()


def test_half_a_sample() -> None:
    sink = BytesIO()
    with pytest.raises(AudioError, match="half a sample behind the first 200"):
        pipe(tiny_stream(), BytesIO(recorded(200).tobytes() + b"x"), sink)
    assert len(sink.getvalue()) == 400, "all before it was written"


def test_nothing() -> None:
    sink = BytesIO()
    assert pipe(tiny_stream(), BytesIO(), sink) == 0 and not sink.getvalue()


@pytest.mark.slow
def test_command() -> None:
    samples = recorded(8000)
    command = [sys.executable, "-c", "from ppse.cli import main; main()", "stream", "--rank", "2"]
    run = subprocess.run(command, input=samples.tobytes(), capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout) == 16_000 and b"0.5 s done, 128 ms behind" in run.stderr
    for ears, code, text in (("vae", 0, b"128 ms behind"), ("a_vae", 1, b"these ears"), ("rvae", 1, b"expected one of CausalListener, VAESpeech")):
        run = subprocess.run([*command, "--ears", ears], input=samples[:400].tobytes(), capture_output=True, check=False)
        assert run.returncode == code and text in run.stderr and b"Traceback" not in run.stderr, run.stderr
    half = subprocess.run(command, input=b"abc", capture_output=True, check=False)
    assert half.returncode == 1 and b"half a sample" in half.stderr
