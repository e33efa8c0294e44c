"""Simulation-based calibration: draws from a posterior must rank the truth uniformly, for data from the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ..infer import Kernel, LogDensity, log_density, sample
from ..infer.blocks import is_random
from ..infer.density import CHAINS_DIM
from .ranks import plot_ranks, uniformity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Sites = dict[str, Tensor]
"""Values of the latent sites, in their own support."""

Sampler = Callable[[Tensor, Sites], Sites]
"""(x, truth) → draws of the posterior given x: site → (draw, …), each draw of the shape of the truth. Most samplers leave the truth aside."""


class Calibration(NamedTuple):
    """Ranks of the truth among the draws.

    Attributes:
        ranks: quantity → rank, from 0 to ``draws``, (replicate,). The quantities are, of every site, its first entry and its mean
            square; and ``log_prior`` and ``log_likelihood``.
        draws: per replicate.
        autocorrelation: quantity → correlation of successive draws given x: 1 less the squared ratio of their mean distance to that of the
            first and the last draw. Of a chain that has only crept away it is 1 - 1 / (draws - 1), of one that stands still 1.
    """

    ranks: dict[str, Tensor]
    draws: int
    autocorrelation: dict[str, float]

    def p_values(self) -> dict[str, float]:
        """Quantity → p-value of the hypothesis that its ranks are uniform (:func:`ppse.testing.uniformity`)."""
        return {name: uniformity(ranks, self.draws) for name, ranks in self.ranks.items()}

    def plot(self) -> Figure:
        """Rank histograms; not shown."""
        return plot_ranks(self.ranks, self.draws)


def calibrate(model: Callable[[Tensor], Any], like: Tensor, sampler: Sampler) -> Calibration:
    """Simulation-based calibration of a sampler. Random from the global generator.

    Truth and data are drawn from the model, once for every utterance of a batch, so that one vectorised run of the sampler serves all
    replicates. When the sampler draws from the posterior, truth and draws are exchangeable, and so the rank of the truth is uniform.
    The first entries of the sites alone would pass a sampler that ignores the data, as the prior is the average posterior; the log
    likelihood does not pass it.

    Draws of a chain that has not the truth in it must be nearly independent: correlated ones lie together, and more often than they
    should all on one side of the truth. Thin them, or use :func:`around_truth`.

    Args:
        model: called with x, which is its one observed site; every latent lies in the plate "utterances", as those of a mixture do,
            lifted parameters among them.
        like: shape and precision of the data, (B, 1, T, …): B replicates. Its values are not read.
        sampler: to be tested, e.g. :func:`around_truth`.

    Raises:
        ValueError: when a latent is shared by the utterances, the model does not have just one observed site, or draws have a wrong shape;
            at least two are needed.

    References:
        Talts et al. (2018), Validating Bayesian inference algorithms with simulation-based calibration;
        Modrák et al. (2023), Simulation-based calibration checking for Bayesian computation: the choice of test quantities shapes
        sensitivity.
    """
    truth, x = _joint_draw(model, like)
    draws = sampler(x, truth)
    for name, value in truth.items():
        if name not in draws or draws[name].shape[1:] != value.shape:
            found = f"draws of shape {tuple(draws[name].shape)}" if name in draws else "no draws"
            raise ValueError(f"calibrate: the sampler gave {found} of '{name}'; expected (draw, …) with {tuple(value.shape)} after the draws")
        if len(draws[name]) < 2:
            raise ValueError(f"calibrate: the sampler gave {len(draws[name])} draws; expected at least 2, better 19 or more")
    everything = _quantities(model, x, {name: torch.cat([value.unsqueeze(0), draws[name]]) for name, value in truth.items()})
    ranks, autocorrelation = {}, {}
    for name, values in everything.items():
        true, drawn = values[:, :1], values[:, 1:]
        ties = (drawn == true).sum(1)
        ranks[name] = (drawn < true).sum(1) + (torch.rand(len(values), device=values.device) * (ties + 1)).long()
        near, far = ((drawn[:, lag:] - drawn[:, :-lag]).abs().mean().item() for lag in (1, drawn.shape[1] - 1))
        autocorrelation[name] = 1 - (near / far) ** 2 if far > 0 else 1.0
    return Calibration(ranks, drawn.shape[1], autocorrelation)


def around_truth(
    model: Callable[[Tensor], Any], kernel: Callable[[LogDensity], Kernel], draws: int = 19, thin: int = 1,
    backward: Callable[[LogDensity], Kernel] | None = None,
) -> Sampler:
    """A sampler for :func:`calibrate`: chains with the truth at a random place, so that ranks are exactly uniform without warm-up.

    As the truth is itself a draw from the posterior, a chain through it is in equilibrium. From there it runs forwards to one end and,
    by the time-reversed kernel, backwards to the other; the truth is then exchangeable with the draws in its rank, however slowly the
    chain mixes. So a rejection is always a fault of the kernel; to tell one, though, the chain must move (see ``autocorrelation``).
    Whether chains find the posterior from elsewhere is another question: for that, let the sampler start at the prior and warm up. So must
    kernels that keep a memory (parallel tempering), as the truth does not say where their hot replicas are.

    Args:
        kernel: density of the batch → kernel, e.g. ``lambda target: mala(target, 0.1)``. It may be tuned there, from a start of its own.
        thin: steps from draw to draw.
        backward: the kernel with time reversed. Kernels that are accepted or rejected as a whole are their own (None); for ``gibbs``
            it is that of the groups in the opposite order.

    References:
        Besag & Clifford (1989), Generalized Monte Carlo significance tests; Gandy & Scott (2020), Unit testing for MCMC and other Monte
        Carlo methods.
    """

    def sampler(x: Tensor, truth: Sites) -> Sites:
        target = log_density(model, x)
        forwards = kernel(target)  # made once, as what it is tuned to in the making must be the same both ways
        backwards = forwards if backward is None else backward(target)
        past, future = (sample(target, made, target.init(truth), draws, thin=thin).values for made in (backwards, forwards))
        replicates = torch.arange(len(x))
        before = torch.randint(draws + 1, (len(x),))
        window = draws - before + torch.arange(draws).unsqueeze(-1)
        return {name: torch.cat([past[name].flip(0), future[name]])[window, replicates] for name in truth}

    return sampler


def assert_calibrated(calibration: Calibration, error_rate: float = 1e-4, autocorrelation: float = 0.85) -> None:
    """Assert that the ranks of all quantities are uniform, and that the draws move.

    Args:
        error_rate: with which a right sampler is rejected. It is shared out to the quantities (Bonferroni).
        autocorrelation: largest allowed. With fewer than nine draws it cannot tell chains that creep.

    Raises:
        AssertionError: which quantities fail, with their p-values.
    """
    still = {name: value for name, value in calibration.autocorrelation.items() if not value <= autocorrelation}
    assert not still, f"successive draws have correlation {still}, above {autocorrelation}: ranks would say nothing; thin more, or take larger steps"
    p_values = calibration.p_values()
    level = error_rate / len(p_values)
    wrong = {name: f"{p:.2g}" for name, p in p_values.items() if p < level}
    assert not wrong, f"ranks of the truth are not uniform, p-values {wrong} (below {level:.2g}): the draws are not from the posterior"


def _joint_draw(model: Callable[[Tensor], Any], like: Tensor) -> tuple[Sites, Tensor]:
    """Latents and data from the model, a replicate per utterance."""
    with torch.no_grad():
        trace: Any = poutine.trace(poutine.uncondition(model)).get_trace(like)
    sites = {name: site for name, site in trace.nodes.items() if is_random(site)}
    data = [name for name, site in sites.items() if site["infer"].get("was_observed")]
    shared = [name for name, site in sites.items() if not any(frame.name == "utterances" for frame in site["cond_indep_stack"])]
    if len(data) != 1 or shared:
        raise ValueError(
            f"calibrate: the model has the observed sites {data}, and {shared} outside of the plate 'utterances'; expected one, and none: "
            f"start the model on a batch (B, 1, T, F), whose utterances are the replicates"
        )
    x = sites.pop(data[0])["value"]
    if x.shape != like.shape:
        raise ValueError(f"calibrate: the model draws data of shape {tuple(x.shape)}; expected that of 'like', {tuple(like.shape)}")
    return {name: site["value"] for name, site in sites.items()}, x


def _quantities(model: Callable[[Tensor], Any], x: Tensor, values: Sites) -> dict[str, Tensor]:
    """Numbers (replicate, draw) to be ranked. The draws are laid side by side in the dim of chains."""
    side_by_side = {name: value.squeeze(2).movedim(0, 1) for name, value in values.items()}
    chains = next(iter(side_by_side.values())).shape[1]
    with torch.no_grad(), pyro.validation_enabled(False), pyro.plate("chains", chains, dim=CHAINS_DIM):
        trace: Any = poutine.trace(poutine.condition(model, data=side_by_side)).get_trace(x)
        trace.compute_log_prob()
    result = {}
    for name, value in side_by_side.items():
        entries = value.flatten(2)
        result[f"{name}[0]"], result[f"{name}^2"] = entries[..., 0], entries.square().mean(-1)
    log_prob = {name: site["log_prob"].flatten(2).sum(-1) for name, site in trace.nodes.items() if is_random(site)}
    result["log_prior"] = torch.stack([log_prob.pop(name) for name in values]).sum(0)
    (result["log_likelihood"],) = log_prob.values()
    return result
