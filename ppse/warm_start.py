"""Where the noise starts: at the power that the noisy encoder hears, so that speech cannot take its place at first."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import pyro.poutine as poutine
import torch
from torch import Tensor

from .mixture import Mixture, Updatable

if TYPE_CHECKING:
    from .method import Problem


def hear(problem: Problem) -> dict[str, tuple[Tensor, Tensor]]:
    """Start the noise at what the noisy encoder hears of it; mean and standard deviation of the latents that it proposes, by site."""
    if problem.guide is None:
        return {}
    with torch.no_grad():
        laws, noise = problem.guide.listen(*problem.args)
    if noise is not None:
        fit_noise(problem.model, noise, {site.split(".")[0] for site in laws}, problem.observed)
    return laws


def fit_noise(model: Mixture, power: Tensor, speech: Collection[str], observed: Tensor | None = None, steps: int = 25) -> None:
    """Fit the noise sources that have a closed-form M-step, together, to a power of the noise. Changes the sources.

    Noise without a closed form keeps the start that it has: what it will explain is not known yet.

    Args:
        model: started on a recording.
        power: of all noise in it, (…, T, F); see :meth:`ppse.guides.EncoderGuide.listen`.
        speech: names of the sources that are not noise.
        observed: as in :meth:`Mixture.forward`.
        steps: M-steps. More of them fit what the encoder hears, which is not the noise itself, and do no good (docs/costs.md).
    """
    noises = [name for name, source in model.sources.items() if name not in speech and isinstance(source, Updatable)]
    if not noises:
        return
    with torch.no_grad():
        x = power.sqrt().to(power.dtype.to_complex())
        with poutine.block():
            laws = model(x, observed)
        heard = {name: laws[name] for name in noises}
        for _ in range(steps):
            heard = model.update(x, heard, observed)
