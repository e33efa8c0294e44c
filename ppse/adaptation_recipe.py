"""From a folder of unlabelled noisy recordings to the weights of a prior adapted to them, unless they are worse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import audio, methods, provenance, weights
from .adaptation import JUDGES, Adaptation, Unlabelled, Using, Verdict, adapt, own_ears
from .corpus import Waves
from .found_noise import noise_found
from .method import Method
from .mixture import Mixture
from .models import VAESpeech
from .optimisation import Report
from .recipe import split_speech
from .recordings import unlabelled
from .stft import STFT

HELD_OUT = 0.25
"""Share of the recordings that are held out to judge by; :data:`ppse.adaptation.JUDGES` at least."""


class Worse(ValueError):
    """The adapted prior is no better on held-out recordings, and was not written."""


class Progress(NamedTuple):
    """Whom to tell how far it is: (recordings done, in all) of EM; every epoch; the reason for every file left out."""

    teaching: Callable[[int, int], None] = lambda *_: None
    epoch: Report = lambda *_: None
    left_out: Callable[[str], None] = lambda _: None


def adapt_prior(
    prior: str | Path, inputs: Iterable[str], out: Path, settings: Adaptation | None = None, *, speech: Iterable[str] | None = None,
    force: bool = False, method: Method | None = None, progress: Progress | None = None, using: Using = own_ears,
    finder: Mixture | None = None,
) -> Verdict:
    """Adapt a prior to unlabelled noisy recordings and write it to ``out``; an interrupted run goes on where it was.

    What EM makes of the noise and the best weights so far are in the folder ``NAME.adapting`` until the end.

    Args:
        prior: a shipped name or a weights file of a :class:`ppse.models.VAESpeech` with a noisy encoder.
        inputs: files, folders or patterns of one domain. A quarter, five at least, chosen by the seed, is held out.
        speech: folders, files or patterns of clean speech of two people or more, to hear in the noise of the recordings; some are held out.
            Without, it learns from the bound of the recordings.
        force: write it even if it did not help, or there are too few recordings to tell.
        method: of the EM that finds the noise where there is clean speech, :func:`ppse.methods.fast` unless given.
        progress: whom to tell.
        using: how the prior will be used, and so it is judged where there is clean speech. With what its own ears hear, unless given.
        finder: the model that EM finds the noise by, e.g. of a better prior; the prior as it was, as ``using`` has it, unless given.

    Returns:
        the verdict, which is in the model card of ``out``, too.

    Raises:
        Worse: when held-out recordings do not say that it helped (:attr:`Verdict.helped`). Nothing is written then.
        AudioError: when recordings cannot be read, too few can be used to hold out :data:`ppse.adaptation.JUDGES` and learn from as many
            (by force: fewer than two), or ``out`` cannot be written.
        WeightsError: when the prior cannot be read, ``out`` is there already, or an unfinished run is of other recordings or settings.
        ValueError: when the prior has no noisy encoder, or clean speech is given and the decoder is to be adapted, which learns without.
    """
    settings, progress, work = settings or Adaptation(), progress or Progress(), out.with_suffix(".adapting")
    audio.check_writable(out)
    weights.check_new(out)
    vae = VAESpeech.pretrained(str(prior))
    if vae.noisy_encoder is None:
        raise ValueError(f"{prior}: this prior has no noisy encoder to adapt; train one with 'ppse train vae'")
    inputs, speech = list(inputs), list(speech) if speech is not None else None
    if speech is not None and settings.part == "decoder":
        raise ValueError("adapt_prior: clean speech and part='decoder'; the decoder learns from the recordings alone, leave one of the two out")
    recordings = unlabelled(inputs, STFT.of_freqs(vae.n_freqs), progress.left_out)
    total, needed = len(recordings.waves), 2 if force else 2 * JUDGES
    if total < needed:
        raise audio.AudioError(
            f"{', '.join(inputs)}: {total} recording{'s' * (total > 1)} that can be used; expected {needed} or more, half of which are held out to "
            f"tell whether adapting helps (--force: two or more, and nobody can tell). For one recording there is 'ppse enhance --method adapt_em'"
        )
    clean: tuple[Waves | None, Waves | None] = (None, None)
    if speech is not None:
        try:
            clean = split_speech(speech, recordings.stft, HELD_OUT, settings.seed, left_out=progress.left_out)
        except audio.AudioError:
            raise
        except ValueError as error:
            raise ValueError(f"clean speech, {', '.join(speech)}: {error}") from error
    work.mkdir(exist_ok=True)
    card = weights.card(prior)
    card |= {
        "adapted": {"from": Path(prior).name, "data": [Path(i).name for i in inputs], "recordings": total,
                    "hours": round(recordings.hours, 4), "speech": [Path(i).name for i in speech or []]},
        "versions": provenance.versions("torch", "pyro-ppl", "numpy", "soundfile"), "scores": {},
    }
    order = np.random.default_rng(settings.seed).permutation(total).tolist()
    count = max(round(HELD_OUT * total), min(JUDGES, total // 2))
    noise = None
    if speech is not None:
        noise = noise_found(finder or using(vae), recordings, work, method or methods.fast(), settings.seed, progress.teaching)
        card["adapted"]["noise"] = weights.checksum(noise)  # a run that was interrupted goes on with the same one only
    training, held = (
        Unlabelled(recordings.part(which), said, Waves([noise[i] for i in which], recordings.stft) if noise else None)
        for which, said in zip((sorted(order[count:]), sorted(order[:count])), clean, strict=True)
    )
    _, verdict = adapt(vae, training, held, work / "best.safetensors", settings, card, progress.epoch, using)
    if not (verdict.helped or force):
        shutil.rmtree(work)
        raise Worse(f"{out}: not written, as adapting {verdict.sentence}; the prior stays what it is (--force writes it all the same)")
    card["adapted"] |= {"judged": verdict._asdict(), "helped": verdict.helped}
    weights.write(vae, out, {**card, "adaptation": settings._asdict()})
    shutil.rmtree(work)
    return verdict
