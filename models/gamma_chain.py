"""NMF noise whose activations have memory: a stationary chain of Gamma variables, and the source on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import Gamma, TorchDistribution
from pyro.nn import PyroModule, PyroParam
from torch import Tensor
from torch.distributions import constraints

from ..distributions import ComplexNormal, power_of
from ..mixture import Frames
from ._multiplicative import PARAMETER_FLOOR


class GammaChain(TorchDistribution):
    """Positive chain over dim -2 around 1: h_t = (1 - r + r h_t-1) e_t, e_t ~ Gamma(a, a), h_0 ~ Gamma(1 / c^2, 1 / c^2).

    With 1 / a = c^2 (1 - r^2) / (1 + r^2 c^2) it is stationary in its moments: E h_t = 1 and Cov(h_t, h_u) = c^2 r^|t - u|.
    The chain of Fevotte et al. has h_t-1 itself for conditional mean, so that its variance grows with time; the pull to 1 prevents that.

    ``log_prob`` gives log p(h_t | h_t-1) at the place of h_t; their sum over dim -2 is the log density of the chain. That dim is
    of the batch shape, as in :class:`Autoregressive`; ``to_event(2)`` makes it one event.

    Args:
        correlation: r, between neighbours, in [0, 1).
        scale: c > 0, standard deviation, of a shape (…, T, K).

    References:
        Fevotte, Bertin & Durrieu (2009), Nonnegative matrix factorization with the Itakura-Saito divergence (section 4).
        Dikmen & Cemgil (2010), Gamma Markov random fields for audio source modeling.
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(self, correlation: float, scale: Tensor, validate_args: bool | None = None) -> None:
        self.correlation, self.scale = correlation, scale
        super().__init__(scale.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> GammaChain:
        return GammaChain(self.correlation, self.scale.expand(torch.Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        noise = Gamma(self._shape, self._shape).rsample(torch.Size(sample_shape))
        chain = [noise[..., 0, :]]
        for step in range(1, noise.shape[-2]):
            chain.append(self._conditional_mean(chain[-1]) * noise[..., step, :])
        return torch.stack(chain, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        first, later = torch.ones_like(value[..., :1, :]), self._conditional_mean(value[..., :-1, :])
        return Gamma(self._shape, self._shape / torch.cat([first, later], -2), validate_args=False).log_prob(value)

    def _conditional_mean(self, before: Tensor) -> Tensor:
        return 1 - self.correlation + self.correlation * before

    @property
    def _shape(self) -> Tensor:
        """Shape of the Gamma law of h_0 and of every e_t, (…, T, K)."""
        var = self.scale.square()
        later = (1 + self.correlation**2 * var) / (var * (1 - self.correlation**2))
        return torch.cat([var[..., :1, :].reciprocal(), later[..., 1:, :]], -2)


class SmoothNMFNoise(PyroModule):
    """Itakura-Saito NMF noise with smooth random activations: n_tf | h ~ CN(0, sum_k h_tk W_fk), h_k a :class:`GammaChain` of mean 1.

    Site: ``h`` (T, K), one event outside of the frames plate, as its frames are not independent: samplers accept whole utterances.
    Parameter of one recording, made by :meth:`start`: ``W`` (F, K), or (B, 1, 1, F, K) in a batch, positive; its columns have the
    level of the noise, and EM fits them by gradient. A cheaper way to smooth activations, without latents, is ``NMFNoise(spacing=16)``.

    Args:
        rank: K, number of spectral patterns.
        correlation: of an activation in neighbouring frames, in [0, 1).
        spread: standard deviation of an activation whose mean is 1.

    Raises:
        ValueError: when a number is out of range.
    """

    W: Tensor

    def __init__(self, rank: int = 4, correlation: float = 0.95, spread: float = 1.0) -> None:
        super().__init__()
        if rank < 1 or not 0 <= correlation < 1 or not 0 < spread < math.inf:
            raise ValueError(
                f"SmoothNMFNoise: rank={rank}, correlation={correlation}, spread={spread}; expected 1 or more, one in [0, 1), one above 0"
            )
        self.rank, self.correlation, self.spread = rank, correlation, spread

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        """Every pattern is a random share, U(0, 1), of the mean power of x in its frequency over the observed frames."""
        power = power_of(x)
        seen = torch.ones_like(power) if observed is None else observed.expand(power.shape).to(power.dtype)
        spectrum = (power * seen).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True).clamp_min(1)
        shares = torch.rand(*spectrum.shape[:-2], self.rank, x.shape[-1], dtype=power.dtype, device=x.device)
        w = (shares / shares.sum(-2, keepdim=True) * spectrum).mT.clamp_min(PARAMETER_FLOOR)
        self.W = PyroParam(w if x.dim() == 2 else w.unsqueeze(-3), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise given the activations, (…, T, F), in squared STFT units."""
        if "W" not in self._pyro_params:
            raise RuntimeError("SmoothNMFNoise: no recording yet; call model.start(x) (enhance does) before running the model")
        w = self.W
        h = pyro.sample("h", GammaChain(self.correlation, w.new_full((frames.size, self.rank), self.spread)).to_event(2))
        h, w = (value.squeeze(-3) if value.dim() > 2 else value for value in (h, w))  # without the slot of the frames plate
        return ComplexNormal(0j, h @ w.mT)
