"""Training of speech priors on clean speech, by the ELBO of the very graph that inference uses.

Two stages. :func:`train` fits the VAE to clean frames. :func:`train_noisy_encoder` then fits an encoder for
noisy recordings to the frozen VAE, on clean speech plus simulated noise. Both keep the best weights on
held-out speakers, stop early, and go on where an interrupted run stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from . import simulate, weights
from .corpus import Speech
from .distributions import ComplexNormal
from .guides import EncoderGuide
from .mixture import Mixture
from .models import VAESpeech
from .stft import POWER_FLOOR, level

LEVEL_RANGE = (-12.0, 3.0)
"""Levels (dB) at which training speech is shown: in a noisy recording of unit level, speech has less than unit level."""


class TrainingError(ValueError):
    """A training cannot go on; the message says where it stopped, and what to do."""


class Epoch(NamedTuple):
    """One line of the training log: losses are negative ELBOs in nats per frame."""

    epoch: int
    training: float
    validation: float
    learning_rate: float
    seconds: float

    @property
    def sentence(self) -> str:
        """The losses in one line."""
        return f"training {self.training:.1f}, validation {self.validation:.1f} nats per frame ({self.seconds:.0f} s)"


class Schedule(NamedTuple):
    """How long and how fast to train: Adam, learning rate falling along a cosine, early stopping."""

    epochs: int = 60
    learning_rate: float = 1e-3
    final_learning_rate: float = 5e-5
    patience: int = 10
    seed: int = 0


Batch = Callable[[Speech, torch.Generator], Tensor]
Report = Callable[[Epoch, list[Epoch]], None]


def floored(s: Tensor) -> Tensor:
    """The STFT with :data:`POWER_FLOOR` added to the power of every bin, phases at zero."""
    return _circular(s.real.square() + s.imag.square() + POWER_FLOOR)


def _circular(power: Tensor) -> Tensor:
    """An STFT of the power; phases are zero, since priors are circular."""
    return torch.complex(power.sqrt(), torch.zeros_like(power))


def at_random_level(s: Tensor, generator: torch.Generator) -> Tensor:
    """Segments (B, T, F) at levels drawn uniformly, in dB, from :data:`LEVEL_RANGE`."""
    low, high = LEVEL_RANGE
    decibel = low + (high - low) * torch.rand(s.shape[0], 1, 1, generator=generator)
    return s * 10 ** (decibel / 20)


def train(
    vae: VAESpeech, training: Speech, validation: Speech, out: str | Path, schedule: Schedule | None = None,
    batch: int = 512, card: dict[str, object] | None = None, report: Report | None = None,
) -> list[Epoch]:
    """Fit encoder and decoder of a VAE to clean speech, in place, and write the best weights to ``out``.

    Args:
        vae: untrained, or trained so far.
        training, validation: clean speech of different speakers.
        out: weights file; ``out`` with suffix ``.resume`` holds the state of an unfinished run, and is
            taken up if it is there and of this very training.
        batch: frames per step.
        card: what to note about the data (model card).
        report: called after each epoch.

    Returns:
        the log of all epochs. Random from ``schedule.seed``; the same on any run, interrupted or not.

    Raises:
        WeightsError: when the state of an unfinished run is damaged, or of other data, settings or schedule.
        TrainingError: when a loss or gradient is not finite; the best weights so far stay.
    """
    model = Mixture(speech=vae)
    guide = EncoderGuide({"speech.z": vae.encoder})
    elbo = TraceMeanField_ELBO()

    def loss(speech: Speech, generator: torch.Generator) -> Tensor:
        s = at_random_level(speech.segments(batch // 16, 16, generator), generator).flatten(0, 1)
        return elbo.differentiable_loss(model, guide, floored(s)) / s.shape[-2]

    steps = math.ceil(training.n_frames / batch)
    parameters = [*vae.encoder.parameters(), *vae.decoder.parameters()]
    return _optimise(vae, parameters, loss, training, validation, steps, out, schedule or Schedule(), card or {}, report)


def train_noisy_encoder(
    vae: VAESpeech, training: Speech, validation: Speech, out: str | Path, schedule: Schedule | None = None,
    batch: int = 10, frames: int = 100, card: dict[str, object] | None = None, report: Report | None = None,
) -> list[Epoch]:
    """Fit ``vae.noisy_encoder`` to the frozen VAE on clean speech plus simulated noise; see :func:`train`.

    The loss is the ELBO of the noisy recording on the mixture graph with the noise law known, which a simulation
    offers: amortised inference of the very posterior that EM is after. The power of the mixture enters by its
    expectation given speech and noise law, |s|^2 + v_n, which takes the chance of the phases out of the gradient. To it comes
    the negative log-likelihood of the noise under the power that the encoder hears. SNR uniform between -10 and 15 dB; the
    noise is from :mod:`ppse.simulate`, nobody recorded it.

    Args:
        batch, frames: segments per step, and their length.

    Raises:
        ValueError: when the VAE was built without a noisy encoder.
    """
    encoder = vae.noisy_encoder
    if encoder is None:
        raise ValueError("train_noisy_encoder: this VAE has no noisy encoder; build it with VAESpeech(context=…)")
    vae.requires_grad_(False)
    parameters = list(encoder.listener.parameters())
    for parameter in parameters:
        parameter.requires_grad_(True)
    elbo = TraceMeanField_ELBO()

    def loss(speech: Speech, generator: torch.Generator) -> Tensor:
        clean, noise = noisy_segments(speech, batch, frames, generator)
        law = ComplexNormal(0j, local_power(noise))
        model = Mixture(speech=vae, noise=lambda _: law)
        heard = encoder.listener(clean + noise)
        guide = EncoderGuide({"speech.z": _Read(encoder.read(clean + noise, heard))})
        expected = _circular(clean.abs().square() + law.var + POWER_FLOOR)
        unheard = -ComplexNormal(0j, heard.noise + POWER_FLOOR).log_prob(_circular(law.var + POWER_FLOOR)).sum()
        return (elbo.differentiable_loss(model, guide, expected) + unheard) / (batch * frames)

    steps = math.ceil(training.n_frames / (batch * frames))
    return _optimise(vae, parameters, loss, training, validation, steps, out, schedule or Schedule(), card or {}, report)


class _Read(nn.Module):
    """An encoder that has read already."""

    def __init__(self, law: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.law = law

    def forward(self, _: Tensor) -> tuple[Tensor, Tensor]:
        return self.law


def noisy_segments(speech: Speech, count: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Clean speech and noise, (count, 1, frames, F) each, at the scale at which their sum has unit level. Random from ``generator``."""
    clean = speech.segments(count, frames, generator)
    snr = -10 + 25 * torch.rand(count, 1, 1, generator=generator)
    noise = simulate.noise(speech, count, frames, generator) * 10 ** (-snr / 20)
    scale = level(clean + noise).rsqrt()
    return (clean * scale).unsqueeze(1), (noise * scale).unsqueeze(1)


