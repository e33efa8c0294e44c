"""Inference methods by name: our own here, ``default`` and ``fast`` chosen on development data (README, table of methods), and the published ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pyro
import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from .adaptive import adapt_em
from .guides import mean_field, starting_guide
from .infer import (
    TARGET_ACCEPTANCE,
    EStep,
    Expectation,
    Group,
    Kernel,
    LogDensity,
    frame_windows,
    gibbs,
    guide_e_step,
    hmc,
    kinetic_langevin,
    log_density,
    mcmc_e_step,
    tuned,
    whitened,
    windowed,
)
from .method import Method, Problem
from .mixture import Mixture
from .priors import parameters_of, weak_priors
from .published import ld_em, mala_em, malaem_published, mcem, mhem_published, peem, vem
from .switching_gibbs import switching_gibbs
from .switching_vem import switching_vem
from .warm_start import hear

__all__ = [
    "ALL", "Method", "Problem", "adapt_em", "amortised", "default", "fast", "full_bayes", "hmc_em", "langevin_em", "ld_em", "mala_em",
    "malaem_published", "mcem", "mhem_published", "peem", "svi_em", "switching_gibbs", "switching_vem", "vem",
]

START_SPREAD = 0.1
"""Standard deviation, in unconstrained space, by which the chains of :func:`full_bayes` differ at first in what no encoder has a law of."""


def hmc_em(
    iterations: int = 60, steps: int = 10, step_size: float = 0.3, chains: int = 1, temperature: float = 1.0, settle: int = 20, adapt: int = 30,
    average: int = 30, window: int | None = None,
) -> Method:
    """Hamiltonian EM from the noisy encoder: one trajectory of 1 to ``steps`` leapfrog steps per iteration, whitened by the encoder.

    The noise starts at what the encoder hears (:func:`ppse.warm_start.fit_noise`) and settles on the speech that it proposes; then
    the latents move, the step size of every frame is tuned while ``iteration < adapt``, and the sources are averaged over the
    last ``average`` iterations.

    Args:
        temperature: of the joint density. 1 is the posterior. The prior has independent frames and is so permissive that its
            posterior trusts details of the noise; a flatter target averages them out.
        window: where frames are coupled, move windows of so many frames (:func:`ppse.infer.windowed`) and not whole recordings at once;
            None for these. It changes nothing where frames are independent.

    With fewer iterations than the phases need, all phases become shorter in proportion.
    """
    settle, adapt, average = _phases(iterations, settle, adapt, average)

    def e_step(problem: Problem) -> EStep:
        target = log_density(problem.graph, *problem.args, chains=chains, temperature=temperature)
        laws = hear(problem)
        start, scale = ({site: law[i] for site, law in laws.items()} for i in (0, 1))
        windows = None if window is None or "frames" in target.block else frame_windows(target, window)

        def kernel(e: float | Tensor) -> Kernel:
            return windowed(target, windows, lambda t: hmc(t, e, steps, t.local(scale))) if windows else hmc(target, e, steps, scale)

        return mcmc_e_step(
            target, kernel, target.init(start), step_size=step_size, settle=settle, adapt=adapt, target_acceptance=TARGET_ACCEPTANCE["hmc"],
        )

    return Method("hmc_em", e_step, starting_guide, iterations, average)


def langevin_em(
    iterations: int = 36, step_size: float = 0.2, chains: int = 1, likelihood_power: float = 0.5, average: int = 24, settle: int = 0,
    persistence: float = 0.8,
) -> Method:
    """Langevin EM from the noisy encoder: one large, tamed step per iteration, with a momentum that lasts. For priors that tie the frames.

    Whatever accepts moves must there accept those of all frames together, and so move each a little. This accepts nothing and moves
    them all, at the price of a bias (:func:`ppse.infer.kinetic_langevin`). The noise starts as for :func:`hmc_em`. What was tried
    instead is in docs/interop.md.

    Args:
        likelihood_power: p(z) p(x | z)^likelihood_power is drawn from; 1 is the posterior, a half is as in :func:`ld_em`.
        average: over how many of the last iterations the sources are averaged; two thirds of all where there are fewer.
        settle: in the first so many iterations the noise settles on the speech that the encoder proposes, before the latents move.
        persistence: share of the momentum that is left after a step.
    """

    def e_step(problem: Problem) -> EStep:
        # Nothing is accepted, so it does not matter which blocks could be; that recordings do not touch is the contract of the sources.
        target = log_density(problem.graph, *problem.args, chains=chains, block=(), likelihood_power=likelihood_power, verify=False)
        start = target.init({site: law[0] for site, law in hear(problem).items()}, jitter=0.1)
        return mcmc_e_step(target, lambda e: kinetic_langevin(target, e, persistence, tamed=True), start, step_size=step_size, settle=settle)

    return Method("langevin_em", e_step, starting_guide, iterations, min(average, max(1, 2 * iterations // 3)))


def amortised(iterations: int = 1, draws: int = 4) -> Method:
    """One pass: latents drawn from the noisy encoder, noise fitted to what it hears; the Wiener gain is averaged over the draws.

    As good as the encoder knows noise (docs/amortised.md).

    Args:
        iterations: of EM; in more than one, the noise is fitted to draws of the encoder, which stays as it is.
    """

    def e_step(problem: Problem) -> EStep:
        guide = problem.guide
        if guide is None:
            raise ValueError("amortised: no source of the model has an encoder to hear with; use hmc_em, or give a VAESpeech")
        spare = set(log_density(problem.graph, *problem.args, block=(), verify=False).sites) - set(guide.sites)
        if spare:
            raise ValueError(f"amortised: no encoder proposes the latents {', '.join(sorted(spare))}; use a method that draws them, such as hmc_em")
        hear(problem)

        def draw(_: int) -> Expectation:
            with torch.no_grad(), pyro.poutine.block(), pyro.plate("chains", draws, dim=-2):
                return Expectation(guide(*problem.args))

        return draw

    return Method("amortised", e_step, starting_guide, iterations, average=1)


def svi_em(
    family: Callable[..., nn.Module] = mean_field, iterations: int = 80, steps: int = 5, learning_rate: float = 0.02, draws: int = 4,
    average: int = 30,
) -> Method:
    """Variational EM with a guide of the recording itself, semi-amortised: from the noisy encoder, where there is one, and refined from there.

    Works with any continuous latents, with an encoder or without. The noise starts as for :func:`hmc_em`.

    Args:
        family: ``mean_field``, ``per_frame``, ``low_rank`` or ``flow`` of :mod:`ppse.guides`, or a function like them.
        steps, learning_rate: Adam steps on the ELBO per iteration.
        draws: how many the M-step gets.
    """

    def e_step(problem: Problem) -> EStep:
        guide = family(problem.graph, *problem.args, start=hear(problem))
        return guide_e_step(problem.graph, guide, problem.args, draws=draws, steps=steps, learning_rate=learning_rate)

    return Method("svi_em", e_step, starting_guide, iterations, min(average, iterations))


def full_bayes(
    iterations: int = 80, chains: int = 2, steps: int = 10, temperature: float = 1.0, warm_up: int = 40,
    priors: Callable[[Mixture, Tensor, Tensor | None], Mapping[str, Distribution]] = weak_priors,
) -> Method:
    """Full Bayes: parameters of the recording are latents with priors, and all are sampled; nothing is fitted.

    :func:`fast` finds a start. Then every iteration is a Gibbs sweep of two HMC steps: of the latents of all frames, accepted frame by
    frame where that is valid, and of all that frames share. Step sizes and covariances are learnt in the first ``warm_up``
    iterations, half of all at most; the posterior is averaged over the rest.

    Args:
        chains: from the same start, spread by the deviations of the encoder.
        steps: leapfrog steps at most.
        temperature: of the joint density; see :func:`hmc_em`.
        priors: :func:`ppse.priors.weak_priors`, or of your own: ``lambda *_: {"noise.W": Gamma(1.0, 500.0), …}``.
    """

    def e_step(problem: Problem) -> EStep:
        target = log_density(problem.graph, *problem.args, chains=chains, temperature=temperature)
        laws = {} if problem.guide is None else problem.guide.laws(*problem.args)
        scale = {site: law[1].detach() for site, law in laws.items() if site in target.sites}
        frames = tuple(site for site in target.sites if "frames" in target.plates[site])
        shared = tuple(site for site in target.sites if site not in frames)

        def group(sites: tuple[str, ...]) -> Group:
            return Group(sites, tuned(
                lambda t, e, factor: whitened(t, factor, lambda white: hmc(white, e, steps)), max(1, warm_up), step_size=0.3,
                target_acceptance=0.8, scale={site: scale[site] for site in sites if site in scale} or None, dense=True,
            ))

        kernel = gibbs(target, *(group(sites) for sites in (frames, shared) if sites))
        start = target.init(parameters_of(problem.model, *problem.args) | {k: _one_chain(v, target, k) for k, v in problem.found.items()})
        spread = {site: value + scale.get(site, START_SPREAD) * torch.randn_like(value) for site, value in start.items()}
        return mcmc_e_step(target, lambda _: kernel, spread, step_size=1.0)

    if warm_up < 1:
        raise ValueError(f"full_bayes: warm_up={warm_up}; expected 1 or more")
    warm_up = min(warm_up, iterations // 2)
    return Method("full_bayes", e_step, starting_guide, iterations, iterations - warm_up, priors=priors, before=fast(chains=1))


def default(iterations: int = 60, chains: int = 1) -> Method:
    """Best quality faster than real time: :func:`hmc_em` at temperature 2.5, averaged over two starts.

    Where a source is a dynamical VAE, or switches, it is :func:`langevin_em` with two chains, which share the noise, of 8 in 15 of the iterations;
    in the first third of these the noise settles, over the last half the sources are averaged.
    """
    moves = max(1, 8 * iterations // 15)
    tied = langevin_em(moves, chains=2 * chains, likelihood_power=0.7, average=max(1, moves // 2), settle=moves // 3)
    return replace(hmc_em(iterations, chains=chains, temperature=2.5), name="default", starts=2, tied=replace(tied, name="default"))


def fast(iterations: int = 16, chains: int = 1) -> Method:
    """About a tenth of the work of :func:`default`: one start, few iterations, trajectories of one to five steps.

    Where a source is a dynamical VAE, or switches, it is :func:`langevin_em`, of a third of the iterations, with longer steps and more of
    the likelihood.
    """
    method = hmc_em(iterations, steps=5, step_size=0.6, chains=chains, temperature=2.5, settle=0, adapt=8, average=8)
    tied = langevin_em(max(1, iterations // 3), step_size=0.25, chains=chains, likelihood_power=0.7)
    return replace(method, name="fast", tied=replace(tied, name="fast"))


def _phases(iterations: int, settle: int, adapt: int, average: int) -> tuple[int, int, int]:
    """Lengths of the phases that fit into the iterations: as given, or all shorter, with one iteration at least that draws and averages."""
    share = min(1.0, iterations / max(1, max(settle, adapt) + average))
    return int(share * settle), int(share * adapt), max(1, int(share * average))


def _one_chain(drawn: Tensor, target: LogDensity, site: str) -> Tensor:
    """The last chain of the draws of a site, for all chains to start at."""
    return drawn.narrow(target.chains_dim(site), -1, 1)


ALL: tuple[Callable[..., Method], ...] = (
    default, fast, amortised, mcem, ld_em, mala_em, vem, peem, hmc_em, langevin_em, svi_em, full_bayes, adapt_em,
)
"""The methods that commands and benchmarks offer, by their function names."""
