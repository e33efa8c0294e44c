"""From folders of clean speech to a weights file: which files, which sizes, both stages of :mod:`ppse.training`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from . import audio, corpus, provenance, training, weights
from .models import VAESpeech
from .models.dynamical import DynamicalVAE
from .stft import STFT
from .workers import Workers


@dataclass(frozen=True)
class Recipe:
    """Settings of :func:`train_prior`; those of the shipped prior unless said otherwise.

    Attributes:
        latent, hidden, context: sizes, as in :class:`ppse.models.VAESpeech`; context 0 leaves the noisy encoder out.
        epochs, noisy_epochs: of the VAE, and of its encoder for noisy speech.
        patience: epochs without a better validation before a stage stops; as large as the epochs or larger, it never stops early.
        validation: fraction of the data that is held out, by speaker.
        seed: of everything random.
    """

    latent: int = 32
    hidden: tuple[int, ...] = (512,)
    context: int = 192
    epochs: int = 24
    noisy_epochs: int = 22
    patience: int = 99
    validation: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class SequenceRecipe:
    """Settings of :func:`train_sequence_prior`; those of the shipped priors unless said otherwise.

    Attributes:
        epochs, learning_rate, beta, warm_up, mixed: as in :class:`ppse.training.Schedule`.
        batch, frames: stretches of speech per step, and their length.
        patience, validation, seed: as in :class:`Recipe`.
    """

    epochs: int = 28
    learning_rate: float = 2e-3
    beta: float = 1.0
    warm_up: int = 4
    mixed: bool = True
    batch: int = 64
    frames: int = 50
    patience: int = 99
    validation: float = 0.05
    seed: int = 0


M = TypeVar("M", bound=nn.Module)
Report = Callable[[str, list[training.Epoch]], None]
"""Called after every epoch with the stage ("vae", "noisy" or "sequences") and its log."""


def train_prior(
    inputs: Sequence[str], out: Path, recipe: Recipe | None = None, *, note: str = "", licence: str = "", report: Report | None = None,
    reading: Callable[[int, int], None] | None = None, left_out: Callable[[str], None] | None = None,
) -> None:
    """Train a speech prior and write it to ``out``; an interrupted run goes on where it was.

    The VAE is in ``NAME.vae.safetensors`` until its noisy encoder is trained too, and stays there.

    Args:
        inputs: folders, files or patterns of clean speech of two speakers or more.
        note, licence: what the data are and their licence, for the model card.
        report: called after every epoch.
        reading: called with (files read, files in all).
        left_out: called with the reason for every file that cannot be used.

    Raises:
        AudioError: when data cannot be read, or ``out`` cannot be written.
        WeightsError: when ``out`` is there already, or an unfinished training of other data or settings is.
        ValueError: when there are fewer than two speakers.
    """
    recipe = recipe or Recipe()
    audio.check_writable(out)
    speech, others, card = speech_of(inputs, asdict(recipe), recipe.validation, recipe.seed, note, licence, reading, left_out)
    first = out.with_suffix(".vae.safetensors") if recipe.context else out
    done = [finished(path, card) for path in (first, out)]
    if done[-1]:
        raise weights.WeightsError(ALREADY.format(out))
    vae = seeded(recipe.seed, lambda: VAESpeech(n_latent=recipe.latent, hidden=recipe.hidden, context=recipe.context))
    schedule = training.Schedule(recipe.epochs, final_learning_rate=2e-5, patience=recipe.patience, seed=recipe.seed)
    if done[0]:
        vae.load_state_dict(weights.read(first)[0])
    else:
        training.train(vae, speech, others, first, schedule, card=card, report=lambda _, log: report("vae", log) if report else None)
        finish(vae, first)
    if recipe.context:
        schedule = schedule._replace(epochs=recipe.noisy_epochs)
        training.train_noisy_encoder(
            vae, speech, others, out, schedule, card=card, report=lambda _, log: report("noisy", log) if report else None,
        )
        finish(vae, out)


def train_sequence_prior(
    make: Callable[[], DynamicalVAE], inputs: Sequence[str], out: Path, recipe: SequenceRecipe | None = None, *, note: str = "",
    licence: str = "", report: Report | None = None, reading: Callable[[int, int], None] | None = None,
    left_out: Callable[[str], None] | None = None, team: Workers | None = None,
) -> None:
    """Train a speech prior with memory over frames and write it to ``out``; see :func:`train_prior`.

    Args:
        make: the untrained prior, e.g. ``lambda: RVAESpeech(causal=True)``; its weights are drawn from the seed of the recipe.
        report: called after every epoch with the stage "sequences".
        team: as in :func:`ppse.training.train`.
    """
    recipe = recipe or SequenceRecipe()
    audio.check_writable(out)
    prior = seeded(recipe.seed, make)
    made = {"model": type(prior).__name__, "sizes": prior.settings, "start": weights.checksum(prior.state_dict().values())}
    speech, others, card = speech_of(inputs, asdict(recipe) | made, recipe.validation, recipe.seed, note, licence, reading, left_out)
    if finished(out, card):
        raise weights.WeightsError(ALREADY.format(out))
    schedule = training.Schedule(
        recipe.epochs, recipe.learning_rate, patience=recipe.patience, seed=recipe.seed, beta=recipe.beta, warm_up=recipe.warm_up,
        mixed=recipe.mixed,
    )
    training.train_sequences(
        prior, speech, others, out, schedule, recipe.batch, recipe.frames, card, lambda _, log: report("sequences", log) if report else None,
        team,
    )
    if not team or team.rank == 0:
        finish(prior, out)


ALREADY = "{}: is there already, of the same data and settings; delete it to train it again"


def speech_of(
    inputs: Sequence[str], recipe: dict[str, Any], validation: float, seed: int, note: str, licence: str,
    reading: Callable[[int, int], None] | None, left_out: Callable[[str], None] | None,
) -> tuple[corpus.Speech, corpus.Speech, dict[str, Any]]:
    """Speech for training and for validation, and the model card."""
    data = split_speech(inputs, STFT(), validation, seed, reading, left_out)
    files = sum(len(part.waves) for part in data), sum(len(part.left_out) for part in data)
    return *data, card_of(inputs, data, files, recipe, note, licence)


def split_speech(
    inputs: Sequence[str], stft: STFT, validation: float, seed: int, reading: Callable[[int, int], None] | None = None,
    left_out: Callable[[str], None] | None = None,
) -> tuple[corpus.Speech, corpus.Speech]:
    """Clean speech for training and, of other speakers, for validation (:func:`ppse.corpus.split_speech`).

    ``left_out`` is told what cannot be used.

    Raises:
        AudioError: when data cannot be read.
        ValueError: when there are fewer than two speakers.
    """
    speech, others = corpus.split_speech(audio.find(inputs), stft, validation, seed, reading)
    for reason in (*speech.left_out.values(), *others.left_out.values()):
        if left_out:
            left_out(reason)
    return speech, others


def card_of(
    inputs: Sequence[str], data: tuple[corpus.Waves, corpus.Waves], files: tuple[int, int], recipe: dict[str, Any], note: str, licence: str,
) -> dict[str, Any]:
    """The model card of a training: its data for training and validation, how many files were used and left out, and its settings."""
    return {
        "data": [Path(i).name for i in inputs], "data_note": note, "licence": licence,
        "hours": {"training": round(data[0].hours, 4), "validation": round(data[1].hours, 4)},
        "files": {"used": files[0], "left_out": files[1]},
        "noise": "simulated (ppse.simulate), none recorded", "recipe": recipe,
        "versions": provenance.versions("torch", "pyro-ppl", "numpy", "soundfile"),
        "scores": {},  # of an evaluation, see weights.annotate
    }


def seeded(seed: int, make: Callable[[], M]) -> M:
    """What is made with a generator of that seed; that of the caller stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def _differences(key: str, found: object, value: object) -> list[str]:
    """What two entries of a card differ in: by setting, where both have settings."""
    if isinstance(found, dict) and isinstance(value, dict):
        return [text for name in sorted({*found, *value}) if found.get(name) != value.get(name)
                for text in _differences(f"{key} {name}", found.get(name), value.get(name))]
    return [f"{key} is {found!r}, here {value!r}"]


def finished(path: Path, card: dict[str, Any]) -> bool:
    """Whether a stage of this very training is done; refuses what another one left."""
    if not path.exists():
        return False
    found = weights.card(path)
    fixed = {key: value for key, value in json.loads(json.dumps(card)).items() if key not in ("versions", "scores")}
    differing = [difference for key, value in fixed.items() if found.get(key) != value for difference in _differences(key, found.get(key), value)]
    if differing:
        raise weights.WeightsError(f"{path}: is of another training ({'; '.join(differing)}); delete it or choose another name")
    return bool(found.get("finished"))


def finish(prior: nn.Module, path: Path) -> None:
    """Note in the card of a weights file that its training is done."""
    weights.write(prior, path, weights.card(path) | {"finished": True})
