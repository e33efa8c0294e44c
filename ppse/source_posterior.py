"""The posterior of the sources, gathered over the iterations of a run: moments, and joint draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .distributions import ComplexNormal, power_of
from .mixture import draw_sources, gains, over_draws, posterior


class Moments:
    """Running mean and variance of the sources over draws, by the law of total variance.

    E[s] is the mean of the means per draw; Var[s] the mean of the variances plus the variance of the means.
    """

    def __init__(self) -> None:
        self._count = 0
        self._unit: Tensor | None = None  # of the means: these are gains of the mixture, where they have one
        self._sums: dict[str, list[Tensor]] = {}

    def add(self, laws: Mapping[str, ComplexNormal]) -> None:
        """Note the posterior laws of all sources under some draws; a dim of draws before (T, F) is averaged out."""
        self._note({name: (law.loc, law.var) for name, law in laws.items()}, None)

    def add_given(self, laws: Mapping[str, ComplexNormal], x: Tensor) -> None:
        """Note the posterior of all sources given the mixture x, from their laws under some draws of the latents; draws as above.

        Where no source has a mean, every estimate is x times a real gain, and what is noted are the gains: half of the passes.
        """
        if not all(law.centred for law in laws.values()):
            return self.add(posterior(laws, x))
        self._note(gains(laws), x)

    def _note(self, moments: Mapping[str, tuple[Tensor, Tensor]], unit: Tensor | None) -> None:
        if self._count and self._unit is not unit:
            raise ValueError("Moments: estimates and gains of a mixture, or of two mixtures, have no common mean; use one Moments for each")
        self._count, self._unit = self._count + 1, unit
        for name, (mean, var) in moments.items():
            now = [over_draws(value) for value in (mean, power_of(mean), var)]
            before = self._sums.get(name)
            self._sums[name] = now if before is None else [b + a for a, b in zip(now, before, strict=True)]

    def laws(self) -> dict[str, ComplexNormal]:
        """The posterior of every source, (T, F) or (B, 1, T, F).

        Raises:
            ValueError: when nothing was added.
        """
        if not self._count:
            raise ValueError("Moments: no law was added, so there is nothing to average; call add first")
        unit = torch.ones(()) if self._unit is None else self._unit
        result = {}
        for name, sums in self._sums.items():
            mean, square, var = (s / self._count for s in sums)
            result[name] = ComplexNormal(mean * unit, var + (square - power_of(mean)).clamp_min(0) * power_of(unit))
        return result


def averaged(laws: Sequence[dict[str, ComplexNormal]]) -> dict[str, ComplexNormal]:
    """The mixture of several posteriors of the same sources, each as likely as any other: its mean and variance, (T, F) or (B, 1, T, F)."""
    if len(laws) == 1:
        return laws[0]
    moments = Moments()
    for each in laws:
        moments.add(each)
    return moments.laws()


def in_turn(drawn: Sequence[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """So many draws of that mixture, by source (count, …), from draws of its parts: one of each in turn."""
    return {name: torch.stack([drawn[n % len(drawn)][name][n // len(drawn)] for n in range(count)]) for name in drawn[0]} if count else {}


class SourceDraws:
    """Draws from the joint posterior of the sources, taken evenly from the iterations, chains and starts of a run.

    Args:
        count: how many in all.
        iterations: of the run.
        starts: the draws go round them, one each.
    """

    def __init__(self, count: int, iterations: int, starts: int) -> None:
        # The nth draw belongs to the iteration in which the nth of as many equal parts of the run ends.
        self._due = [-(-(n + 1) * iterations // count) - 1 for n in range(count)]
        self._starts, self._iteration = starts, 0
        self._drawn: dict[str, list[Tensor]] = {}

    def add(self, laws: dict[str, ComplexNormal], x: Tensor) -> None:
        """Take the draws that are due in the next iteration, given its laws (…, T, F).

        Random, but the global generator stays as it was, so that asking for draws does not change what is estimated.
        """
        due = [number for number, iteration in enumerate(self._due) if iteration == self._iteration]
        self._iteration += 1
        if due:
            with torch.random.fork_rng():
                torch.manual_seed(int(torch.randint(2**63 - 1, ())))  # else these and the next E-step would share their random numbers
                for number in due:
                    self._take(number, draw_sources(laws, x))

    def _take(self, number: int, drawn: dict[str, Tensor]) -> None:
        """Keep the chain and the start whose turn it is."""
        for name, value in drawn.items():
            whole = value if value.dim() > 2 else value[None]
            one = whole.select(-3, number // self._starts % whole.shape[-3])
            if self._starts > 1:
                one = one.unflatten(0, (-1, self._starts))[:, number % self._starts]
            self._drawn.setdefault(name, []).append(one)

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """By source, (count, T, F) or (count, B, 1, T, F), as x is; empty when none was asked for."""
        return {name: torch.stack(drawn).reshape(-1, *x.shape) for name, drawn in self._drawn.items()}
