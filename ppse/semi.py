"""Training on speech that is sometimes observed: clean, noisy, both, or partly labelled, by the ELBOs of one graph.

    clean speech s            log p(s)            q(z | s), the clean encoder
    noisy recording x         log p(x)            q(z | x), the noisy encoder; s is integrated out
    a pair of both            log p(x, s)         q(z | x), and log p(s) with q(z | s)
    labels on parts of x      log p(x, s_known)   q(z | x)

The last three are one: :func:`heard_bound` with a mask of what is known. Decoder and both encoders are trained jointly. Where all of the
speech is known, what is estimated of it in one pass is drawn to it as well: log p(s | x).
"""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro.poutine as poutine
import torch
from pyro.distributions import Normal
from torch import Tensor

from .corpus import Speech, Waves
from .distributions import ComplexNormal
from .elbo import negative_elbo
from .enhance import RANK, SPACING
from .guides import EncoderGuide
from .listening import DISTANCE, distance
from .mixture import Mixture
from .models import NMFNoise, PartiallyObserved, VAESpeech
from .models.coupled_normal import CoupledNormal
from .models.encoders import Heard, NoisyEncoder
from .optimisation import Epoch, Phase, Schedule, optimise
from .recordings import Recordings, Stretches
from .remixing import recorded_noise, remix
from .stft import POWER_FLOOR
from .training import Read, at_random_level, floored, noisy_segments
from .warm_start import fit_noise
from .workers import Alone, Workers

HEARD_STEPS = 8
"""M-steps from a random start to what the listener hears of the noise, before the inner EM."""


PAIRED = ("simulated", "pairs", "remixed")
"""Kinds of which all of the speech is known."""


class Material(NamedTuple):
    """What to train on, any mix of it. Each kind is None when there is none.

    Attributes:
        clean: clean speech.
        noisy: recordings that nobody labelled.
        pairs: noisy recordings with their clean speech.
        labels: noisy recordings with parts where the speech is known, or known to be silent.
        noise: noise of the recordings, to remix, known or found once (:mod:`ppse.found_noise`). Unless given, it is drawn in every step by
            the encoder that is trained. It is no kind of its own.
    """

    clean: Speech | None = None
    noisy: Recordings | None = None
    pairs: Recordings | None = None
    labels: Recordings | None = None
    noise: Waves | None = None

    @property
    def kinds(self) -> dict[str, Waves]:
        """What is observed, by kind; those that are there."""
        return {kind: data for kind, data in self._replace(noise=None)._asdict().items() if data is not None}

    @property
    def recordings(self) -> dict[str, Recordings]:
        """Of the kinds, those that are noisy."""
        return {kind: data for kind, data in self.kinds.items() if isinstance(data, Recordings)}

    @property
    def n_frames(self) -> int:
        """Frames of all kinds."""
        return sum(data.n_frames for data in self.kinds.values())

    @property
    def fingerprint(self) -> int:
        """A number that other data would change, or the same data as another kind."""
        return zlib.crc32(repr([data and data.fingerprint for data in self]).encode())


class Shares(NamedTuple):
    """Weight of each kind in the loss, which is the sum of weight times nats per frame; of kinds that are there.

    The sum of ELBOs over all data has weights in proportion to the frames of each kind; equal ones give a few pairs their say beside
    hours of others. ``simulated`` is clean speech in noise that nobody recorded (:mod:`ppse.simulate`), a pair that costs nothing.
    Unlabelled recordings have a small weight: their bound is the only one that decoder and noise could also raise by trading places.
    ``remixed`` is clean speech in the noise of the recordings, known or drawn (:mod:`ppse.remixing`), a pair as well;
    also of kinds whose own weight is 0, which leaves only their bound out.
    ``distance`` is that of speech estimated in one pass from speech that is known (:func:`ppse.listening.distance`), of pairs and of clean
    speech in simulated or other noise. It stands for log p(s | x): a good joint density alone need not tell speech from noise well.

    References:
        Kingma, Rezende, Mohamed & Welling (2014), Semi-supervised learning with deep generative models (bounds, and the term beside them).
    """

    clean: float = 1.0
    simulated: float = 1.0
    noisy: float = 0.3
    pairs: float = 1.0
    labels: float = 1.0
    remixed: float = 1.0
    distance: float = DISTANCE


Kinds = dict[str, tuple[float, float]]
"""Kind → its losses in an epoch, training and validation, in nats per frame."""


def clean_bound(vae: VAESpeech, s: Tensor, beta: float = 1.0) -> Tensor:
    """-ELBO of clean speech, STFT (T, F), under the clean encoder, in nats, summed: the loss of :func:`ppse.training.train`. Random."""
    return negative_elbo(Mixture(speech=vae), EncoderGuide({"speech.z": vae.encoder}), floored(s), beta=beta)


