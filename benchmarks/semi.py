"""What labels and unlabelled noisy speech are worth: unsupervised, semi-supervised and supervised enhancers of the same networks.

    python benchmarks/semi.py --speech DIR --noise DIR --test-speech DIR --other-noise DIR --out DIR [--small]

Half of the speech is clean and unpaired; the other half is heard in noise. Of these recordings a fraction is labelled (their clean speech
is known), and of the rest, which nobody labelled, some or all are used. Tests: speech of other people in other recordings of the same kinds
of noise (matched), and in noise of ``--other-noise`` (mismatched), which is never trained or chosen on.

* unsupervised: clean speech alone, in simulated noise; no recording of noise is ever heard.
* semi-supervised: the same, and the labelled and the unlabelled recordings, whose noise EM finds under the model of the first steps
  (``ppse train semi --start``).
* supervised: the labelled recordings alone, with the network that hears noise in the others (:mod:`ppse.supervised`).

Writes ``scores.csv`` (a line per file), ``semi.md`` and ``semi.png`` into the folder. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from semi_report import write
from torch import Tensor

import ppse
from ppse import STFT, Mixture, audio, methods, metrics, mixing, semi, supervised, weights
from ppse.corpus import Speech
from ppse.enhance import RANK, SPACING
from ppse.mixture import Source
from ppse.models import HeardNoise, NMFNoise, VAESpeech
from ppse.optimisation import Schedule
from ppse.recordings import Recordings
from ppse.semi_recipe import with_noise

METRICS = ("si_sdr", "pesq_wb", "estoi")
SNRS = (-5.0, 0.0, 5.0, 10.0)
FIELDS = ("arm", "labelled", "unlabelled", "seed", "by", "noise", "file", "snr", *METRICS)
Row = dict[str, Any]


class Settings(NamedTuple):
    """Of the study.

    ``base``, ``more`` and ``alone`` are steps of a training: of the model that all but the supervised start from, of these (unsupervised
    and semi-supervised alike), and of the supervised, at most. ``batch`` is stretches of every kind per step. All ``seeds`` are used for
    the unsupervised, and with the first of the ``fractions``; the first ``whole`` of them for the others, too.
    """

    clean_minutes: float
    mixtures: int
    tests: int
    base: int
    more: int
    alone: int
    latent: int
    hidden: int
    context: int
    batch: int
    frames: int
    seeds: int
    whole: int
    fractions: tuple[float, ...] = (0.05, 1.0, 0.2, 0.01, 0.0)  # the most telling ones first
    amounts: tuple[float, ...] = (0.0, 0.25, 1.0)


SMALL = Settings(25, 240, 40, base=700, more=400, alone=1100, latent=16, hidden=128, context=128, batch=10, frames=100, seeds=2, whole=1)
FULL = Settings(600, 4000, 120, base=20_000, more=10_000, alone=20_000, latent=32, hidden=512, context=256, batch=16, frames=100, seeds=5, whole=5)
EPOCHS, EPOCHS_ALONE, PATIENCE_ALONE = 10, 20, 5
RATE, RATE_MORE, RATE_ALONE = 2e-3, 1e-3, 4e-3
SHARES = semi.Shares(noisy=0.0, pairs=0.0)  # recordings are heard remixed; chosen on held-out training mixtures, see docs/semi.md


class Cell(NamedTuple):
    """One training: by whom, on which share of labelled recordings, and on which share of the others."""

    arm: str
    labelled: float
    unlabelled: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.arm}_{self.labelled:g}_{self.unlabelled:g}_{self.seed}"


def cells(s: Settings) -> Iterator[Cell]:
    """In the order in which they are done."""
    few, *others = s.fractions
    for seed in range(s.seeds):
        yield from (Cell("unsupervised", 0.0, 0.0, seed), Cell("semi", few, 1.0, seed), Cell("supervised", few, 0.0, seed))
    for seed in range(s.whole):
        for fraction in others:
            yield Cell("semi", fraction, 1.0, seed)
            if fraction:
                yield Cell("supervised", fraction, 0.0, seed)
        yield from (Cell("semi", few, amount, seed) for amount in s.amounts[:-1])


class Data(NamedTuple):
    """Clean speech for training and validation, and noisy recordings with their clean speech."""

    clean: Speech
    others: Speech
    noisy: list[Tensor]
    speech: list[Tensor]


def prepare(args: argparse.Namespace, s: Settings) -> Data:
    """Mix what is not there yet, and read it."""
    files = audio.find(args.speech)
    order = np.random.default_rng(0).permutation(len(files))
    half = [files[i] for i in order[: len(files) // 2]], [files[i] for i in order[len(files) // 2 :]]
    noises = audio.find(args.noise)
    held = noises[::6]  # other recordings of the same kinds
    sets = {
        "train": (half[1], [n for n in noises if n not in held], s.mixtures, 0),
        "matched": (args.test_speech, held, s.tests, 1),
        "mismatched": (args.test_speech, args.other_noise, s.tests, 1),
    }
    for name, (speech, noise, count, seed) in sets.items():
        if not (args.out / name / "manifest.json").exists():
            mixing.mix(speech, noise, args.out / name, SNRS, count=count, seed=seed, left_out=print)
    minutes, clean = 0.0, []
    for file in half[0]:
        if minutes < s.clean_minutes:
            clean.append(file)
            minutes += audio.extent(file)[0] / 60
    stft, tenth = STFT(), max(1, len(clean) // 10)
    entries = mixing.read_manifest(args.out / "train" / "manifest.json").values()
    noisy, speech = ([torch.from_numpy(audio.read_mono(e[kind])) for e in entries] for kind in ("noisy_wav", "clean_wav"))
    return Data(Speech(clean[tenth:], stft), Speech(clean[:tenth], stft), noisy, speech)


def material(data: Data, cell: Cell) -> tuple[semi.Material, semi.Material]:
    """For training and for validation: a tenth of every kind. One labelled recording alone is both."""
    count = math.ceil(cell.labelled * len(data.noisy))
    rest = list(range(count, len(data.noisy)))[: round(cell.unlabelled * (len(data.noisy) - count))]
    stft = STFT()

    def halves(indices: list[int], paired: bool) -> list[Recordings | None]:
        if not indices:
            return [None, None]
        tenth = max(1, len(indices) // 10)
        parts = (indices[tenth:] or indices, indices[:tenth])
        return [Recordings([data.noisy[i] for i in part], stft, [data.speech[i] for i in part] if paired else None) for part in parts]

    pairs, unlabelled = halves(list(range(count)), True), halves(rest, False)
    speech: list[Speech] = [data.clean, data.others]
    training, validation = (semi.Material(clean, noisy, pair) for clean, noisy, pair in zip(speech, unlabelled, pairs, strict=True))
    return training, validation


def train(cell: Cell, data: Data, out: Path, s: Settings) -> VAESpeech | supervised.SupervisedEnhancer:
    """The model of a cell, from its file when it is there."""
    path = out / "weights" / f"{cell.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    cls = supervised.SupervisedEnhancer if cell.arm == "supervised" else VAESpeech
    if path.exists() and not path.with_suffix(".resume").exists():
        return weights.load(cls, path)
    training, validation = material(data, cell)

    def schedule(rate: float, epochs: int = EPOCHS, patience: int = EPOCHS) -> Schedule:
        return Schedule(epochs, rate, patience=patience, seed=cell.seed)

    torch.manual_seed(cell.seed)
    if cell.arm == "supervised":
        assert training.pairs is not None and validation.pairs is not None
        network = supervised.SupervisedEnhancer(size=s.context)
        rates = schedule(RATE_ALONE, EPOCHS_ALONE, PATIENCE_ALONE)
        steps = s.alone // EPOCHS_ALONE
        supervised.train(network, training.pairs, validation.pairs, path, rates, s.batch, s.frames, steps, report=print_last)
    else:
        network = VAESpeech(n_latent=s.latent, hidden=(s.hidden,), context=s.context)
        base = path.with_name(f"base_{cell.seed}.safetensors")
        nothing = Cell("unsupervised", 0.0, 0.0, cell.seed)
        if not base.exists() or base.with_suffix(".resume").exists():
            semi.train(network, *material(data, nothing), base, schedule(RATE), SHARES, s.batch, s.frames, steps=s.base // EPOCHS, report=print_kinds)
        network.load_state_dict(weights.read(base)[0])
        if cell.arm == "semi":
            found = out / f"noise_{cell.seed}"
            training, validation = with_noise(training, validation, weights.load(VAESpeech, base), found, cell.seed)
        semi.train(
            network, training, validation, path, schedule(RATE_MORE), SHARES, s.batch, s.frames, steps=s.more // EPOCHS, report=print_kinds,
        )
    return weights.load(cls, path)


def print_kinds(log: list[ppse.training.Epoch], kinds: semi.Kinds) -> None:
    """One line per epoch."""
    print(log[-1].sentence, {kind: f"{a:.0f}/{b:.0f}" for kind, (a, b) in kinds.items()}, flush=True)


def print_last(epoch: ppse.training.Epoch, _: list[ppse.training.Epoch]) -> None:
    """One line per epoch."""
    print(epoch.sentence, flush=True)


def enhancers(cell: Cell, model: VAESpeech | supervised.SupervisedEnhancer, iterative: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to enhance with a model, by name."""
    if isinstance(model, supervised.SupervisedEnhancer):
        return {"one pass": model.enhance}
    ways: dict[str, tuple[Source, methods.Method]] = {"one pass": (HeardNoise(model), methods.amortised())}
    if iterative:
        ways |= {method.name: (NMFNoise(RANK, spacing=SPACING), method) for method in (methods.amortised(), methods.fast())}

    def by(noise: Source, method: methods.Method) -> Callable[[Tensor], Tensor]:
        mixture = Mixture(speech=model, noise=noise)
        return lambda wave: torch.from_numpy(ppse.enhance(wave, mixture, method, seed=cell.seed).estimates["speech"][0])

    return {name: by(*way) for name, way in ways.items()}


