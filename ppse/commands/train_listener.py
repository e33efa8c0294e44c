"""The command that trains a noise-aware encoder for a trained prior."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import choices, weights
from ..console import complain_left_out, progress_bars, say
from ..listener_recipe import ListenerRecipe, train_listener_of
from ..models import VAESpeech
from ..workers import workers
from .train import check_weights_name, epoch_report


def listener(
    prior: Annotated[str, typer.Argument(help="A trained VAE: a shipped name or a weights file. Its speech model stays as it is.", metavar="VAE")],
    inputs: Annotated[list[str], typer.Argument(help="Folders of clean speech, two speakers or more.", metavar="SPEECH…")],
    noise: Annotated[list[str], typer.Option("--noise", help="Folder of recorded noise; repeat for more.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    context: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers.")] = ListenerRecipe.context,
    couplings: Annotated[int, typer.Option(min=0, help="Couplings that bend the law of the latents; normal without.")] = ListenerRecipe.couplings,
    ahead: Annotated[int, typer.Option(min=0, help="For ears of streams: size of the layer that looks ahead.")] = ListenerRecipe.ahead,
    bands: Annotated[int, typer.Option(min=0, help="Bands that it listens in; 0 for bins.")] = ListenerRecipe.bands,
    speeds: Annotated[bool, typer.Option(help="Play recordings at other speeds, too.")] = ListenerRecipe.speeds,
    epochs: Annotated[int, typer.Option(min=1)] = ListenerRecipe.epochs,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="At first.")] = ListenerRecipe.learning_rate,
    mixed: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = ListenerRecipe.mixed,
    batch: Annotated[int, typer.Option(min=2, help="Segments per step.")] = ListenerRecipe.batch,
    frames: Annotated[int, typer.Option(min=16, help="Frames per segment.")] = ListenerRecipe.frames,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction held out, of speakers and of noise.")] = ListenerRecipe.validation,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and data, same weights.")] = 0,
    devices: Annotated[int, typer.Option(min=1, help="So many processes or GPUs, side by side; needs ppse\\[train].")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train a noise-aware encoder for a trained VAE: it has heard recorded noise, beside the simulated.

    Example: `ppse train listener vae LibriSpeech/train-clean-100 --noise noise/ -o aware.safetensors`, then
    `ppse enhance noisy.wav -o clean.wav --prior aware.safetensors --noise heard`

    With `--ahead` these are ears for streams, of the latents of that VAE: `--context 152 --ahead 88 --batch 12 --frames 250`.

    It listens in bands; with `--noise heard` it tells of the speech, and the shipped ears of `vae` tell of the noise. With `--bands 0` it
    listens in bins and tells of both.

    What it helps to find is no longer unsupervised in the noise. An interrupted run goes on where it was.
    """
    check_weights_name(out)
    choices.check_device(device)
    team = workers(devices, device)
    recipe = ListenerRecipe(context, epochs, learning_rate, mixed, batch, frames, validation, seed, couplings, ahead, bands, speeds)
    with progress_bars(team.rank == 0) as progress:
        report = epoch_report(progress, "listener", epochs, out.with_suffix(".png"))
        train_listener_of(
            VAESpeech.pretrained(prior), inputs, noise, out, recipe, note=data_note, licence=licence,
            report=lambda _, log: report(log), left_out=lambda reason: complain_left_out([reason]), team=team,
        )
    if team.rank == 0:
        use = f"ppse stream --ears {out}" if ahead else f"ppse enhance --prior {out} --noise heard …"
        say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); use it: {use}")
