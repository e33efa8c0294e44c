"""How far speech departs from what a prior decodes above a band that its latents were fitted to: the constants of ppse.departure.

    python benchmarks/departure.py speech/train speech/train_extra [--cutoffs 2000 3000 4000 5500] [--prior vae]

Of the folders that a prior was trained on, those speakers count that its training held out (`ppse.corpus.split_recordings`): it knows the others
better than it will know anyone. Their speech loses all above each cut-off, and the latents are drawn given the rest, as `ppse.extension.extend`
does. The law of the departure, in bands of 0.75 equivalent rectangular bandwidths, is fitted by least squares to what these and what is seen at the
cut-off leave unexplained: covariances of recordings and of frames, less the variance among the draws; correlation of frames 1, 2, 4 and 8 apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.optimize import least_squares
from torch import Tensor

from ppse import audio
from ppse.corpus import split_recordings
from ppse.departure import Departure, Wander, above, seen, unexplained
from ppse.enhance import random_from, stft_of
from ppse.extension import upper_band
from ppse.inpainting import variances_given
from ppse.models import VAESpeech
from ppse.stft import STFT, level

WIDTH = 0.75
SECONDS = 6
LAGS = (1, 2, 4, 8)


class Left(NamedTuple):
    """What a recording leaves unexplained: at the cut-off (T,), in bands (T, K), how far draws differ in what is left above that (T, K), and
    where the bands lie (K,).
    """

    start: Tensor
    bands: Tensor
    spread: Tensor
    distance: Tensor


def left(wave: Tensor, cutoff: float, prior: VAESpeech, seed: int) -> Left:
    """Of clean speech (N,) that is known below the cut-off."""
    stft = stft_of(prior)
    truth = stft.analysis(wave)
    truth = truth / level(truth).sqrt()
    known = torch.from_numpy(stft.frequencies < cutoff)
    with random_from(seed):
        var = variances_given(prior, truth * known, known, upper_band(), 8)
    distance = above(known, stft)
    place = (distance / WIDTH).floor()
    bands = [place == k for k in place[~known].unique() if (place == k).sum() > 3]
    middle = torch.stack([distance[band].mean() for band in bands])
    start = seen(truth, var, known, stft)
    told = torch.stack([unexplained(truth, var)[..., band].mean(-1) for band in bands], -1)
    return Left(start.mean(0), told.mean(0), (told - start.unsqueeze(-1)).var(0), middle)


def fitted(recordings: list[list[Left]], stft: STFT) -> Departure:
    """The law that fits best, from recordings of each of several cut-offs."""
    places, shared, alone, lags = [], [], [], []
    for of_one in recordings:
        places.append(of_one[0].distance)
        rest = [one.bands - one.start.unsqueeze(-1) for one in of_one]
        means = torch.stack([r.mean(0) for r in rest])
        frames = [r - r.mean(0) for r in rest]
        spread = torch.cat([one.spread for one in of_one]).mean(0)
        shared.append(means.mT @ means / len(means))
        alone.append(sum(r.mT @ r for r in frames) / sum(map(len, frames)) - spread.diag())
        together = torch.stack([torch.stack([(r[:-lag] * r[lag:]).mean() for r in frames]).mean() for lag in LAGS])
        lags.append(together / torch.cat(frames).square().mean())
    times = stft.hop / stft.sample_rate * torch.tensor(LAGS, dtype=torch.float64)
    memory = _least(lambda p: torch.exp(-times / p[0]) - torch.stack(lags).mean(0), [0.1])[0]
    return Departure(_wander(places, shared), _wander(places, alone), memory)


def _wander(places: list[Tensor], covariances: list[Tensor]) -> Wander:
    def off(p: list[float]) -> Tensor:
        return torch.cat([(Wander(*p).covariance(d) - c).flatten() for d, c in zip(places, covariances, strict=True)])

    return Wander(*_least(off, [2.0, 3.0]))


def _least(off: Callable[[list[float]], Tensor], start: list[float]) -> list[float]:
    """Parameters at which the squares of what is off are least."""
    return [float(p) for p in least_squares(lambda p: off(p).double().numpy(), start).x]


def main() -> None:
    """Measure, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speech", type=Path, nargs="+", help="the folders of the training")
    parser.add_argument("--cutoffs", type=float, nargs="+", default=[2000.0, 3000.0, 4000.0, 5500.0], help="Hz")
    parser.add_argument("--prior", default="vae", help="a shipped prior, or a weights file")
    parser.add_argument("--seed", type=int, default=0, help="of the training, and of the draws")
    args = parser.parse_args()
    prior, (_, files) = VAESpeech.pretrained(args.prior), split_recordings(audio.find(args.speech), seed=args.seed)
    recordings = []
    for cutoff in args.cutoffs:
        waves = [torch.from_numpy(audio.read_mono(file, 16_000)[: SECONDS * 16_000]) for file in files]
        recordings.append([left(wave, cutoff, prior, args.seed) for wave in waves if wave.any()])
        print(f"{cutoff:g} Hz: {len(recordings[-1])} recordings; so far {fitted(recordings, stft_of(prior))}", flush=True)


if __name__ == "__main__":
    main()
