"""Stochastic variational inference: maximise an ELBO of a model/guide pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import nn


def fit(
    model: Callable[..., Any], guide: nn.Module, *args: Any, steps: int = 500, learning_rate: float = 0.01,
    elbo: Trace_ELBO | None = None, callback: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fit a guide, and those parameters of the model that require gradients, by Adam; returns the loss (-ELBO) per step.

    Args:
        model, guide: same signature; called with ``args``.
        elbo: Pyro's estimator, :class:`pyro.infer.Trace_ELBO` unless given.
        callback: called with (step, loss).

    Raises:
        ValueError: when the loss is not finite; the message gives the step.

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
