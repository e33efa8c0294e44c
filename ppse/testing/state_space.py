"""The truth for samplers of coupled frames: the posterior of a linear-Gaussian state-space model, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..models.autoregressive import Autoregressive


class Smoothed(NamedTuple):
    """The normal law p(z_1:T | x_1:T): mean and covariance of every z_t, (T, L) and (T, L, L), and Cov(z_t, z_t+1), (T - 1, L, L)."""

    mean: Tensor
    covariance: Tensor
    neighbours: Tensor


def kalman_smoother(x: Tensor, transition: Tensor, process: Tensor, decoder: Tensor, noise: Tensor, start: Tensor) -> Smoothed:
    """The posterior of z_t = A z_t-1 + N(0, Q), x_t = D z_t + N(0, R), with z_1 ~ N(0, P). Not random.

    A recurrent decoder is one of these, too: its state is what it remembers of the latents.

    Args:
        x: what was observed, (T, M).
        transition, process: A and Q, (L, L).
        decoder, noise: D, (M, L), and R, (M, M).
        start: P, (L, L).

    References:
        Rauch, Tung & Striebel (1965), Maximum likelihood estimates of linear dynamic systems.
    """
    mean, covariance = torch.zeros_like(transition[0]), start
    predicted, filtered = [], []
    for t, observation in enumerate(x):
        if t:
            mean, covariance = transition @ mean, transition @ covariance @ transition.mT + process
        predicted.append((mean, covariance))
        gain = torch.linalg.solve(decoder @ covariance @ decoder.mT + noise, decoder @ covariance).mT
        mean, covariance = mean + gain @ (observation - decoder @ mean), covariance - gain @ decoder @ covariance
        filtered.append((mean, covariance))
    means, covariances, neighbours = [mean], [covariance], []
    for (here, spread), (ahead, ahead_spread) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        gain = torch.linalg.solve(ahead_spread, transition @ spread).mT
        neighbours.append(gain @ covariances[-1])
        means.append(here + gain @ (means[-1] - ahead))
        covariances.append(spread + gain @ (covariances[-1] - ahead_spread) @ gain.mT)
    pairs = torch.stack(neighbours[::-1]) if neighbours else start.new_empty(0, *start.shape)
    return Smoothed(torch.stack(means[::-1]), torch.stack(covariances[::-1]), pairs)


@dataclass(frozen=True)
class StateSpace:
    """A small Pyro model with coupled frames, site ``z`` in the plate of frames, whose posterior is known. Call it to run it.

    With the memory in the prior, z_t ~ N(r z_t-1, (1 - r^2) I), x_t ~ N(D z_t, s^2 I): a frame is coupled to its neighbours. With the memory
    in the decoder, ``recurrent``, z_t ~ N(0, I), h_t = r h_t-1 + z_t, x_t ~ N(D h_t, s^2 I): it reaches all that come after it.

    Attributes:
        x: what is observed, (T, M).
        decoder: D, (M, L).
        noise: s.
        memory: r, in (-1, 1).
        recurrent: where the memory is.
    """

    x: Tensor
    decoder: Tensor
    noise: float = 1.0
    memory: float = 0.8
    recurrent: bool = False

    def __call__(self) -> None:
        one = self.x.new_ones(len(self.x), self.decoder.shape[-1])
        prior = dist.Normal(torch.zeros_like(one), one) if self.recurrent else Autoregressive(self.memory, one)
        with pyro.plate("frames", len(self.x), dim=-1):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(self._state(z) @ self.decoder.mT, self.noise).to_event(1), obs=self.x)

    def posterior(self) -> Smoothed:
        """p(z | x), by the Kalman smoother."""
        eye = torch.eye(self.decoder.shape[-1]).to(self.x)
        noise = self.noise**2 * torch.eye(self.x.shape[-1]).to(self.x)
        if not self.recurrent:
            return kalman_smoother(self.x, self.memory * eye, (1 - self.memory**2) * eye, self.decoder, noise, eye)
        # The state is (h_t, z_t), of which z_t is what is new in h_t.
        new, size = eye.repeat(2, 2), len(eye)
        transition, decoder = torch.block_diag(self.memory * eye, 0 * eye), torch.cat([self.decoder, 0 * self.decoder], 1)
        mean, covariance, neighbours = kalman_smoother(self.x, transition, new, decoder, noise, new)
        return Smoothed(mean[:, size:], covariance[:, size:, size:], neighbours[:, size:, size:])

    def _state(self, z: Tensor) -> Tensor:
        """What the decoder sees, in one product over all frames."""
        if not self.recurrent:
            return z
        index = torch.arange(len(self.x), device=self.x.device)
        lag = index[:, None] - index
        return torch.where(lag >= 0, self.memory ** lag.clamp_min(0).to(self.x), 0.0) @ z
