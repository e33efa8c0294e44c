"""The mouth in a video: one crop a frame, steady over time, and whether it can be relied on. Needs the extra ``ppse[av]``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import faces, video
from .lips import SIZE, Lips
from .video import Picture, VideoError

BELOW, WIDTH = 0.32, 0.52
"""The mouth is so far below the middle of the face that the cascade finds, and its crop so wide, in widths of that face."""

STEADY = 0.08, 0.4
"""Seconds (standard deviation) over which the place of the mouth and its size are smoothed."""

BRIDGED = 0.1
"""Seconds for which a face may be missed without harm: the cascade blinks, heads do not jump."""

OFF, SPEED = 0.1, 2.0
"""A mouth has moved too far when the face is off its smoothed place by so many widths, or goes so many widths a second."""

BLURRED, FLAT = 0.3, 0.02
"""A crop is blurred when its sharpness is below this part of the usual one; flat, and no mouth, when its standard deviation is lower."""


def find_lips(
    source: str | os.PathLike[str] | NDArray[Any] | Tensor, rate: float | None = None, note: Callable[[str], None] | None = None,
) -> Lips:
    """The lips of the speaker in a video.

    A frontal face is found in every frame (:func:`ppse.faces.follow`), its place smoothed over time, and the mouth cut out, by the
    proportions of a face. A video of 88 x 88 pixels is taken for ready-made crops.

    A frame is not good when no face was found for longer than :data:`BRIDGED`, when the mouth moved too fast to be cut out, or when
    the crop is blurred or flat. Of ready-made crops only the latter is known.

    Args:
        source: a video file, which is read twice and never held whole; or frames, (V, height, width) or (V, height, width, 1 to 4), bytes
            or floats from 0 to 1, grey with or without transparency, or red, green, blue with or without.
        rate: of frames in Hz; a file knows its times.
        note: called with what the user should know: several faces.

    Raises:
        VideoError: when there is no face in any frame, or the file cannot be read.
        ValueError: when frames are of a shape or type that no video has, or come without a rate.
    """
    pictures = _reader(source, rate)
    first = next(iter(pictures()))
    if first.grey.shape == (SIZE, SIZE):
        times, crops = zip(*pictures(), strict=True)
        stack = np.stack(crops)
        return _lips(stack, np.array(times), ~_unsharp(stack))
    track = faces.follow(pictures())
    seen = np.isfinite(track.faces[:, 0])
    if not seen.any():
        where = f"{source}: " if isinstance(source, str | os.PathLike) else ""
        raise VideoError(
            f"{where}no face in any of {len(seen)} frames; expected one that looks at the camera and is wider than {faces.SMALLEST:.0%} "
            f"of the picture. Give crops of the mouth, {SIZE} x {SIZE} pixels, or enhance the sound alone"
        )
    if track.others and note:
        note("several faces are seen; the largest, most central one is followed")
    period = float(np.median(np.diff(track.times))) if len(seen) > 1 else 1 / 25
    smooth = _smoothed(track.faces, period)
    stack = np.stack([_crop(picture.grey, face) for picture, face in zip(pictures(), smooth, strict=True)])
    return _lips(stack, track.times, _found(seen, track.times) & ~_moved(track.faces, smooth, track.times) & ~_unsharp(stack))


def _reader(source: str | os.PathLike[str] | NDArray[Any] | Tensor, rate: float | None) -> Callable[[], Iterable[Picture]]:
    """A function that goes through the frames, as often as it is called."""
    if isinstance(source, str | os.PathLike):
        if rate is not None:
            raise ValueError(f"find_lips: rate={rate:g} Hz for a file, which knows its times; leave it out")
        path = os.fspath(source)
        return lambda: video.pictures(path)
    if rate is None or not rate > 0:
        raise ValueError(f"find_lips: frames at rate={rate}; expected it in Hz, such as rate=25")
    frames = _grey(source.detach().cpu().numpy() if isinstance(source, Tensor) else np.asarray(source))

    def go() -> Iterator[Picture]:
        return (Picture(number / rate, frame) for number, frame in zip(count(), frames, strict=False))

    return go


def _grey(frames: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames as bytes (V, height, width): colours by their luminance, transparency dropped."""
    if frames.ndim not in (3, 4) or 0 in frames.shape or (frames.ndim == 4 and frames.shape[-1] > 4):
        raise ValueError(f"find_lips: frames of shape {frames.shape}; expected (V, height, width) or (V, height, width, 1 to 4), V >= 1")
    if frames.dtype.kind == "f" and 0 <= frames.min() <= frames.max() <= 1:  # false for NaN
        frames = frames * 255
    elif frames.dtype != np.uint8:
        raise ValueError(f"find_lips: frames of {frames.dtype} from {frames.min()} to {frames.max()}; expected bytes, or floats from 0 to 1")
    if frames.ndim == 4:
        coloured = frames.shape[-1] > 2
        frames = frames[..., :3] @ np.array([0.299, 0.587, 0.114]) if coloured else frames[..., 0]  # ITU-R BT.601
    return np.round(frames).astype(np.uint8)


