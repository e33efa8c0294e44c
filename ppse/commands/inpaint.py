"""Commands that make up what a recording of clean speech lacks: lost stretches, an upper band."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from .. import audio
from ..console import bar, progress_bars, say
from ..extension import extend as draw_upper_band
from ..inpainting import inpaint as fill_in
from ..inpainting import read_gaps
from ..models import VAESpeech
from ..weights import WeightsError


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
    _check_output(out, recording)
    lost = read_gaps(gaps)
    with progress_bars() as progress:
        step = bar(progress, "gaps")
        try:
            result = fill_in(recording, lost, draws=draws, seed=seed, report=lambda done: step(round(done * len(lost)), len(lost)))
        except (audio.AudioError, WeightsError):
            raise
        except ValueError as error:
            raise ValueError(f"{gaps}: {error}") from error
    result.save(out, None if mean else 0)
    deviation = result.deviation()
    uncertain = deviation.sum() / max(1, np.count_nonzero(deviation))
    say(f"wrote {out}: {len(lost)} gaps filled; deviation of a sample in them {uncertain:.2g}, on average")


def extend(
    recording: Annotated[Path, typer.Argument(help="Clean narrow-band speech (wav, flac, ogg, mp3).", metavar="IN")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Output file, at 16 kHz.")],
    cutoff: Annotated[float | None, typer.Option(help="Hz up to which it has sound; all below its Nyquist frequency unless given.")] = None,
    prior: Annotated[str, typer.Option(help="Speech prior: a shipped name, or a weights file of 'ppse train vae'.")] = "vae",
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same result.")] = 0,
) -> None:
    """Give clean narrow-band speech an upper band, drawn under the prior given the lower one.

    Example: `ppse extend telephone.wav -o wide.wav`

    Of a recording at 16 kHz or more without sound above, say, 4 kHz: `--cutoff 3900`. The upper band is as loud as in the
    middle of what may be, its phases are at random, as nothing tells of them: another seed, others.
    """
    _check_output(out, recording)
    with progress_bars() as progress:
        progress.add_task("sample", total=None)
        draw_upper_band(recording, cutoff, VAESpeech.pretrained(prior), seed=seed).save(out)
    say(f"wrote {out}")


def _check_output(out: Path, recording: Path) -> None:
    """Refuse what cannot be written, and the recording itself."""
    audio.check_type(out)
    audio.check_writable(out)
    if out.resolve() == recording.resolve():
        raise typer.BadParameter("is the input, which would be lost; choose another name", param_hint="--out")
