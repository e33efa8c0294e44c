"""The mouth is found where it is, in a real face that moves, vanishes, blurs or has company. The portrait comes with matplotlib."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ppse.mouth import find_lips
from ppse.video import VideoError

MOUTH = np.array([133.0, 142.5])  # x, y in the portrait at half size, by eye


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A woman in uniform, (300, 256), grey."""
    import cv2
    import matplotlib

    image = cv2.imread(str(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"), cv2.IMREAD_GRAYSCALE)
    return np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))


def _placed(portrait: np.ndarray, x: int, y: int, shape: tuple[int, int] = (360, 400)) -> np.ndarray:
    """The portrait with its left upper corner at a place of a larger frame."""
    frame = np.full(shape, 90, np.uint8)
    frame[y : y + len(portrait), x : x + portrait.shape[1]] = portrait
    return frame


def _similar(crop: torch.Tensor, like: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([crop.flatten(), like.flatten()]))[0, 1])


def test_the_crop_shows_the_mouth(portrait: np.ndarray) -> None:
    lips = find_lips(np.stack([portrait] * 3), rate=25)
    assert lips.good.all() and torch.allclose(lips.times, torch.arange(3, dtype=torch.float64) / 25)
    import cv2

    # A piece of the portrait around the mouth lies in the middle of the crop, at the scale of the crop.
    x, y = MOUTH.astype(int)
    piece = portrait[y - 10 : y + 10, x - 20 : x + 20]
    finds = []
    for scale in np.arange(0.8, 2.0, 0.05):
        sought = cv2.resize(piece, None, fx=scale, fy=scale)
        match = cv2.matchTemplate((lips.frames[1].numpy() * 255).astype(np.uint8), sought, cv2.TM_CCOEFF_NORMED)
        _, value, _, corner = cv2.minMaxLoc(match)
        finds.append((value, corner[0] + sought.shape[1] / 2, corner[1] + sought.shape[0] / 2))
    value, across, down = max(finds)
    assert value > 0.9
    assert abs(across - 44) < 10 and abs(down - 44) < 10


def test_the_crop_goes_with_the_head(portrait: np.ndarray) -> None:
    """A swaying head gives the same crop all the time."""
    sway = [(70 + round(30 * np.sin(n / 12)), 30 + round(10 * np.cos(n / 9))) for n in range(50)]
    lips = find_lips(np.stack([_placed(portrait, *place) for place in sway]), rate=25)
    assert lips.good.all()
    assert min(_similar(frame, lips.frames[25]) for frame in lips.frames) > 0.8
    still = find_lips(np.stack([_placed(portrait, *sway[25])] * 3), rate=25)
    assert _similar(lips.frames[25], still.frames[1]) > 0.9


def test_frames_without_a_face_are_flagged_and_bridged(portrait: np.ndarray) -> None:
    frames = np.stack([_placed(portrait, 70, 30)] * 40)
    frames[15:25, 80:150, 120:280] = np.random.default_rng(0).integers(0, 255, (10, 70, 160))  # eyes and nose gone, the mouth is not
    lips = find_lips(frames, rate=25)
    assert (~lips.good).nonzero().flatten().tolist() == list(range(15, 25))
    assert _similar(lips.frames[20, 44:], lips.frames[5, 44:]) > 0.95


def test_a_blink_of_the_detector_does_no_harm(portrait: np.ndarray) -> None:
    frames = np.stack([_placed(portrait, 70, 30)] * 10)
    frames[5, 80:150, 120:280] = np.random.default_rng(0).integers(0, 255, (70, 160))
    assert find_lips(frames, rate=25).good.all()


def test_blurred_and_flat_frames_are_flagged(portrait: np.ndarray) -> None:
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).normal(0, 2, (30, 360, 400))
    frames = np.clip(_placed(portrait, 70, 30) + noise, 0, 255)
    frames[10:15] = gaussian_filter(frames[10:15], (0, 4, 4))
    frames[20:25] = 128
    lips = find_lips(frames.round().astype(np.uint8), rate=25)
    assert (~lips.good).nonzero().flatten().tolist() == [*range(10, 15), *range(20, 25)]


