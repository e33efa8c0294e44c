"""A prior over the codes: what clean speech does from frame to frame, put around any VAE of frames."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints

from ..distributions import ComplexNormal
from ..mixture import Frames, Source
from ..weights import load
from ._wrapper import Wrapper
from .vae import VAESpeech


class LinearChain(TorchDistribution):
    """z_0 ~ N(m, S_0), z_t ~ N(A z_t-1 + c, S): a first-order vector autoregression over the frames, dim -1 of the batch shape.

    ``log_prob`` gives log p(z_t | z_t-1) at the place of z_t, all frames at once; their sum over the frames is the log density of the
    chain. A draw goes frame by frame.

    Args:
        chain: the fitted numbers.
        batch_shape: (…, T).

    References:
        Luetkepohl (2005), New introduction to multiple time series analysis, section 2.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 1)
    has_rsample = True

    def __init__(self, chain: CodeChain, batch_shape: Sequence[int], validate_args: bool | None = None) -> None:
        self.chain = chain
        super().__init__(torch.Size(batch_shape), chain.offset.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> LinearChain:
        return LinearChain(self.chain, batch_shape, validate_args=False)

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:  # noqa: B008  (the signature of torch)
        chain = self.chain
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape)), dtype=chain.offset.dtype, device=chain.offset.device)
        drawn = [chain.first_loc + noise[..., 0, :] @ chain.first_tril.mT]
        for step in range(1, noise.shape[-2]):
            drawn.append(chain.offset + drawn[-1] @ chain.transition.mT + noise[..., step, :] @ chain.scale_tril.mT)
        return torch.stack(drawn, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        chain = self.chain
        innovation = value[..., 1:, :] - value[..., :-1, :] @ chain.transition.mT - chain.offset
        first = _log_normal(value[..., :1, :] - chain.first_loc, chain.first_tril)
        return torch.cat([first, _log_normal(innovation, chain.scale_tril)], -1)


class CodeChain(nn.Module):
    """The numbers of a :class:`LinearChain`, none of which inference on a recording changes. Untrained, it is iid N(0, I).

    Args:
        n_latent: L.

    Attributes:
        transition, offset, scale_tril: A, c and the Cholesky factor of S, (L, L), (L,), (L, L).
        first_loc, first_tril: m and the Cholesky factor of S_0.
    """

    transition: Tensor
    offset: Tensor
    scale_tril: Tensor
    first_loc: Tensor
    first_tril: Tensor

    def __init__(self, n_latent: int = 32) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"n_latent": n_latent}
        self.register_buffer("transition", torch.zeros(n_latent, n_latent))
        for name in ("offset", "first_loc"):
            self.register_buffer(name, torch.zeros(n_latent))
        for name in ("scale_tril", "first_tril"):
            self.register_buffer(name, torch.eye(n_latent))

    @classmethod
    def pretrained(cls, name: str = "codes") -> Self:
        """The chain shipped for the codes of the shipped VAE, or the one in the file of that path.

        Raises:
            WeightsError: when there is no such file, or it does not hold a chain.
        """
        return load(cls, name)

    def law(self, n_frames: int) -> LinearChain:
        """Of the codes of that many frames."""
        return LinearChain(self, (n_frames,), validate_args=False)

    @torch.no_grad()
    def fit(self, codes: Sequence[Tensor]) -> None:
        """Set the numbers to those of greatest likelihood given the codes of clean recordings, (T, L) each: least squares, in double precision.

        z_0 gets the marginal moments of all frames, since an utterance is as a rule cut out of more speech.

        Raises:
            ValueError: when there are too few frames to tell all numbers, or some mixture of the codes never varies.
        """
        size = self.offset.numel()
        pairs = sum(max(0, len(c) - 1) for c in codes)
        if pairs <= 2 * size:
            raise ValueError(f"CodeChain: {pairs} pairs of neighbouring frames; expected more than {2 * size} for codes of {size} dimensions")
        every = torch.cat(list(codes)).double()
        past = torch.cat([c[:-1] for c in codes]).double()
        past = torch.cat([past, past.new_ones(len(past), 1)], -1)
        now = torch.cat([c[1:] for c in codes]).double()
        solution = torch.linalg.lstsq(past, now).solution
        covariances = torch.stack([(now - past @ solution).mT.cov(correction=size + 1), every.mT.cov()])
        (scale_tril, first_tril), failed = torch.linalg.cholesky_ex(covariances)
        if failed.any():
            raise ValueError("CodeChain: a linear combination of the codes is the same in all frames; expected draws of an encoder")
        fitted = {
            "transition": solution[:-1].mT, "offset": solution[-1], "scale_tril": scale_tril, "first_loc": every.mean(0), "first_tril": first_tril,
        }
        for name, value in fitted.items():
            getattr(self, name).copy_(value)


class CodePrior(Wrapper):
    """Speech of a VAE of frames whose codes follow a chain: z_1:T ~ :class:`LinearChain`, s_t | z_t as the wrapped source has it.

    Site ``z`` stays where the source has it, in the frames plate, so that encoders and guides fit; only its law is another one. As each
    frame depends on the one before, samplers accept whole utterances, or windows, and never frames.

    Args:
        source: declares site ``z``, a vector of L per frame, as :class:`VAESpeech` does.
        chain: fitted to the codes that the encoder of the source finds in clean speech (:func:`ppse.codes.train_codes`).

    >>> import pyro
    >>> speech = CodePrior(VAESpeech(n_freqs=9, n_latent=2, hidden=(4,)), CodeChain(n_latent=2))
    >>> tuple(speech(pyro.plate("frames", 5, dim=-1)).var.shape)
    (5, 9)
    """

    def __init__(self, source: Source, chain: CodeChain) -> None:
        super().__init__(source)
        self.chain = chain

    @classmethod
    def pretrained(cls, name: str = "vae", codes: str = "codes") -> Self:
        """The shipped VAE under the shipped chain of its codes, or those in the files of these paths, frozen.

        Raises:
            WeightsError: when a file is missing, or holds something else.
        """
        return cls(VAESpeech.pretrained(name), CodeChain.pretrained(codes))

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the wrapped source, (…, T, F).

        Raises:
            ValueError: when the source has no site ``z``, or one of another dimension than the chain.
        """
        chain = cast(CodeChain, self._modules["chain"])  # not self.chain: see VAESpeech
        with _replaced(chain.law(frames.size)):
            return self.source(frames)


class _Replace(Messenger):
    """Gives site ``z`` another law."""

    def __init__(self, law: TorchDistribution) -> None:
        super().__init__()
        self.law, self.met = law, False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != "z":
            return
        expected, found = self.law.event_shape, msg["fn"].event_shape
        if found != expected:
            raise ValueError(f"CodePrior: site 'z' of the source has event shape {tuple(found)}; the chain is of codes of {tuple(expected)}")
        msg["fn"] = self.law.expand(msg["fn"].batch_shape)
        self.met = True


@contextmanager
def _replaced(law: TorchDistribution) -> Iterator[None]:
    with _Replace(law) as handler:
        yield
    if not handler.met:
        raise ValueError("CodePrior: the source has no site 'z'; expected one as VAESpeech has, a vector per frame")


def _log_normal(residual: Tensor, tril: Tensor) -> Tensor:
    """Log density of N(0, tril tril') over the last dim."""
    standard = torch.linalg.solve_triangular(tril, residual.mT, upper=False)
    return -0.5 * standard.square().sum(-2) - tril.diagonal().log().sum() - 0.5 * len(tril) * math.log(2 * math.pi)
