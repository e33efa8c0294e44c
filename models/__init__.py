"""Generative models of speech and noise: each a source, ``(frames) -> ComplexNormal``."""

from .autoregressive import ARNoise, Autoregressive, AutoregressiveVAESpeech
from .gain import FrameGain
from .heavy_tailed import HeavyTailed
from .nmf import NMFNoise, learn_dictionary
from .nmf_speech import NMFSpeech
from .stationary import StationaryNoise
from .vae import VAESpeech

__all__ = [
    "ARNoise", "Autoregressive", "AutoregressiveVAESpeech", "FrameGain", "HeavyTailed", "NMFNoise", "NMFSpeech", "StationaryNoise", "VAESpeech",
    "learn_dictionary",
]