def local_power(x: Tensor) -> Tensor:
    """|x|^2 of an STFT (B, 1, T, F), smoothed over five frames and three bins: the variance of one known noise."""
    power = x.real.square() + x.imag.square()
    return avg_pool2d(power, (5, 3), stride=1, padding=(2, 1), count_include_pad=False)


def _optimise(
    model: VAESpeech, parameters: list[nn.Parameter], loss: Batch, training: Speech, validation: Speech, steps: int,
    out: str | Path, schedule: Schedule, card: dict[str, object], report: Report | None,
) -> list[Epoch]:
    """The loop of both stages. An epoch is seeded by its number, so a resumed run equals one without a break."""
    identity = {
        "card": {key: value for key, value in card.items() if key != "versions"}, "schedule": schedule._asdict(), "sizes": model.settings,
        "stage": [list(p.shape) for p in parameters], "steps": steps, "data": [training.fingerprint, validation.fingerprint],
    }
    out, resume = Path(out), Path(out).with_suffix(".resume")
    optimiser = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    log: list[Epoch] = []
    if resume.exists():
        log = _restore(resume, identity, model, parameters, optimiser)
    with pyro.validation_enabled(False):
        for epoch in range(len(log), schedule.epochs):
            best = min((e.validation for e in log), default=math.inf)
            if log and len(log) - 1 - min(range(len(log)), key=lambda i: log[i].validation) >= schedule.patience:
                break
            start, phase = time.monotonic(), epoch / max(1, schedule.epochs - 1)
            rate = schedule.final_learning_rate + (schedule.learning_rate - schedule.final_learning_rate) * (1 + math.cos(math.pi * phase)) / 2
            for group in optimiser.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
            with torch.random.fork_rng():
                torch.manual_seed(schedule.seed * 1_000_003 + epoch)
                total = 0.0
                model.train()
                for step in range(steps):
                    optimiser.zero_grad()
                    value = loss(training, generator)
                    value.backward()
                    norm = nn.utils.clip_grad_norm_(parameters, 100.0)
                    _assert_finite(out, epoch, {f"loss of training step {step + 1}": value.item(), f"gradient of step {step + 1}": norm.item()})
                    optimiser.step()
                    total += value.item()
                model.eval()
                check = _validate(loss, validation, schedule.seed)
                _assert_finite(out, epoch, {"validation loss": check})
            log.append(Epoch(epoch, total / steps, check, rate, time.monotonic() - start))
            if check < best:
                weights.write(model, out, {**card, "validation_loss": check, "epoch": epoch, "schedule": schedule._asdict()})
            _save(resume, identity, model, parameters, optimiser, log)
            if report:
                report(log[-1], log)
    best_tensors, _ = weights.read(out)
    model.load_state_dict(best_tensors)
    resume.unlink(missing_ok=True)
    return log


