"""Generative models of speech and noise: each a source, ``(frames) -> ComplexNormal``."""

from .alpha_stable import AlphaStable
from .autoregressive import ARNoise, Autoregressive, AutoregressiveVAESpeech
from .av_vae import AVVAESpeech
from .code_prior import CodeChain, CodePrior, LinearChain
from .dkf import DKFSpeech
from .dsae import DSAESpeech
from .gain import FrameGain
from .gamma_chain import GammaChain, SmoothNMFNoise
from .harmonic import HarmonicSpeech
from .heard import HeardNoise
from .heard_speech import HeardSpeech
from .heavy_tailed import HeavyTailed
from .markov_chain import MarkovChain
from .nmf import NMFNoise, learn_dictionary
from .nmf_speech import NMFSpeech
from .partially_observed import PartiallyObserved
from .rvae import RVAESpeech
from .silence import KnownSilence
from .srnn import SRNNSpeech
from .stationary import StationaryNoise
from .storn import STORNSpeech
from .switching import MixtureSpeech, SwitchingSpeech
from .vae import VAESpeech
from .vrnn import VRNNSpeech

__all__ = [
    "ARNoise", "AVVAESpeech", "AlphaStable", "Autoregressive", "AutoregressiveVAESpeech", "CodeChain", "CodePrior", "DKFSpeech", "DSAESpeech",
    "FrameGain", "GammaChain", "HarmonicSpeech", "HeardNoise", "HeardSpeech", "HeavyTailed", "KnownSilence", "LinearChain", "MarkovChain",
    "MixtureSpeech", "NMFNoise", "NMFSpeech", "PartiallyObserved", "RVAESpeech", "SRNNSpeech", "STORNSpeech", "SmoothNMFNoise", "StationaryNoise",
    "SwitchingSpeech", "VAESpeech", "VRNNSpeech", "learn_dictionary",
]
