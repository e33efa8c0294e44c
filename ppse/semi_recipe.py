"""Semi-supervised training from files to a weights file with its model card."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import audio, methods, provenance, recordings, semi, weights
from .corpus import Waves, split_speech
from .enhance import RANK, SPACING
from .found_noise import forget, noise_found
from .listening import NOISE_SPEEDS, at_other_speeds
from .mixture import Mixture
from .models import NMFNoise, VAESpeech
from .optimisation import Epoch, Schedule
from .recipe import ALREADY, finish, finished, seeded
from .stft import STFT
from .workers import Workers

Paths = Sequence[str | os.PathLike[str]]


@dataclass(frozen=True)
class SemiRecipe:
    """Settings of :func:`train_semi_prior`: sizes of the VAE and of its noisy encoder, and how to train them.

    ``batch`` stretches of ``frames`` frames of each kind per step; ``inner`` steps of the EM that finds the noise of unlabelled stretches;
    ``validation`` is the fraction of each kind that is held out, of clean speech by speaker.
    """

    latent: int = 32
    hidden: tuple[int, ...] = (512,)
    context: int = 192
    epochs: int = 60
    learning_rate: float = 1e-3
    patience: int = 10
    batch: int = 8
    frames: int = 100
    inner: int = 5
    validation: float = 0.05
    seed: int = 0


def train_semi_prior(
    out: Path, clean: Paths = (), noisy: Paths = (), pairs: Paths = (), labels: Paths = (), recipe: SemiRecipe | None = None,
    shares: semi.Shares | None = None, *, start: VAESpeech | None = None, note: str = "", licence: str = "",
    report: Callable[[list[Epoch], semi.Kinds], None] | None = None, left_out: Callable[[str], None] | None = None,
    listening: Callable[[int, int], None] | None = None, team: Workers | None = None,
) -> None:
    """Train a VAE with its noisy encoder on what there is (:func:`ppse.semi.train`), and write it to ``out``.

    An interrupted run goes on where it was. What EM finds of the noise is in the folder ``NAME.noise`` until the end.

    Args:
        out: weights file.
        clean: files and folders of clean speech, of two speakers or more.
        noisy: of noisy recordings that nobody labelled.
        pairs: manifests of noisy recordings with their clean speech.
        labels: files and folders of noisy recordings with label files beside them.
        start: a trained VAE to go on from, changed in place; its sizes are not those of the recipe. Under it EM finds the noise of the
            recordings, once (:func:`with_noise`), which is heard remixed.
        note, licence: what the data are and their licence, for the model card.
        report: called after every epoch with the log and the losses of every kind.
        left_out: called with the reason for every recording that is not used.
        listening: called with (recordings done, in all) of that EM, kind by kind, for the training and then for what is held out.
        team: as for :func:`ppse.training.train`.

    Raises:
        AudioError: when data cannot be read, or nothing of a kind is left, or ``out`` cannot be written.
        WeightsError: when ``out`` is there already, or an unfinished training of other data or settings is.
        ValueError: when nothing is observed, nothing is noisy, or there is too little of a kind to hold some out.
    """
    recipe, shares = recipe or SemiRecipe(), shares or semi.Shares()
    audio.check_writable(out)
    reasons: list[str] = []

    def leave(reason: str) -> None:
        reasons.append(reason)
        if left_out:
            left_out(reason)

    training, validation = _material(clean, noisy, pairs, labels, recipe, leave)
    semi.check(training, validation, shares)
    card: dict[str, Any] = {
        "data": {kind: [Path(i).name for i in inputs] for kind, inputs in _given(clean, noisy, pairs, labels).items()},
        "data_note": note, "licence": licence,
        "hours": {f"{kind} {name}": round(data.hours, 4) for name, material in (("training", training), ("validation", validation))
                  for kind, data in material.kinds.items()},
        "files": {"left_out": len(reasons)}, "recipe": asdict(recipe),
        "start": {"settings": start.settings, "checksum": weights.checksum(start.state_dict().values())} if start else None,
        "shares": shares._asdict(),
        "versions": provenance.versions("torch", "pyro-ppl", "numpy", "soundfile"),
        "scores": {},  # of an evaluation, see weights.annotate
    }
    if finished(out, card):
        raise weights.WeightsError(ALREADY.format(out))
    vae = start or seeded(recipe.seed, lambda: VAESpeech(n_latent=recipe.latent, hidden=recipe.hidden, context=recipe.context))
    rate = recipe.learning_rate
    schedule = Schedule(recipe.epochs, rate, final_learning_rate=rate / 20, patience=recipe.patience, seed=recipe.seed)
    work = out.with_suffix(".noise")
    if start and shares.remixed and training.recordings:
        training, validation = with_noise(training, validation, start, work, recipe.seed, listening, team)
    semi.train(
        vae, training, validation, out, schedule, shares, recipe.batch, recipe.frames, recipe.inner, card=card, report=report, team=team,
    )
    if not team or team.rank == 0:
        finish(vae, out)
        forget(work)


def with_noise(
    training: semi.Material, validation: semi.Material, vae: VAESpeech, work: Path, seed: int = 0,
    report: Callable[[int, int], None] | None = None, team: Workers | None = None,
) -> tuple[semi.Material, semi.Material]:
    """The same with the noise of all recordings, known or as EM finds it under a VAE with NMF noise (:func:`ppse.found_noise.noise_found`).

    The noise of the training is heard at other speeds, too, which takes seven times the memory of its recordings, and at first twice that.

    Raises:
        ValueError: when the VAE has no noisy encoder, or there are no recordings.
    """
    semi.encoder_of(vae)  # it will be trained: say now that there is none
    if not (training.recordings and validation.recordings):
        raise ValueError("with_noise: no recordings whose noise could be found, in training or in validation")
    model = Mixture(speech=vae, noise=NMFNoise(RANK, spacing=SPACING))

    def found(material: semi.Material) -> Waves:
        kinds = material.recordings.values()
        noise = [wave for data in kinds for wave in noise_found(model, data, work, methods.fast(), seed, report, team)]
        return Waves(noise, next(iter(kinds)).stft)

    return training._replace(noise=at_other_speeds(found(training), NOISE_SPEEDS, each=True)), validation._replace(noise=found(validation))


def _given(clean: Paths, noisy: Paths, pairs: Paths, labels: Paths) -> dict[str, Paths]:
    named = {"clean": clean, "noisy": noisy, "pairs": pairs, "labels": labels}
    return {kind: inputs for kind, inputs in named.items() if inputs}


def _material(
    clean: Paths, noisy: Paths, pairs: Paths, labels: Paths, recipe: SemiRecipe, leave: Callable[[str], None],
) -> tuple[semi.Material, semi.Material]:
    """For training and for validation."""
    stft = STFT()
    files = audio.find(clean) if clean else []
    parts: dict[str, tuple[Any, Any]] = {}
    if files:
        speech = split_speech(files, stft, recipe.validation, recipe.seed)
        for part in speech:
            for reason in part.left_out.values():
                leave(reason)
        parts["clean"] = speech[0], speech[1]
    found = {
        "noisy": recordings.unlabelled(noisy, stft, leave, files) if noisy else None,
        "pairs": recordings.paired(pairs, stft, leave) if pairs else None,
        "labels": recordings.labelled(labels, stft, leave) if labels else None,
    }
    for kind, data in found.items():
        if data is not None:
            try:
                parts[kind] = data.split(recipe.validation, recipe.seed)
            except ValueError as error:
                raise ValueError(f"{kind}: {error}") from None
    training, validation = (semi.Material(**{kind: halves[i] for kind, halves in parts.items()}) for i in (0, 1))
    return training, validation