def scores(out: Path) -> list[Row]:
    """What was measured so far."""
    path = out / "scores.csv"
    if not path.exists():
        return []
    with path.open() as file:
        return [{k: float(v) if k not in ("arm", "by", "noise", "file") else v for k, v in row.items()} for row in csv.DictReader(file)]


def judge(cell: Cell, by: str, enhance: Callable[[Tensor], Tensor], out: Path) -> None:
    """Add the scores of all test files to the CSV."""
    path = out / "scores.csv"
    lines = []
    for noise in ("matched", "mismatched"):
        for name, entry in mixing.read_manifest(out / noise / "manifest.json").items():
            noisy, clean = (audio.read_mono(entry[kind]) for kind in ("noisy_wav", "clean_wav"))  # type: ignore[literal-required]  # of two keys
            estimate = enhance(torch.from_numpy(noisy)).numpy()
            lines.append([*cell, by, noise, name, entry["snr"], *metrics.score(clean, estimate, names=METRICS).values()])
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([FIELDS, *lines] if new else lines)


def main() -> None:
    """Mix, train, enhance, score, plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("--speech", "--noise", "--test-speech", "--other-noise"):
        parser.add_argument(name, nargs="+", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path("semi"))
    parser.add_argument("--small", action="store_true", help="half an hour of speech and small networks: an hour of one core")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = SMALL if args.small else FULL
    made_by, note = args.out / "settings.txt", f"{settings}\n{SHARES}\nnoise of recordings: found by EM under the base\n"
    if made_by.exists() and made_by.read_text() != note:
        raise SystemExit(f"{args.out}: holds a run of other settings, see {made_by.name}; give another --out")
    audio.write_text(made_by, note)
    data = prepare(args, settings)
    done = {(*(row[k] for k in FIELDS[:5]),) for row in scores(args.out)}
    if ("noisy", 0.0, 0.0, 0.0, "none") not in done:
        judge(Cell("noisy", 0.0, 0.0, 0), "none", lambda wave: wave, args.out)
    for iterative in (False, True):
        for cell in cells(settings):
            if iterative and (cell.arm == "supervised" or cell.labelled not in (0.0, 0.05) or cell.unlabelled not in (0.0, 1.0)):
                continue
            if all((*cell, by) in done for by in (("amortised", "fast") if iterative else ("one pass",))):
                continue
            print(cell.name, flush=True)
            start = time.process_time()
            for by, enhance in enhancers(cell, train(cell, data, args.out, settings), iterative).items():
                if (*cell, by) not in done:
                    judge(cell, by, enhance, args.out)
                    done.add((*cell, by))
            print(f"{cell.name}: {time.process_time() - start:.0f} s of processor time", flush=True)
            write(scores(args.out), args.out)


if __name__ == "__main__":
    main()