def _smoothed(found: NDArray[np.float64], period: float) -> NDArray[np.float64]:
    """Places (V, 3) without gaps or jumps: bridged in a straight line, single outliers removed, smoothed."""
    from scipy.ndimage import gaussian_filter1d, median_filter

    seen = np.isfinite(found[:, 0])
    at = np.arange(len(found))
    whole = np.stack([np.interp(at, at[seen], column[seen]) for column in found.T], -1)
    whole = median_filter(whole, (5, 1), mode="nearest")
    place, size = (seconds / period for seconds in STEADY)
    columns = [gaussian_filter1d(column, sigma, mode="nearest") for column, sigma in zip(whole.T, (place, place, size), strict=True)]
    return np.stack(columns, -1)


def _crop(grey: NDArray[np.uint8], face: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The mouth of a face (centre, width), at the common size; beyond the frame its edge goes on."""
    import cv2

    x, y, width = (float(value) for value in face)
    side = max(2, round(WIDTH * width))
    part = cv2.getRectSubPix(grey, (side, side), (x - 0.5, y + BELOW * width - 0.5))  # it counts from the middle of the first pixel
    crop = cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_AREA if side > SIZE else cv2.INTER_LINEAR)
    return np.asarray(crop, np.uint8)


def _found(seen: NDArray[np.bool_], times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Frames with a face not further away than :data:`BRIDGED` both before and after, or in the frame itself."""
    last = np.maximum.accumulate(np.where(seen, times, -np.inf))
    following = np.minimum.accumulate(np.where(seen, times, np.inf)[::-1])[::-1]
    return seen | (following - last <= BRIDGED + 1e-9)


def _moved(found: NDArray[np.float64], smooth: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Frames in which the mouth is not where it was cut out, or goes too fast."""
    width = smooth[:, 2]
    with np.errstate(invalid="ignore"):  # where no face was found nothing is known, and nothing is said
        off = np.hypot(*(found - smooth)[:, :2].T) > OFF * width
    speed = np.zeros(len(times))
    speed[1:] = np.hypot(*np.diff(smooth[:, :2], axis=0).T) / np.diff(times)
    result: NDArray[np.bool_] = off | (speed > SPEED * width)
    return result


def _unsharp(crops: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Crops (V, 88, 88) that are flat, or much less sharp than is usual among those that are not."""
    grey = crops.astype(np.float64) / 255
    flat = grey.std((-2, -1)) < FLAT
    inner = grey[:, 1:-1, 1:-1]
    edges = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * inner  # the Laplacian
    sharpness = edges.var((-2, -1)) / inner.var((-2, -1)).clip(FLAT**2)
    usual = np.median(sharpness[~flat]) if not flat.all() else 0.0
    result: NDArray[np.bool_] = flat | (sharpness < BLURRED * usual)
    return result


def _lips(crops: NDArray[np.uint8], times: NDArray[np.float64], good: NDArray[np.bool_]) -> Lips:
    return Lips(torch.from_numpy(crops).float() / 255, torch.from_numpy(times), torch.from_numpy(good))
