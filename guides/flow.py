"""The normalising flow family: the latents of a frame by inverse autoregressive flow, for laws that are not normal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro.nn import ConditionalAutoRegressiveNN, PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from .joint import Joint, joint_in_frames
from .sites import Start


class InverseAutoregressiveFlow(PyroModule):
    """u = loc + scale * f(e; c), e ~ N(0, I): f some autoregressive steps whose networks all vectors share, c a vector (…, C) for each.

    Parameters ``loc``, ``scale`` (…, D), ``context`` (…, C) and the weights of ``networks``. At the start f is the identity.
    """

    loc: Tensor
    scale: Tensor
    context: Tensor

    def __init__(self, loc: Tensor, scale: Tensor, layers: int, hidden: int, context: int) -> None:
        super().__init__()
        size = loc.shape[-1]
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(scale, constraints.positive)
        self.context = nn.Parameter(0.1 * torch.randn_like(loc[..., :1].expand(*loc.shape[:-1], context)))
        self.networks = nn.ModuleList(
            _network(size, hidden, context, torch.arange(size).flip(0) if i % 2 else torch.arange(size)).to(loc)
            for i in range(layers if size > 1 else 0)  # one number has nothing to be autoregressive on
        )

    def forward(self) -> dist.TransformedDistribution:
        """The law; batch shape (…), event (D,). To score its own draws is cheap; others take D passes."""
        networks = self._modules["networks"]  # not self.networks: Pyro would make a parameter site of every weight
        assert isinstance(networks, nn.ModuleList)
        steps = [transforms.ConditionalAffineAutoregressive(network).condition(self.context) for network in networks]
        base = dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)
        return dist.TransformedDistribution(base, [*steps, transforms.AffineTransform(self.loc, self.scale, event_dim=1, cache_size=1)])


def _network(size: int, hidden: int, context: int, order: Tensor) -> ConditionalAutoRegressiveNN:
    """An autoregressive network whose output is 0, so that its step is the identity, until it has learnt something."""
    network = ConditionalAutoRegressiveNN(size, context, [max(hidden, size)], permutation=order, skip_connections=True, nonlinearity=nn.Tanh())
    with torch.no_grad():
        for weight in (network.layers[-1].weight, network.layers[-1].bias, network.skip_layer.weight):
            weight.zero_()
    return network


def flow(
    model: Callable[..., Any], *args: Any, layers: int = 2, hidden: int = 64, context: int = 8, start: Start | None = None, scale: float = 0.1,
) -> Joint:
    """q(z) = product over frames of an inverse autoregressive flow of all latents of the frame, in unconstrained space.

    Beside :func:`ppse.guides.per_frame` it can be skewed and bent; but the networks are shared by the frames, which differ in place, scale
    and a context vector. Latents that frames share have the mean-field law. Random from the global generator: the networks at the start.

    Fit it with a learning rate of 0.02 or less: at 0.03 it went astray after some hundred steps on speech.

    Args:
        layers: autoregressive steps, every second one in the opposite order.
        hidden: units of the networks, not fewer than latents of a frame.
        context: C, size of the vector that tells the networks of the frame.
        model, args, start, scale: as for :func:`ppse.guides.mean_field`.

    Raises:
        ValueError: as :func:`ppse.guides.per_frame`, and when a number is below 1.

    References:
        Kingma et al. (2016), Improved variational inference with inverse autoregressive flow.
    """
    if min(layers, hidden, context) < 1:
        raise ValueError(f"flow: layers={layers}, hidden={hidden}, context={context}; expected 1 or more")
    return joint_in_frames(model, args, lambda loc, scale: InverseAutoregressiveFlow(loc, scale, layers, hidden, context), start, scale)
