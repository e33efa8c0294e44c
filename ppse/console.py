"""How the commands talk: results to standard output; progress, complaints and errors to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer.core import TyperGroup

_output = Console(highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


INTERRUPTED = "interrupted: what is finished stays; run the same command again to go on from there"


class Commands(TyperGroup):
    """Commands whose failures end in a message and an exit code, not in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            complain(INTERRUPTED)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # `ppse evaluate … | head`
            raise
        except (ValueError, OSError) as error:  # AudioError and WeightsError among them
            complain(f"error: {error}")
            raise typer.Exit(1) from None


def check_keeps(results: Path | None, files: Iterable[Path], option: str) -> None:
    """Raise BadParameter when a file of results would replace one of those that are read or written beside it."""
    if results and results.resolve() in {file.resolve() for file in files}:
        raise typer.BadParameter(f"'{results}' is read or written by this command, and would be lost; choose another name", param_hint=option)


def say(text: str) -> None:
    """Print a result."""
    _output.print(text, markup=False)


def complain(text: str) -> None:
    """Print what went wrong, or what the user should know, if anything."""
    if text:
        _errors.print(text, markup=False)


def complain_left_out(reasons: Iterable[str]) -> None:
    """Print why something was left out, every reason once."""
    for reason in dict.fromkeys(reasons):
        complain(f"left out: {reason}")


@contextmanager
def progress_bars(shown: bool = True) -> Iterator[Progress]:
    """Progress bars that vanish at the end; nothing where no terminal is, or where another worker shows them."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=_errors, transient=True, disable=not (shown and _errors.is_terminal)) as progress:
        yield progress


def bar(progress: Progress, label: str) -> Callable[..., None]:
    """A bar as a function to call with (done, total), or with the fraction done; it appears at the first call."""
    tasks: list[TaskID] = []

    def report(done: float, total: float = 1.0) -> None:
        if not tasks:
            tasks.append(progress.add_task(label))
        progress.update(tasks[0], completed=done, total=total)

    return report
