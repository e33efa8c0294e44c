"""The table behind ``default`` and ``fast``: one setting changed at a time, on mixtures of another seed than those of quality.py.

    python benchmarks/choices.py --clean DIR --noise DIR --out choices.json

Scores are written after every file, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pyro.distributions import Normal
from quality import Enhancer, by_method, measure, report, timed
from torch import Tensor, nn

import ppse
from ppse import methods, mixing
from ppse.enhance import RANK, SPACING
from ppse.guides import EncoderGuide, clean_guide
from ppse.methods import Method
from ppse.mixture import Source
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech


class _Deaf(nn.Module):
    """A noisy encoder that proposes speech and says nothing of the noise."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        law: Normal = self.encoder(x, observed)
        return law


def deaf_guide(model: ppse.Mixture) -> EncoderGuide:
    """The starting guide without the power of the noise, which then starts at random."""
    speech = model.sources["speech"]
    assert isinstance(speech, VAESpeech) and speech.noisy_encoder is not None
    return EncoderGuide({"speech.z": _Deaf(speech.noisy_encoder)})


def rows(seed: int) -> dict[str, Enhancer]:
    """What was compared, by name. All but ``default`` have one start."""
    speech = VAESpeech.pretrained()
    one = replace(methods.default(), starts=1)

    hmc = partial(methods.hmc_em, temperature=2.5)
    fast = partial(hmc, iterations=16, steps=5, step_size=0.6, settle=0, adapt=8, average=8)

    def row(method: Method, noise: Source | None = None, source: Source = speech) -> Enhancer:
        return by_method(method, seed, ppse.Mixture(speech=source, noise=noise or NMFNoise(RANK, spacing=SPACING)))

    return {
        "noisy": timed(lambda noisy, _: noisy),
        "default: two starts": row(methods.default()),
        "one start": row(one),
        "temperature 1": row(hmc(temperature=1.0)),
        "temperature 1.5": row(hmc(temperature=1.5)),
        "temperature 4": row(hmc(temperature=4.0)),
        "up to 5 steps": row(hmc(steps=5)),
        "settles for 0 iterations": row(hmc(settle=0)),
        "noise starts at random": row(replace(one, guide=deaf_guide)),
        "speech starts at the clean encoder, noise at random": row(replace(one, guide=clean_guide)),
        "rank 2": row(one, NMFNoise(2, spacing=SPACING)),
        "rank 8": row(one, NMFNoise(8, spacing=SPACING)),
        "spacing 1": row(one, NMFNoise(RANK)),
        "spacing 32": row(one, NMFNoise(RANK, spacing=32)),
        "stationary noise": row(one, StationaryNoise()),
        "a gain per frame": row(one, source=FrameGain(speech)),
        "fast": row(methods.fast()),
        "fast, up to 3 steps": row(fast(steps=3)),
        "fast, settles for 4": row(fast(settle=4)),
        "fast, 24 iterations": row(fast(iterations=24, adapt=12, average=12)),
        "full Bayes, temperature 1": row(methods.full_bayes()),
        "full Bayes, temperature 2.5": row(methods.full_bayes(temperature=2.5)),
    }


def main() -> None:
    """Mix, enhance, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clean", nargs="+", required=True)
    parser.add_argument("--noise", nargs="+", required=True)
    parser.add_argument("--snrs", nargs="+", type=float, default=[-5, 0, 5, 10])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("choices.json"))
    parser.add_argument("--rows", nargs="+", help="some of the rows, by their names; all unless given")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        mixing.mix(args.clean, args.noise, Path(scratch), args.snrs, count=args.count, seed=args.seed)
        table = {name: enhancer for name, enhancer in rows(args.seed).items() if args.rows is None or name in ("noisy", *args.rows)}
        settings = {key: value for key, value in vars(args).items() if key != "out"}
        results = measure(table, Path(scratch), args.out, settings, args.seed)
    print(report(results, [name for name in table if name != "noisy"], args.seed))


if __name__ == "__main__":
    main()
