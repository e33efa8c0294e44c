"""What video brings, and what it costs when it is wrong: A-VAE, AV-VAE, MIX-VAE and SwVAE, with clean and with corrupted lips.

    python benchmarks/audiovisual.py CLIPS NOISE [--count 12] [--snrs -5 0 5 10 15] [--iterations 60] [--draws 4] [--csv FILE.csv] [--out FILE.md]

CLIPS are videos as those of ``ppse train av-vae``, NOISE is a folder of recordings. At every SNR so many clips, each with another noise, are
inferred side by side, in one batch; a third of the images of each is corrupted in one stretch, each kind of corruption in turn. All systems
have the same noise model and the same method, variational EM (:func:`ppse.switching_vem.switching_vem`); one prior alone is a mixture in
which the other expert is never chosen. "MIX-VAE" and "SwVAE" judge the lips by the sound, as published; with "looks" the video is observed
as well, and it alone tells when to follow it (unless ``--hearing`` is more than 0). What is in the CSV file already, by the same settings, is not
computed again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from ppse import STFT, ComplexNormal, Mixture, audio, corruptions, metrics, provenance
from ppse.av_corpus import find_clips
from ppse.inference import Inference, Keep, infer
from ppse.lips import Lips
from ppse.mixture import Frames, Source
from ppse.models import AVVAESpeech, MixtureSpeech, NMFNoise, SwitchingSpeech, VAESpeech
from ppse.mouth import find_lips
from ppse.stft import level
from ppse.switching_vem import switching_vem
from ppse.watched import MOSTLY_RIGHT, SeenSpeech

RATE = 16_000
NEVER = 1e-30
"""A probability of nothing that has a logarithm."""
SCORES = ("si_sdr", "sdr", "pesq_wb", "estoi")
SEEN = ("clean", "corrupted")
SYSTEMS = {"noisy": ("none",), "A-VAE": ("none",), "AV-VAE": SEEN, "MIX-VAE": SEEN, "SwVAE": SEEN, "MIX-VAE, looks": SEEN, "SwVAE, looks": SEEN}
"""With the videos that they see."""
PAIRS = (
    (("AV-VAE", "clean"), ("A-VAE", "none")), (("SwVAE, looks", "corrupted"), ("A-VAE", "none")),
    (("SwVAE, looks", "corrupted"), ("AV-VAE", "corrupted")), (("SwVAE, looks", "corrupted"), ("MIX-VAE, looks", "corrupted")),
)
"""Systems that are compared clip by clip."""
KINDS: dict[str, Callable[[Lips], corruptions.Corruption]] = {
    "occluded": lambda _: corruptions.occluded, "noisy": lambda _: corruptions.noisy, "dropped": lambda _: corruptions.dropped,
    "swapped": corruptions.swapped, "frozen": lambda _: corruptions.frozen, "shuffled": lambda _: corruptions.shuffled,
}
"""Corruptions by name, given the lips of another clip."""


class Case(NamedTuple):
    """A mixture: its clean speech and noisy sound (N,), its lips, and those with a corrupted third, and which images that are."""

    name: str
    noise: str
    kind: str
    clean: audio.Wave
    noisy: audio.Wave
    lips: Lips
    corrupted: corruptions.Corrupted


def cases(
    clips: Sequence[str], noise: str, count: int, snr: float, seed: int, kinds: Sequence[str] = tuple(KINDS), share: float = corruptions.SHARE,
) -> list[Case]:
    """Mixtures of one SNR; clips, noises, places and corruptions are drawn from the seed, the same for every SNR but for the level."""
    rng = np.random.default_rng(seed)
    found, noises = find_clips(clips), audio.find([noise])
    chosen = [found[i] for i in rng.permutation(len(found))[:count]]
    waves = [audio.read_mono(clip.sound, RATE) for clip in chosen]
    lips = [find_lips(clip.video) for clip in chosen]
    length = min(wave.size for wave in waves)
    order = rng.permutation(len(noises))
    result = []
    for i, (clip, wave, seen) in enumerate(zip(chosen, waves, lips, strict=True)):
        path, clean = noises[order[i % len(noises)]], wave[:length].astype(np.float64)
        other = np.resize(audio.read_mono(path, RATE), max(length, audio.read_mono(path, RATE).size)).astype(np.float64)
        first = int(rng.integers(other.size - length + 1))
        other = other[first : first + length]
        other *= np.sqrt(np.mean(clean**2) / np.mean(other**2) * 10 ** (-snr / 10))
        kind = kinds[i % len(kinds)]
        bad = corruptions.corrupt(seen, KINDS[kind](lips[i - 1]), share, seed=seed + i)
        result.append(Case(clip.video.stem, path.stem, kind, clean.astype(np.float32), (clean + other).astype(np.float32), seen, bad))
    return result


def system(name: str, a_vae: VAESpeech, av_vae: AVVAESpeech, lips: Sequence[Lips], stay: float) -> Source:
    """The prior of speech that the name stands for."""
    sound, seen = copy.deepcopy(a_vae), av_vae.watching(lips)
    if name in ("A-VAE", "AV-VAE"):
        return MixtureSpeech([sound if name == "A-VAE" else seen, never], [1.0, NEVER])
    if name.endswith("looks"):
        right = MOSTLY_RIGHT[0][1] / (MOSTLY_RIGHT[0][1] + MOSTLY_RIGHT[1][0])  # as often as the chain has it
        return SeenSpeech(sound, seen) if name.startswith("SwVAE") else SeenSpeech(sound, seen, [[1 - right, right]] * 2, [1 - right, right])
    return MixtureSpeech([sound, seen], learn=True) if name == "MIX-VAE" else SwitchingSpeech([sound, seen], stay, learn=True)


def never(frames: Frames) -> ComplexNormal:
    """What one prior alone is mixed with, as the method is for mixtures: flat, and of no probability."""
    return ComplexNormal(0j, torch.ones(frames.size, 1))


def inferred(source: Source, given: Sequence[Case], args: argparse.Namespace) -> tuple[list[audio.Wave], Inference, float]:
    """Estimates of the speech, and seconds per second of sound."""
    hearing = args.hearing if isinstance(source, SeenSpeech) else 1.0
    stft = STFT()
    x = torch.stack([stft.analysis(torch.from_numpy(case.noisy)) for case in given]).unsqueeze(1)
    unit = level(x).sqrt()
    model = Mixture(speech=source, noise=NMFNoise(args.rank, spacing=args.spacing))
    started = time.monotonic()
    with poutine.seed(rng_seed=args.seed):
        method = switching_vem(args.iterations, learning_rate=args.learning_rate, draws=args.draws, average=args.iterations // 3, hearing=hearing)
        result = infer(model, x / unit, method, keep=Keep(run=True))
    seconds = time.monotonic() - started
    waves = stft.synthesis((result.sources["speech"].loc * unit).squeeze(1), given[0].noisy.size)
    return list(waves.numpy()), result, seconds / (len(given) * given[0].noisy.size / RATE)


def scores(clean: audio.Wave, estimate: audio.Wave) -> dict[str, float]:
    """SDR is 10 log10 |s|^2 / |s - estimate|^2; the others are of :mod:`ppse.metrics`."""
    sdr = 10 * float(np.log10(np.sum(clean**2) / np.sum((clean - estimate) ** 2)))
    return {"sdr": sdr} | metrics.score(clean, estimate, names=("si_sdr", "pesq_wb", "estoi"))


def suspicion(result: Inference) -> Tensor:
    """p(m_t = sound alone) in every frame of every recording, (B, T)."""
    assert result.run is not None
    regime = result.run.values["speech.regime"]
    return (regime == 0).double().reshape(-1, *regime.shape[-3:]).mean((0, 2)) if regime.dim() > 3 else (regime == 0).double().mean(0)


def area(suspected: Tensor, case: Case) -> float:
    """Area under the ROC curve of telling frames of sound whose nearest image is corrupted from the others; NaN where there are no others."""
    place = case.lips.align(torch.as_tensor(STFT().centres(suspected.shape[-1]))).place
    bad = case.corrupted.where[place.round().long()].numpy()
    if bad.all():
        return float("nan")
    return float(mannwhitneyu(suspected.numpy()[bad], suspected.numpy()[~bad]).statistic / (bad.sum() * (~bad).sum()))


def rows(args: argparse.Namespace, done: Iterable[dict[str, str]]) -> Iterable[dict[str, object]]:
    """Scores of every mixture under every system and video, but those done."""
    finished = Counter((row["snr"], row["system"], row["video"]) for row in done)
    a_vae, av_vae = VAESpeech.pretrained(args.a_vae), AVVAESpeech.pretrained(args.av_vae)
    for snr in args.snrs:
        given = cases(args.clips, args.noise, args.count, snr, args.seed, args.kinds, args.share)
        for name, video in ((each, video) for each in args.systems for video in SYSTEMS[each]):
            if finished[f"{snr:g}", name, video] >= len(given):
                continue
            estimates, factor, suspected = [case.noisy for case in given], 0.0, None
            if name != "noisy":
                lips = [case.corrupted.lips if video == "corrupted" else case.lips for case in given]
                estimates, result, factor = inferred(system(name, a_vae, av_vae, lips, args.stay), given, args)
                suspected = suspicion(result) if video == "corrupted" and name != "AV-VAE" else None
            for i, (case, estimate) in enumerate(zip(given, estimates, strict=True)):
                found = scores(case.clean, estimate)
                auc = area(suspected[i], case) if suspected is not None else float("nan")
                yield {"snr": f"{snr:g}", "system": name, "video": video, "clip": case.name, "noise": case.noise, "kind": case.kind} | found | {
                    "auc": auc, "rtf": factor}


def over(table: Sequence[dict[str, str]], one: tuple[str, str], other: tuple[str, str], score: str) -> tuple[float, float, float]:
    """Mean difference of two systems, and its 95 % interval by bootstrap over clips, each with all of its SNRs."""
    by_clip: dict[str, dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table:
        by_clip[row["clip"]][row["system"], row["video"]].append(float(row[score]))
    differences = np.array([np.mean(found[one]) - np.mean(found[other]) for found in by_clip.values() if one in found and other in found])
    return (float(differences.mean()), *metrics.bootstrap_interval(differences)) if differences.size else (float("nan"),) * 3


def settings_of(args: argparse.Namespace) -> str:
    """A number that tells runs apart: clips and noises by name, and all that changes a row."""
    names = [[Path(path).name for path in found] for found in ([clip.video for clip in find_clips(args.clips)], audio.find([args.noise]))]
    left_out = ("clips", "noise", "snrs", "systems", "csv", "out")
    return f"{zlib.crc32(repr((names, sorted((k, v) for k, v in vars(args).items() if k not in left_out))).encode()):08x}"


def page(table: Sequence[dict[str, str]]) -> list[str]:
    """Means by SNR, system and video; then the area under the curve by kind of corruption."""
    def mean(chosen: Iterable[dict[str, str]], score: str) -> float:
        return float(np.mean([float(row[score]) for row in chosen]))

    snrs = sorted({row["snr"] for row in table}, key=float)
    lines = [f"| system | video | score | {' | '.join(f'{snr} dB' for snr in snrs)} | mean |", "|---|---|---|" + "---|" * (len(snrs) + 1)]
    for score in SCORES:
        for name, video in dict.fromkeys((row["system"], row["video"]) for row in table):
            chosen = [row for row in table if (row["system"], row["video"]) == (name, video)]
            cells = [mean((row for row in chosen if row["snr"] == snr), score) for snr in snrs]
            lines.append(f"| {name} | {video} | {score} | {' | '.join(f'{cell:.2f}' for cell in [*cells, float(np.mean(cells))])} |")
    chains = [row for row in table if row["auc"] != "nan"]
    kinds = list(dict.fromkeys(row["kind"] for row in chains))
    lines += ["", f"| AUC | SNR | {' | '.join(kinds)} | all |", "|---|---|" + "---|" * (len(kinds) + 1)]
    for name in dict.fromkeys(row["system"] for row in chains):
        for snr in [*snrs, "all"]:
            chosen = [row for row in chains if row["system"] == name and snr in (row["snr"], "all")]
            cells = [mean((row for row in chosen if row["kind"] == kind), "auc") for kind in kinds]
            lines.append(f"| {name} | {snr} | {' | '.join(f'{cell:.2f}' for cell in [*cells, mean(chosen, 'auc')])} |")
    lines += ["", "| over | by SI-SDR (dB) | pesq_wb | ESTOI |", "|---|---|---|---|"]
    for one, other in PAIRS:
        cells = [f"{middle:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]" for score, digits in (("si_sdr", 2), ("pesq_wb", 3), ("estoi", 3))
                 for middle, low, high in (over(table, one, other, score),)]
        lines.append(f"| {', '.join(one)} over {', '.join(other)} | {' | '.join(cells)} |")
    speeds = {row["system"]: row["rtf"] for row in table if row["system"] != "noisy"}
    return [*lines, "", "Real-time factor of the batch: " + ", ".join(f"{name} {float(rtf):.2f}" for name, rtf in speeds.items())]


def main() -> None:
    """Scores to the CSV file, means to the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("noise")
    parser.add_argument("--a-vae", default="a_vae")
    parser.add_argument("--av-vae", default="av_vae")
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--snrs", type=float, nargs="+", default=[-5, 0, 5, 10, 15])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--spacing", type=int, default=16)
    parser.add_argument("--hearing", type=float, default=0.0, help="power of the sound in the chain, of systems with looks")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of corruption")
    parser.add_argument("--share", type=float, default=corruptions.SHARE, help="of the images, that are corrupted")
    parser.add_argument("--stay", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=Path("audiovisual.csv"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    settings = settings_of(args)
    table = [row for row in csv.DictReader(args.csv.open()) if row["settings"] == settings] if args.csv.exists() else []
    for found in rows(args, list(table)):
        row = found | {"settings": settings}
        table.append({key: str(value) for key, value in row.items()})
        with args.csv.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
    text = "\n".join([*page(table), "", f"`{provenance.command()}`, {provenance.sentence('torch')}", ""])
    print(text)
    if args.out:
        audio.write_text(args.out, text)


if __name__ == "__main__":
    main()
