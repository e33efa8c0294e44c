"""Enhancers to compare with, all at 16 kHz, aligned with their input, of its length and level. Needs the extra ``bench``.

What a causal enhancer delays was measured once, by the peak of SI-SDR over all shifts on mixtures, and is taken back here.
``python benchmarks/baselines.py NOISY CLEAN`` measures it again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import noisereduce
import numpy as np
import torch
from numpy.typing import NDArray
from pyrnnoise.rnnoise import FRAME_SIZE, SAMPLE_RATE, create, destroy, process_mono_frame
from webrtc_noise_gain import AudioProcessor

from ppse import STFT, audio, metrics

Wave = NDArray[np.float32]
RATE = 16_000
RNNOISE_DELAY = 960
"""Samples at 48 kHz: a frame of overlap and a frame of look-ahead."""
WEBRTC_DELAY = 96
"""Samples at 16 kHz: the overlap of its 256-sample frames with the 160 new ones."""


def noisereduce_stationary(noisy: Wave) -> Wave:
    """Spectral gating by one threshold per frequency, noisereduce's ``stationary=True``."""
    return noisereduce.reduce_noise(noisy, RATE, stationary=True).astype(np.float32)


def noisereduce_nonstationary(noisy: Wave) -> Wave:
    """Spectral gating by a threshold that follows the level, noisereduce's default."""
    return noisereduce.reduce_noise(noisy, RATE).astype(np.float32)


def rnnoise(noisy: Wave) -> Wave:
    """RNNoise by pyrnnoise, at 48 kHz (Valin 2018, with the network that the package ships)."""
    pcm, scale = _pcm(audio.resample(noisy, RATE, SAMPLE_RATE), FRAME_SIZE, RNNOISE_DELAY)
    state = create()
    try:
        frames = [process_mono_frame(state, frame)[0] for frame in pcm]
    finally:
        destroy(state)
    output = _wave(frames, scale)[RNNOISE_DELAY:]
    return audio.resample(output, SAMPLE_RATE, RATE)[: noisy.size]


def webrtc(noisy: Wave) -> Wave:
    """WebRTC noise suppression at its highest level, without gain control. Its high-pass filter cannot be turned off."""
    pcm, scale = _pcm(noisy, RATE // 100, WEBRTC_DELAY)
    processor = AudioProcessor(0, 4)
    frames = [np.frombuffer(processor.Process10ms(frame.tobytes()).audio, np.int16) for frame in pcm]
    return _wave(frames, scale)[WEBRTC_DELAY:][: noisy.size]


def oracle_wiener(clean: Wave, noise: Wave) -> Wave:
    """Wiener filter with the true powers of clean speech and noise per STFT bin: the bound of what a variance model can reach."""
    stft = STFT()
    s, n = (stft.analysis(torch.from_numpy(wave)) for wave in (clean, noise))
    power_s, power_n = s.abs().square(), n.abs().square()
    gain = power_s / (power_s + power_n).clamp_min(torch.finfo(torch.float32).tiny)
    return stft.synthesis(gain * (s + n), clean.size).numpy()


def _pcm(wave: Wave, frame: int, delay: int) -> tuple[NDArray[np.int16], float]:
    """16-bit frames (count, frame) with zeros after the end for the delay, and the scale that was needed not to clip."""
    scale = max(1.0, float(np.abs(wave).max()) / 0.9)
    count = -(-(wave.size + delay) // frame)
    padded = np.pad(wave / scale, (0, count * frame - wave.size))
    return np.round(padded * 32767).astype(np.int16).reshape(count, frame), scale


def _wave(frames: list[NDArray[np.int16]], scale: float) -> Wave:
    return (np.concatenate(frames) * (scale / 32767)).astype(np.float32)


def residual_delay(enhancer: Callable[[Wave], Wave], noisy: Wave, clean: Wave, reach: int = 40) -> tuple[int, float]:
    """Shift in samples that an enhancer still has (0 when its delay is taken back rightly), and the SI-SDR there."""
    estimate = enhancer(noisy)
    inner = slice(reach, clean.size - reach)
    scores = {d: metrics.si_sdr(clean[inner], np.roll(estimate, -d)[inner]) for d in range(-reach, reach + 1)}
    best = max(scores, key=lambda d: scores[d])
    return best, scores[best]


def main() -> None:
    """Print the residual delay of every causal baseline on one mixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("noisy")
    parser.add_argument("clean")
    args = parser.parse_args()
    noisy, clean = audio.read_mono(args.noisy), audio.read_mono(args.clean)
    for enhancer in (rnnoise, webrtc, noisereduce_stationary, noisereduce_nonstationary):
        shift, best = residual_delay(enhancer, noisy, clean)
        print(f"{enhancer.__name__}: best at a shift of {shift} samples ({best:.2f} dB; {metrics.si_sdr(clean, enhancer(noisy)):.2f} dB at 0)")


if __name__ == "__main__":
    main()
