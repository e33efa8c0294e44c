"""What the speech priors share that listen to their own past: the recursion, in generation mode or taught, and the law of its latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn

from ..distributions import ComplexNormal, power_of
from ..mixture import Frames
from ..stft import POWER_FLOOR
from .dynamical import DynamicalVAE
from .encoders import perceptron, scaled
from .recurrent import Layers, RecurrentNormal, State, advance, before, dense, flattened


class Taught(NamedTuple):
    """Powers (…, T, F) of observed speech, and in which frames (…, T, 1) they are heard in place of the own ones."""

    power: Tensor
    frames: Tensor


class FeedbackVAE(DynamicalVAE):
    """Base of speech priors in which the past of the speech tells about its present: p(s_t, z_t | s_<t, z_<t).

    In a mixture nobody observes s, and it is marginalised. So the prior runs in *generation mode*: where the published networks read |s_t-1|^2,
    it reads its own expectation of it, the variance of s_t-1 given the latents. Given these, that is a deterministic recursion, and the
    density is exact. Networks that only ever heard observed speech fail in it, so training begins with it and leaves it (:meth:`teach`).

    A subclass sets ``feedback``, the networks, besides what :class:`DynamicalVAE` asks for.

    References:
        Bengio et al. (2015), Scheduled sampling for sequence prediction with recurrent neural networks; Girin et al. (2021), Dynamical
        variational autoencoders: a comprehensive review (generation mode).
    """

    feedback: Feedback
    _taught: Taught | None = None

    @contextmanager
    def teach(self, s: Tensor, share: float) -> Iterator[None]:
        """Within it, the prior hears the observed past of speech, not its own, in that share of the frames of every utterance.

        Args:
            s: clean STFT, (T, F) or (B, 1, T, F), of the recordings that the graph is evaluated on.
            share: probability that a frame is heard as observed. Random below 1, drawn on entering.

        Raises:
            ValueError: when the share is no probability.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"teach: share={share}; expected a probability")
        if share:
            self._taught = Taught(power_of(s), torch.rand_like(s.real[..., :1]) < share)
        try:
            yield
        finally:
            self._taught = None

    def forward(self, frames: Frames) -> ComplexNormal:
        """Law of the speech STFT, (…, T, F), for recordings of unit level (:func:`ppse.stft.level`)."""
        feedback = self._modules["feedback"]  # not self.feedback: see RVAESpeech
        assert isinstance(feedback, Feedback)
        recursion = Recursion(feedback, self._taught)
        with frames:
            z = pyro.sample("z", self.latent_law(recursion, frames.size).to_event(1))
        return ComplexNormal(0j, recursion(z)[1].exp() + POWER_FLOOR)

    def latent_law(self, recursion: Recursion, n_frames: int) -> TorchDistribution:
        """p(z_t | z_<t) for all t, of shape (T, L)."""
        return FeedbackNormal(recursion, self.n_latent, next(recursion.networks.parameters()).new_zeros(n_frames, 0))


class Feedback(nn.Module, ABC):
    """h_t = LSTM(h_t-1; listen(|s_t-1|^2), told(z)), then log-variance d_t = decoder(h_t, shown(z_t)) of s_t. Nothing is random.

    What ``told``, ``shown`` and ``prior`` are is what makes one model differ from another.

    Args:
        n_freqs: F.
        layers: sizes: dense layers on the power before the LSTM, those of the LSTM, and the dense layers of the decoder after it.
        n_told, n_shown: sizes of told and shown.
        log_input: whether powers are read as log-powers.
        activation: class of the activations.
    """

    def __init__(self, n_freqs: int, layers: Layers, n_told: int, n_shown: int, log_input: bool, activation: type[nn.Module]) -> None:
        super().__init__()
        self.n_freqs, self.log_input = n_freqs, log_input
        sizes = [n_freqs, *layers.before]
        self.listen = dense(sizes, activation)
        self.memory = nn.LSTM(sizes[-1] + n_told, layers.size, layers.depth, batch_first=True)
        self.decoder = perceptron([layers.size + n_shown, *layers.after, n_freqs], activation)

    @abstractmethod
    def told(self, past: Tensor, z: Tensor) -> Tensor:
        """What the memory is told of z_t-1 and z_t, (N, T, L) each."""

    @abstractmethod
    def shown(self, z: Tensor) -> Tensor:
        """What the decoder is shown of z_t, (N, T, L)."""

    def prior(self, hidden: Tensor, past: Tensor) -> Normal:
        """p(z_t | h_t, z_t-1), unless the law of the latents is another."""
        raise NotImplementedError  # never asked of a model that overrides latent_law, as STORN does: its latents know no state

    def run(self, z: Tensor, taught: Taught | None) -> tuple[Tensor, Tensor]:
        """Hidden states (N, T, H) and log-variances (N, T, F) given the latents (N, T, L). One pass when all frames are taught."""
        told, shown = self.told(before(z), z), self.shown(z)
        if taught is not None and bool(taught.frames.all()):
            hidden, _ = self.advance(before(taught.power), told)
            return hidden, self.decode(hidden, shown)
        heard, state = z.new_zeros(z.shape[0], 1, self.n_freqs), None
        states: list[Tensor] = []
        decoded: list[Tensor] = []
        for t in range(z.shape[1]):
            hidden, state = self.advance(heard, told[:, t : t + 1], state)
            log_variance = self.decode(hidden, shown[:, t : t + 1])
            heard = _heard(log_variance, taught, t)
            states.append(hidden)
            decoded.append(log_variance)
        return torch.cat(states, 1), torch.cat(decoded, 1)

    def advance(self, powers: Tensor, told: Tensor, state: State = None) -> tuple[Tensor, State]:
        """Hidden states of the next frames, (N, T, H), from the powers of the frames before them."""
        heard = self.listen(scaled(powers) if self.log_input else powers)
        return advance(self.memory, torch.cat([heard, told], -1), state)

    def decode(self, hidden: Tensor, shown: Tensor) -> Tensor:
        """Log-variances (N, T, F)."""
        decoded: Tensor = self.decoder(torch.cat([hidden, shown], -1))
        return decoded


