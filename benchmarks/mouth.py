"""Crops of mouths found in videos of faces, against ready-made crops of the same names: how far apart, how alike, how long it takes.

    python benchmarks/mouth.py FACES CROPS
"""

from __future__ import annotations

import sys
import time

import cv2
import numpy as np
from numpy.typing import NDArray

from ppse import audio, video
from ppse.mouth import find_lips

EDGE = 12
"""Pixels around the middle of a crop that is sought in the other: it can be found so far away."""


def apart(mine: NDArray[np.float32], ready: NDArray[np.float32]) -> tuple[float, float, float]:
    """Where the middle of one crop lies in another, in pixels from its own place across and down, and its correlation there."""
    found = cv2.matchTemplate(ready, mine[EDGE:-EDGE, EDGE:-EDGE], cv2.TM_CCOEFF_NORMED)
    _, value, _, (across, down) = cv2.minMaxLoc(found)
    return across - EDGE, down - EDGE, value


def main(faces: str, crops: str) -> None:
    """Print a row for every clip, and the means."""
    cv2.setNumThreads(1)
    ready = {path.stem: path for path in audio.find([crops], list(video.CONTAINERS), "video")}
    rows = []
    for path in audio.find([faces], list(video.CONTAINERS), "video"):
        started = time.process_time()
        lips = find_lips(path)
        seconds = time.process_time() - started
        other, good = find_lips(ready[path.stem]).frames.numpy(), lips.good.numpy()
        mine = lips.frames.numpy()
        middle = np.flatnonzero(good)[good.sum() // 2]
        alike = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(mine[good], other[good], strict=True)]
        across, down, value = apart(mine[middle], other[middle])
        rows.append((abs(across), abs(down), value, float(np.median(alike)), (~good).sum(), 1e3 * seconds / len(lips)))
        print(path.stem, "  ".join(f"{number:.3g}" for number in rows[-1]))
    print("mean of pixels across, down, correlation there, and as they are, bad frames, ms a frame:", *np.mean(rows, 0).round(2))


if __name__ == "__main__":
    main(*sys.argv[1:])