def heard_bound(
    vae: VAESpeech, data: Stretches, beta: float = 1.0, inner: int = 5, guide: EncoderGuide | None = None, heard: Heard | None = None,
) -> Tensor:
    """-ELBO of noisy recordings with the speech that is known in them, under the noisy encoder, in nats, summed. Random.

    The graph is that of a mixture with a :class:`ppse.models.PartiallyObserved` prior. In frames that are known, the noise x - s is
    observed too, and scored under the power that the listener hears. In others the noise is NMF of this stretch, fitted by inner EM: from
    what is heard, so many M-steps given one draw of the latents. No gradient goes through the fit; the listener learns from it by
    KL(fitted noise | heard noise), as amortised EM.

    Args:
        vae, data, beta: with a noisy encoder; stretches of unit level; weight of the KL divergence of the latents.
        inner: M-steps; 0 takes what the listener hears for the noise everywhere. That is for a listener that is trained: what it
            hears costs nothing, so that without pairs it may come to hear all of the recording as noise.
        guide: proposes "speech.z" instead of the noisy encoder.
        heard: what the listener makes of the recording, if that is known already.

    Raises:
        ValueError: when the VAE was built without a noisy encoder.
    """
    x, clean, known = data
    encoder = encoder_of(vae)
    heard = heard or encoder.hear(x)
    law = encoder.read(x, heard)
    guide = guide or EncoderGuide({"speech.z": Read(law)})
    power = heard.noise + POWER_FLOOR
    # Phases do not matter to circular laws, so every part gets the floor of its own and the phase zero.
    speech = PartiallyObserved(vae.forward, floored(clean), known)  # not vae: Pyro lets a module be inside of one other module only
    x = torch.where(known, floored(clean) + floored(x - clean), floored(x))
    tie = x.real.new_zeros(())
    if inner and not bool(known.all()):
        fitted = _fitted(speech, x, law, power, inner)
        ratio = fitted / power
        tie = torch.where(known, 0.0, ratio - ratio.log() - 1).sum()
        power = torch.where(known, power, fitted)
    model = Mixture(speech=speech, noise=lambda _: ComplexNormal(0j, power))
    return negative_elbo(model, guide, x, beta=beta) + tie


def encoder_of(vae: VAESpeech) -> NoisyEncoder:
    """The noisy encoder; raises ValueError when the VAE has none."""
    if vae.noisy_encoder is None:
        raise ValueError("semi: this VAE has no noisy encoder; build it with VAESpeech(context=…)")
    return vae.noisy_encoder


@torch.no_grad()
def _fitted(speech: PartiallyObserved, x: Tensor, law: Normal | CoupledNormal, heard: Tensor, steps: int) -> Tensor:
    """Variance (B, 1, T, F) of NMF noise after inner EM."""
    model = Mixture(speech=speech, noise=NMFNoise(RANK, spacing=SPACING))
    model.start(x)
    fit_noise(model, heard, {"speech"}, steps=HEARD_STEPS)
    with poutine.block(), poutine.condition(data={"speech.z": law.sample()}):
        laws = model(x)
    for _ in range(steps):
        laws = model.update(x, laws)
    return laws["noise"].var + POWER_FLOOR


def train(
    vae: VAESpeech, training: Material, validation: Material, out: str | Path, schedule: Schedule | None = None, shares: Shares | None = None,
    batch: int = 8, frames: int = 100, inner: int = 5, steps: int | None = None, card: dict[str, object] | None = None,
    report: Callable[[list[Epoch], Kinds], None] | None = None, team: Workers | None = None,
) -> list[Epoch]:
    """Fit a VAE with its noisy encoder to any mix of clean and noisy speech, in place, and write the best weights to ``out``.

    Every step sees some stretches of every kind that is there.

    Args:
        vae: untrained, or trained so far; with a noisy encoder.
        training, validation: of the same kinds.
        out, schedule, card, team: as for :func:`ppse.training.train`.
        shares, inner: weights of the kinds in the loss; M-steps of the inner EM, see :func:`heard_bound`.
        batch, frames, steps: stretches of each kind per step, their length, and steps per epoch; so many that most is seen, unless given.
        report: called after each epoch with the log, and the losses of each kind in it.

    Raises:
        ValueError, WeightsError, TrainingError: as :func:`check`, as the VAE has no noisy encoder, and as :func:`ppse.training.train`.
    """
    shares, team = shares or Shares(), team or Alone()
    check(training, validation, shares)
    encoder_of(vae)
    tally: dict[tuple[str, bool], list[float]] = defaultdict(list)
    vae.requires_grad_(True)

    def loss(material: Material, generator: torch.Generator, phase: Phase) -> Tensor:
        losses = bounds(vae, material, batch, frames, generator, phase.beta, inner, shares, team.device)
        for kind, value in losses.items():
            tally[kind, torch.is_grad_enabled()].append(value.item())
        return torch.stack([getattr(shares, kind) * value for kind, value in losses.items()]).sum()

    def told(_: Epoch, log: list[Epoch]) -> None:
        means = {key: sum(values) / len(values) for key, values in tally.items()}
        tally.clear()
        if report:
            report(log, {kind: (means[kind, True], means[kind, False]) for kind, trained in means if trained})

    steps = steps or math.ceil(training.n_frames / (batch * frames * len(training.kinds)))
    settings = {"shares": shares._asdict(), "stretches": [batch, frames], "inner": inner}
    return optimise(
        vae, list(vae.parameters()), loss, training, validation, steps, out, schedule or Schedule(), {**(card or {}), "semi": settings}, told, team,
    )


