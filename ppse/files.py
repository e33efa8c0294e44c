"""Files that appear whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO


def atomically(path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object]) -> None:
    """Fill a temporary file beside the target, then move it there: the target is whole, or as it was. Makes the folder.

    What a link leads to is replaced, not the link. A device or a pipe, such as /dev/stdout, is written to as it is.

    Raises:
        OSError: when the folder cannot be made or written to, or the disk is full; and whatever ``fill`` raises.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    if flows(target):
        content = io.BytesIO()
        fill(content)
        target.write_bytes(content.getbuffer())
        return
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            fill(file)
            file.close()
            os.chmod(file.name, _mode(target))
            os.replace(file.name, target)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def flows(path: str | os.PathLike[str]) -> bool:
    """Whether this is a device or a pipe, or leads to one: what is written there cannot be taken back."""
    return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()


def _mode(target: Path) -> int:
    """Who may read and write the file: as it is, or what the process gives to new ones."""
    if target.exists():
        return stat.S_IMODE(target.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
