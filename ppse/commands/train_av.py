"""The command that trains on video: audio-visual speech priors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import av_recipe, weights
from ..av_recipe import AVRecipe
from ..console import bar, complain_left_out, progress_bars, say
from .train import check_weights_name, epoch_report


def av_vae(
    inputs: Annotated[list[str], typer.Argument(help="Folders of videos of faces, or of crops of mouths.", metavar="FOLDER…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    heard_lips: Annotated[bool, typer.Option(help="Whether lips tell encoder and decoder, too, or the prior of the latents alone.")] = True,
    vae_epochs: Annotated[int, typer.Option(min=1, help="Of the VAE of sound, at most.")] = AVRecipe.vae_epochs,
    lips_epochs: Annotated[int, typer.Option(min=1, help="Of the lips that tell the prior of its latents, at most.")] = AVRecipe.lips_epochs,
    epochs: Annotated[int, typer.Option(min=1, help="Of all networks together, at most.")] = AVRecipe.epochs,
    lips_learning_rate: Annotated[float, typer.Option(min=1e-6, help="Of the lips, at first.")] = AVRecipe.lips_learning_rate,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="Of all together, at first.")] = AVRecipe.learning_rate,
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame.")] = AVRecipe.latent,
    hidden: Annotated[list[int], typer.Option(min=1, help="Size of a hidden layer; repeat for more.")] = list(AVRecipe.hidden),  # noqa: B006  (typer copies it)
    batch: Annotated[int, typer.Option(min=1, help="Stretches of speech per step.")] = AVRecipe.batch,
    frames: Annotated[int, typer.Option(min=2, help="Frames per stretch.")] = AVRecipe.frames,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better; never with fewer.")] = AVRecipe.patience,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction held out, by speaker, or by clip of one.")] = AVRecipe.validation,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and data, same weights.")] = 0,
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train an audio-visual speech prior on clean speech with video.

    Example: `ppse train av-vae grid/s1 -o av.safetensors`

    The sound of a video is the audio file of the same name beside it, or its own. First a VAE of the sound alone is trained and kept in
    NAME.vae.safetensors, then lips that tell the prior of its latents, in NAME.lips.safetensors, then all together. What cannot be used is
    told and left out. An interrupted run goes on where it was.
    """
    check_weights_name(out)
    recipe = AVRecipe(
        latent, tuple(hidden), heard_lips, vae_epochs, lips_epochs, epochs, lips_learning_rate, learning_rate, batch, frames, patience,
        validation, seed,
    )
    limits = {"vae": vae_epochs, "lips": lips_epochs, "av": epochs}
    with progress_bars() as progress:
        stages = {stage: epoch_report(progress, stage, limit, out.with_suffix(f".{stage}.png")) for stage, limit in limits.items()}
        av_recipe.train_av_prior(
            inputs, out, recipe, note=data_note, licence=licence, report=lambda stage, log: stages[stage](log),
            reading=bar(progress, "read"), left_out=lambda reason: complain_left_out([reason]),
        )
    say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); the prior of sound alone is in {out.with_suffix('.vae.safetensors')}")
