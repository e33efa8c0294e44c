"""The posterior of the sources, gathered over the iterations of a run: moments, and joint draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .distributions import ComplexNormal, power_of
from .mixture import draw_sources


class Moments:
    """Running mean and variance of the sources over draws, by the law of total variance.

    E[s] is the mean of the means per draw; Var[s] the mean of the variances plus the variance of the means.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def add(self, laws: dict[str, ComplexNormal]) -> None:
        """Note the posterior laws of all sources under some draws; a dim of draws before (T, F) is averaged out."""
        self._count += 1
        for name, law in laws.items():
            terms = law.loc, power_of(law.loc), law.var
            averaged = [t.mean(-3, keepdim=t.dim() > 3) if t.dim() > 2 else t for t in terms]
            before = self._sums.get(name)
            now = averaged if before is None else [b + a for a, b in zip(averaged, before, strict=True)]
            self._sums[name] = (now[0], now[1], now[2])

    def laws(self) -> dict[str, ComplexNormal]:
        """The posterior of every source, (T, F) or (B, 1, T, F).

        Raises:
            ValueError: when nothing was added.
        """
        if not self._count:
            raise ValueError("Moments: no law was added, so there is nothing to average; call add first")
        result = {}
        for name, sums in self._sums.items():
            loc, square, var = (s / self._count for s in sums)
            result[name] = ComplexNormal(loc, var + (square - power_of(loc)).clamp_min(0))
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
