"""Variational guides: each has the signature of the model that it matches."""

from .encoder import EncoderGuide, clean_guide, starting_guide
from .encoder_mixture import EncoderMixture
from .flow import flow
from .low_rank import low_rank
from .mean_field import mean_field
from .per_frame import per_frame
from .semi_amortised import semi_amortised

__all__ = ["EncoderGuide", "EncoderMixture", "clean_guide", "flow", "low_rank", "mean_field", "per_frame", "semi_amortised", "starting_guide"]
