"""Generative models of speech and noise: each a source, ``(frames) -> ComplexNormal``."""

from .gain import FrameGain
from .nmf import NMFNoise, learn_dictionary
from .stationary import StationaryNoise
from .vae import VAESpeech

__all__ = ["FrameGain", "NMFNoise", "StationaryNoise", "VAESpeech", "learn_dictionary"]
