"""Commands that look inside: at the draws of a run, and at what a prior knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import audio, sampling
from ..console import complain_left_out, progress_bars, say
from ..convergence import convergence
from ..diagnostic_plots import write_figures
from ..diagnostics import verdict
from ..models import VAESpeech
from ..runs import load_run


def diagnose(
    run: Annotated[Path, typer.Argument(help="NetCDF file of 'ppse enhance --save-run', or of ppse.runs.save_run.", metavar="RUN.nc")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for figures; none are drawn unless given.")] = None,
) -> None:
    """Say in plain words whether the draws of a run can be relied on, and draw why.

    Example: `ppse diagnose run.nc -o figures/`

    The exit code is 0 when they can, 3 when they cannot, and 1 when the file cannot be judged. Figures: traces, ranks and
    autocorrelations of the worst coordinates and of typical ones, pairs, energy, what every frame did under the
    spectrogram, and the power spectrum of replicated data.
    """
    with progress_bars() as progress:
        progress.add_task("read", total=None)
        idata = load_run(run)
        if out:
            audio.check_writable(out / "frames.png")
        progress.add_task("R-hat and effective sample sizes", total=None)
        found = convergence(idata)
        judged = verdict(idata, found)
    say(str(judged))
    if out:
        written, left_out = write_figures(idata, out, found)
        say(f"wrote {', '.join(path.name for path in written)} to {out}")
        complain_left_out(f"{name}.png ({reason})" for name, reason in left_out.items())
    if not judged.passed:
        raise typer.Exit(3)


def sample(
    out: Annotated[Path, typer.Option("--out", "-o", help="Audio file.")],
    prior: Annotated[str, typer.Option(help="A shipped name, or a weights file.")] = "vae",
    seconds: Annotated[float, typer.Option(min=0.1, max=600)] = 4.0,
    smoothness: Annotated[float, typer.Option(min=0.0, max=0.999, help="Correlation of neighbouring frames; 0 is the prior itself.")] = 0.9,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same sound.")] = 0,
) -> None:
    """Draw from the speech prior, and listen to what it knows.

    Example: `ppse sample -o sample.wav`

    The frames of this prior are independent, so no words are to be expected.
    """
    audio.check_type(out)
    audio.check_writable(out)
    audio.write(out, sampling.sample_speech(VAESpeech.pretrained(prior), seconds, seed, smoothness).numpy(), 16_000)
    say(f"wrote {out}")
