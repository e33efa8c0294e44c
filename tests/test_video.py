"""Video files: frames at their times, sound in time with them, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppse import audio, video
from ppse.video import VideoError

Clip = Callable[..., Path]


def _levels(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Plain frames, each a little lighter than the one before."""
    return np.broadcast_to(np.linspace(40, 200, count, dtype=np.uint8)[:, None, None], (count, height, width))


def _click(rate: int, at: float, seconds: float = 1.0) -> np.ndarray:
    wave = np.zeros((1, int(rate * seconds)), np.float32)
    wave[0, int(at * rate) : int(at * rate) + 40] = 0.8 * np.sin(np.arange(40))
    return wave


@pytest.mark.parametrize("rate", [25.0, 30_000 / 1001, 30.0])
def test_frames_come_at_their_times(make_clip: Clip, rate: float) -> None:
    frames = _levels(20)
    seen = list(video.pictures(make_clip(frames, np.arange(20) / rate)))
    assert np.allclose([time for time, _ in seen], np.arange(20) / rate, atol=2e-5)
    assert np.allclose([grey.mean() for _, grey in seen], frames.mean((1, 2)), atol=4)
    assert all(grey.shape == (48, 64) and grey.dtype == np.uint8 for _, grey in seen)


def test_uneven_times_are_kept(make_clip: Clip) -> None:
    times = [0.0, 0.04, 0.05, 0.2, 0.21, 0.5]
    assert np.allclose([time for time, _ in video.pictures(make_clip(_levels(6), times))], times, atol=2e-5)


def test_the_clock_is_that_of_the_sound(make_clip: Clip) -> None:
    path = make_clip(_levels(20), np.arange(20) / 25, _click(16_000, 0.3), delay=0.2)
    assert next(iter(video.pictures(path))).time == pytest.approx(-0.2, abs=0.065)  # the first AAC frame is padded to whole ones


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_and_transparency_are_dropped(make_clip: Clip, channels: int) -> None:
    frames = np.repeat(_levels(5)[..., None], channels, -1)
    assert np.allclose([grey.mean() for _, grey in video.pictures(make_clip(frames, np.arange(5) / 25))], _levels(5).mean((1, 2)), atol=4)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mpg"])
def test_sound_is_put_back_in_time_with_the_same_pictures(make_clip: Clip, tmp_path: Path, suffix: str) -> None:
    source = make_clip(_levels(25), np.arange(25) / 25, _click(16_000, 0.2))
    wave = np.concatenate([_click(16_000, 0.5), 0.5 * _click(16_000, 0.5)])
    target = tmp_path / "out" / f"new{suffix}"
    video.write(target, source, wave, 16_000)
    heard, rate = video.sound(target)
    seen = list(video.pictures(target))
    assert rate == 16_000 and len(heard) == 2 and len(seen) == 25
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert np.abs(heard[0] - 2 * heard[1]).max() < 0.1
    frame = int(np.argmin([abs(grey.mean() - _levels(25)[12].mean()) for _, grey in seen]))
    assert np.abs(heard[0]).argmax() / rate == pytest.approx(0.5, abs=0.06 if suffix == ".mpg" else 0.004)  # MP2 is heard a little late,
    assert seen[frame].time - 12 / 25 - (np.abs(heard[0]).argmax() / rate - 0.5) == pytest.approx(0, abs=0.02)  # and seen as late