def _validate(loss: Batch, validation: Speech, seed: int, batches: int = 40) -> float:
    """Mean loss over the same random batches of held-out speech at every epoch."""
    generator = torch.Generator().manual_seed(seed + 1)
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        return sum(loss(validation, generator).item() for _ in range(batches)) / batches


def _assert_finite(out: Path, epoch: int, values: dict[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            kept = f"the best weights so far stay in {out}; " if out.exists() else ""
            raise TrainingError(
                f"{out}: the {name} in epoch {epoch + 1} is {value}; {kept}look for broken recordings in the data, or train with another seed or "
                f"a lower learning rate (delete {out.with_suffix('.resume').name} and {out.name} first)"
            )


def _save(
    path: Path, identity: dict[str, object], model: nn.Module, parameters: list[nn.Parameter], optimiser: torch.optim.Adam, log: list[Epoch],
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, parameter in enumerate(parameters):
        tensors |= {f"adam.{i}.{k}": v for k, v in optimiser.state[parameter].items()}
    tensors["log"] = torch.tensor(log, dtype=torch.float64)
    weights.write_tensors(tensors, path, {"format": f"{weights.FORMAT}-resume", "identity": json.dumps(identity, sort_keys=True)})


def _restore(
    path: Path, identity: dict[str, object], model: nn.Module, parameters: list[nn.Parameter], optimiser: torch.optim.Adam,
) -> list[Epoch]:
    tensors, metadata = weights.read(path)
    if metadata.get("format") != f"{weights.FORMAT}-resume":
        raise weights.WeightsError(f"{path}: not the state of an unfinished training; delete it to start afresh")
    found, expected = json.loads(metadata.get("identity", "{}")), json.loads(json.dumps(identity))
    differing = [key for key, value in expected.items() if found.get(key) != value]
    if differing:
        raise weights.WeightsError(
            f"{path}: the state of an unfinished training of another {', '.join(differing)}; "
            "delete it to start afresh, choose another name, or give the data and settings it was begun with"
        )
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for i, parameter in enumerate(parameters):
        prefix = f"adam.{i}."
        optimiser.state[parameter] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return [Epoch(int(row[0]), *row[1:]) for row in tensors["log"].tolist()]
