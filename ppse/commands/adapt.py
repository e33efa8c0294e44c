"""The command that adapts a trained prior to unlabelled recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import choices, methods
from ..adaptation import Adaptation
from ..adaptation_recipe import Progress, adapt_prior
from ..console import bar, complain_left_out, progress_bars, say
from .train import check_weights_name, epoch_report


def adapt(
    prior: Annotated[str, typer.Argument(help="Prior to adapt: a shipped name, or a weights file of 'ppse train vae'.")],
    inputs: Annotated[list[str], typer.Argument(help="Folders of noisy recordings of one domain.", metavar="NOISY…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    decoder: Annotated[bool, typer.Option("--decoder", help="Adapt what speech is like, instead of how it is heard in noise.")] = False,
    offsets: Annotated[bool, typer.Option("--offsets", help="Adapt only the offsets of what is heard in noise.")] = False,
    speech: Annotated[list[str] | None, typer.Option("--speech", help="Folder of clean speech, to be heard in their noise; repeat for more.")] = None,
    anchor: Annotated[float | None, typer.Option(min=0.0, help="How strongly weights are held in place; by default 0.1 or 1, of offsets 0.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = Adaptation().epochs,
    learning_rate: Annotated[float | None, typer.Option(min=1e-7, help="At first; by default 1e-3 or 1e-4, of offsets 1e-2.")] = None,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better.")] = Adaptation().patience,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and recordings, same weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write the weights even if held-out recordings gained nothing, or are too few.")] = False,
) -> None:
    """Adapt a prior to unlabelled noisy recordings of a new domain.

    Example: `ppse adapt vae_aware recordings/ --speech LibriSpeech/dev-clean -o adapted.safetensors`, then
    `ppse enhance recordings/ -o clean/ --prior adapted.safetensors --noise heard --method amortised`

    A quarter of the recordings, five at least, is held out, and judges: nothing is written, and the exit code is 1, unless in nine of ten of them
    other speech is heard better in the noise than before, or, without --speech, unless the prior explains nine of ten better. What cannot be used
    is told and left out: files that are unreadable, silent, or look like clean speech. An interrupted run goes on where it was.
    """
    check_weights_name(out)
    if offsets and decoder:
        raise typer.BadParameter("offsets are of what is heard in noise, not of the decoder; leave one of the two out", param_hint="--offsets")
    if speech and decoder:
        raise typer.BadParameter("the decoder learns from the recordings alone; leave one of the two out", param_hint="--speech")
    settings = Adaptation("decoder" if decoder else "offsets" if offsets else "encoder", anchor, learning_rate, epochs, patience, seed=seed)
    with progress_bars() as progress:
        report = epoch_report(progress, "adapt", epochs, out.with_suffix(".png"))
        told = Progress(bar(progress, "listen"), lambda _, log: report(log), lambda reason: complain_left_out([reason]))
        verdict = adapt_prior(
            prior, inputs, out, settings, speech=speech, force=force, method=methods.default(), progress=told,
            using=choices.heard, finder=choices.model(choices.FINDER, "heard") if speech else None,
        )
    say(f"wrote {out}: adapting {verdict.sentence}; use it: ppse enhance --prior {out} --noise heard …")
