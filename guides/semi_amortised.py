"""The semi-amortised family: the encoder says where to start, and the recording has the last word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.nn import PyroModule

from .encoder import EncoderGuide
from .mean_field import mean_field
from .sites import Start


def semi_amortised(
    model: Callable[..., Any], encoder: EncoderGuide, *args: Any, family: Callable[..., PyroModule] = mean_field,
    start: Start | None = None, **settings: Any,
) -> PyroModule:
    """A guide of this recording that starts at the law that an encoder gives, with parameters of its own to be refined by :func:`ppse.infer.fit`.

    No network is in it, so the encoder never changes, and a step costs no pass through it.

    Args:
        model, args: the model, and what it and the encoder are called with.
        encoder: e.g. :func:`ppse.guides.starting_guide` of the model.
        family: ``mean_field`` (the law of the encoder itself), ``per_frame``, ``low_rank`` or ``flow``.
        start: of latents that the encoder does not know, or instead of what it says.
        settings: of the family.

    Raises:
        ValueError: as the family.

    References:
        Kim, Wiseman, Miller, Sontag & Rush (2018), Semi-amortized variational autoencoders.
    """
    with torch.no_grad(), poutine.block():
        laws = encoder.laws(*args)
    return family(model, *args, start={**laws, **(start or {})}, **settings)
