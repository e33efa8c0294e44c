"""The loop of a training: epochs, the best weights on held-out speech, early stopping, and going on after an interruption."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from torch import Tensor, nn

from . import weights
from .workers import Alone, Workers, average_gradients


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


class Phase(NamedTuple):
    """What a loss is told of the phase that training is in.

    Attributes:
        beta: weight of the KL divergence.
        taught: share of the frames in which a prior that listens to the past of speech hears the observed one; see
            :meth:`ppse.models.feedback.FeedbackVAE.teach`.
    """

    beta: float
    taught: float


class Schedule(NamedTuple):
    """How long and how fast to train: Adam, learning rate falling along a cosine, early stopping.

    The weight of the KL divergence in the loss rises in equal steps to ``beta`` during the first ``warm_up`` epochs, so that a strong
    decoder learns to use the latents before they cost anything. Priors that listen to the past of speech hear the observed one in the first
    sixth of the epochs, their own from the middle on, and both by chance in between. Validation is as in the end from the start. With ``mixed``
    precision the matrix products of training, not of validation, are in bfloat16 where the processor or GPU can.
    """

    epochs: int = 60
    learning_rate: float = 1e-3
    final_learning_rate: float = 5e-5
    patience: int = 10
    seed: int = 0
    beta: float = 1.0
    warm_up: int = 0
    mixed: bool = False

    def phase(self, epoch: int) -> Phase:
        """That of an epoch, the first being 0."""
        start, end = self.epochs / 6, self.epochs / 2
        taught = min(1.0, max(0.0, (end - epoch) / (end - start)))
        return Phase(self.beta * min(1.0, (epoch + 1) / (self.warm_up + 1)), taught)


class Data(Protocol):
    """What a training draws its batches from: how much there is, and a number that other data would change."""

    @property
    def n_frames(self) -> int: ...

    @property
    def fingerprint(self) -> int: ...


Batch = Callable[[Any, torch.Generator, Phase], Tensor]
"""(:class:`Data`, generator, phase) → loss of a random batch."""
Report = Callable[[Epoch, list[Epoch]], None]


def optimise(
    model: nn.Module, parameters: list[nn.Parameter], loss: Batch, training: Data, validation: Data, steps: int,
    out: str | Path, schedule: Schedule, card: dict[str, object], report: Report | None, team: Workers | None = None,
) -> list[Epoch]:
    """Minimise a loss by Adam, in place, and write the weights of the best epoch to ``out``.

    An epoch is seeded by its number, so a resumed run equals one without a break. What identifies a training in its state
    is the card (but for its "versions"), the schedule, the sizes of model and trained parameters, and the lengths of all recordings.

    Args:
        model: its weights at the best epoch are written, and are what it has in the end.
        parameters: which of the model are trained.
        loss: (data, generator, phase) → loss of a random batch, in nats per frame.
        steps: batches per epoch, of all workers together.
        out: weights file; the state of an unfinished run is beside it, with suffix ``.resume``.
        team: who trains, side by side: gradients are averaged, and the first one writes. This process alone, unless given.

    Returns:
        the log of all epochs.

    Raises:
        WeightsError: when the state is damaged, of another training, or without the weights that belong to it.
        TrainingError: when a loss or gradient is not finite.
    """
    identity: dict[str, object] = {
        "card": {key: value for key, value in card.items() if key != "versions"}, "schedule": schedule._asdict(), "sizes": model.settings,
        "stage": [list(p.shape) for p in parameters], "steps": steps, "data": [training.fingerprint, validation.fingerprint],
    }
    team = team or Alone()
    out, resume = Path(out), Path(out).with_suffix(".resume")
    model.to(team.device)
    steps = math.ceil(steps / team.count)
    optimiser = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    log: list[Epoch] = []
    checks = max(1, min(40, round(steps * validation.n_frames / training.n_frames)))
    if resume.exists():
        log = _restore(resume, out, identity, model, parameters, optimiser)
    with pyro.validation_enabled(False):
        for epoch in range(len(log), schedule.epochs):
            best = min((e.validation for e in log), default=math.inf)
            if log and len(log) - 1 - min(range(len(log)), key=lambda i: log[i].validation) >= schedule.patience:
                break
            start, phase = time.monotonic(), epoch / max(1, schedule.epochs - 1)
            rate = schedule.final_learning_rate + (schedule.learning_rate - schedule.final_learning_rate) * (1 + math.cos(math.pi * phase)) / 2
            for group in optimiser.param_groups:
                group["lr"] = rate
            seed = schedule.seed * 1_000_003 + epoch + 1_000_000_007 * team.rank
            generator = torch.Generator().manual_seed(seed)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                total = 0.0
                model.train()
                for step in range(steps):
                    optimiser.zero_grad()
                    with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=schedule.mixed):
                        value = loss(training, generator, schedule.phase(epoch))
                    value.backward()
                    average_gradients(parameters, team)
                    norm = nn.utils.clip_grad_norm_(parameters, 100.0)
                    _assert_finite(out, epoch, {f"loss of training step {step + 1}": value.item(), f"gradient of step {step + 1}": norm.item()})
                    optimiser.step()
                    total += value.item()
                model.eval()
                check = _validate(loss, validation, schedule, checks)
                _assert_finite(out, epoch, {"validation loss": check})
            total, check = team.average(torch.tensor([total, check], dtype=torch.float64, device=team.device)).tolist()
            log.append(Epoch(epoch, total / steps, check, rate, time.monotonic() - start))
            if check < best and team.rank == 0:
                weights.write(model, out, {**card, "validation_loss": check, "epoch": epoch, "schedule": schedule._asdict()})
            if team.rank == 0:
                _save(resume, identity, model, parameters, optimiser, log)
                if report:
                    report(log[-1], log)
    team.wait()
    best_tensors, _ = weights.read(out)
    model.load_state_dict(best_tensors)
    team.wait()
    resume.unlink(missing_ok=True)
    return log


def _validate(loss: Batch, validation: Data, schedule: Schedule, batches: int) -> float:
    """Mean loss over the same random batches of held-out speech at every epoch."""
    generator = torch.Generator().manual_seed(schedule.seed + 1)
    torch.manual_seed(schedule.seed + 1)
    with torch.no_grad():
        return sum(loss(validation, generator, Phase(schedule.beta, taught=0.0)).item() for _ in range(batches)) / batches


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
    path: Path, out: Path, identity: dict[str, object], model: nn.Module, parameters: list[nn.Parameter], optimiser: torch.optim.Adam,
) -> list[Epoch]:
    try:
        tensors, metadata = weights.read(path)
    except weights.WeightsError as error:
        raise weights.WeightsError(f"{error}; delete it to start afresh") from error
    if metadata.get("format") != f"{weights.FORMAT}-resume":
        raise weights.WeightsError(f"{path}: not the state of an unfinished training; delete it to start afresh")
    found, expected = json.loads(metadata.get("identity", "{}")), json.loads(json.dumps(identity))
    differing = [key for key, value in expected.items() if found.get(key) != value]
    if differing:
        raise weights.WeightsError(
            f"{path}: the state of an unfinished training that differs in {', '.join(differing)}; "
            "delete it to start afresh, choose another name, or give the data and settings it was begun with"
        )
    if not out.exists():
        raise weights.WeightsError(
            f"{out}: the best weights of an unfinished training are gone, while its state is there ({path.name}); "
            f"put the weights back to go on, or delete {path} too to start afresh"
        )
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for i, parameter in enumerate(parameters):
        prefix = f"adam.{i}."
        mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimiser.state[parameter] = {k: v.to(parameter.device) if v.dim() else v for k, v in mine.items()}  # Adam counts its steps on the processor
    return [Epoch(int(row[0]), *row[1:]) for row in tensors["log"].tolist()]
