"""The command that trains on any mix of clean, noisy, paired and partly labelled speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import choices, weights
from ..console import bar, complain_left_out, progress_bars, say
from ..models import VAESpeech
from ..optimisation import Epoch
from ..semi import Kinds, Shares
from ..semi_recipe import SemiRecipe, train_semi_prior
from ..workers import workers
from .train import check_weights_name, epoch_report


def semi(
    out: Annotated[Path, typer.Option("--out", "-o", help="Weights file, NAME.safetensors.")],
    clean: Annotated[list[Path], typer.Option(help="Folder of clean speech, of two speakers or more; repeat for more.")] = [],  # noqa: B006  (typer copies it)
    noisy: Annotated[list[Path], typer.Option(help="Folder of noisy recordings without labels; repeat for more.")] = [],  # noqa: B006
    pairs: Annotated[list[Path], typer.Option(help="Manifest of noisy recordings with their clean speech; repeat for more.")] = [],  # noqa: B006
    labels: Annotated[list[Path], typer.Option(help="Folder of noisy recordings with label files beside them; repeat for more.")] = [],  # noqa: B006
    start: Annotated[str, typer.Option(help="Go on from these weights, a shipped name or a file; their sizes hold. EM finds noise under them.")] = "",
    clean_weight: Annotated[float, typer.Option(min=0.0, help="In the loss.")] = Shares().clean,
    simulated_weight: Annotated[float, typer.Option(min=0.0, help="Of clean speech in simulated noise.")] = Shares().simulated,
    noisy_weight: Annotated[float, typer.Option(min=0.0)] = Shares().noisy,
    pairs_weight: Annotated[float, typer.Option(min=0.0)] = Shares().pairs,
    labels_weight: Annotated[float, typer.Option(min=0.0)] = Shares().labels,
    remixed_weight: Annotated[float, typer.Option(min=0.0, help="Of clean speech in the noise of the recordings.")] = Shares().remixed,
    distance_weight: Annotated[float, typer.Option(min=0.0, help="Of the distance of estimates from speech that is known.")] = Shares().distance,
    inner: Annotated[int, typer.Option(min=0, help="EM steps for the noise of a stretch; 0 takes what the encoder hears.")] = SemiRecipe.inner,
    latent: Annotated[int, typer.Option(min=1, help="Size of the latent vector of a frame.")] = SemiRecipe.latent,
    hidden: Annotated[list[int], typer.Option(min=1, help="Size of a hidden layer; repeat for more.")] = list(SemiRecipe.hidden),  # noqa: B006
    context: Annotated[int, typer.Option(min=1, help="Size of the recurrent layers of the noisy encoder.")] = SemiRecipe.context,
    epochs: Annotated[int, typer.Option(min=1, help="At most.")] = SemiRecipe.epochs,
    learning_rate: Annotated[float, typer.Option(min=1e-6, help="At first.")] = SemiRecipe.learning_rate,
    patience: Annotated[int, typer.Option(min=1, help="Stop after so many epochs that get no better.")] = SemiRecipe.patience,
    batch: Annotated[int, typer.Option(min=1, help="Stretches of each kind per step.")] = SemiRecipe.batch,
    frames: Annotated[int, typer.Option(min=16, help="Frames per stretch.")] = SemiRecipe.frames,
    validation: Annotated[float, typer.Option(min=0.001, max=0.5, help="Fraction of each kind held out.")] = SemiRecipe.validation,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, data and number of devices, same weights.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    devices: Annotated[int, typer.Option(min=1, help="So many GPUs, or processes, side by side; needs ppse\\[train].")] = 1,
    data_note: Annotated[str, typer.Option(help="What the data are, for the model card.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model card.")] = "",
) -> None:
    """Train a speech prior and its noisy encoder on any mix of clean, noisy, paired and partly labelled recordings.

    Example: `ppse train semi --clean speech --noisy field --pairs mixtures/manifest.json -o prior.safetensors`

    Clean speech, or pairs, there must be. With `--start`, EM first finds the noise of the unlabelled recordings, to hear it under the clean
    speech. What cannot be used is told and left out: pairs of unequal length or not aligned, noisy
    recordings that look clean, files that are missing. Loss curves appear beside the weights. An interrupted run goes on where it was.
    """
    check_weights_name(out)
    settings = SemiRecipe(latent, tuple(hidden), context, epochs, learning_rate, patience, batch, frames, inner, validation, seed)
    shares = Shares(clean_weight, simulated_weight, noisy_weight, pairs_weight, labels_weight, remixed_weight, distance_weight)
    choices.check_device(device)
    team = workers(devices, device)
    with progress_bars(team.rank == 0) as progress:
        tell = epoch_report(progress, "semi", epochs, out.with_suffix(".png"))

        def report(log: list[Epoch], kinds: Kinds) -> None:
            tell(log, ", ".join(f"{kind} {training:.0f} / {validation:.0f}" for kind, (training, validation) in kinds.items()))

        train_semi_prior(
            out, clean, noisy, pairs, labels, settings, shares, start=VAESpeech.pretrained(start) if start else None, note=data_note,
            licence=licence, report=report, left_out=lambda reason: complain_left_out([reason]),
            listening=bar(progress, "listen"), team=team,
        )
    if team.rank == 0:
        say(f"wrote {out} (validation {weights.card(out)['validation_loss']:.1f}); use it: ppse enhance --prior {out} …")
