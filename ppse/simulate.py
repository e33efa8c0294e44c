"""Noise that nobody recorded: draws from a broad NMF prior, to train encoders that know noise.

No noise recordings are used. Each draw has a few spectral patterns (a slope, smooth bumps, sometimes the
harmonics of a rotor, sometimes a narrow band), each switched and modulated in time, or it is a crowd: other talkers of the
clean training speech, added up, with or without such noise around them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .corpus import Waves
from .stft import STFT


def noise(speech: Waves, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """``count`` independent noise recordings, STFT (count, frames, F) complex, of mean power one. Random from ``generator``."""
    stft = speech.stft
    drawn = stationary_carrier(stft, count, frames, generator) * nmf_variance(stft, count, frames, generator).sqrt()
    crowds = torch.rand(count, generator=generator) < 0.2
    if crowds.any():
        share = torch.rand(int(crowds.sum()), 1, 1, generator=generator)  # of the amplitude that is not the crowd; none in every other
        share = (2 * share - 1).clamp_min(0)
        drawn[crowds] = share * unit_power(drawn[crowds]) + (1 - share) * unit_power(crowd(speech, len(share), frames, generator))
    return unit_power(drawn)


def unit_power(x: Tensor, floor: float = 1e-12) -> Tensor:
    """STFTs (…, T, F), each scaled to mean power one; to less, where its power is below the floor."""
    return x / x.abs().square().mean((-2, -1), keepdim=True).clamp_min(floor).sqrt()


def stationary_carrier(stft: STFT, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """STFT of white noise of unit power: neighbouring frames overlap, so they are correlated as in a recording."""
    samples = (frames - 1) * stft.hop + stft.n_fft
    wave = torch.randn(count, samples, generator=generator) * math.sqrt(stft.n_fft / stft.hop)
    return torch.fft.rfft(wave.unfold(-1, stft.n_fft, stft.hop) * stft.window(wave), norm="ortho")


def nmf_variance(stft: STFT, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """W H of the prior, (count, frames, F): one to five patterns, of which some come and go."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    n_freqs, k = stft.n_freqs, 5
    octave = torch.log2(torch.arange(1, n_freqs + 1) / n_freqs) / math.log2(n_freqs)  # -1 at 0 Hz to 0 at Nyquist
    slope = uniform(-1.0, 9.0, count, k, 1) * -octave * 1.0  # up to 80 dB from top to bottom
    # Smooth bumps: random cosines in log frequency and in frequency.
    linear = torch.linspace(0, 1, n_freqs)
    bumps = torch.zeros(count, k, n_freqs)
    for order in range(1, 8):
        size = uniform(-1.5, 1.5, count, k, 2) / math.sqrt(order)
        phase = uniform(0, 2 * math.pi, count, k, 2)
        bumps += size[..., :1] * torch.cos(math.pi * order * octave + phase[..., :1])
        bumps += size[..., 1:] * torch.cos(math.pi * order * linear + phase[..., 1:])
    # Lines of a rotating machine (one pattern in six), and a narrow band such as a siren or a hiss (one in six).
    kind = uniform(0, 1, count, k, 1)
    pitch = uniform(25, 500, count, k, 1) / stft.sample_rate * stft.n_fft
    comb = torch.exp(-0.5 * ((torch.arange(n_freqs) / pitch + 0.5) % 1 - 0.5).square() * pitch.square() / 0.6)
    lines = torch.log(comb + 10 ** uniform(-3.0, -1.0, count, k, 1))
    centre, width = uniform(0, 1, count, k, 1), uniform(0.01, 0.2, count, k, 1)
    band = -0.5 * ((linear - centre) / width).square().clamp_max(20)
    log_w = slope + bumps + torch.where(kind < 1 / 6, lines, torch.zeros(1)) + torch.where(kind > 5 / 6, band, torch.zeros(1))
    w = torch.exp(log_w - log_w.logsumexp(-1, keepdim=True))
    # Activations: a log-level that wanders at a speed of its own, and bursts in some patterns.
    decay = torch.exp(-1 / torch.exp(uniform(0, 6, count, k)))
    depth = uniform(0, 1.5, count, k) * (uniform(0, 1, count, k) < 0.7)
    wander = torch.empty(frames, count, k)
    state = torch.randn(count, k, generator=generator)
    for t in range(frames):
        wander[t] = state
        state = decay * state + (1 - decay.square()).sqrt() * torch.randn(count, k, generator=generator)
    log_h = depth * wander
    bursty = uniform(0, 1, count, k) < 0.3
    envelope = torch.where(bursty, 4.0 * torch.where(wander > 0.8, 0.0, -1.0), torch.zeros(1))
    share = torch.log(uniform(0.001, 1, count, k)) * 1.5 - 30 * (uniform(0, 1, count, k) < 0.4)
    share[:, 0] = 0
    h = torch.exp((log_h + envelope).permute(1, 0, 2) + share.unsqueeze(1))
    return h @ w


def crowd(speech: Waves, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """Four to twelve other talkers at random levels, added up: (count, frames, F)."""
    talkers = speech.segments(12 * count, frames, generator).reshape(count, 12, frames, -1)
    on = torch.arange(12) < torch.randint(4, 13, (count, 1), generator=generator)
    gain = torch.exp(0.4 * torch.randn(count, 12, generator=generator)) * on
    return (talkers * gain[..., None, None]).sum(1)
