"""Whether draws can be relied on, said in plain words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .convergence import Convergence, bfmi, by_group, convergence, max_pareto_k, of_guide, pareto_k

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

MIN_BFMI = 0.3
"""Smallest E-BFMI at which the momentum of a step explores the energies of the target (Betancourt 2016)."""

MAX_DIVERGING = 0.001
"""Share of the steps of a frame (or recording) that may diverge: trajectories of random length over hundreds of frames meet a rare one."""


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


def verdict(idata: InferenceData, found: Convergence | None = None) -> Verdict:
    """Judge draws: R-hat and effective sample sizes of all sites, acceptance, E-BFMI, divergences, and where in time frames fail.

    Draws of a guide are independent of one another. Of them the importance weights tell whether the guide covers the posterior.

    A pass says that the chains agree with one another and are long enough, not that the model is right.

    Args:
        idata: from :func:`ppse.to_arviz`, or read back with :func:`ppse.runs.load_run`.
        found: of :func:`convergence`, when it is there already.

    References:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat.
        Betancourt (2016), Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte Carlo.
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling.
    """
    posterior = idata["posterior"]
    stats: Any = idata.get("sample_stats", {})
    constants: Any = idata.get("constant_data", {})
    time = constants["time"].values if "time" in constants else None
    chains, n_draws = posterior.sizes["chain"], posterior.sizes["draw"]
    lines, problems = [f"{chains} chains of {n_draws} draws each." if chains > 1 else f"One chain of {n_draws} draws."], list[str]()
    if posterior.attrs.get("parameters_moved"):
        lines.append(
            "The parameters of the model moved between these draws (EM), so that they follow no single law: "
            "what follows says how well the latents were explored, not how sure the parameters are. "
            "A mean, as the enhanced sound is, needs far fewer effective draws than an interval."
        )
    if of_guide(idata):
        lines.pop(0)
        passed = "Passed: the guide is close enough to the posterior for importance weights to correct it."
        frames = _judge_guide(stats, time, lines, problems)
    else:
        passed = "Passed: the chains agree and are long enough."
        frames = _judge_chains(found or convergence(idata), time, lines, problems)
        for group, of_group in by_group(stats).items():
            _judge_moves(group, of_group, time, lines, problems)
    head = f"Not to be relied on: {'; '.join(problems)}." if problems else passed
    failing = () if frames is None else tuple(int(i) for i in np.flatnonzero(frames))
    return Verdict(not problems, (head, *lines), failing)


def _judge_chains(found: Convergence | None, time: NDArray[Any] | None, lines: list[str], problems: list[str]) -> NDArray[np.bool_] | None:
    """Whether the chains agree and are long enough; which frames fail, where there are any. NaN (chains that stand still) fails."""
    frames: NDArray[np.bool_] | None = None
    if found is None:
        problems.append("too few draws to tell")
        lines.append("R-hat and effective sample sizes need two chains or more, with four draws or more each: run more of them.")
        return None
    for name in found.rhat.data_vars:
        rhat, bulk, tail = (values[name] for values in found)
        bad = ~((rhat <= MAX_RHAT) & (bulk >= MIN_ESS) & (tail >= MIN_ESS))
        still = int(rhat.isnull().sum())
        largest = f"up to {float(rhat.max()):.3f}" if still < rhat.size else "undefined"
        line = f"{name}: R-hat {largest}, effective sample size from {float(bulk.min()):.0f} (bulk) and {float(tail.min()):.0f} (tail)"
        if still:
            line += f"; {still} of {rhat.size} coordinates never move or are not finite"
        if bool(bad.any()):
            line += f"; {float(bad.mean()):.1%} of its coordinates miss R-hat {MAX_RHAT} or {MIN_ESS:.0f} effective draws: run longer"
        lines.append(f"{line}.")
        if "frame" in bad.dims:
            frames = _frames(bad) if frames is None else frames | _frames(bad)
        elif bool(bad.any()):
            problems.append(f"{name} has not converged")
    if frames is not None:
        lines.append(f"{frames.sum()} of {frames.size} frames fail ({frames.mean():.1%}){_where(frames, time)}.")
        if frames.mean() > MAX_FAILING:
            problems.append(f"{frames.mean():.1%} of the frames have not converged, more than {MAX_FAILING:.0%}")
    return frames


def _judge_moves(group: str, stats: Any, time: NDArray[Any] | None, lines: list[str], problems: list[str]) -> None:
    """Acceptance, energy and divergences of the kernel of a group of sites (of all, ""), as far as they were noted."""
    of = f"{group}: " if group else ""
    if "acceptance_rate" in stats:
        line, complaints = _movement(stats, time)
        lines.append(of + line)
        problems += [of + complaint for complaint in complaints]
    if "energy" in stats and stats["energy"].sizes["draw"] > 1:
        fractions = bfmi(stats)
        low = ~(fractions >= MIN_BFMI)
        line = f"{of}E-BFMI from {float(fractions.min()):.2f} (below {MIN_BFMI} the momentum hardly moves a chain between energies)"
        if bool(low.any()) and "frame" in low.dims:
            line += f"; {_frames(low).sum()} of {low.sizes['frame']} frames are below{_where(_frames(low), time)}"
        lines.append(f"{line}.")
        if bool(low.any()) and ("frame" not in low.dims or _frames(low).mean() > MAX_FAILING):
            problems.append(f"{of}E-BFMI is below {MIN_BFMI}: adapt the mass, or reparametrise the model")
    if "diverging" not in stats:
        return
    diverging = stats["diverging"]
    count = int(diverging.sum())
    if count:
        lines.append(
            f"{of}{count} divergent steps ({count / diverging.size:.2%}){_where(_frames(diverging), time) if 'frame' in diverging.dims else ''}: "
            f"the draws may miss what lies behind them; use a smaller step size."
        )
        often = diverging.mean(("chain", "draw")) > MAX_DIVERGING
        share = float(often.mean())
        if share > (MAX_FAILING if "frame" in often.dims else 0.0):
            where = f" in {share:.1%} of the frames" if "frame" in often.dims else ""
            problems.append(f"{of}more than {MAX_DIVERGING:.1%} of the steps diverged{where}")
    else:
        lines.append(f"{of}No divergences.")


def _judge_guide(stats: Any, time: NDArray[Any] | None, lines: list[str], problems: list[str]) -> NDArray[np.bool_] | None:
    """Whether importance weights can correct the guide; in which frames they cannot, where these have weights of their own."""
    shapes, count = pareto_k(stats), stats["lp"].sizes["chain"] * stats["lp"].sizes["draw"]
    limit = max_pareto_k(count)
    bad = ~(shapes <= limit)
    largest = f"up to {float(shapes.max()):.2f}" if bool(shapes.notnull().any()) else "undefined"
    lines.append(f"The draws are of a guide. Pareto k-hat of their importance weights {largest}; of {count} draws, at most {limit:.2f} is fine.")
    advice = "the posterior is wider than the guide, or elsewhere: use a richer guide, or start a kernel at its draws"
    frames = _frames(bad) if "frame" in bad.dims else None
    if frames is not None:
        why = f": {advice}" if frames.any() else ""
        lines.append(f"{frames.sum()} of {frames.size} frames fail ({frames.mean():.1%}){_where(frames, time)}{why}.")
        if frames.mean() > MAX_FAILING:
            problems.append(f"in {frames.mean():.1%} of the frames the guide misses the posterior, more than {MAX_FAILING:.0%}")
    elif bool(bad.any()):
        problems.append(f"the guide misses the posterior ({advice})")
    return frames


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
    """Stretches of the frames that are marked, in seconds or frame numbers: ", at 0.50 to 0.53, 1.20 s"; "" when there are none."""
    marked = np.flatnonzero(frames)
    if not marked.size:
        return ""
    stretches = np.split(marked, np.flatnonzero(np.diff(marked) > 1) + 1)
    shown = []
    for stretch in stretches[:most]:
        first, last = (f"{i}" if time is None else f"{time[i]:.2f}" for i in (stretch[0], stretch[-1]))
        shown.append(first if first == last else f"{first} to {last}")
    more = f" and {len(stretches) - most} more" if len(stretches) > most else ""
    return f", at frame {', '.join(shown)}{more}" if time is None else f", at {', '.join(shown)} s{more}"