def check(training: Material, validation: Material, shares: Shares) -> None:
    """Raise ValueError for what cannot be trained on: nothing observed, nothing noisy, or kinds missing in validation."""
    if training.clean is None and training.pairs is None:
        raise ValueError("semi: nothing is observed, neither clean speech nor pairs; noisy recordings alone do not tell what of them is speech")
    if (training.clean is None or not shares.simulated) and not training.recordings:
        raise ValueError("semi: nothing is noisy; give noisy recordings or pairs, or train on clean speech alone with 'ppse train vae'")
    speech = [training.clean and (shares.clean or shares.simulated or shares.remixed), training.pairs and (shares.pairs or shares.remixed)]
    noise = [training.clean and shares.simulated, *(getattr(shares, kind) or shares.remixed for kind in training.recordings)]
    for what, teachers in (("observed", speech), ("noisy", noise)):
        if not any(teachers):
            raise ValueError(f"semi: nothing {what} counts, by the weights {shares._asdict()}; give a kind of it one above 0")
    missing = [kind for kind, data in training._asdict().items() if (data is None) != (validation._asdict()[kind] is None)]
    if missing:
        raise ValueError(f"semi: {', '.join(missing)} in one of training and validation only; expected the same kinds in both")
    if min(shares) < 0:
        raise ValueError(f"semi: weights {shares._asdict()}; expected none below 0")


def bounds(
    vae: VAESpeech, material: Material, batch: int, frames: int, generator: torch.Generator, beta: float, inner: int, shares: Shares,
    device: torch.device,
) -> dict[str, Tensor]:
    """Loss of a random batch of each kind that is there and has a weight, per frame. Random from ``generator``, and globally."""
    encoder = encoder_of(vae)
    losses: dict[str, Tensor] = {}

    def score(kind: str, data: Stretches) -> None:
        """The bound of a kind, and the distance of its speech when all of it is known, go to the losses."""
        data = Stretches(*(part.to(device) for part in data))
        heard = encoder.hear(data.x)
        loss = heard_bound(vae, data, beta, inner, heard=heard)
        if kind in PAIRED and shares.distance:
            losses["distance"] = losses.get("distance", 0) + distance(vae, encoder, data.clean, data.x, heard) / (batch * frames)
        if kind == "pairs":
            loss = loss + clean_bound(vae, data.clean.flatten(0, 2), beta)
        losses[kind] = loss / (batch * frames)

    if material.clean is not None and shares.clean:
        s = at_random_level(material.clean.segments(batch * frames // 16, 16, generator), generator).flatten(0, 1).to(device)
        losses["clean"] = clean_bound(vae, s, beta) / s.shape[-2]
    if material.clean is not None and shares.simulated:
        clean, noise = noisy_segments(material.clean, batch, frames, generator)
        score("simulated", Stretches(clean + noise, clean, torch.ones(batch, 1, frames, 1, dtype=torch.bool)))
    for kind, data in material.recordings.items():
        if getattr(shares, kind):
            score(kind, data.stretches(batch, frames, generator))
    if material.recordings and shares.remixed:
        if material.noise is None:
            noise = recorded_noise(vae, encoder, [*material.recordings.values()], batch, frames, generator, device)
        else:
            noise = material.noise.segments(batch, frames, generator)
        score("remixed", remix(_speech(material, batch, frames, generator), noise, generator))
    return losses


def _speech(material: Material, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """Stretches of speech, STFT (count, frames, F): of the clean folder and of the pairs, by how much there is of each."""
    sizes = [data.n_frames if data is not None else 0 for data in (material.clean, material.pairs)]
    paired = int((torch.rand(count, generator=generator) * sum(sizes) < sizes[1]).sum())
    parts = []
    if material.clean is not None and paired < count:
        parts.append(material.clean.segments(count - paired, frames, generator))
    if material.pairs is not None and paired:
        parts.append(material.pairs.stretches(paired, frames, generator).clean.squeeze(1))
    return torch.cat(parts)
