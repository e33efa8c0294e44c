"""The command that fills lost stretches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import audio
from ..console import bar, progress_bars, say
from ..inpainting import inpaint as fill_in
from ..labels import read_labels


def inpaint(
    recording: Annotated[Path, typer.Argument(help="Clean speech with lost stretches (wav, flac, ogg, mp3).", metavar="IN")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file.")],
    gaps: Annotated[Path, typer.Option(help="Where they are: a label track of Audacity, or CSV of start and end in seconds.")],
    draws: Annotated[int, typer.Option(min=2, help="Draws that mean and uncertainty are told from.")] = 10,
    mean: Annotated[bool, typer.Option("--mean", help="Write the posterior mean, which fades in long gaps, and not a draw.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
) -> None:
    """Fill lost stretches of clean speech from what is around them.

    Example: `ppse inpaint call.wav -o whole.wav --gaps lost.csv`

    Gaps are 0.25 s at most, and 64 ms or more apart. All else stays as it is.
    """
    audio.check_type(out)
    audio.check_writable(out)
    if out.resolve() == recording.resolve():
        raise typer.BadParameter("is the input, which would be lost; choose another name", param_hint="--out")
    lost = [(label.start, label.end) for label in read_labels(gaps)]
    with progress_bars() as progress:
        step = bar(progress, "gaps")
        result = fill_in(recording, lost, draws=draws, seed=seed, report=lambda done: step(round(done * len(lost)), len(lost)))
    result.save(out, None if mean else 0)
    uncertain = result.deviation()[result.deviation() > 0].mean()
    say(f"wrote {out}: {len(lost)} gaps filled; deviation of a sample in them {uncertain:.2g}, on average")
