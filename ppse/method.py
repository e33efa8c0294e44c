"""What an inference method is: how the latents are drawn, for how long, and what of it is averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pyro.distributions import Distribution
from torch import Tensor

from .guides import EncoderGuide, starting_guide
from .infer import EStep
from .mixture import Mixture
from .models import SwitchingSpeech
from .models.dynamical import DynamicalVAE
from .priors import Graph
from .switching import complete


class Problem(NamedTuple):
    """One inference problem: a model that has been started on the mixture x, and where to start the latents.

    ``graph`` is what to infer: the model, or, when parameters have priors, the model lifted; ``found`` are draws of the latents that
    an earlier method left, by site, empty when there was none.
    """

    model: Mixture
    graph: Graph
    x: Tensor
    observed: Tensor | None
    guide: EncoderGuide | None
    found: dict[str, Tensor]

    @property
    def args(self) -> tuple[Tensor, Tensor | None]:
        """Arguments of the model and of the guide."""
        return self.x, self.observed


@dataclass(frozen=True)
class Method:
    """An EM method. Make one with the functions of :mod:`ppse.methods`, or from an E-step of your own.

    Attributes:
        name: for tables and result files.
        e_step: problem → E-step.
        guide: model → the guide whose mean the latents start at, or None to start at the prior.
        iterations: of EM.
        average: in how many of the last iterations the posterior of the sources is averaged.
        tolerance: of the convergence stop (:func:`ppse.infer.em`), after which the last ``average`` iterations follow
            at once; 0 for none.
        open_steps: gradient steps per M-step for sources without a closed form.
        starts: how many times the parameters of the recording are started and fitted, side by side. EM ends in one of many
            modes; the posterior is averaged over them.
        priors: model, x, observed → priors of parameters by site name (:func:`ppse.with_priors`). These parameters then are latents
            too, and nothing is fitted any more; None fits them all.
        before: a method that runs first. It leaves its parameters, and its last draws as ``Problem.found``; its ``starts`` is not used.
        tied: what runs in its place where a source is a dynamical VAE, or switches: these tie the frames, no single one can be accepted by itself.
        discrete: whether it draws the regimes of a source that switches itself. Others run on the graph with these summed out.

    Raises:
        ValueError: when a number is out of its range.
    """

    name: str
    e_step: Callable[[Problem], EStep]
    guide: Callable[[Mixture], EncoderGuide | None] = starting_guide
    iterations: int = 100
    average: int = 30
    tolerance: float = 0.0
    open_steps: int = 5
    starts: int = 1
    priors: Callable[[Mixture, Tensor, Tensor | None], Mapping[str, Distribution]] | None = None
    before: Method | None = None
    tied: Method | None = None
    discrete: bool = False

    def __post_init__(self) -> None:
        for name in ("iterations", "average", "open_steps", "starts"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{self.name}: {name}={getattr(self, name)!r}; expected a whole number")
        if self.iterations < 1:
            raise ValueError(f"{self.name}: iterations={self.iterations}; expected 1 or more")
        if not 1 <= self.average <= self.iterations:
            raise ValueError(
                f"{self.name}: average={self.average} with iterations={self.iterations}; expected 1 <= average <= iterations: "
                f"the posterior is averaged over the last iterations, so set average too, or run more iterations"
            )
        if not self.tolerance >= 0 or self.open_steps < 1 or self.starts < 1:
            found = f"tolerance={self.tolerance}, open_steps={self.open_steps}, starts={self.starts}"
            raise ValueError(f"{self.name}: {found}; expected 0 or more, 1 or more, 1 or more")

    def suited(self, model: Mixture) -> Method:
        """The one to run on the model: itself, or ``tied`` where a source is a dynamical VAE, or switches; and what runs before it likewise."""
        switches = any(isinstance(module, SwitchingSpeech) for module in model.modules())
        tied = any(isinstance(module, DynamicalVAE) for module in model.modules()) or (switches and not self.discrete)
        chosen = self.tied if self.tied and tied else self
        if switches and not chosen.discrete:
            chosen = replace(chosen, e_step=complete(chosen.e_step), discrete=True)
        return replace(chosen, before=chosen.before.suited(model)) if chosen.before else chosen

    @property
    def all_iterations(self) -> int:
        """Those of the methods that run before, too."""
        return self.iterations + (self.before.all_iterations if self.before else 0)
