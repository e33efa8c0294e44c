"""Stochastic variational inference: maximise an ELBO of a model/guide pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn


class Objective(Protocol):
    """A bound of log p(x) to be maximised: Pyro's ELBO estimators with a differentiable loss, and :class:`ppse.infer.RenyiBound`."""

    def differentiable_loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor: ...


def fit(
    model: Callable[..., Any], guide: nn.Module, *args: Any, steps: int = 500, learning_rate: float = 0.01,
    elbo: Objective | None = None, callback: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit a guide, and those parameters of the model that require gradients, by Adam; returns the loss (-ELBO) per step.

    Args:
        model, guide: same signature; called with ``args``.
        elbo: the objective, :class:`pyro.infer.Trace_ELBO` of one draw unless given. See below.
        callback: called with (step, loss).

    Objectives that suit our plates:

    * ``Trace_ELBO(num_particles=K, vectorize_particles=True, max_plate_nesting=1)`` draws K times side by side; for a batch the nesting
      is 3. ``RenyiBound(K, alpha=1)`` is the same, with the particles in the dim of chains, for any plates.
    * ``TraceMeanField_ELBO`` has the divergence of normal guide sites from normal priors in closed form, so it is less noisy. It is for
      guides without dependence between sites, such as :func:`ppse.guides.mean_field` and encoders.
    * ``RenyiBound(K)`` is the importance-weighted bound (IWAE), or Renyi's, in place of Pyro's RenyiELBO.

    Raises:
        ValueError: when the loss is not finite; the message gives the step. Or when the objective has no differentiable loss.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(2.0))
    >>> losses = fit(model, AutoNormal(model), steps=200)
    >>> losses[-1] < losses[0]
    True
    """
    elbo = elbo or Trace_ELBO()
    if not hasattr(elbo, "differentiable_loss"):
        raise ValueError(f"fit: {type(elbo).__name__} has no differentiable loss; use Trace_ELBO, TraceMeanField_ELBO, or ppse.infer.RenyiBound")
    elbo.differentiable_loss(model, guide, *args)  # automatic guides make their parameters on the first call
    modules = [m for m in (model, guide) if isinstance(m, nn.Module)]
    parameters = dict.fromkeys(p for m in modules for p in m.parameters() if p.requires_grad)  # model and guide may share a network
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    losses: list[float] = []
    for step in range(steps):
        optimiser.zero_grad()
        loss = elbo.differentiable_loss(model, guide, *args)
        if not bool(loss.isfinite()):
            raise ValueError(f"fit: the loss is {loss.item()} at step {step}; lower the learning rate ({learning_rate}) or start elsewhere")
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if callback:
            callback(step, losses[-1])
    return losses
