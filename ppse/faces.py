"""The face of one speaker, found in every frame of a video and told from others. Needs the extra ``ppse[av]``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .video import Picture, VideoError

if TYPE_CHECKING:
    from cv2 import CascadeClassifier

HEIGHT = 288
"""Frames whose shorter side has more pixels are searched at this size: a face of interest is not smaller than a tenth of it."""

SMALLEST = 0.15
"""Width of the smallest face that is looked for, over the shorter side of the frame."""

NEIGHBOURS = 5
"""So many overlapping finds make a face; fewer let in what is none."""

LOOK_AROUND = 1.0
"""Seconds after which the whole frame is searched for other faces; and during which a face that is lost may come back to its place."""

NEAR = 0.6
"""A face is the same as before when its centre moved by less than this, in widths of it, and its width changed by less."""

WIDTHS = 0.3
"""By how much the width of a followed face may differ from that found when the whole frame was searched last, over that. (Were it
compared with the frame before, it would wander, as the mean over finds within a range that moves with it.)"""


class Face(NamedTuple):
    """Centre and width of a face, in pixels."""

    x: float
    y: float
    width: float


@dataclass
class Track:
    """Where the followed face was: ``faces`` (V, 3), centre and width in pixels, NaN where it was not found; ``times`` (V,) in seconds;
    ``others``, in how many of the frames that were searched wholly there were more faces."""

    faces: NDArray[np.float64]
    times: NDArray[np.float64]
    others: int


def follow(pictures: Iterable[Picture]) -> Track:
    """Follow one face through a video: at first the largest and most central one, then that nearest to where it was.

    A face is found by the frontal cascade that OpenCV ships (Viola and Jones, 2001). Once it is lost for longer than
    :data:`LOOK_AROUND`, the choice is made anew.

    Raises:
        VideoError: when OpenCV is not installed, or is of a version without cascades.
    """
    cascade = _cascade()
    import cv2  # once it is known to be there

    followed: Face | None = None
    seen = looked = -np.inf
    usual = np.nan
    others = 0
    places, times = [], []
    for time, grey in pictures:
        scale = min(1.0, HEIGHT / min(grey.shape))
        small = grey if scale == 1 else cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if followed and time - seen > LOOK_AROUND:
            followed = None
        found = None
        if followed and time - looked < LOOK_AROUND:
            found = _same(followed, _search_near(cascade, small, followed, usual))
        if found is None:
            looked = time
            faces = _search(cascade, small, (0, 0), SMALLEST * min(small.shape), min(small.shape))
            others += len(faces) > 1
            found = _same(followed, faces) if followed else _foremost(faces, small.shape)
            usual = found.width if found else usual
        if found:
            followed, seen = found, time
        places.append([value / scale for value in found] if found else [np.nan] * 3)
        times.append(time)
    return Track(np.array(places).reshape(-1, 3), np.array(times), others)


def _cascade() -> CascadeClassifier:
    try:
        import cv2
        from cv2.data import haarcascades

        cascade = cv2.CascadeClassifier(f"{haarcascades}haarcascade_frontalface_alt2.xml")
        missing = cascade.empty()
    except (ImportError, AttributeError):  # OpenCV 5 has no such class
        missing = True
    if missing:
        raise VideoError("faces are found by a cascade of OpenCV 4, which is missing; install ppse[av], or give crops of the mouth, 88 x 88 pixels")
    return cascade


def _search_near(cascade: CascadeClassifier, small: NDArray[Any], face: Face, usual: float) -> list[Face]:
    """Faces of about the usual width around the place of one."""
    left, top = (int(max(0, centre - face.width)) for centre in (face.x, face.y))
    part = small[top : int(face.y + face.width), left : int(face.x + face.width)]
    return _search(cascade, part, (left, top), usual * (1 - WIDTHS), usual * (1 + WIDTHS))


def _search(cascade: CascadeClassifier, part: NDArray[Any], corner: tuple[int, int], smallest: float, largest: float) -> list[Face]:
    """All faces in a part of a frame, in pixels of the frame."""
    low, high = (int(smallest), int(smallest)), (int(largest), int(largest))
    boxes = cascade.detectMultiScale(part, scaleFactor=1.1, minNeighbors=NEIGHBOURS, minSize=low, maxSize=high)
    return [Face(float(x + w / 2 + corner[0]), float(y + h / 2 + corner[1]), float(w)) for x, y, w, h in boxes]


def _same(face: Face, found: list[Face]) -> Face | None:
    """The nearest of those found that can be the same face."""
    def distance(other: Face) -> float:
        return float(np.hypot(other.x - face.x, other.y - face.y)) / face.width + abs(np.log(other.width / face.width))

    nearest = min(found, key=distance, default=None)
    return nearest if nearest and distance(nearest) < NEAR else None


def _foremost(found: list[Face], shape: tuple[int, ...]) -> Face | None:
    """The largest and most central: area, less what is off the middle of the frame."""
    height, width = shape[:2]

    def weight(face: Face) -> float:
        return face.width**2 * (1 - float(np.hypot(face.x - width / 2, face.y - height / 2)) / float(np.hypot(width, height)))

    return max(found, key=weight, default=None)
