"""Resynthesis: how much of clean speech comes back from its codes, for every prior with an encoder.

    python benchmarks/resynthesis.py vae rvae prior.safetensors --clean DIR [--out docs/resynthesis.md]

Every recording is encoded, at unit level, to the means of the codes (the path of means, where the encoder has memory, by stretches:
docs/costs.md); the prior decodes them to a power, E|s|^2 given the codes; its root, with the phases of the recording, is the resynthesis. It is
what inference could reach at best, and the published way to compare dynamical VAEs. The loss is the negative ELBO in nats per frame, by one draw.
Without a folder, the bundled demo recording takes its place: a smoke test.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from rich.progress import track
from torch import Tensor

from ppse import STFT, Mixture, audio, demo, metrics
from ppse.choices import PRIORS
from ppse.elbo import negative_elbo
from ppse.guides import EncoderGuide, clean_guide
from ppse.stft import POWER_FLOOR, level
from ppse.training import floored
from ppse.weights import load_any

METRICS = {"si_sdr": ("SI-SDR (dB)", 2), "pesq_wb": ("pesq_wb", 2), "estoi": ("ESTOI", 3)}


def resynthesis(model: Mixture, guide: EncoderGuide, x: Tensor) -> Tensor:
    """The STFT (T, F) that the codes of clean speech x give, with the phases of x. Nothing is random."""
    codes = {site: mean for site, (mean, _) in guide.laws(x).items()}
    power = poutine.condition(model, codes)(x)["speech"].var - POWER_FLOOR
    return torch.polar(power.sqrt().expand(x.shape), x.angle())


def measure(model: Mixture, files: Sequence[Path]) -> dict[str, float]:
    """Mean scores of a prior over the files, and its loss."""
    guide, stft = clean_guide(model), STFT()
    if guide is None:
        raise ValueError("resynthesis: this prior has no encoder")
    rows = []
    with torch.no_grad(), pyro.validation_enabled(False), poutine.seed(rng_seed=0):
        for file in files:
            wave = torch.from_numpy(audio.read_mono(file, stft.sample_rate))
            x = stft.analysis(wave)
            x = x / level(x).sqrt()
            model.start(x)
            made = stft.synthesis(resynthesis(model, guide, x), wave.numel())
            scores = metrics.score(wave.numpy(), made.numpy(), stft.sample_rate, tuple(METRICS))
            rows.append(scores | {"loss": negative_elbo(model, guide, floored(x)).item() / x.shape[-2]})
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown."""
    lines = ["| prior | parameters | " + " | ".join(name for name, _ in METRICS.values()) + " | loss (nats per frame) |", "|---|" + "--:|" * 5]
    for name, row in results.items():
        scores = " | ".join(f"{row[key]:.{digits}f}" for key, (_, digits) in METRICS.items())
        lines.append(f"| {name} | {row['parameters'] / 1e6:.2f} M | {scores} | {row['loss']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("priors", nargs="+", help="shipped names, or weights files")
    parser.add_argument("--clean", nargs="*", default=[], help="files or folders of clean speech that no prior was trained on")
    parser.add_argument("--out", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    files = audio.find(arguments.clean) if arguments.clean else [demo.CLEAN]
    results = {}
    for name in arguments.priors:
        prior = load_any(PRIORS, name)
        used = [prior.encoder, *(module for key, module in prior.named_children() if key not in ("encoder", "listener"))]
        size = sum(p.numel() for module in used for p in module.parameters())
        results[Path(name).stem] = measure(Mixture(speech=prior), [Path(f) for f in track(files, name)]) | {"parameters": size}
        print(table(results))
    if arguments.out:
        audio.write_text(arguments.out, table(results) + "\n")


if __name__ == "__main__":
    main()
