"""Quality: gain of every method and baseline over the noisy input, per SNR, with 95 % bootstrap intervals and real-time factor.

    python benchmarks/quality.py --clean DIR --noise DIR --out results.json

Without folders, the bundled demo recording takes their place: a smoke test, which says nothing about a method.
Nothing is tuned per file. Scores are written after every file, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import baselines
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

import ppse
from ppse import audio, demo, methods, metrics, mixing, provenance, weights
from ppse.models import FrameGain, NMFNoise, VAESpeech

METRICS = {"si_sdr": ("SI-SDR (dB)", 2), "pesq_wb": ("pesq_wb", 3), "estoi": ("ESTOI", 3)}
BASELINES = {
    "noisereduce": baselines.noisereduce_nonstationary,
    "noisereduce_stationary": baselines.noisereduce_stationary,
    "rnnoise": baselines.rnnoise,
    "webrtc": baselines.webrtc,
}
PACKAGES = ("torch", "pyro-ppl", "numpy", "pesq", "pystoi", "noisereduce", "pyrnnoise", "webrtc-noise-gain")
RATE = metrics.RATE

Wave = NDArray[np.float32]
Enhancer = Callable[[Wave, Wave], tuple[Wave, float]]
"""(noisy, clean) → (estimate, seconds); only the oracle looks at the clean speech."""
Results = dict[str, dict[str, dict[str, Any]]]


def published_model() -> ppse.Mixture:
    """The model of the published methods: a gain per frame, NMF of rank 8 with the activations of every frame free."""
    return ppse.Mixture(speech=FrameGain(VAESpeech.pretrained()), noise=NMFNoise(rank=8))


def by_method(method: methods.Method, seed: int, model: ppse.Mixture | None) -> Enhancer:
    """A method, on the default model unless one is given."""

    def run(noisy: Wave, _: Wave) -> tuple[Wave, float]:
        result = ppse.enhance(noisy, model, method, seed=seed)
        return result.estimates["speech"][0], result.seconds

    return run


def timed(enhance: Callable[[Wave, Wave], Wave]) -> Enhancer:
    """An enhancer with its wall-clock time."""

    def run(noisy: Wave, clean: Wave) -> tuple[Wave, float]:
        start = time.perf_counter()
        estimate = enhance(noisy, clean)
        return estimate, time.perf_counter() - start

    return run


def blind(enhance: Callable[[Wave], Wave]) -> Enhancer:
    """A baseline, which sees the noisy recording alone."""
    return timed(lambda noisy, _: enhance(noisy))


def enhancers(names: Sequence[str], compared: Sequence[str], seed: int, model: ppse.Mixture | None) -> dict[str, Enhancer]:
    """All enhancers by name, the noisy input first and the oracle last."""
    table: dict[str, Enhancer] = {"noisy": timed(lambda noisy, _: noisy)}
    table |= {name: by_method(getattr(methods, name)(), seed, model) for name in names}
    table |= {name: blind(BASELINES[name]) for name in compared}
    return table | {"oracle_wiener": timed(lambda noisy, clean: baselines.oracle_wiener(clean, noisy - clean))}


def measure(table: Mapping[str, Enhancer], corpus: Path, out: Path, settings: Mapping[str, Any], resample_seed: int) -> Results:
    """Score every file by every enhancer, going on from what ``out`` already has.

    Raises:
        SystemExit: when ``out`` holds results of other settings (those of other weights among them) or mixtures.
    """
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"settings": dict(settings), "results": {}}
    if content["settings"] != settings:
        raise SystemExit(f"{out}: results of other settings ({content['settings']}); give another --out, or delete it")
    content |= {"command": provenance.command(), "versions": provenance.versions(*PACKAGES)}
    manifest = mixing.read_manifest(corpus / "manifest.json")
    if any(not scores.keys() <= manifest.keys() for scores in content["results"].values()):
        raise SystemExit(f"{out}: results of other mixtures; give another --out, or delete it")
    for name, enhance in table.items():
        scores = content["results"].setdefault(name, {})
        for key, entry in track(manifest.items(), f"{name:24}", total=len(manifest)):
            if key in scores:
                continue
            noisy, clean = audio.read_mono(entry["noisy_wav"]), audio.read_mono(entry["clean_wav"])
            estimate, seconds = enhance(noisy, clean)
            values = {m: value if math.isfinite(value) else None for m, value in metrics.score(clean, estimate, names=list(METRICS)).items()}
            duration = clean.size / metrics.RATE
            scores[key] = {**values, "snr": entry["snr"], "noise_type": entry["noise_type"], "seconds": seconds, "duration": duration}
            audio.write_text(out, json.dumps(content, indent=1))
    content["summary"] = {name: summary(content["results"], name, resample_seed) for name in table if name != "noisy"}
    audio.write_text(out, json.dumps(content, indent=1))
    results: Results = content["results"]
    return results


def gains(results: Results, name: str, metric: str, snr: float | None = None) -> list[float]:
    """Gains over the noisy input, per file (of one SNR); a file without a score of either counts as NaN."""
    noisy = results["noisy"]
    pairs = [(scores[metric], noisy[key][metric]) for key, scores in results[name].items() if snr in (None, scores["snr"])]
    return [math.nan if None in pair else pair[0] - pair[1] for pair in pairs]


def summary(results: Results, name: str, seed: int) -> dict[str, Any]:
    """Mean gain and interval per metric, over all and per SNR, and the real-time factor."""
    snrs = sorted({scores["snr"] for scores in results["noisy"].values()})
    found: dict[str, Any] = {"real_time_factor": real_time_factor(results, name)}
    for metric in METRICS:
        for snr in (None, *snrs):
            values = gains(results, name, metric, snr)
            low, high = metrics.bootstrap_interval(values, seed)
            key = "all" if snr is None else f"{snr:g}"
            found.setdefault(metric, {})[key] = {
                "mean": float(np.nanmean(values)), "low": low, "high": high, "files": int(np.isfinite(values).sum()),
            }
    return found


def real_time_factor(results: Results, name: str) -> float:
    """Processing time of all files over their duration."""
    return sum(s["seconds"] for s in results[name].values()) / sum(s["duration"] for s in results[name].values())


def report(results: Results, names: Sequence[str], seed: int) -> str:
    """The markdown tables: over all mixtures, then per SNR for each metric; below, what made them."""
    noisy = results["noisy"].values()
    means = ", ".join(f"{label} {np.nanmean([np.nan if s[m] is None else s[m] for s in noisy]):.{digits}f}" for m, (label, digits) in METRICS.items())
    found = {name: summary(results, name, seed) for name in names}
    lines = [
        f"{len(noisy)} mixtures; the noisy input: {means}. Mean gain [95 % interval]; {torch.get_num_threads()} threads.", "",
        "| | " + " | ".join(label for label, _ in METRICS.values()) + " | RTF |", "|---" * (len(METRICS) + 2) + "|",
    ]
    for name, row in found.items():
        cells = [_cell(row[metric]["all"], digits) for metric, (_, digits) in METRICS.items()]
        lines.append(f"| {name} | {' | '.join(cells)} | {row['real_time_factor']:.3f} |")
    for metric, (label, digits) in METRICS.items():
        snrs = [key for key in next(iter(found.values()))[metric] if key != "all"]
        lines += ["", f"| {label} gain at | " + " | ".join(f"{snr} dB" for snr in snrs) + " |", "|---" * (len(snrs) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(_cell(row[metric][snr], digits) for snr in snrs) + " |" for name, row in found.items()]
    return "\n".join([*lines, "", f"Seed {seed}; {provenance.sentence(*PACKAGES)}.", f"Command: `python benchmarks/{provenance.command()}`"])


def bundled(folder: Path) -> tuple[Path, Path]:
    """Speech and noise of the bundled demo recording, as two files in a folder."""
    clean, noisy = (audio.read(path)[0] for path in (demo.CLEAN, demo.NOISY))
    for name, wave in (("speech", clean), ("noise", noisy - clean)):
        audio.write(folder / f"{name}.wav", wave, RATE, subtype="FLOAT")
    return folder / "speech.wav", folder / "noise.wav"


def shipped_weights() -> dict[str, str]:
    """The shipped weights by name, each with a checksum of its file."""
    return {name: hashlib.sha256((weights.SHIPPED / f"{name}.safetensors").read_bytes()).hexdigest()[:12] for name in weights.shipped()}


def _cell(value: Mapping[str, float], digits: int) -> str:
    return f"{value['mean']:+.{digits}f} [{value['low']:+.{digits}f}, {value['high']:+.{digits}f}]"


def main() -> None:
    """Mix, enhance, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clean", nargs="+", help="files and folders of clean speech; the bundled demo recording unless given")
    parser.add_argument("--noise", nargs="+", help="files and folders of noise; that of the demo recording unless given")
    parser.add_argument("--snrs", nargs="+", type=float, default=[-5, 0, 5, 10], help="dB")
    parser.add_argument("--count", type=int, help="number of mixtures; 120, or one per SNR of the demo recording")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=["default", "fast"], choices=[method.__name__ for method in methods.ALL])
    parser.add_argument("--published-model", action="store_true", help="run them on the model that they were published with")
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES), choices=list(BASELINES))
    parser.add_argument("--out", type=Path, default=Path("quality.json"), help="scores per file; an existing file is continued")
    parser.add_argument("--corpus", type=Path, help="folder to keep the mixtures in; a temporary one unless given")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if bool(args.clean) != bool(args.noise):
        parser.error("give both --clean and --noise, or neither for the bundled demo recording")
    args.count = args.count or (120 if args.clean else len(args.snrs))
    torch.set_num_threads(args.threads)
    kept = ("clean", "noise", "snrs", "count", "seed", "threads", "published_model")
    settings = {key: getattr(args, key) for key in kept} | {"weights": shipped_weights()}
    with tempfile.TemporaryDirectory() as scratch:
        corpus = args.corpus or Path(scratch) / "corpus"
        speech, noise = (args.clean, args.noise) if args.clean else ([path] for path in bundled(Path(scratch)))
        mixing.mix(speech, noise, corpus, args.snrs, count=args.count, seed=args.seed)
        table = enhancers(args.methods, args.baselines, args.seed, published_model() if args.published_model else None)
        results = measure(table, corpus, args.out, settings, args.seed)
    print(report(results, [name for name in table if name != "noisy"], args.seed))


if __name__ == "__main__":
    main()
