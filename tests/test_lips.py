"""Lips: what is refused, and where moments of sound lie among frames."""

import pytest
import torch

from ppse import STFT
from ppse.lips import Lips


def _lips(times: list[float], good: list[bool] | None = None) -> Lips:
    count = len(times)
    return Lips(torch.zeros(count, 88, 88), torch.tensor(times, dtype=torch.float64), torch.tensor(good or [True] * count))


@pytest.mark.parametrize("rate", [25.0, 30_000 / 1001, 30.0])
def test_frames_of_the_stft_lie_at_their_time_times_the_rate(rate: float) -> None:
    stft, lips = STFT(), Lips.at_rate(torch.zeros(100, 88, 88), rate)
    moments = torch.as_tensor(stft.centres(150))
    place, good = lips.align(moments)
    expected = (torch.arange(1, 151, dtype=torch.float64) * stft.hop - stft.n_fft / 2) / stft.sample_rate * rate
    assert torch.allclose(place, expected.clamp(0, 99), atol=1e-9)
    # The first and the last frame count for a period of the video before and after.
    assert torch.equal(good, (expected > -1) & (expected < 100))


def test_a_late_picture_is_looked_for_later() -> None:
    lips = Lips.at_rate(torch.zeros(10, 88, 88), 25.0)
    assert torch.allclose(lips.align(torch.tensor([0.1]), offset=0.08).place, torch.tensor([4.5], dtype=torch.float64))


def test_interpolation_follows_uneven_times() -> None:
    """A quantity linear in time is found exactly at any moment, however the frames come."""
    lips = _lips([0.0, 0.03, 0.1, 0.14, 0.2])
    moments = torch.linspace(0, 0.2, 41, dtype=torch.float64)
    place = lips.align(moments).place
    before = place.long().clamp_max(3)
    assert torch.allclose(lips.times[before].lerp(lips.times[before + 1], place - before), moments)


def test_frames_that_are_bad_missing_or_over_are_not_relied_on() -> None:
    lips = _lips([0.0, 0.04, 0.08, 0.12, 0.4, 0.44], [True, False, True, True, True, True])
    moments = torch.tensor([0.0, 0.02, 0.04, 0.08, 0.1, 0.12, 0.2, 0.4, 0.47, 0.49])
    assert lips.align(moments).good.tolist() == [True, False, False, True, True, True, False, True, True, False]
    assert lips.align(torch.tensor([9.0])).place.item() == 5


def test_a_single_frame_is_held() -> None:
    place, good = _lips([0.2]).align(torch.tensor([0.0, 0.19, 0.21, 1.0]))
    assert place.tolist() == [0] * 4 and good.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("frames", "times", "good", "message"),
    [
        (torch.zeros(2, 88, 87), torch.arange(2.0), torch.ones(2, dtype=torch.bool), "expected floats"),
        (torch.zeros(2, 88, 88, dtype=torch.uint8), torch.arange(2.0), torch.ones(2, dtype=torch.bool), "expected floats"),
        (torch.zeros(0, 88, 88), torch.arange(0.0), torch.ones(0, dtype=torch.bool), "V >= 1"),
        (torch.full((2, 88, 88), 2.0), torch.arange(2.0), torch.ones(2, dtype=torch.bool), "divide bytes by 255"),
        (torch.full((2, 88, 88), torch.nan), torch.arange(2.0), torch.ones(2, dtype=torch.bool), "from 0 to 1"),
        (torch.zeros(2, 88, 88), torch.zeros(2), torch.ones(2, dtype=torch.bool), "frame 1 is shown at 0 s"),
        (torch.zeros(2, 88, 88), torch.zeros(3), torch.ones(2, dtype=torch.bool), "2 finite floats"),
        (torch.zeros(2, 88, 88), torch.arange(2.0), torch.ones(2), "torch.bool"),
    ],
)
def test_what_cannot_be_lips_is_refused(frames: torch.Tensor, times: torch.Tensor, good: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lips(frames, times, good)


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rate=0"):
        Lips.at_rate(torch.zeros(2, 88, 88), 0.0)
