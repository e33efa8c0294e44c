"""From folders of clips with video to the weights of an audio-visual prior, and of the prior of sound alone that it is built around."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import audio, training, weights
from .av_corpus import find_clips, read_clips, split_clips
from .av_training import train_av
from .models import AVVAESpeech, VAESpeech
from .models.lip_law import LipLaw
from .recipe import ALREADY, Report, card_of, finish, finished, seeded
from .stft import STFT


@dataclass(frozen=True)
class AVRecipe:
    """Settings of :func:`train_av_prior`; those of the shipped priors unless said otherwise.

    Attributes:
        latent, hidden: sizes, as in :class:`ppse.models.VAESpeech`.
        heard_lips: whether lips tell encoder and decoder, too (AV-VAE), or the prior alone (V-VAE).
        vae_epochs, lips_epochs, epochs: of the VAE of sound; of the lips that tell the prior of its latents, around it; of all together.
        lips_learning_rate, learning_rate: of the latter two, at first.
        batch, frames: stretches of speech per step of the latter, and their length.
        patience: as in :class:`ppse.recipe.Recipe`.
        validation: fraction of the data that is held out, by speaker if there are several, else by clip.
        seed: of everything random.
    """

    latent: int = 32
    hidden: tuple[int, ...] = (256,)
    heard_lips: bool = True
    vae_epochs: int = 40
    lips_epochs: int = 6
    epochs: int = 3
    lips_learning_rate: float = 2e-3
    learning_rate: float = 3e-4
    batch: int = 12
    frames: int = 60
    patience: int = 99
    validation: float = 0.075
    seed: int = 0


def train_av_prior(
    inputs: Sequence[str], out: Path, recipe: AVRecipe | None = None, *, note: str = "", licence: str = "", report: Report | None = None,
    reading: Callable[[int, int], None] | None = None, left_out: Callable[[str], None] | None = None,
) -> None:
    """Train an audio-visual prior and write it to ``out``; an interrupted run goes on where it was.

    First a VAE of the sound alone is trained, and stays in ``NAME.vae.safetensors``: of equal sizes and data, it is the expert to switch to
    where the video cannot be relied on. What right lips look like (:class:`ppse.models.lip_law.LipLaw`) is learnt in closed form. Then the
    lips learn what to expect of the latents of that VAE, ``NAME.lips.safetensors``, and then all networks together what more there is to see.

    Args:
        inputs: folders, files or patterns of videos of faces, or of ready-made crops of mouths, with clean speech in them or beside them.
        note, licence, report, reading, left_out: as in :func:`ppse.recipe.train_prior`; the stages are "vae", "lips" and "av".

    Raises:
        AudioError: when data cannot be read, or ``out`` cannot be written.
        WeightsError: when ``out`` is there already, or an unfinished training of other data or settings is.
        ValueError: when there are fewer than two clips, or too few images for :class:`ppse.models.lip_law.LipLaw`.
    """
    recipe = recipe or AVRecipe()
    audio.check_writable(out)
    clips = find_clips(inputs)
    chosen, held = split_clips(clips, recipe.validation, recipe.seed)
    speech, refused = read_clips(chosen, STFT(), recipe.frames, lambda i, _: reading(i, len(clips)) if reading else None)
    others, also = read_clips(held, STFT(), recipe.frames, lambda i, _: reading(len(chosen) + i, len(clips)) if reading else None)
    reasons = [*refused.values(), *also.values()]
    for reason in reasons:
        if left_out:
            left_out(reason)
    card = card_of(inputs, (speech, others), (len(clips) - len(reasons), len(reasons)), asdict(recipe), note, licence)
    card |= {"noise": "none", "lips": "88 x 88 grey, see ppse.mouth"}
    first, second = out.with_suffix(".vae.safetensors"), out.with_suffix(".lips.safetensors")
    done = {path: finished(path, card) for path in (first, second, out)}
    if done[out]:
        raise weights.WeightsError(ALREADY.format(out))

    law = LipLaw()
    law.learn([each.float() for each in speech.images])  # first, as it is what too few images are too few for

    def told(stage: str) -> Callable[[training.Epoch, list[training.Epoch]], None]:
        return lambda _, log: report(stage, log) if report else None

    schedule = training.Schedule(recipe.vae_epochs, final_learning_rate=2e-5, patience=recipe.patience, seed=recipe.seed)
    vae = seeded(recipe.seed, lambda: VAESpeech(n_latent=recipe.latent, hidden=recipe.hidden))
    if done[first]:
        vae.load_state_dict(weights.read(first)[0])
    else:
        training.train(vae, speech, others, first, schedule, card=card, report=told("vae"))
        finish(vae, first)
    seeing = seeded(recipe.seed, lambda: AVVAESpeech.around(vae, heard_lips=recipe.heard_lips))
    seeing.law.load_state_dict(law.state_dict())
    if done[second]:
        seeing.load_state_dict(weights.read(second)[0])
    else:
        schedule = schedule._replace(epochs=recipe.lips_epochs, learning_rate=recipe.lips_learning_rate, final_learning_rate=1e-4)
        train_av(seeing, speech, others, second, schedule, recipe.batch, recipe.frames, card, told("lips"), lips_alone=True)
        finish(seeing, second)
    schedule = schedule._replace(epochs=recipe.epochs, learning_rate=recipe.learning_rate, final_learning_rate=2e-5)
    train_av(seeing, speech, others, out, schedule, recipe.batch, recipe.frames, card, told("av"))
    finish(seeing, out)
