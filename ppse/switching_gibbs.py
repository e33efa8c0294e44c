"""Gibbs sampling of a source that switches: the regimes by forward filtering, backward sampling; the latents given them by HMC or MALA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions import Dirichlet, Distribution
from torch import Tensor

from .guides import starting_guide
from .infer import TARGET_ACCEPTANCE, EStep, Expectation, Info, Kernel, LogDensity, Position, StepSizeAdapter, hmc, log_density
from .infer.discrete import Smoothed, forward_backward, sample_path
from .method import Method, Problem
from .switching import complete, fit_chain, hold_chain, regimes, row_priors
from .switching_vem import VariationalPosterior

MakeKernel = Callable[[LogDensity, float | Tensor], Kernel]


class RegimeGibbs:
    """Sweeps over m, z given m, and the rows of the transition where they are latents. Leaves p(m, z, rows | x) invariant.

    An expert that is not chosen in a frame knows nothing of it: its latents there follow their prior, would fit the frame by a miracle
    only, and plain Gibbs sampling would stay in one regime for ever. So before m is drawn they are drawn from ``proposals``, laws
    that do know the frame, and m is weighted by what that takes: log p(x_t, z_t | m) - log proposal(z_t | m). This is Gibbs sampling of
    an extended model, whose law of m and of the latents of the chosen experts is the same (Carlin & Chib 1995). Where latents are
    tied across frames they cannot be redrawn frame by frame, and m is drawn given all of them as they are.

    Args:
        problem: the model, started on the recording.
        start: constrained values of the latents, by site; the prior for those that are missing.
        proposals: site of an expert → law of its values, of batch shape (T,) or (B, 1, T); the prior for those that are missing.
        chains: side by side.
        temperature: of p(x, z | m); 1 is the posterior.

    References:
        Carlin & Chib (1995), Bayesian model choice via Markov chain Monte Carlo methods; Carter & Kohn (1994).
    """

    def __init__(
        self, problem: Problem, start: Position | None = None, proposals: dict[str, Distribution] | None = None, chains: int = 1,
        temperature: float = 1.0,
    ) -> None:
        self._problem, self._chains, self._temperature = problem, chains, temperature
        self.proposals = proposals or {}
        with torch.no_grad():
            found = regimes(problem.graph, problem.args, start or {}, chains)
            self._held: Position = {name: (start or {}).get(name, law.mean) for name, law in row_priors(found).items()}
            self._held[found.site] = sample_path(*found.numbers)
        self.target = log_density(self._given, *problem.args, chains=chains, temperature=temperature)
        self._free = "frames" in self.target.block
        self.position = self.target.init(start)

    def sweep(self, kernel: Callable[[LogDensity], Kernel], steps: int = 1) -> tuple[Position, Smoothed, Info]:
        """Move z by some steps of the kernel, then m, then the rows. Random.

        Returns:
            the values of all latents by site; the law of m from which it was drawn, (…, chains, T, M); what the kernel said last.
        """
        made = kernel(self.target)
        state = made.init(self.position)
        for _ in range(steps):
            state, info = made.step(state)
        values = self.target.constrain(state.position)
        with torch.no_grad():
            values, smoothed = self._switched(values)
        self.position = self.target.init(values)
        return values | self._held, smoothed, info

    def _given(self, *args: Any) -> Any:
        return poutine.condition(self._problem.graph, data=self._held)(*args)

    def _switched(self, values: Position) -> tuple[Position, Smoothed]:
        """New regimes and rows, and the latents of all experts that they leave out anew from their prior."""
        problem, rows = self._problem, {name: value for name, value in self._held.items() if not name.endswith("regime")}
        found = regimes(problem.graph, problem.args, values | rows, self._chains)
        path = self._held[found.site]
        experts = {site: number for site in values if (number := found.expert(site)) is not None} if self._free else {}
        priors: dict[str, Distribution] = {site: found.trace.nodes[site]["fn"] for site in experts}
        proposals = priors | {site: law for site, law in self.proposals.items() if site in experts}
        if experts:  # even from their prior: the kernel moved those of idle experts, too, under a prior that is tempered
            values = _redrawn(values, experts, path, proposals)
            found = regimes(problem.graph, problem.args, values | rows, self._chains)
        weights = found.log_emission / self._temperature
        states = torch.arange(found.chain.n_states, device=path.device)
        for site, number in experts.items():
            gain = priors[site].log_prob(values[site]) / self._temperature - proposals[site].log_prob(values[site])
            weights = weights + gain.unsqueeze(-1) * (states == number)
        numbers = found.chain.log_initial, found.chain.log_transition, weights
        path = sample_path(*numbers)
        self._held = {found.site: path} | {name: _row_draw(law, name, path) for name, law in row_priors(found).items()}
        return _redrawn(values, experts, path, priors), forward_backward(*numbers)


def switching_gibbs(
    iterations: int = 60, steps: int = 1, leapfrog: int = 10, step_size: float = 0.3, chains: int = 1, temperature: float = 1.0,
    settle: int = 20, adapt: int = 40, average: int = 20, kernel: MakeKernel | None = None,
) -> Method:
    """Monte Carlo EM for a source that switches, by :class:`RegimeGibbs`, or full Bayes where parameters have priors.

    The first ``settle`` iterations are those of :func:`ppse.switching_vem.switching_vem`; the r(z | m) that they find are the
    proposals from then on. The step size of every frame is tuned up to iteration ``adapt``.

    Args:
        steps: of the kernel, per sweep and iteration.
        leapfrog, step_size: of HMC.
        temperature: of p(x, z | m); 1 is the posterior. See :func:`ppse.methods.hmc_em`.
        average: over how many of the last iterations the sources are averaged.
        kernel: in place of HMC, e.g. ``lambda target, e: mala(target, e)``.
    """
    adapt, average = min(adapt, iterations // 2), min(average, max(1, iterations // 2))
    settle = min(settle, max(1, adapt // 2))

    def e_step(problem: Problem) -> EStep:
        hold_chain(problem.model)
        posterior = VariationalPosterior(problem, max(2, chains))
        if not posterior.sites:  # nothing but regimes is unknown, and these are drawn from their posterior itself
            return complete(lambda _: lambda _: Expectation({}))(problem)
        sampler: RegimeGibbs | None = None
        adapter = StepSizeAdapter(step_size, TARGET_ACCEPTANCE["hmc"])
        current: float | Tensor = step_size

        def step(iteration: int) -> Expectation:
            nonlocal sampler, current
            if iteration < settle:
                posterior.climb(1)
                beliefs = posterior.beliefs(climb=True)
                posterior.refit_chain(beliefs.chain)
                return Expectation(posterior.handed_on(beliefs))
            if sampler is None:
                sampler = RegimeGibbs(problem, *posterior.as_start(), chains, temperature)
            if iteration >= adapt:
                current = adapter.step_size
            make = kernel or (lambda target, e: hmc(target, e, leapfrog))
            values, smoothed, info = sampler.sweep(lambda target: make(target, current), steps)
            if iteration < adapt:
                current = adapter(info.acceptance)
            fit_chain(problem.model, smoothed, problem.x.dim() > 2)
            return Expectation(values, info)

        return step

    return Method("switching_gibbs", e_step, starting_guide, iterations, average, discrete=True)


def _redrawn(values: Position, experts: dict[str, int], path: Tensor, laws: dict[str, Distribution]) -> Position:
    """The values of experts that are not chosen, anew from the laws."""
    new = dict(values)
    for site, number in experts.items():
        law = laws[site].expand(path.shape)
        idle = (path != number).reshape(*path.shape, *(1,) * len(law.event_shape))
        new[site] = torch.where(idle, law.sample(), values[site])
    return new


def _row_draw(prior: Dirichlet, name: str, path: Tensor) -> Tensor:
    """Rows of the transition, or the initial law, given a path (…, chains, T): their prior, and what is counted."""
    states = prior.event_shape[0]
    seen = torch.nn.functional.one_hot(path, states).to(prior.concentration.dtype)
    counts = seen[..., :1, :] if name.endswith("initial") else (seen[..., :-1, :].mT @ seen[..., 1:, :]).unsqueeze(-3)
    return Dirichlet(prior.concentration + counts).sample()
