"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def atomically(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object]) -> None:
    """Fill a temporary file beside the target, then move it there: the target is whole, or as it was. Makes the folder.

    Raises:
        OSError: when the folder cannot be made or written to, or the disk is full; and whatever ``fill`` raises.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            fill(file)
            file.close()
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