class Recursion:
    """The recursion of a prior, given its latents; that of the latents of the last call is kept, as graph and density both ask for it."""

    def __init__(self, networks: Feedback, taught: Taught | None) -> None:
        self.networks, self.taught = networks, taught
        self._last: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (…, T, H) and log-variances (…, T, F) given all latents (…, T, L)."""
        if self._last is None or self._last[0] is not z:
            hidden, log_variance = self.networks.run(flattened(z), self._taught(z.shape))
            self._last = z, (hidden.reshape(*z.shape[:-1], -1), log_variance.reshape(*z.shape[:-1], -1))
        return self._last[1]

    def next(self, past: Tensor, _: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        """Mean and standard deviation of z_t given z_t-1, (…, 1, L), and the state before it: a network of :class:`RecurrentNormal`."""
        last = flattened(past)
        if state is None:
            heard, memory, t = last.new_zeros(last.shape[0], 1, self.networks.n_freqs), None, 0
        else:
            hidden, memory, t = state
            heard = _heard(self.networks.decode(hidden, self.networks.shown(last)), self._taught(past.shape), t - 1)
        told = self.networks.told(last, last)  # of z_t nothing: it is to be drawn
        hidden, memory = self.networks.advance(heard, told, memory)
        law = self.networks.prior(hidden, last)
        return law.loc.reshape(past.shape), law.scale.reshape(past.shape), (hidden, memory, t + 1)

    def _taught(self, shape: torch.Size) -> Taught | None:
        if self.taught is None:
            return None
        return Taught(*(flattened(part.expand(*shape[:-2], *part.shape[-2:])) for part in self.taught))


class FeedbackNormal(RecurrentNormal):
    """z_t ~ N(m_t, diag s_t^2) given z_<t, with (m_t, s_t) from the state of a recursion that they drive; see :class:`RecurrentNormal`.

    Args:
        recursion: of the prior.
        n_latent, context: L; and a tensor (…, T, 0) that tells the number of frames.
    """

    def __init__(self, recursion: Recursion, n_latent: int, context: Tensor, validate_args: bool | None = None) -> None:
        self.recursion = recursion
        super().__init__(recursion.next, n_latent, context, validate_args)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: object = None) -> FeedbackNormal:
        shape = torch.Size(batch_shape)
        return FeedbackNormal(self.recursion, shape[-1], self.context.expand(*shape[:-1], -1), validate_args=False)

    def given(self, value: Tensor) -> Normal:
        """The law of every z_t given the z_<t of this value, (…, T, L)."""
        return self.recursion.networks.prior(self.recursion(value)[0], before(value))


def gaussian(heads: Tensor) -> Normal:
    """The law whose means and log-variances these are, side by side."""
    loc, log_variance = heads.chunk(2, -1)
    return Normal(loc, (0.5 * log_variance).exp(), validate_args=False)


@torch.no_grad()
def forget(transition: nn.Sequential) -> None:
    """Make what dense layers give to :func:`gaussian` N(0, I), whatever they are told."""
    for parameter in transition[-1].parameters():
        parameter.zero_()


def _heard(log_variance: Tensor, taught: Taught | None, t: int) -> Tensor:
    """The power of frame t as the next frame hears it."""
    own = log_variance.exp() + POWER_FLOOR
    return own if taught is None else torch.where(taught.frames[:, t : t + 1], taught.power[:, t : t + 1], own)
