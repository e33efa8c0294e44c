"""Files: found, read, checked, written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ppse import audio

RATE = 16_000


def tone(seconds: float = 0.5, rate: int = RATE, frequency: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_find_searches_folders_and_patterns_and_leaves_out_what_is_no_audio(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "deep/c.mp3", "deep/d.ogg", "notes.txt", ".a.wav.tmp", ".hidden.wav", "deep/take[1].wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in audio.find([tmp_path])]
    assert sorted(names) == ["a.FLAC", "b.wav", "c.mp3", "d.ogg", "take[1].wav"] and audio.find([tmp_path]) == sorted(audio.find([tmp_path]))
    assert [p.name for p in audio.find([f"{tmp_path}/*"])] == ["a.FLAC", "b.wav"]
    assert [p.name for p in audio.find([f"{tmp_path}/**/*.ogg"])] == ["d.ogg"]
    assert [p.name for p in audio.find([tmp_path / "deep" / "take[1].wav"])] == ["take[1].wav"]
    assert audio.find([tmp_path / "b.wav", tmp_path, tmp_path / "b.wav"])[0].name == "b.wav"
    assert len(audio.find([tmp_path / "b.wav", tmp_path, tmp_path / "b.wav"])) == 5


def test_find_says_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for item in ("gone.wav", "*.wav", "a**b"):
        with pytest.raises(audio.AudioError, match="no such file or folder, and no pattern"):
            audio.find([tmp_path / item])
    with pytest.raises(audio.AudioError, match="a folder without audio files"):
        audio.find([tmp_path / "nothing"])


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [("a.wav", "PCM_16", 1e-4), ("a.wav", "FLOAT", 0.0), ("a.flac", "PCM_24", 1e-6), ("a.ogg", None, 0.1), ("a.mp3", None, 0.1)],
)
def test_what_is_written_is_read(tmp_path: Path, name: str, subtype: str | None, tolerance: float) -> None:
    wave = np.stack([tone(), 0.5 * tone(frequency=700)])
    audio.write(tmp_path / "deep" / name, wave, RATE, subtype)
    back, rate = audio.read(tmp_path / "deep" / name)
    assert rate == RATE and back.dtype == np.float32 and back.shape == wave.shape
    assert np.abs(back - wave).max() <= tolerance
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [name]
    assert np.allclose(audio.read_mono(tmp_path / "deep" / name), back.mean(0))


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "the file is empty"), (b"I am a text, not a sound", "not readable as audio"), ("folder", "a folder")],
)
def test_read_says_what_is_wrong(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    path = tmp_path / "a.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(audio.AudioError, match=message) as caught:
        audio.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100, 48_000, 192_000])
def test_resampling_keeps_a_tone_and_its_place(source: int) -> None:
    wave = tone(0.5, source)
    there = audio.resample(wave, source, RATE)
    assert there.size == -(-wave.size * RATE // source) and there.dtype == np.float32
    middle = slice(1000, -1000)
    assert np.abs(there[middle] - tone()[middle]).max() < 1e-3
    assert audio.resample(wave, source, source) is wave


@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_resampling_keeps_short_lengths(length: int) -> None:
    assert audio.resample(np.ones(length, np.float32), 8_000, RATE).size == 2 * length


def test_check_counts_what_is_not_finite() -> None:
    audio.check(np.zeros((2, 5)), "x")
    broken = np.zeros((2, 9))
    broken[1, 4], broken[0, 7] = np.inf, np.nan
    with pytest.raises(audio.AudioError, match="here: 2 samples are NaN or infinite, the first at index 4"):
        audio.check(broken, "here")
    with pytest.raises(audio.AudioError, match="at least one sample"):
        audio.check(np.zeros((2, 0)), "here")
    audio.check(np.full((1, 3), 3e9), "here")  # integers that nobody scaled
    with pytest.raises(audio.AudioError, match="samples up to 1.0e\\+20, full scale is 1"):
        audio.check(np.full((1, 3), -1e20), "here")


def test_unknown_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(audio.AudioError, match=r"'.xyz' is no audio type that can be written; use .wav"):
        audio.write(tmp_path / "a.xyz", tone(), RATE)
    with pytest.raises(audio.AudioError, match="cannot be written"):
        audio.write(tmp_path / "a.flac", tone(), RATE, subtype="VORBIS")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_failure_in_the_middle_leaves_the_old_file_and_no_other(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.txt"
    audio.write_text(path, "old")

    def fill(file) -> None:
        file.write(b"half of the n")
        raise OSError(number, os.strerror(number))

    with pytest.raises(audio.AudioError, match=os.strerror(number)):
        audio.atomically(path, fill)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_interruption_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    def fill(file) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audio.atomically(tmp_path / "a.txt", fill)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_are_found_out_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio.check_writable(tmp_path / "new" / "deep" / "a.wav")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(audio.AudioError, match="cannot be written"):
        audio.check_writable(tmp_path / "file" / "a.wav")
    with pytest.raises(audio.AudioError, match="deep: a folder, expected a file to write"):
        audio.check_writable(tmp_path / "new" / "deep")

    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(audio.tempfile, "TemporaryFile", refuse)
    with pytest.raises(audio.AudioError, match="Permission denied.*check the folder"):
        audio.check_writable(tmp_path / "a.wav")


def test_beyond_full_scale_survives_in_float_files(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", 5 * tone(), RATE, "FLOAT")
    assert np.array_equal(audio.read(tmp_path / "a.wav")[0][0], 5 * tone())
    audio.write(tmp_path / "b.wav", 5 * tone(), RATE, "PCM_16")  # clipped, not wrapped around
    assert np.abs(audio.read(tmp_path / "b.wav")[0][0] - np.clip(5 * tone(), -1, 1)).max() < 1e-4
    assert soundfile.info(tmp_path / "b.wav").subtype == "PCM_16"


@pytest.mark.parametrize(
    ("name", "peak", "given", "expected"),
    [("a.wav", 1.0, None, None), ("a.wav", 1.1, None, "FLOAT"), ("a.wav", 1.1, "PCM_16", "FLOAT"), ("a.wav", 1.1, "DOUBLE", "DOUBLE"),
     ("a.wav", 0.5, "PCM_24", "PCM_24"), ("a.flac", 1.1, "PCM_16", "PCM_16"), ("a.ogg", 1.1, None, None)],
)
def test_samples_beyond_full_scale_become_floats_where_they_can(name: str, peak: float, given: str | None, expected: str | None) -> None:
    assert audio.unclipped(name, np.array([[0.1, -peak]]), given) == expected


def test_a_pipe_is_written_to_and_what_a_link_leads_to_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor() as reader:
        found = reader.submit(pipe.read_text)
        audio.check_writable(pipe)
        audio.write_text(pipe, "to a pipe")
        assert found.result(timeout=30) == "to a pipe" and stat.S_ISFIFO(pipe.stat().st_mode)
    audio.write_text("/dev/null", "to a device")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link.txt", tmp_path / "elsewhere" / "target.txt"
    link.symlink_to(target)
    for content in ("first", "second"):
        audio.check_writable(link)
        audio.write_text(link, content)
        assert link.is_symlink() and target.read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "link.txt", "pipe"] and list(target.parent.iterdir()) == [target]


def test_files_are_as_private_as_the_process_or_the_file_before_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        audio.write_text(tmp_path / "private.txt", "")
        os.umask(0o022)
        audio.write_text(tmp_path / "public.txt", "")
        audio.write_text(tmp_path / "private.txt", "again")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private.txt", "public.txt")] == [0o600, 0o644]
