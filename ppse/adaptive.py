"""Adaptation at test time: the noisy encoder corrected for one recording, before EM starts from what it then says."""

from __future__ import annotations

from typing import cast

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from .elbo import negative_elbo
from .guides import EncoderGuide, starting_guide
from .infer import TARGET_ACCEPTANCE, EStep, Expectation, hmc, log_density, mcmc_e_step
from .infer.density import CHAINS_DIM
from .infer.em import descend
from .method import Method, Problem
from .models.encoders import CleanedEncoder, NoisyEncoder
from .warm_start import hear


class Corrected(nn.Module):
    """A noisy encoder with a correction of its own for one recording, constant over time.

    What is learnt is what its heads say on average: an offset of the mask (in logits) per frequency, of the mean and of the log-deviation
    per latent. Each recording of a batch has its own, so they do not touch one another. The network itself is read once and is no
    parameter of this module.

    Args:
        encoder: any encoder that hears.
        x, observed: the recording, as in :meth:`ppse.Mixture.forward`.
    """

    def __init__(self, encoder: NoisyEncoder | CleanedEncoder, x: Tensor, observed: Tensor | None = None) -> None:
        super().__init__()
        x = x if observed is None else torch.where(observed, x, torch.zeros_like(x))
        with torch.no_grad():
            self._heard = encoder.hear(x, observed)
        self._read = encoder.read  # a method, not the module: its weights stay as they are
        self.mask, self.shift, self.scale = (
            nn.Parameter(torch.zeros_like(value[..., :1, :])) for value in (self._heard.mask, self._heard.shift, self._heard.scale)
        )

    def forward(self, x: Tensor, observed: Tensor | None = None) -> TorchDistribution:
        """The corrected law of the latents, (…, T, L)."""
        heard = self._heard
        corrected = heard._replace(
            mask=(heard.mask.logit(1e-6) + self.mask).sigmoid(), shift=heard.shift + self.shift, scale=heard.scale * self.scale.exp(),
        )
        return cast(TorchDistribution, self._read(x, corrected, observed))


def corrected(problem: Problem) -> EncoderGuide:
    """The guide of the problem with a :class:`Corrected` in the place of every noisy encoder.

    Raises:
        ValueError: when there is none.
    """
    heard = () if problem.guide is None else zip(problem.guide.sites, problem.guide.children(), strict=True)
    encoders = {
        site: Corrected(module, *problem.args) if isinstance(module, NoisyEncoder | CleanedEncoder) else module for site, module in heard
    }
    if not any(isinstance(module, Corrected) for module in encoders.values()):
        raise ValueError("adapt_em: no source of the model has an encoder for noisy speech to adapt; use hmc_em, or give a VAESpeech with one")
    return EncoderGuide(encoders)


def adapt_em(
    iterations: int = 60, tune: int = 20, learning_rate: float = 0.03, steps: int = 10, step_size: float = 0.3, chains: int = 1,
    temperature: float = 2.5, average: int = 30,
) -> Method:
    """EM that first adapts the noisy encoder to the recording: variational EM on a few of its parameters, then Hamiltonian EM from there.

    In the first ``tune`` iterations the latents are drawn from the encoder, whose :class:`Corrected` heads climb the ELBO of the
    recording by one Adam step each, while M-steps fit the noise. Then the latents move as in :func:`ppse.methods.hmc_em`, from the means
    of the adapted law and whitened by its deviations. :func:`ppse.methods.vem` instead moves all weights of the encoder for clean speech,
    shared by all recordings of a batch, and never leaves the law that it can express.

    Args:
        tune: of the iterations; a third of them where there are fewer than three times as many.
        learning_rate: of Adam, in logits and latent units.
        temperature: of the joint density, as for :func:`ppse.methods.hmc_em`, and the weight of the KL divergence in the ELBO, which
            makes the encoder approximate a posterior as flat in the data.
        steps, step_size, chains, average: as for :func:`ppse.methods.hmc_em`.

    Raises:
        ValueError: when the model has no encoder for noisy speech (when inference starts), or a number is out of its range.
    """
    tune, average = min(tune, iterations // 3), min(average, max(1, iterations // 2))

    def e_step(problem: Problem) -> EStep:
        hear(problem)
        guide = corrected(problem)
        parameters = [p for module in guide.children() if isinstance(module, Corrected) for p in module.parameters()]
        optimiser = torch.optim.Adam(parameters, lr=learning_rate)
        sampling: EStep | None = None

        def step(iteration: int) -> Expectation:
            nonlocal sampling
            if iteration < tune:
                with torch.enable_grad():
                    loss = negative_elbo(problem.graph, guide, *problem.args, beta=temperature)
                descend(optimiser, loss)  # not backward(): the parameters of the noise would collect gradients, too
                with torch.no_grad(), pyro.plate("chains", chains, dim=CHAINS_DIM):
                    return Expectation(guide(*problem.args))
            if sampling is None:
                target = log_density(problem.graph, *problem.args, chains=chains, temperature=temperature)
                with torch.no_grad():
                    laws = guide.laws(*problem.args)
                start, scale = ({site: law[i] for site, law in laws.items()} for i in (0, 1))
                sampling = mcmc_e_step(
                    target, lambda e: hmc(target, e, steps, scale), target.init(start), step_size=step_size,
                    adapt=(iterations - tune - average) or 1, target_acceptance=TARGET_ACCEPTANCE["hmc"],
                )
            return sampling(iteration - tune)

        return step

    return Method("adapt_em", e_step, starting_guide, iterations, average)