def test_a_jump_is_flagged(portrait: np.ndarray) -> None:
    frames = np.stack([_placed(portrait, 40 if n < 20 else 85, 30) for n in range(40)])
    good = find_lips(frames, rate=25).good
    assert not good[18:21].any() and good[:15].all() and good[25:].all()


def test_of_two_faces_the_larger_is_followed_with_a_note(portrait: np.ndarray) -> None:
    import cv2

    small = cv2.resize(portrait, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
    frame = np.full((360, 520), 90, np.uint8)
    frame[30:330, 10:266] = portrait
    frame[60 : 60 + len(small), 320 : 320 + small.shape[1]] = small
    notes: list[str] = []
    lips = find_lips(np.stack([frame] * 5), rate=25, note=notes.append)
    alone = find_lips(np.stack([_placed(portrait, 10, 30)] * 5), rate=25, note=notes.append)
    assert len(notes) == 1 and "several faces" in notes[0]
    assert _similar(lips.frames[2], alone.frames[2]) > 0.9
    # The smaller one stays the speaker where she was seen first.
    frames = np.stack([frame] * 30)
    frames[:10, 30:330, 10:266] = 90
    kept = find_lips(frames, rate=25)
    assert kept.good.all() and _similar(kept.frames[25], kept.frames[3]) > 0.95


@pytest.mark.parametrize("form", ["bytes", "floats", "one channel", "colours", "four channels", "tensor"])
def test_any_kind_of_frames(portrait: np.ndarray, form: str) -> None:
    frames = np.stack([portrait] * 2)
    expected = find_lips(frames, rate=25).frames
    many = np.repeat(frames[..., None], 4, -1)
    many[..., 3] = np.arange(300)[:, None] % 255  # transparency has no say
    given = {
        "bytes": frames, "floats": frames / 255, "one channel": frames[..., None], "colours": many[..., :3], "four channels": many,
        "tensor": torch.from_numpy(frames),
    }[form]
    assert torch.allclose(find_lips(given, rate=25).frames, expected, atol=2 / 255)


def test_ready_made_crops_are_taken_as_they_are() -> None:
    crops = np.random.default_rng(0).integers(0, 255, (6, 88, 88), dtype=np.uint8)
    crops[2] = 128
    lips = find_lips(crops, rate=30)
    assert torch.equal(lips.frames, torch.from_numpy(crops).float() / 255)
    assert lips.good.tolist() == [True, True, False, True, True, True]
    assert lips.times[3] == pytest.approx(0.1)


def test_a_file_gives_what_its_frames_give(portrait: np.ndarray, make_clip: Callable[..., Path]) -> None:
    frames = np.stack([_placed(portrait, 60 + n, 30) for n in range(12)])
    times = np.array([0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]) / 25
    lips = find_lips(make_clip(frames, times))
    assert torch.allclose(lips.times, torch.from_numpy(times), atol=2e-5)
    assert _similar(lips.frames[6], find_lips(frames, rate=25).frames[6]) > 0.97


def test_what_has_no_face_or_is_no_video_is_refused(make_clip: Callable[..., Path]) -> None:
    plain = np.full((3, 120, 160), 90, np.uint8)
    with pytest.raises(VideoError, match="no face in any of 3 frames"):
        find_lips(plain, rate=25)
    path = make_clip(plain, np.arange(3) / 25)
    with pytest.raises(VideoError, match=r"clip.mp4: no face"):
        find_lips(path)
    with pytest.raises(ValueError, match="knows its times"):
        find_lips(path, rate=25)
    for frames, rate, message in (
        (plain, None, "rate=None"), (plain, -1.0, "rate=-1"), (plain[0], 25, "shape"), (np.zeros((3, 8, 8, 5), np.uint8), 25, "shape"),
        (plain[:0], 25, "shape"), (plain.astype(np.int64), 25, "int64"), (plain * 1.0, 25, "floats from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            find_lips(frames, rate=rate)


def test_without_opencv_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(VideoError, match=r"install ppse\[av\]"):
        find_lips(np.zeros((2, 120, 160), np.uint8), rate=25)
