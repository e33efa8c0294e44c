"""What made a result: the command and the versions of the packages."""

from __future__ import annotations

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from . import __version__


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, of ppse, and of installed packages."""
    return {"python": platform.python_version(), "ppse": __version__} | {package: version(package) for package in packages}


def sentence(*packages: str) -> str:
    """:func:`versions` in one line."""
    return ", ".join(f"{name} {number}" for name, number in versions(*packages).items())


def command() -> str:
    """The command line that this program was started with, its own path left out."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
