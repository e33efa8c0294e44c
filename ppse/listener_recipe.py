"""From folders of clean speech and of recorded noise to a listener that was trained with both."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from . import audio, weights
from .causal_listening import train_causal_listener
from .corpus import Speech, Waves, has_sound
from .listening import NOISE_SPEEDS, SPEECH_SPEEDS, at_other_speeds, train_listener
from .models import VAESpeech
from .models.band_listener import BandListener
from .models.causal_listener import CausalListener
from .models.heard_speech import same_weights
from .optimisation import Report, Schedule
from .recipe import ALREADY, finish, finished, seeded, speech_of
from .workers import Workers


@dataclass(frozen=True)
class ListenerRecipe:
    """Settings of :func:`train_listener_of`; those of the shipped ``vae_aware``, as far as a single run can have them (weights/README.md).

    Attributes:
        context: size of the recurrent layers.
        epochs, learning_rate, mixed: as in :class:`ppse.training.Schedule`.
        batch, frames: segments per step, and their length.
        validation: fraction of speech held out, by speaker, and of noise, by file.
        seed: of everything random.
        couplings: how many bend the law of the latents; it is normal without.
        ahead: 0, or the size of the layer that looks ahead in ears for streams (:class:`ppse.models.causal_listener.CausalListener`).
        bands: how many it listens in (:class:`ppse.models.band_listener.BandListener`), or 0 for bins, in which ears for streams always listen.
        speeds: whether recordings are played at other speeds, too; it takes seven times the memory of the noise, and twice that of the speech.
    """

    context: int = 224
    epochs: int = 20
    learning_rate: float = 1.2e-3
    mixed: bool = False
    batch: int = 16
    frames: int = 250
    validation: float = 0.08
    seed: int = 0
    couplings: int = 0
    ahead: int = 0
    bands: int = 40
    speeds: bool = True


def train_listener_of(
    trained: VAESpeech, inputs: Sequence[str], noise: Sequence[str], out: Path, recipe: ListenerRecipe | None = None, *, note: str = "",
    licence: str = "", report: Report | None = None, left_out: Callable[[str], None] | None = None, team: Workers | None = None,
) -> None:
    """A trained VAE with a new listener, or ears for streams, written to ``out``; an interrupted run goes on where it was.

    Args:
        trained: the VAE; it is not changed.
        inputs: folders, files or patterns of clean speech of two speakers or more.
        noise: the same of recorded noise, two files or more.
        note, licence, report, left_out: as for :func:`ppse.recipe.train_prior`.
        team: as in :func:`ppse.training.train`.

    Raises:
        AudioError: when data cannot be read, or ``out`` cannot be written.
        WeightsError: when ``out`` is there already, or an unfinished training of other data or settings is.
        ValueError: when there are fewer than two speakers or recordings of noise, or more bands than the VAE has bins for; for ears of streams,
            when the VAE is not the shipped one, or with couplings.
    """
    recipe = recipe or ListenerRecipe()
    recipe = replace(recipe, bands=0) if recipe.ahead else recipe
    audio.check_writable(out)
    if recipe.bands:
        BandListener(trained.n_freqs, 1, 1, recipe.bands)  # which refuses too many, before all the reading
    if recipe.ahead and recipe.couplings:
        raise ValueError("listener: ears for streams have a normal law, without couplings; leave one of the two out")
    if recipe.ahead and not _is_shipped(trained):
        raise ValueError("listener: ears for streams tell of the latents of the VAE that is shipped, and this is another; give 'vae'")
    files = audio.find(noise)
    sounding = [file for file in files if has_sound(file)]
    if len(sounding) < 2:
        raise ValueError(f"listener: {len(sounding)} recordings of noise; expected two or more, so that some are held out")
    held = sounding[:: max(2, round(1 / recipe.validation))]
    speech, others, card = speech_of(inputs, asdict(recipe), recipe.validation, recipe.seed, note, licence, None, left_out)
    recorded = [Speech(part, speech.stft) for part in (sorted(set(files) - set(held)), held)]
    for reason in (reason for part in recorded for reason in part.left_out.values()):
        if left_out:
            left_out(reason)
    card |= {"noise": f"simulated, and recordings: {', '.join(Path(i).name for i in noise)} ({sum(n.hours for n in recorded):.2f} hours)"}
    if finished(out, card):
        raise weights.WeightsError(ALREADY.format(out))
    schedule = Schedule(recipe.epochs, recipe.learning_rate, 2e-5, patience=99, seed=recipe.seed, mixed=recipe.mixed)
    training: tuple[Waves, Waves] = speech, recorded[0]
    if recipe.speeds:
        training = at_other_speeds(speech, SPEECH_SPEEDS, each=False), at_other_speeds(recorded[0], NOISE_SPEEDS, each=True)
    validation = others, recorded[1]
    ears: nn.Module
    if recipe.ahead:
        ears = listener = seeded(recipe.seed, lambda: CausalListener(trained.n_freqs, trained.n_latent, recipe.context, recipe.ahead))
        train_causal_listener(
            listener, copy.deepcopy(trained), training, validation, out, schedule, recipe.batch, recipe.frames, card, report, team,
        )
    else:
        heads = {"context": recipe.context, "couplings": recipe.couplings, "bands": recipe.bands}
        ears = vae = seeded(recipe.seed, lambda: VAESpeech(**{**trained.settings, **heads}))
        vae.encoder.load_state_dict(trained.encoder.state_dict())
        vae.decoder.load_state_dict(trained.decoder.state_dict())
        train_listener(vae, training, validation, out, schedule, recipe.batch, recipe.frames, card, report, team)
    if not team or team.rank == 0:
        finish(ears, out)


def _is_shipped(vae: VAESpeech) -> bool:
    """Whether its speech model is that whose latents a stream understands."""
    shipped = VAESpeech.pretrained()
    return same_weights(vae.encoder, shipped.encoder) and same_weights(vae.decoder, shipped.decoder)
