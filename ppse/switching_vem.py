"""Variational EM for sources that switch: r(z | m) normal, r(m) a chain, r(s | m) in closed form or s integrated out."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions import Dirichlet
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from .elbo import divergence_of
from .guides import mean_field, starting_guide
from .infer import EStep, Expectation, Position, log_density
from .infer.discrete import Smoothed, forward_backward
from .method import Method, Problem
from .switching import Regimes, collapsed, fit_chain, hold_chain, regimes, row_priors
from .switching_factored import Factored, factored_speech, shared_out, update_noise
from .warm_start import hear


class Beliefs(NamedTuple):
    """What the variational posterior is at one moment.

    Attributes:
        draws: of the continuous latents, by site, under K chains.
        found: the graph at them, in every regime.
        weights: of the regimes of every frame, (…, 1, T, M): the bound on log p(x_t | m_t) that r(z | m) gives.
        chain: r(m).
        bound: on log p(x), in nats, of all recordings together.
        speech: r(s | m), in place of r(s | z, m), when it is factored.
    """

    draws: Position
    found: Regimes
    weights: Tensor
    chain: Smoothed
    bound: float
    speech: Factored | None


class VariationalPosterior:
    """r(s, z, m) = r(s | z, m) r(z | m) r(m), fitted to one recording or a batch.

    r(z_t | m) is a diagonal normal law that starts at the encoder of expert m and is fitted as if m were chosen: the frames in which it
    is not tell nothing of it, and its latents there follow their prior, which costs nothing. Latents that no expert has for itself, those
    of the noise for instance, have one law for all experts, fitted to each as far as r(m) says that it is chosen. r(m) is the posterior of
    the chain under the weights that the r(z | m) give it; the bound is its evidence.

    Args:
        problem: the model, started on the recording. The noise is started at what the encoders hear of it.
        draws: K, of r(z | m), for what has no closed form.
        learning_rate: of Adam.
        hearing: in [0, 1], the power to which the sound counts in r(m), see :func:`switching_vem`.
        factored: r(s | m) in place of r(s | z, m), as published: a lower bound, in which the harmonic mean of the variance of the
            speech over z stands in place of the variance.

    Raises:
        ValueError: when not exactly one source switches, frames are not independent given the regimes, an expert has an observed site of its own
            (:class:`ppse.models.HeardSpeech`), or, factored, a source has a mean.
    """

    def __init__(self, problem: Problem, draws: int = 2, learning_rate: float = 0.05, *, hearing: float = 1.0, factored: bool = False) -> None:
        self.problem, self._draws, self._hearing, self._factored = problem, draws, hearing, factored
        hold_chain(problem.model)
        heard = hear(problem)
        with torch.no_grad():
            found = regimes(problem.graph, problem.args, {})
        self.priors = row_priors(found)
        self.rows = dict(self.priors)
        self.sites = [name for name in found.latents if name not in self.priors]
        _check_observed(found)
        if self.sites:
            _check_frames(problem, found, self._means)
            graph = poutine.condition(collapsed(problem.graph), data=self._means)
            self.guide = mean_field(graph, *problem.args, start=heard)
            self._own, self._common = (
                [parameter for site, law in zip(self.guide.sites, self.guide.laws, strict=True) for parameter in law.parameters()
                 if (found.expert(site.name) is None) == common]
                for common in (False, True)
            )
            self._optimiser = torch.optim.Adam([*self._own, *self._common], lr=learning_rate)

    def climb(self, steps: int) -> None:
        """Gradient steps of all r(z | m). Random."""
        for _ in range(steps if self.sites else 0):
            with torch.enable_grad():
                _, found, weights, _ = self._weights()
                self._ascend(weights, self._smoothed(found, weights))

    def beliefs(self, *, climb: bool = False) -> Beliefs:
        """r(m) and the bound under the present r(z | m), by new draws from these. Random.

        Args:
            climb: also take a gradient step on them, by the same draws: at half the cost of doing one after the other.
        """
        climb = climb and bool(self.sites)
        with torch.set_grad_enabled(climb):
            draws, found, weights, speech = self._weights()
            chain = self._smoothed(found, weights)
            if climb:
                self._ascend(weights, chain)
        with torch.no_grad():
            weights = weights.detach()
            divergence = sum(kl_divergence(law, self.priors[name]).sum() for name, law in self.rows.items())
            # The evidence under r(m) counts the sound only in part.
            unheard = (1 - self._hearing) * (chain.marginals * weights).sum() if self._hearing < 1 else 0.0
            bound = float(chain.log_evidence.sum() + unheard - divergence)
        return Beliefs({name: value.detach() for name, value in draws.items()}, found, weights, chain, bound, speech)

    def refit_chain(self, chain: Smoothed) -> None:
        """Initial law and transition: the M-step of a chain that is learnt, the posterior of one with Dirichlet priors."""
        fit_chain(self.problem.model, chain, self.problem.x.dim() > 2)
        counts = {"initial": chain.marginals[..., 0, :], "transition": chain.pairs.sum(-3)}
        for name, prior in self.priors.items():
            concentration = prior.concentration
            self.rows[name] = Dirichlet(concentration + counts[name.rsplit(".")[-1]].reshape(concentration.shape))

    def handed_on(self, beliefs: Beliefs) -> Position:
        """Draws of all latents for an M-step: of z as they are; of m as many in each regime as r(m_t) says, rounded at random.

        Only moments of single frames are taken from them, so that neighbours need not belong to one path. Random.
        """
        marginals = beliefs.chain.marginals  # (…, 1, T, M)
        draws = self._draws
        offset = torch.rand_like(marginals[..., :1]) / draws
        marks = offset + (torch.arange(draws).to(marginals) / draws).reshape(draws, 1, 1)  # (…, K, T, 1)
        path = (marks > marginals.cumsum(-1)[..., :-1]).sum(-1)
        return beliefs.draws | self._as_chains() | {beliefs.found.site: path}

    def as_start(self) -> tuple[Position, dict[str, Distribution]]:
        """Values of all latents but the regimes for a Markov chain to start at, and the laws r(z | m), by site. Random."""
        with torch.no_grad(), poutine.block():
            nodes = poutine.trace(self.guide).get_trace(*self.problem.args).nodes
        values = {name: nodes[name]["value"] for name in self.sites}
        return values | self._means, {name: nodes[name]["fn"] for name in self.sites}

    @torch.no_grad()
    def _smoothed(self, found: Regimes, weights: Tensor) -> Smoothed:
        """r(m)."""
        seen = found.log_seen.mean(-3, keepdim=True)
        return forward_backward(*self._chain(found), seen + self._hearing * weights if self._hearing else seen)

    def _ascend(self, weights: Tensor, chain: Smoothed) -> None:
        """A gradient step: of the laws of an expert on its weights, of those that all have in common on what r(m) expects of these."""
        gradients: list[Tensor] = []
        if self._common:
            gradients += torch.autograd.grad(-(chain.marginals * weights).sum(), self._common, retain_graph=True)
        if self._own:
            gradients = [*torch.autograd.grad(-weights.sum(), self._own), *gradients]
        for parameter, gradient in zip([*self._own, *self._common], gradients, strict=True):
            # One NaN in the memory of Adam would never leave it.
            parameter.grad = torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        self._optimiser.step()

    def _weights(self) -> tuple[Position, Regimes, Tensor, Factored | None]:
        x, observed = self.problem.args
        nodes: dict[str, Any] = {}
        if self.sites:
            with poutine.block(), pyro.plate("chains", self._draws, dim=-2):
                nodes = poutine.trace(self.guide).get_trace(x, observed).nodes
        draws: Position = {name: nodes[name]["value"] for name in self.sites}
        found = regimes(self.problem.graph, self.problem.args, draws | self._means, self._draws)
        speech = factored_speech(found, x, observed) if self._factored else None
        weights = found.log_heard.mean(-3, keepdim=True) if speech is None else speech.weights
        for name in draws:
            law, prior = nodes[name]["fn"], found.trace.nodes[name]["fn"]
            cost = divergence_of(law, prior, draws[name]).mean(-2).unsqueeze(-2).unsqueeze(-1)  # (…, 1, T, 1)
            number = found.expert(name)
            weights = weights - (cost if number is None else cost * (torch.arange(weights.shape[-1], device=x.device) == number))
        return draws, found, weights, speech

    @property
    def _means(self) -> Position:
        return {name: law.mean for name, law in self.rows.items()}

    def _as_chains(self) -> Position:
        """Draws of initial law and transition, one for each of those of z."""
        return {
            name: law.expand(torch.Size((*law.batch_shape[:at], self._draws, *law.batch_shape[at + 1 :]))).sample()
            for name, law in self.rows.items() for at in (len(law.batch_shape) - 2 - name.endswith("transition"),)
        }

    def _chain(self, found: Regimes) -> tuple[Tensor, Tensor]:
        """Expected logarithms of initial law and transition."""
        initial, transition = found.chain.log_initial, found.chain.log_transition
        for name, law in self.rows.items():
            expected = law.concentration.digamma() - law.concentration.sum(-1, keepdim=True).digamma()
            if name.endswith("initial"):
                initial = expected.squeeze(-2)
            else:
                transition = expected.squeeze(-3)
        return initial, transition


def switching_vem(
    iterations: int = 50, steps: int = 1, learning_rate: float = 0.05, draws: int = 2, average: int = 20, *, hearing: float = 1.0,
    factored: bool = False,
) -> Method:
    """Variational EM for a source that switches, by :class:`VariationalPosterior`; frames are to be independent given the regimes.

    Each iteration: gradient steps on r(z | m), then r(m) by the forward-backward algorithm, then initial law and transition where they
    are learnt, then the noise by multiplicative updates.

    Args:
        steps, learning_rate: of Adam, per iteration.
        draws: of z, per gradient and M-step.
        average: over how many of the last iterations the sources are averaged.
        hearing: in [0, 1], the power to which the bounds on log p(x_t | m_t) count in r(m). At 1 this is variational EM. Bounds of two
            experts that are not equally tight say more of the bounds than of the experts; where something else tells the regimes, such
            as the pictures of a video, a small power, or 0, lets that decide: a coarsened, or cut, posterior of the chain. The bound
            stays one, but may fall.
        factored: r(s | m) and an M-step on E|x - s|^2, as published. Otherwise the speech is integrated out given z and m: a tighter
            bound. Which sounds better differs from recording to recording (docs/switching.md).

    References:
        Sadeghi & Alameda-Pineda (2021), Switching variational auto-encoders for noise-agnostic audio-visual speech enhancement.
        Miller & Dunson (2019), Robust Bayesian inference via coarsening (powers of likelihoods).
        Plummer (2015), Cuts in Bayesian graphical models.

    Raises:
        ValueError: when ``hearing`` is not in [0, 1].
    """
    if not 0 <= hearing <= 1:
        raise ValueError(f"switching_vem: {hearing=}; expected a power in [0, 1]")

    def e_step(problem: Problem) -> EStep:
        posterior = VariationalPosterior(problem, draws, learning_rate, hearing=hearing, factored=factored)

        def step(_: int) -> Expectation:
            posterior.climb(steps - 1)
            beliefs = posterior.beliefs(climb=True)
            posterior.refit_chain(beliefs.chain)
            handed = posterior.handed_on(beliefs)
            if beliefs.speech is None:
                return Expectation(handed)
            x, observed = problem.args
            marginals = beliefs.chain.marginals
            with torch.no_grad():
                update_noise(problem.model, beliefs.found, beliefs.speech.noise_power(x, marginals), observed)
                return Expectation(handed, sources=shared_out(beliefs.found, beliefs.speech.speech(x, marginals), x))

        return step

    return Method("switching_vem", e_step, starting_guide, iterations, min(average, iterations), discrete=True)


def _check_observed(found: Regimes) -> None:
    """Refuse what would be left out: sites of an expert that are observed whatever the regime."""
    for name, site in found.trace.nodes.items():
        if site["type"] == "sample" and site["is_observed"] and found.expert(name) is not None:
            raise ValueError(
                f"switching_vem: '{name}' of an expert is observed whatever the regime, as by HeardSpeech, whose law is known up to a constant only; "
                f"give the prior itself to the source that switches"
            )


def _check_frames(problem: Problem, found: Regimes, rows: Position) -> None:
    """Refuse latents that are tied across frames, under any expert."""
    for number in range(found.chain.n_states):
        path = torch.full((problem.x.shape[-2],), number, device=problem.x.device)
        target = log_density(poutine.condition(problem.graph, data=rows | {found.site: path}), *problem.args)
        if "frames" not in target.block:
            raise ValueError(
                f"switching_vem: with expert {number} the frames of the latents {list(target.sites)} are not independent (a prior with memory, or "
                f"a latent that frames share); use a method that sums the regimes out, such as ppse.methods.langevin_em()"
            )
