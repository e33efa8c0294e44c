"""The published methods, with the published settings; exported by :mod:`ppse.methods`."""

from __future__ import annotations

from collections.abc import Callable

import pyro
from torch import Tensor

from .guides import clean_guide
from .infer import (
    EStep,
    Kernel,
    LogDensity,
    guide_e_step,
    langevin,
    log_density,
    mala,
    mcmc_e_step,
    metropolis,
    per_frame_acceptance,
    point_e_step,
)
from .method import Method, Problem


def mcem(iterations: int = 100, draws: int = 10, burn_in: int = 30, step_size: float = 0.1, chains: int = 1) -> Method:
    """Monte Carlo EM by random-walk Metropolis (MCEM, MHEM): 10 draws after 30 burn-in steps, variance 0.01.

    References:
        Leglaive, Girin & Horaud (2018), A variance modeling framework based on variational autoencoders for speech enhancement.
    """

    e_step = _several_draws(metropolis, step_size, draws, burn_in, chains)
    return Method("mcem", e_step, clean_guide, iterations, average=1)


def ld_em(iterations: int = 100, chains: int = 10, step_size: float = 0.02, likelihood_power: float = 0.5) -> Method:
    """Langevin EM (LDEM): ten particles, one unadjusted step per iteration.

    The published code doubles the noise and drops a half in the prior; that samples p(z) p(x | z)^(1/2) with
    step 0.02, which is what the defaults say openly. ``likelihood_power=1`` is the posterior.

    References:
        Sadeghi & Serizel (2024), Posterior sampling algorithms for unsupervised speech enhancement with
        recurrent variational autoencoder.
    """

    def e_step(problem: Problem) -> EStep:
        target = log_density(problem.graph, *problem.args, chains=chains, likelihood_power=likelihood_power)
        start = target.init(_start(problem), jitter=0.1)
        return mcmc_e_step(target, lambda e: langevin(target, e), start, step_size=step_size)

    return Method("ld_em", e_step, clean_guide, iterations, average=1)


def mala_em(iterations: int = 100, draws: int = 10, burn_in: int = 5, step_size: float = 0.01, chains: int = 1) -> Method:
    """Metropolis-adjusted Langevin EM (MALAEM): 10 draws after 5 burn-in steps, accepted per independent block.

    References:
        Sadeghi & Serizel (2024), as for :func:`ld_em`.
    """

    e_step = _several_draws(mala, step_size, draws, burn_in, chains)
    return Method("mala_em", e_step, clean_guide, iterations, average=1)


def mhem_published(iterations: int = 100, draws: int = 10, burn_in: int = 5, step_size: float = 0.1, chains: int = 1) -> Method:
    """MHEM as published for RVAE: :func:`mcem` that proposes all frames at once and accepts each by its own terms, also where these are coupled.

    An approximation (:func:`ppse.infer.per_frame_acceptance`, with the measured bias in docs/coupled.md), for comparison with published
    numbers; :func:`mcem` is exact. With a prior of independent frames the two are the same.

    References:
        Sadeghi & Serizel (2024), as for :func:`ld_em`.
    """

    e_step = _several_draws(lambda target, e: per_frame_acceptance(target, lambda t: metropolis(t, e)), step_size, draws, burn_in, chains)
    return Method("mhem_published", e_step, clean_guide, iterations, average=1)


def malaem_published(iterations: int = 100, draws: int = 10, burn_in: int = 5, step_size: float = 0.01, chains: int = 1) -> Method:
    """MALAEM as published for RVAE: :func:`mala_em` with the acceptance of :func:`mhem_published`, an approximation in the same way.

    The published code also tames the gradient and adds a jitter after each step; this does not.

    References:
        Sadeghi & Serizel (2024), as for :func:`ld_em`.
    """

    e_step = _several_draws(lambda target, e: per_frame_acceptance(target, lambda t: mala(t, e)), step_size, draws, burn_in, chains)
    return Method("malaem_published", e_step, clean_guide, iterations, average=1)


def vem(iterations: int = 100, learning_rate: float = 1e-3, draws: int = 1) -> Method:
    """Variational EM: one Adam step per iteration on a copy of the encoder, for the ELBO of the noisy recording.

    The published learning rate is 5e-3, for encoders that read powers. Ours reads log-powers, hundreds of values of order one
    that move together; at 5e-3 its first steps leave the range of speech, and all of the recording becomes noise.

    References:
        Leglaive et al. (2020), A recurrent variational autoencoder for speech enhancement.
    """

    def e_step(problem: Problem) -> EStep:
        if problem.guide is None:
            raise ValueError("vem: no source of the model has an encoder to fine-tune; use mala_em, or give a VAESpeech")
        return guide_e_step(problem.graph, problem.guide, problem.args, draws=draws, learning_rate=learning_rate)

    return Method("vem", e_step, clean_guide, iterations, average=1)


def peem(iterations: int = 100, steps: int = 10, learning_rate: float = 5e-3) -> Method:
    """Point-estimate EM: ten Adam steps per iteration to a mode of p(z | x). Cheap, biased, no posterior.

    References:
        Sadeghi & Serizel (2023), Fast and efficient speech enhancement with variational autoencoders.
    """

    def e_step(problem: Problem) -> EStep:
        target = log_density(problem.graph, *problem.args)
        return point_e_step(target, target.init(_start(problem)), steps=steps, learning_rate=learning_rate)

    return Method("peem", e_step, clean_guide, iterations, average=1)


def _several_draws(
    kernel: Callable[[LogDensity, float | Tensor], Kernel], step_size: float, draws: int, burn_in: int, chains: int,
) -> Callable[[Problem], EStep]:
    """Some draws after burn-in, by chains that start at the means of the guide."""

    def e_step(problem: Problem) -> EStep:
        target = log_density(problem.graph, *problem.args, chains=chains)
        start = target.init(_start(problem))
        return mcmc_e_step(target, lambda e: kernel(target, e), start, step_size=step_size, draws=draws, burn_in=burn_in)

    return e_step


def _start(problem: Problem) -> dict[str, Tensor] | None:
    """Constrained values at which the chains start: the means of the guide."""
    if problem.guide is None:
        return None
    with pyro.poutine.block():
        laws = problem.guide.laws(*problem.args)
    # Under the plate of chains (dim -2) one recording (T, L) broadcasts as it is, and so does a batch (B, 1, T, L).
    return {site: loc.detach() for site, (loc, _) in laws.items()}
