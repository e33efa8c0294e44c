"""Memory over frames: a stationary Gaussian chain, noise whose level drifts with it, and speech whose codes do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ..distributions import ComplexNormal
from ..mixture import Frames, Source
from ..stft import POWER_FLOOR
from ._latent_scale import LatentScale
from .stationary import StationaryNoise
from .vae import VAESpeech


class Autoregressive(TorchDistribution):
    """Stationary first-order chain over dim -2: a_0 ~ N(0, c^2), a_t ~ N(r a_t-1, (1 - r^2) c^2), so Cov(a_t, a_u) = c^2 r^|t - u|.

    ``log_prob`` gives log p(a_t | a_t-1) at the place of a_t; their sum over dim -2 is the log density of the chain. That dim is
    of the batch shape, so that the chain can lie in a plate of frames; ``to_event(2)`` makes it one event.

    Args:
        correlation: r, between neighbours.
        scale: c > 0, standard deviation, of a shape (…, T, L).
    """

    arg_constraints = {"scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, correlation: float, scale: Tensor, validate_args: bool | None = None) -> None:
        self.correlation, self.scale = correlation, scale
        super().__init__(scale.shape, torch.Size(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> Autoregressive:
        return Autoregressive(self.correlation, self.scale.expand(torch.Size(batch_shape)), validate_args=False)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=self.scale.dtype, device=self.scale.device)
        chain = [noise[..., 0, :]]
        for step in range(1, noise.shape[-2]):
            chain.append(self.correlation * chain[-1] + self._innovation * noise[..., step, :])
        return torch.stack(chain, -2) * self.scale

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        standard = value / self.scale
        first, later = standard[..., :1, :], standard[..., 1:, :] - self.correlation * standard[..., :-1, :]
        spread = torch.full_like(standard[..., :1], self._innovation)
        spread[..., 0, :] = 1
        return Normal(0.0, spread).log_prob(torch.cat([first, later], -2)) - self.scale.log()

    @property
    def _innovation(self) -> float:
        return math.sqrt(1 - self.correlation**2)


class ARNoise(LatentScale):
    """Noise whose log-level drifts: n_tf ~ CN(0, exp(level_t) v_tf), level a stationary AR(1) chain over frames.

    Site: ``level`` (T, 1), one event outside of the frames plate, as its frames are no longer independent: samplers accept whole
    utterances. v is what the level is at 0, so the median over time.

    Args:
        source: gives v; it has no latents of its own. :class:`StationaryNoise` when None.
        correlation: of the levels of neighbouring frames, in (-1, 1); over a time of k frames it is correlation^k.
        spread: standard deviation of the level, in nats of power; 1 is 4.3 dB.

    Raises:
        ValueError: when correlation or spread is out of range.

    References:
        Harvey, Ruiz & Shephard (1994), Multivariate stochastic variance models (the log-variance as an AR(1) chain).
    """

    def __init__(self, source: Source | None = None, correlation: float = 0.95, spread: float = 1.0) -> None:
        super().__init__(StationaryNoise() if source is None else source)
        if not 0 < spread < math.inf:
            raise ValueError(f"ARNoise: spread={spread}; expected a standard deviation above 0, in nats")
        self.correlation, self.spread = _checked(correlation, "ARNoise"), spread

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the noise given the levels, (…, T, F). The mean is not scaled."""
        law: ComplexNormal = self.source(frames)
        chain = Autoregressive(self.correlation, law.var.new_full((frames.size, 1), self.spread))
        level = pyro.sample("level", chain.to_event(2))
        scale = (level.squeeze(-3) if level.dim() > 2 else level).exp()  # without the slot of the frames plate
        return ComplexNormal(law.centre, scale * law.var)


class AutoregressiveVAESpeech(VAESpeech):
    """The VAE of clean speech with memory in its codes: z_t ~ N(r z_t-1, (1 - r^2) I), s_t | z_t as in :class:`VAESpeech`.

    Every z_t alone is N(0, I), for which the decoder was trained, so the weights serve as they are. Site ``z`` is where VAESpeech has
    it, in the frames plate, so that its encoders and guides fit; given the frames before, its density is written in every frame.
    As the frames are not independent, :func:`ppse.infer.log_density` takes whole utterances for blocks and refuses frames.

    For r near 1 it is a Gaussian random walk with steps of standard deviation sqrt(2 (1 - r)), pulled back just enough to stay N(0, I).

    Args:
        correlation: r, of the codes of neighbouring frames, in (-1, 1); 0 is VAESpeech.
        n_freqs, n_latent, hidden, context, log_input, relu, couplings, bands: as for :class:`VAESpeech`.

    Raises:
        ValueError: when the correlation is out of range.

    References:
        Girin et al. (2021), Dynamical variational autoencoders: a comprehensive review (linear Gaussian transitions).
    """

    def __init__(
        self, n_freqs: int = 513, n_latent: int = 32, hidden: Sequence[int] = (512,), context: int = 0, correlation: float = 0.9, *,
        log_input: bool = True, relu: bool = False, couplings: int = 0, bands: int = 0,
    ) -> None:
        super().__init__(n_freqs, n_latent, hidden, context, log_input=log_input, relu=relu, couplings=couplings, bands=bands)
        self.correlation = _checked(correlation, "AutoregressiveVAESpeech")
        self.settings["correlation"] = correlation

    @classmethod
    def pretrained(cls, name: str = "vae", correlation: float = 0.9) -> Self:
        """The networks of :meth:`VAESpeech.pretrained`, frozen, under this prior.

        Raises:
            WeightsError: when there is no such file, or it does not hold a VAESpeech.
            ValueError: when the correlation is out of range.
        """
        vae = VAESpeech.pretrained(name)
        settings: dict[str, Any] = {**vae.settings, "correlation": correlation}
        speech = cls(**settings)
        speech.load_state_dict(vae.state_dict())
        return speech.eval().requires_grad_(False)

    def forward(self, frames: Frames) -> ComplexNormal:
        decoder = self._modules["decoder"]  # not self.decoder: see VAESpeech
        assert decoder is not None
        one = next(decoder.parameters()).new_ones(frames.size, self.n_latent)
        with frames:
            z = pyro.sample("z", Autoregressive(self.correlation, one).to_event(1))
        return ComplexNormal(0j, decoder(z).exp() + POWER_FLOOR)


def _checked(correlation: float, where: str) -> float:
    if not -1 < correlation < 1:
        raise ValueError(f"{where}: correlation={correlation}; a stationary chain has one in (-1, 1)")
    return correlation