def test_copied_pictures_are_the_same_to_the_bit(make_clip: Clip, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = make_clip(rng.integers(0, 255, (8, 48, 64), dtype=np.uint8), np.arange(8) / 25, _click(16_000, 0.2))
    video.write(tmp_path / "new.mov", source, _click(16_000, 0.1), 16_000)
    for (_, before), (_, after) in zip(video.pictures(source), video.pictures(tmp_path / "new.mov"), strict=True):
        assert np.array_equal(before, after)


def test_pictures_of_other_codecs_are_encoded_anew_at_their_times(make_clip: Clip, tmp_path: Path) -> None:
    source = make_clip(_levels(15), np.arange(15) / 30, _click(16_000, 0.2), name="clip.mpg", codec="mpeg1video")
    video.write(tmp_path / "new.mp4", source, _click(16_000, 0.2), 16_000)
    before, after = list(video.pictures(source)), list(video.pictures(tmp_path / "new.mp4"))
    assert np.allclose([b.grey.mean() for b in before], [a.grey.mean() for a in after], atol=4)
    assert np.allclose(np.diff([b.time for b in before]), np.diff([a.time for a in after]), atol=1e-3)


def test_a_rate_that_the_codec_lacks_becomes_another(make_clip: Clip, tmp_path: Path) -> None:
    source = make_clip(_levels(5), np.arange(5) / 25)
    video.write(tmp_path / "new.mp4", source, _click(20_000, 0.5), 20_000)
    heard, rate = video.sound(tmp_path / "new.mp4")
    assert rate == 48_000 and np.abs(heard[0]).argmax() / rate == pytest.approx(0.5, abs=0.004)


def test_pictures_stay_upright(make_clip: Clip, tmp_path: Path) -> None:
    """Telephones write turned frames, and how to turn them back."""
    import av

    path = tmp_path / "turned.mp4"
    frame = np.full((48, 64), 200, np.uint8)
    frame[:24] = 20
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(3):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        output.mux(stream.encode(None))
    video.write(tmp_path / "again.mp4", path, _click(16_000, 0.5), 16_000)
    for file in (path, tmp_path / "again.mp4"):
        grey = next(iter(video.pictures(file))).grey
        assert grey.shape == (64, 48)
        assert grey[:, :20].mean() < 40 and grey[:, 28:].mean() > 180  # a quarter turn to the left brings the top to the left


def test_sound_alone_and_pictures_alone(make_clip: Clip, tmp_path: Path) -> None:
    silent = make_clip(_levels(5), np.arange(5) / 25)
    with pytest.raises(VideoError, match="without sound"):
        video.sound(silent)
    audio.write(tmp_path / "alone.wav", _click(16_000, 0.5), 16_000)
    with pytest.raises(VideoError, match="without moving pictures"):
        list(video.pictures(tmp_path / "alone.wav"))


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name, message in (("text.mp4", "not readable as video"), ("empty.mp4", "the file is empty"), ("none.mp4", "no such file"), (".", "a folder")):
        with pytest.raises(VideoError, match=message):
            video.sound(tmp_path / name)


def test_a_damaged_stretch_is_left_out(make_clip: Clip) -> None:
    rng = np.random.default_rng(0)
    path = make_clip(rng.integers(0, 255, (30, 48, 64), dtype=np.uint8), np.arange(30) / 30, _click(16_000, 0.2), name="clip.mpg", codec="mpeg1video")
    whole = [picture.time for picture in video.pictures(path)]
    data = bytearray(path.read_bytes())
    data[len(data) // 3 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - len(data) // 3)
    path.write_bytes(data)
    times = [picture.time for picture in video.pictures(path)]
    assert 0 < len(times) < len(whole) and np.all(np.diff(times) > 0)
    assert video.sound(path)[0].size > 0


def test_sound_after_a_damaged_stretch_stays_in_time(make_clip: Clip) -> None:
    import av

    wave = _click(16_000, 2.5, 3.0) + 0.01 * np.random.default_rng(0).standard_normal((1, 48_000)).astype(np.float32)
    path = make_clip(_levels(75), np.arange(75) / 25, wave)
    before, _ = video.sound(path)
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(container.streams.audio[0]) if packet.size]
    data = bytearray(path.read_bytes())
    for place, size in places[15:22]:
        data[place : place + size] = b"\xff" * size
    path.write_bytes(data)
    after, _ = video.sound(path)
    assert after.shape == before.shape and np.abs(after).argmax() == np.abs(before).argmax()
    assert (after[0, 16 * 1024 : 21 * 1024] == 0).mean() > 0.8


def test_outputs_that_cannot_be_written_leave_nothing(make_clip: Clip, tmp_path: Path) -> None:
    source = make_clip(_levels(5), np.arange(5) / 25)
    with pytest.raises(VideoError, match="no type of video"):
        video.write(tmp_path / "new.avi", source, _click(16_000, 0.5), 16_000)
    with pytest.raises(VideoError, match="3 channels"):
        video.write(tmp_path / "new.mp4", source, np.zeros((3, 1000), np.float32), 16_000)
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_without_pyav_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"install ppse\[av\]"):
        video.sound(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match=r"install ppse\[av\]"):
        video.write(tmp_path / "new.mp4", tmp_path / "clip.mp4", _click(16_000, 0.5), 16_000)
