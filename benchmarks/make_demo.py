"""Make the bundled demo recording: synthesised speech, and noise drawn here; nobody's recording is used.

    python benchmarks/make_demo.py        (needs Flite on the path, e.g. apt-get install flite)

Writes ppse/data/demo_clean.flac and demo_noisy.flac, 16 kHz, at 3 dB SNR. The noise is a fan (filtered noise with the lines of a
rotor) whose level breathes, with a few passing gusts. Seeded; made with Flite 2.2 and its voice "awb", whose speech is less
mechanical than that of formant synthesis and hence nearer to what a prior of natural speech knows.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import scipy.signal

from ppse import audio

RATE, SNR = 16_000, 3.0
TEXT = "The graph says how the recording came about. Inference asks what the talker must have said."


def speech() -> np.ndarray:
    """The sentence, with a short pause at both ends, (N,)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["flite", "-voice", "awb", "-t", TEXT, "-o", str(path)], check=True)
        wave = audio.read_mono(path, RATE)
    return np.pad(wave, RATE // 3)


def noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """A fan with rotor lines, and gusts, (length,)."""
    time = np.arange(length) / RATE
    hiss = scipy.signal.lfilter([1.0], [1.0, -0.92], rng.standard_normal(length))
    breathing = 1 + 0.4 * np.sin(2 * np.pi * 0.6 * time + rng.uniform(0, 6))
    rotor = sum(np.sin(2 * np.pi * 93.0 * k * time + rng.uniform(0, 6)) / k for k in range(1, 12))
    band = scipy.signal.butter(2, [700, 3000], "bandpass", fs=RATE, output="sos")
    gusts = scipy.signal.sosfilt(band, rng.standard_normal(length))
    envelope = sum(np.exp(-0.5 * ((time - centre) / 0.25) ** 2) for centre in rng.uniform(0, time[-1], 3))
    return hiss * breathing + 0.8 * rotor + 1.5 * gusts * envelope


def main() -> None:
    """Write both files."""
    clean = speech()
    drawn = noise(clean.size, np.random.default_rng(0))
    drawn *= np.sqrt(np.mean(clean**2) / np.mean(drawn**2) * 10 ** (-SNR / 10))
    scale = 0.7 / np.abs(clean + drawn).max()
    folder = Path(__file__).resolve().parents[1] / "ppse" / "data"
    for name, wave in (("demo_clean", clean), ("demo_noisy", clean + drawn)):
        audio.write(folder / f"{name}.flac", (scale * wave).astype(np.float32), RATE, subtype="PCM_16")


if __name__ == "__main__":
    main()
