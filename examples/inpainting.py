"""Lost stretches of speech, filled from what is around them: mean, draws, and how sure they are.

    python examples/inpainting.py [--wav speech.wav --out .]

Packets of 60 ms are cut out of clean speech, the bundled recording unless another is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from ppse import STFT, audio, demo
from ppse.inpainting import default_method, inpaint


def distance(truth: np.ndarray, estimate: np.ndarray, gaps: list[tuple[float, float]], rate: int) -> float:
    """Log-spectral distance (dB) in the frames whose centre lies in a gap."""
    stft = STFT()
    levels = [20 * (stft.analysis(torch.from_numpy(audio.resample(w, rate, stft.sample_rate))).abs() + 1e-5).log10() for w in (truth, estimate)]
    centres = stft.centres(len(levels[0]))
    inside = np.any([(centres >= start) & (centres < end) for start, end in gaps], axis=0)
    return float((levels[0] - levels[1])[inside].square().mean(-1).sqrt().mean())


def main(args: argparse.Namespace) -> None:
    """Cut out, fill in, compare."""
    samples, rate = audio.read(args.wav or demo.CLEAN)
    samples = samples[:1, : round(args.seconds * rate)]
    gaps = [(start, start + 0.06) for start in np.arange(0.5, samples.shape[1] / rate - 0.3, 0.5)]
    lost = samples.copy()
    for start, end in gaps:
        lost[:, round(start * rate) : round(end * rate)] = 0

    result = inpaint(lost, gaps, method=default_method(args.iterations), sample_rate=rate, draws=args.draws)

    print(f"{len(gaps)} gaps of 60 ms; log-spectral distance in them:")
    for name, wave in {"silence": lost, "mean": result.estimate, "a draw": result.draws[0]}.items():
        print(f"  {name}: {distance(samples[0], wave[0], gaps, rate):.1f} dB")
    deviation = result.deviation()[0]
    for start, end in gaps[:3]:
        inside = deviation[round(start * rate) : round(end * rate)]
        thirds = ", ".join(f"{third.mean():.4f}" for third in np.array_split(inside, 3))
        print(f"gap at {start:.1f} s: standard deviation of a sample {thirds} (first, middle, last third)")
    if args.out:
        result.save(args.out / "mean.wav")
        result.save(args.out / "draw.wav", draw=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wav", type=Path, help="clean speech")
    parser.add_argument("--seconds", type=float, default=3.0, help="how much of it")
    parser.add_argument("--out", type=Path, help="folder for the mean and a draw")
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--draws", type=int, default=10)
    main(parser.parse_args())
