"""Where the noise starts: at the power that the noisy encoder hears, so that speech cannot take its place at first."""

from __future__ import annotations

import pyro.poutine as poutine
import torch
from torch import Tensor

from .guides import EncoderGuide
from .mixture import VARIANCE_FLOOR, Mixture, Updatable


def fit_noise(model: Mixture, guide: EncoderGuide, x: Tensor, observed: Tensor | None = None, steps: int = 25) -> None:
    """Fit the noise sources that have a closed-form M-step, together, to the noise that the guide hears. Changes the sources.

    Noise without a closed form keeps the start that it has: what it will explain is not known yet.

    Args:
        model: started on x. Its sources without a site in the guide are noise.
        guide: does nothing unless it hears noise (:meth:`EncoderGuide.noise`).
        x, observed: as in :meth:`Mixture.forward`.
        steps: M-steps.
    """
    with torch.no_grad():
        power = guide.noise(x, observed)
        speech = {site.split(".")[0] for site in guide.sites}
        noises = {name: source for name, source in model.sources.items() if name not in speech and isinstance(source, Updatable)}
        if power is None or not noises:
            return
        with poutine.block():
            laws = model(x, observed)
        own = {name: laws[name].var for name in noises}
        for _ in range(steps):
            for name, source in noises.items():
                others = sum((var for other, var in own.items() if other != name), torch.full_like(power, VARIANCE_FLOOR))
                own[name] = source.update(power, own[name], others, observed)
