"""Variational guides: each has the signature of the model that it matches."""

from .encoder import EncoderGuide, clean_guide, starting_guide

__all__ = ["EncoderGuide", "clean_guide", "starting_guide"]
