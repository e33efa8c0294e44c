"""Whether draws can be relied on, said in plain words. ArviZ is imported when it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from arviz import InferenceData

MAX_RHAT = 1.01
"""Largest R-hat of chains that agree (Vehtari et al. 2021)."""

MIN_ESS = 400.0
"""Smallest effective sample size, bulk and tail, at which R-hat and quantiles can be relied on (Vehtari et al. 2021)."""

MAX_FAILING = 0.05
"""Share of frames that may miss the two limits above: of hundreds of frames with tens of latents each, some do by chance."""

MIN_ACCEPTANCE = 0.1
"""Frames that accept less than this hardly move."""


@dataclass(frozen=True)
class Verdict:
    """What :func:`verdict` found.

    Attributes:
        passed: whether the draws can be relied on.
        lines: why, in plain words; ``str(verdict)`` joins them.
        failing_frames: numbers of the frames whose R-hat or effective sample size misses the limit.
    """

    passed: bool
    lines: tuple[str, ...]
    failing_frames: tuple[int, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def verdict(idata: InferenceData) -> Verdict:
    """Judge draws: R-hat and effective sample sizes of all sites, acceptance, divergences, and where in time frames fail.

    A pass says that the chains agree with one another and are long enough, not that the model is right.

    Args:
        idata: from :func:`ppse.inference_data.to_arviz`, or read back with ``az.from_netcdf``.

    References:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat.
    """
    posterior, stats = idata["posterior"], idata["sample_stats"]
    chains, n_draws = posterior.sizes["chain"], posterior.sizes["draw"]
    constants: Any = idata.get("constant_data", {})
    time = constants["time"].values if "time" in constants else None
    lines, problems = [f"{chains} chains of {n_draws} draws each."], []
    frames: NDArray[np.bool_] | None = None
    if chains < 2 or n_draws < 4:
        problems.append("too few draws to tell")
        lines.append("R-hat and effective sample sizes need two chains or more, with four draws or more each: run more of them.")
    else:
        for name, (line, bad) in _convergence(posterior).items():
            lines.append(line)
            if "frame" in bad.dims:
                inside = _frames(bad)
                frames = inside if frames is None else frames | inside
            elif bool(bad.any()):
                problems.append(f"{name} has not converged")
    if frames is not None:
        share = frames.mean()
        lines.append(f"{frames.sum()} of {frames.size} frames fail ({share:.1%}){_where(frames, time)}.")
        if share > MAX_FAILING:
            problems.append(f"{share:.1%} of the frames have not converged, more than {MAX_FAILING:.0%}")
    line, complaints = _movement(stats, time)
    lines.append(line)
    problems += complaints
    diverging = stats["diverging"]
    count = int(diverging.sum())
    if count:
        lines.append(
            f"{count} divergent steps ({count / diverging.size:.2%}){_where(_frames(diverging), time) if 'frame' in diverging.dims else ''}: "
            f"the draws may miss what lies behind them; use a smaller step size."
        )
        problems.append(f"{count} steps diverged")
    else:
        lines.append("No divergences.")
    head = "Passed: the chains agree and are long enough." if not problems else f"Not to be relied on: {'; '.join(problems)}."
    failing = () if frames is None else tuple(int(i) for i in np.flatnonzero(frames))
    return Verdict(not problems, (head, *lines), failing)


def _convergence(posterior: Any) -> dict[str, tuple[str, Any]]:
    """Site → what to say of it, and which of its coordinates miss a limit. NaN (chains that stand still) misses it."""
    import arviz as az

    with np.errstate(invalid="ignore", divide="ignore"):  # a coordinate that stands still has no R-hat, and is told below
        rhats, bulks, tails = az.rhat(posterior), az.ess(posterior, method="bulk"), az.ess(posterior, method="tail")
    found = {}
    for name in posterior.data_vars:
        rhat, bulk, tail = rhats[name], bulks[name], tails[name]
        bad = ~((rhat <= MAX_RHAT) & (bulk >= MIN_ESS) & (tail >= MIN_ESS))
        still = int(rhat.isnull().sum())
        sizes = f"{float(bulk.min()):.0f} (bulk) and {float(tail.min()):.0f} (tail)"
        largest = f"up to {float(rhat.max()):.3f}" if still < rhat.size else "undefined"
        line = f"{name}: R-hat {largest}, effective sample size from {sizes}"
        if still:
            line += f"; {still} of {rhat.size} coordinates never move or are not finite"
        if bool(bad.any()):
            line += f"; {float(bad.mean()):.1%} of its coordinates miss R-hat {MAX_RHAT} or {MIN_ESS:.0f} effective draws: run longer"
        found[str(name)] = f"{line}.", bad
    return found


def _frames(flags: Any) -> NDArray[np.bool_]:
    """Of which frames any flag is set."""
    found: NDArray[np.bool_] = flags.any([d for d in flags.dims if d != "frame"]).values
    return found


def _movement(stats: Any, time: NDArray[Any] | None) -> tuple[str, list[str]]:
    """What the acceptance says, and what is wrong with it."""
    acceptance = stats["acceptance_rate"]
    blocks = acceptance.mean(("chain", "draw"))
    mean, low, high = float(blocks.mean()), float(blocks.min()), float(blocks.max())
    line = f"Acceptance {mean:.2f}" + (f" on average, from {low:.2f} to {high:.2f} over frames" if blocks.size > 1 else "")
    if "frame" in blocks.dims:
        stuck = _frames(blocks < MIN_ACCEPTANCE)
        if stuck.any():
            line += f"; {stuck.sum()} frames accept less than {MIN_ACCEPTANCE}{_where(stuck, time)}"
    if mean < MIN_ACCEPTANCE:
        return f"{line}: use a smaller step size.", ["nearly all moves are rejected"]
    if low > 0.99:
        why = "a kernel that accepts every move (langevin, which is biased; slice sampling), or a step size that is far too small"
        return f"{line}: next to nothing was rejected, which means {why}.", []
    return f"{line}.", []


def _where(frames: NDArray[np.bool_], time: NDArray[Any] | None, most: int = 6) -> str:
    """Stretches of the frames that are marked, in seconds or frame numbers: ": at 0.50-0.53 s, 1.20 s"; "" when there are none."""
    marked = np.flatnonzero(frames)
    if not marked.size:
        return ""
    stretches = np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1)
    shown = []
    for stretch in stretches[:most]:
        first, last = (f"{i}" if time is None else f"{time[i]:.2f}" for i in (stretch[0], stretch[-1]))
        shown.append(first if first == last else f"{first} to {last}")
    more = f" and {len(stretches) - most} stretches more" if len(stretches) > most else ""
    return f", at frame {', '.join(shown)}{more}" if time is None else f", at {', '.join(shown)} s{more}"
