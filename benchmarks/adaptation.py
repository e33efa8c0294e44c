"""Adaptation: what unlabelled recordings of a place are worth to later ones from there, by other speakers.

    python benchmarks/adaptation.py --speech DIR --noise FILE… --out FOLDER

Every noise file is cut in two: the first half is mixed with the speakers that `ppse adapt` hears, the second half with those it is
judged on (-5 to 10 dB). Nobody tells it what is speech. Mixtures, adapted weights and scores are in the folder; a run that was
interrupted goes on where it was. Without folders, the bundled demo recording takes the place of speech and noise: a smoke test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

import ppse
from ppse import audio, choices, demo, methods, metrics, mixing, provenance
from ppse.adaptation import Adaptation
from ppse.adaptation_recipe import Progress, adapt_prior
from ppse.choices import METHODS
from ppse.corpus import split

METRICS = {"si_sdr": ("SI-SDR (dB)", 2), "pesq_wb": ("pesq_wb", 3), "estoi": ("ESTOI", 3)}
SNRS = (-5.0, 0.0, 5.0, 10.0)
Rows = list[dict[str, float]]


def mixtures(speech: Sequence[Path], noise: Sequence[Path], out: Path, counts: tuple[int, int]) -> tuple[Path, Path]:
    """Manifests of recordings to adapt to, and of others to judge by: other speakers, later parts of the noise files."""
    manifests = out / "adapt" / "manifest.json", out / "judge" / "manifest.json"
    if manifests[1].exists():
        return manifests
    for path in noise:
        wave = audio.read_mono(path)
        middle = wave.size // 2
        audio.write(out / "noise" / "first" / f"{path.stem}.wav", wave[:middle], mixing.RATE, "FLOAT")
        audio.write(out / "noise" / "second" / f"{path.stem}.wav", wave[middle:], mixing.RATE, "FLOAT")
    for talkers, half, manifest, count in zip(split(speech, 0.5), ("first", "second"), manifests, counts, strict=True):
        mixing.mix(talkers, [out / "noise" / half], manifest.parent, SNRS, count)
    return manifests


def demo_material(out: Path) -> tuple[list[Path], list[Path]]:
    """Two "speakers" and a noise, cut from the bundled recording: enough for the benchmark to run, and to say nothing."""
    clean, noisy = (audio.read_mono(path) for path in (demo.CLEAN, demo.NOISY))
    half = clean.size // 2
    for name, wave in (("a-1", clean[:half]), ("a-2", clean[:half]), ("b-1", clean[half:]), ("noise", noisy - clean)):
        audio.write(out / "demo" / f"{name}.wav", wave, mixing.RATE, "FLOAT")
    return [out / "demo" / f"{name}.wav" for name in ("a-1", "a-2", "b-1")], [out / "demo" / "noise.wav"]


def scores(prior: str, manifest: Path, method: str) -> Rows:
    """Scores of every recording of a manifest, enhanced with a prior by a method."""
    model = choices.model(prior, "heard")
    rows = []
    for entry in track(mixing.read_manifest(manifest).values(), f"{Path(prior).stem}, {method}"):
        noisy, clean = (audio.read_mono(entry[key]) for key in ("noisy_wav", "clean_wav"))
        estimate = noisy if method == "noisy" else ppse.enhance(noisy, model, METHODS[method]()).estimates["speech"][0]
        rows.append(metrics.score(clean, estimate, mixing.RATE, tuple(METRICS)))
    return rows


def table(results: Mapping[str, Mapping[str, Rows]]) -> str:
    """Markdown: means before and after, and the mean difference of the pairs with its 95 % bootstrap interval."""
    lines = ["| method | " + " | ".join(f"{name} | adapted | gain" for name, _ in METRICS.values()) + " |", "|---|" + "--:|" * (3 * len(METRICS))]
    for method, by_prior in results.items():
        cells = []
        for key, (_, digits) in METRICS.items():
            before, after = (np.array([row[key] for row in by_prior[which]]) for which in ("before", "after"))
            low, high = metrics.bootstrap_interval(after - before)
            gain = f"{(after - before).mean():+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
            cells.append(f"{before.mean():.{digits}f} | {after.mean():.{digits}f} | {gain}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, help="folder of clean speech, of two speakers or more")
    parser.add_argument("--noise", type=Path, nargs="+", help="noise files of the domain")
    parser.add_argument("--out", type=Path, default=Path("adaptation"), help="folder of everything")
    parser.add_argument("--prior", default="vae_aware", help="what to adapt")
    parser.add_argument("--methods", nargs="+", choices=sorted(METHODS), default=["amortised", "fast"])
    parser.add_argument("--counts", type=int, nargs=2, default=(32, 16), help="recordings to adapt to, and to judge by")
    parser.add_argument("--epochs", type=int, default=Adaptation().epochs)
    parser.add_argument("--learning-rate", type=float, default=Adaptation().learning_rate)
    parser.add_argument("--part", choices=("encoder", "offsets", "decoder"), default="encoder")
    parser.add_argument("--clean", nargs="+", help="folders of clean speech to hear in the noise of the recordings")
    parser.add_argument("--force", action="store_true", help="judge the adapted prior even where held-out recordings say that it is worse")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    speech, noise = (audio.find([asked.speech]), asked.noise) if asked.speech else demo_material(asked.out)
    adapt, judge = mixtures(speech, noise, asked.out, tuple(asked.counts) if asked.speech else (2, 1))
    adapted = asked.out / "adapted.safetensors"
    if not adapted.exists():
        settings = Adaptation(asked.part, epochs=asked.epochs, learning_rate=asked.learning_rate)
        progress = Progress(epoch=lambda epoch, _: print(f"{epoch.epoch + 1}: {epoch.sentence}", flush=True), left_out=print)
        verdict = adapt_prior(
            asked.prior, [str(adapt.parent / "noisy")], adapted, settings, speech=asked.clean,
            force=asked.force or not asked.speech,  # the demo is too little to judge by
            method=methods.default(), progress=progress, using=choices.heard, finder=choices.model(choices.FINDER, "heard") if asked.clean else None,
        )
        print(verdict.sentence, flush=True)
    results = {method: {which: scores(prior, judge, method) for which, prior in (("before", asked.prior), ("after", str(adapted)))}
               for method in asked.methods}
    noisy = scores(asked.prior, judge, "noisy")
    audio.write_text(asked.out / "scores.json", json.dumps({"noisy": noisy, **results}, indent=1))
    means = ", ".join(f"{np.mean([row[key] for row in noisy]):.{digits}f} {name}" for key, (name, digits) in METRICS.items())
    print(f"{table(results)}\n\n{len(noisy)} recordings; noisy: {means}; {provenance.sentence('torch', 'pyro-ppl')}. Command: {provenance.command()}")


if __name__ == "__main__":
    main()
