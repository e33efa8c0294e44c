"""Raw samples through a pipe, as a recorder and a player would have it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from io import BufferedReader, BytesIO, RawIOBase
from threading import Timer, main_thread

import numpy as np
import pytest
import torch

from ppse import Mixture
from ppse.audio import AudioError
from ppse.models import NMFNoise, VAESpeech
from ppse.pcm import UntilInterrupted, pipe
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


@pytest.mark.parametrize("header", [b"RIFF", b"fLaC", b"OggS", b"ID3"])
def test_audio_files_are_no_raw_samples(header: bytes) -> None:
    sink, content = BytesIO(), header + recorded(100).tobytes()
    for source in (BytesIO(content), BufferedReader(Dripping(content))):
        with pytest.raises(AudioError, match="the input: an audio file; expected raw signed 16-bit samples"):
            pipe(tiny_stream(), source, sink)
    assert not sink.getvalue()


def test_a_full_disk_is_told_of_the_output() -> None:
    class Full(BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AudioError, match="the output: cannot be written .No space left on device"):
        pipe(tiny_stream(), BytesIO(recorded(500).tobytes()), Full())


def test_an_interruption_ends_the_recording() -> None:
    """Between two pieces at once, in the middle of one when it is done; a second one is not held back."""
    handler, (read, write) = signal.getsignal(signal.SIGINT), os.pipe()
    try:
        with os.fdopen(read, "rb") as end, os.fdopen(write, "wb", buffering=0) as start:
            source = UntilInterrupted(end)
            start.write(b"ab")
            assert source.read1(9) == b"ab"
            Timer(0.2, signal.pthread_kill, [main_thread().ident, signal.SIGINT]).start()
            assert source.read1(9) == b"" and source.interrupted, "while it waits"
            source = UntilInterrupted(end)
            start.write(b"cd")
            signal.raise_signal(signal.SIGINT)
            assert source.read1(9) == b"", "while it does not"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)


@pytest.mark.slow
def test_command_is_interrupted() -> None:
    command = [sys.executable, "-c", "from ppse.cli import main; main()", "stream", "--rank", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdin and run.stdout and run.stderr
        run.stdin.write(recorded(8000).tobytes())
        run.stdin.flush()
        first = run.stdout.read(2)  # it has begun
        run.send_signal(signal.SIGINT)
        rest = run.stdout.read()
        assert run.wait(60) == 130 and len(first + rest) == 16_000 and b"0.5 s done" in run.stderr.read()
