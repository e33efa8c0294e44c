"""Commands that make weights: training on clean speech, and the import of published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from .. import audio, choices, plots, recipe, weights
from .. import import_dvae as importer
from ..console import bar, complain, complain_left_out, progress_bars, say
from ..models import VAESpeech
from ..optimisation import Epoch
from ..workers import workers


def vae(
    inputs: Annotated[list[str], typer.Argument(help="Folders of clean speech, two speakers or more.", metavar="SPEECH…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    epochs: Annotated[int, typer.Option(min=1, help="Of the VAE, at most.")] = recipe.Recipe.epochs,
    noisy_epochs: Annotated[int, typer.Option(min=1, help="Of the encoder for noisy speech, at most.")] = recipe.Recipe.noisy_epochs,
    noisy_encoder: Annotated[bool, typer.Option(help="Whether to train an encoder for noisy speech.")] = True,
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame.")] = recipe.Recipe.latent,
    hidden: Annotated[list[int], typer.Option(min=1, help="Size of a hidden layer; repeat for more.")] = list(recipe.Recipe.hidden),  # noqa: B006  (typer copies it)
    context: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers of the noisy encoder.")] = recipe.Recipe.context,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better; never with fewer.")] = recipe.Recipe.patience,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction of the data held out, by speaker.")] = recipe.Recipe.validation,
    seed: Annotated[int, typer.Option(min=0, help="Same seed and data, same weights.")] = 0,
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train a speech prior on clean speech.

    Example: `ppse train vae LibriSpeech/train-clean-100 -o prior.safetensors --licence "CC BY 4.0"`

    First the VAE, then its encoder for noisy speech on simulated noise. Who speaks is read off the file names up to the first
    '-' or '_', and without one off the folder, which suits LibriSpeech, VCTK and TIMIT. What cannot be used is told and left out. Loss
    curves appear beside the weights. An interrupted run goes on where it was.
    """
    check_weights_name(out)
    settings = recipe.Recipe(latent, tuple(hidden), context if noisy_encoder else 0, epochs, noisy_epochs, patience, validation, seed)
    limits = {"vae": epochs, "noisy": noisy_epochs}
    with progress_bars() as progress:
        stages = {stage: epoch_report(progress, stage, limit, out.with_suffix(f".{stage}.png")) for stage, limit in limits.items()}
        recipe.train_prior(
            inputs, out, settings, note=data_note, licence=licence, report=lambda stage, log: stages[stage](log), reading=bar(progress, "read"),
            left_out=lambda reason: complain_left_out([reason]),
        )
    say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); use it: ppse enhance --prior {out} …")


def dvae(
    model: Annotated[str, typer.Argument(help=", ".join(choices.DYNAMICAL) + ".")],
    inputs: Annotated[list[str], typer.Argument(help="Folders of clean speech, two speakers or more.", metavar="SPEECH…")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    around: Annotated[str, typer.Option(help=f"Put the memory around this VAE, a shipped name or a file ({', '.join(choices.AROUND)}).")] = "",
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame; that of the VAE, with --around.")] = 32,
    hidden: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers.")] = 128,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = recipe.SequenceRecipe.epochs,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="At first.")] = recipe.SequenceRecipe.learning_rate,
    beta: Annotated[float, typer.Option(min=0.0, help="Weight of the KL divergence; 1 for the ELBO.")] = recipe.SequenceRecipe.beta,
    warm_up: Annotated[int, typer.Option(min=0, help="Epochs during which that weight rises.")] = recipe.SequenceRecipe.warm_up,
    mixed: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = recipe.SequenceRecipe.mixed,
    batch: Annotated[int, typer.Option(min=1, help="Stretches of speech per step.")] = recipe.SequenceRecipe.batch,
    frames: Annotated[int, typer.Option(min=2, help="Frames per stretch.")] = recipe.SequenceRecipe.frames,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better.")] = recipe.SequenceRecipe.patience,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction of the data held out, by speaker.")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, data and number of devices, same weights.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="So many GPUs, or processes, side by side; needs ppse\\[train].")] = 1,
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train a speech prior with memory over frames, a dynamical VAE.

    Example: `ppse train dvae rvae LibriSpeech/train-clean-100 -o rvae.safetensors --licence "CC BY 4.0"`

    As `ppse train vae`: speakers are read off the file names, and an interrupted run goes on where it was. With little data or time,
    start from a trained VAE: `ppse train dvae rvae --around vae …`.
    """
    check_weights_name(out)
    if model not in choices.DYNAMICAL:
        raise typer.BadParameter(f"no dynamical VAE '{model}'; there are {', '.join(choices.DYNAMICAL)}", param_hint="MODEL")
    if around and model not in choices.AROUND:
        raise typer.BadParameter(f"there is nothing to put around a VAE in '{model}'; leave --around out", param_hint="--around")
    trained = VAESpeech.pretrained(around) if around else None
    choices.check_device(device)
    team = workers(devices, device)
    settings = recipe.SequenceRecipe(epochs, learning_rate, beta, warm_up, mixed, batch, frames, patience, validation, seed)
    with progress_bars(team.rank == 0) as progress:
        report = epoch_report(progress, model, epochs, out.with_suffix(".png"))
        recipe.train_sequence_prior(
            lambda: choices.AROUND[model](trained, hidden) if trained else choices.DYNAMICAL[model](latent, hidden), inputs, out, settings,
            note=data_note, licence=licence, report=lambda _, log: report(log), reading=bar(progress, "read"),
            left_out=lambda reason: complain_left_out([reason]), team=team,
        )
    if team.rank == 0:
        say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); use it: ppse enhance --prior {out} …")


def import_dvae(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt file of tensors. Nothing in it is executed.", metavar="CHECKPOINT.pt")],
    config: Annotated[Path, typer.Argument(help="The config.ini that was published beside it.", metavar="CONFIG.ini")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    licence: Annotated[str, typer.Option(help="Licence of the checkpoint, for the model card.")] = "",
) -> None:
    """Make a speech prior of a published checkpoint of the DVAE family.

    Example: `ppse import-dvae RVAE_final_epoch294.pt config.ini -o rvae.safetensors && ppse enhance noisy.wav -o clean.wav --prior rvae.safetensors`

    Every tensor is checked. What in the STFT of the training differs from the one here is told.
    """
    check_weights_name(out)
    audio.check_writable(out)
    weights.check_new(out)
    model, card = importer.import_dvae(checkpoint, config)
    weights.write(model, out, card | {"licence": licence})
    for note in card["notes"]:
        complain(f"note: {note}")
    say(f"wrote {out} ({type(model).__name__}); use it: ppse enhance --prior {out} …")


def epoch_report(progress: Progress, stage: str, epochs: int, figure: Path) -> Callable[..., None]:
    """What to call with the log after every epoch of a stage, and with what else there is to say: moves a bar, prints losses, draws curves."""
    advance = bar(progress, stage)

    def report(log: list[Epoch], *more: str) -> None:
        advance(len(log), epochs)
        say("; ".join([f"{stage} {len(log)}/{epochs}: {log[-1].sentence}", *more]))
        plots.plot_training(log, figure)

    return report


def check_weights_name(out: Path) -> None:
    """Raise BadParameter unless ``out`` can be the name of a weights file."""
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"'{out}' should end in .safetensors", param_hint="--out")
