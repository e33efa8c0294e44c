"""Memory that was freed is used again, so that arrays of megabytes do not come as new pages each time."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGEST_THRESHOLD = 32 << 20
"""Bytes; the GNU C library takes no higher limit above which an array is memory of its own."""


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for later: of arrays of up to 32 MB, in the main thread. Says whether it takes that.

    Every iteration of an inference makes the same arrays. The GNU C library gives those of megabytes back each time, and the system
    then clears new pages, which can cost a batch of recordings a fifth of its time (docs/costs.md). The peak of memory stays what it was; what
    is kept is not free for others. The command line asks for this; a program that uses :mod:`ppse` may. Other C libraries are not asked.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # another C library
        return False
    return bool(library.mallopt(_MMAP_THRESHOLD, _LARGEST_THRESHOLD) and library.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
