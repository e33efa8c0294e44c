"""Recordings are sound or video: found, read and written alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ppse import audio, media, video

WAVE = np.sin(np.arange(8000) / 5)[None].astype(np.float32) / 2
FRAMES = np.full((12, 48, 64), 90, np.uint8)


@pytest.fixture
def clip(make_clip: Callable[..., Path]) -> Path:
    return make_clip(FRAMES, np.arange(12) / 25, WAVE)


def test_videos_are_found_unless_their_sound_lies_beside_them(clip: Path) -> None:
    folder = clip.parent
    audio.write(folder / "other.wav", WAVE, 16_000)
    assert media.find([folder]) == [clip, folder / "other.wav"]
    audio.write(clip.with_suffix(".ogg"), WAVE, 16_000)
    assert media.find([folder / "*"]) == [clip.with_suffix(".ogg"), folder / "other.wav"]
    assert media.find([clip]) == [clip]


def test_sound_comes_from_either(clip: Path) -> None:
    audio.write(clip.with_suffix(".wav"), WAVE, 16_000)
    heard, rate = media.read_checked(clip)
    exact, _ = media.read_checked(clip.with_suffix(".wav"))
    assert rate == 16_000 and np.corrcoef(heard[0, :8000], exact[0])[0, 1] > 0.99
    media.write(clip.with_suffix(".mpg"), clip, WAVE, 16_000)  # a type whose streams have no length
    assert media.extent(clip.with_suffix(".mpg"))[0] == pytest.approx(0.5, abs=0.1)
    assert media.extent(clip)[0] == pytest.approx(0.5, abs=0.1) and media.extent(clip.with_suffix(".wav")) == (0.5, 1)


def test_sound_goes_to_either(clip: Path, tmp_path: Path) -> None:
    for name, subtype in (("new.wav", "PCM_16"), ("new.flac", "PCM_16"), ("new.mov", "compressed")):
        assert media.encoding(clip, tmp_path / name) == subtype
        media.write(tmp_path / name, clip, -WAVE, 16_000, subtype)
        heard, _ = media.read_checked(tmp_path / name)
        assert np.corrcoef(heard[0, :8000], WAVE[0])[0, 1] < -0.99
    assert len(list(video.pictures(tmp_path / "new.mov"))) == 12


def test_sound_does_not_become_video(clip: Path) -> None:
    audio.write(clip.with_suffix(".wav"), WAVE, 16_000)
    with pytest.raises(audio.AudioError, match="has no pictures"):
        media.encoding(clip.with_suffix(".wav"), "new.mp4")
    with pytest.raises(audio.AudioError, match="no audio type"):
        media.encoding(clip, "new.xyz")


def test_a_video_without_sound_is_refused(make_clip: Callable[..., Path]) -> None:
    with pytest.raises(audio.AudioError, match="without sound"):
        media.encoding(make_clip(FRAMES, np.arange(12) / 25), "new.mp4")
