"""Not one answer but many: speech drawn from the posterior, to be listened to, and where in time the draws disagree.

    python examples/listen_to_draws.py --out FOLDER              # the bundled recording
    python examples/listen_to_draws.py --out FOLDER --wav FILE   # yours
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import ppse
from ppse import audio, demo, methods, metrics


def main(args: argparse.Namespace) -> None:
    """Enhance, write the mean and the draws, and print what a draw is worth."""
    result = ppse.enhance(args.wav or demo.NOISY, method=methods.hmc_em(args.iterations), draws=args.draws)
    mean, draws = result.estimates["speech"][0], result.draws["speech"][:, 0]  # (N,), (draws, N)

    # The mean is the best guess in the least-squares sense, and too quiet where the posterior is wide; a draw has the level of speech.
    print(f"level: mean {_decibel(mean):.1f} dB, draws {', '.join(f'{_decibel(draw):.1f}' for draw in draws)} dB")
    gap = np.abs(draws.mean(0) - mean).max() / np.abs(mean).max()
    print(f"the mean of {len(draws)} draws is within {gap:.0%} of the posterior mean, relative to its peak")
    if args.wav is None:
        clean = audio.read_mono(demo.CLEAN)
        scores = [metrics.si_sdr(clean, wave) for wave in draws]
        print(f"SI-SDR: mean {metrics.si_sdr(clean, mean):.1f} dB, a draw {np.mean(scores):.1f} dB")

    deviation = result.deviation()[0]
    blocks = deviation[: len(deviation) // 8000 * 8000].reshape(-1, 8000)  # half seconds of 16 kHz
    print("deviation (dB) per half second: " + " ".join(f"{_decibel(block):.0f}" for block in blocks))

    if args.out:
        for name, wave in ({"mean": mean} | {f"draw{i}": draw for i, draw in enumerate(draws)}).items():
            audio.write(Path(args.out) / f"{name}.wav", wave[None], result.sample_rate)
        print(f"sound in {args.out}: mean.wav, draw0.wav to draw{len(draws) - 1}.wav")


def _decibel(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(wave**2) + 1e-12))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", help="noisy recording")
    parser.add_argument("--out", help="folder for the sound files")
    parser.add_argument("--draws", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=60)
    main(parser.parse_args())
