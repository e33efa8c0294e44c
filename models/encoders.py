"""Networks that read a recording: what the latents of speech are, frame by frame or heard through noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import linear

from ..distributions import power_of
from ..memo import Recall
from ..stft import POWER_FLOOR
from .coupled_normal import CoupledNormal, alternating
from .recurrent import Layers, Recurrence, RecurrentNormal, State, flattened, lengths, remember

if TYPE_CHECKING:
    from .band_listener import BandListener
    from .causal_listener import CausalListener


class FrameEncoder(nn.Module):
    """The law of z_t from one frame: the encoder of a VAE, for clean speech.

    Maps an STFT (…, T, F) of unit level to a Normal of shape (…, T, L).

    It keeps the contract of every encoder: called with (x, observed), it returns the law of the latents, of shape (…, T, L) and
    without event dims, whose ``mean`` and ``stddev`` tell where to start and how far to go.

    Args:
        n_freqs, n_latent: F and L.
        hidden: sizes of the dense layers.
        log_input: whether it reads log(|s|^2 + floor) and the law is never wider than the prior, as ours; or reads |s|^2 and gives a
            log-variance without bounds, as the published ones.
        activation: class of the activations.
    """

    def __init__(
        self, n_freqs: int, n_latent: int, hidden: Sequence[int], *, log_input: bool = True, activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.log_input = log_input
        self.network = perceptron([n_freqs, *hidden, 2 * n_latent], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        """``observed`` is what every encoder is told; here no frame sees another, so it changes nothing."""
        loc, scale = self.network(log_power(x) if self.log_input else power_of(x)).chunk(2, -1)
        # Never wider than the prior where we train it: rare wide frames would ruin the ELBO.
        return Normal(loc, scale.sigmoid() if self.log_input else (0.5 * scale).exp())


class RecurrentEncoder(nn.Module):
    """The law of z_t given z_<t and the clean speech of all frames, or of this one and those to come: the encoder of a recurrent VAE.

    One LSTM reads the recording, another remembers the latents so far; dense layers make mean and deviation of both.
    Maps an STFT (…, T, F) of unit level to a :class:`RecurrentNormal` of shape (…, T, L); padding is not read.

    Args:
        n_freqs, n_latent: F and L.
        reader: sizes of the network that reads the recording; its ``after`` are the dense layers behind both.
        past: sizes of the network that remembers the latents.
        backward: whether the reader goes from the end to the present frame only, instead of both ways.
        skip: whether the dense layers see the present frame itself, too.
        log_input: as for :class:`FrameEncoder`.
        activation: class of the activations.

    References:
        Leglaive et al. (2020), A recurrent variational autoencoder for speech enhancement.
    """

    def __init__(
        self, n_freqs: int, n_latent: int, reader: Layers, past: Layers, *, backward: bool = False, skip: bool = False, log_input: bool = True,
        activation: type[nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        self.n_latent, self.skip, self.log_input = n_latent, skip, log_input
        self.reader = Recurrence(n_freqs, reader, forward=not backward, backward=True, activation=activation)
        self.past = Recurrence(n_latent, past, activation=activation)
        self.head = perceptron([self.reader.n_out + skip * n_freqs + self.past.n_out, *reader.after, 2 * n_latent], activation)

    def forward(self, x: Tensor, observed: Tensor | None = None) -> RecurrentNormal:
        """The law of the latents of a recording, or of a batch."""
        features = log_power(x) if self.log_input else power_of(x)
        read = self.reader(features, lengths(observed, x))
        if self.skip:
            read = torch.cat([read, features], -1)
        return RecurrentNormal(self._next, self.n_latent, read_ahead(self.head, read))

    def _next(self, past: Tensor, read: Tensor, state: State) -> tuple[Tensor, Tensor, State]:
        remembered, state = self.past.advance(past, state)
        return *moments(self.head, read, remembered, self.log_input), state


def read_ahead(head: nn.Sequential, read: Tensor) -> Tensor:
    """What the first of the dense layers makes of a recording, for all frames at once; a draw goes on from there frame by frame."""
    first = cast(nn.Linear, head[0])
    return linear(read, first.weight[:, : read.shape[-1]], first.bias)


def moments(head: nn.Sequential, ahead: Tensor, past: Tensor, log_input: bool) -> tuple[Tensor, Tensor]:
    """Mean and deviation of z_t that dense layers make of what was read ahead and of what is remembered of the past, their last inputs."""
    total = ahead + linear(past, cast(nn.Linear, head[0]).weight[:, -past.shape[-1] :])
    for layer in [*head][1:]:  # not head[1:], which makes a module anew for every frame
        total = layer(total)
    loc, scale = total.chunk(2, -1)
    return loc, scale.sigmoid() if log_input else (0.5 * scale).exp()


class Heard(NamedTuple):
    """What a :class:`Listener` makes of a noisy recording.

    Attributes:
        mask: magnitude mask (…, T, F) in (0, 1) that leaves the speech.
        shift: what to add to the means of the latents of the masked recording, (…, T, L).
        scale: standard deviations of the latents, (…, T, L).
        noise: power of what is not speech, (…, T, F).
        context: what it remembers at every frame, (…, T, C).
    """

    mask: Tensor
    shift: Tensor
    scale: Tensor
    noise: Tensor
    context: Tensor


class Listener(nn.Module):
    """Tells speech from noise in an STFT (…, T, F) of unit level, with the whole recording as context.

    A recurrent network sees log(|x|^2 + floor) and its mean over time, which tells it what is stationary.

    Args:
        n_freqs, n_latent: F and L.
        size: of the recurrent layers.
        couplings: how many bend the law of the latents (:class:`ppse.models.coupled_normal.CoupledNormal`); it is normal without.
    """

    def __init__(self, n_freqs: int, n_latent: int, size: int, couplings: int = 0) -> None:
        super().__init__()
        self.now = nn.Linear(n_freqs, size)
        self.background = nn.Linear(n_freqs, size, bias=False)
        self.memory = nn.GRU(size, size, num_layers=2, batch_first=True, bidirectional=True)
        self.mask, self.shift, self.scale, self.noise = heads(2 * size, n_freqs, n_latent)
        self.couplings = alternating(couplings, n_latent, 2 * size)

    def forward(self, x: Tensor, observed: Tensor | None = None, steady: Tensor | None = None) -> Heard:
        """Behind the last frame with an ``observed`` bin (padding) the result means nothing.

        ``steady`` takes the place of what :meth:`steady` finds in x, when x is the last part of a recording of which more is known.
        """
        features = log_power(x)
        average = self.steady(x, observed) if steady is None else steady
        return told(self, remembered(self.memory, torch.relu(self.now(features) + self.background(average)), x, observed), average)

    def steady(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """What is there all the time, (…, 1, n): the average log-power, of the frames with an observed bin."""
        return average_log_power(x, observed)


def remembered(memory: nn.RNNBase, embedded: Tensor, x: Tensor, observed: Tensor | None) -> Tensor:
    """What recurrent layers remember at every frame of x (…, T, F), embedded (…, T, n), without the padding: (…, T, C)."""
    ends = lengths(observed, x)
    return remember(memory, flattened(embedded), None if ends is None else torch.tensor(ends)).reshape(*x.shape[:-1], -1)


def heads(n_memory: int, n_told: int, n_latent: int) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """What a listener tells from its memory, untaught: mask, shift and scale of the latents, and noise; mask and noise for so many bins or bands.

    Training starts at: nearly all is speech, read as the clean encoder reads it, and the noise is what is steady.
    """
    mask, shift, scale, noise = (nn.Linear(n_memory, size) for size in (n_told, n_latent, n_latent, n_told))
    nn.init.constant_(mask.bias, 2.0)
    for head in (shift, noise):
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    return mask, shift, scale, noise


def told(listener: Listener | CausalListener, memory: Tensor, average: Tensor) -> Heard:
    """What the heads of a listener make of its memory (…, T, C) and of the average log-power, which broadcasts against (…, T, F)."""
    noise = (average / LOG_SCALE + listener.noise(memory)).exp()
    return Heard(listener.mask(memory).sigmoid(), listener.shift(memory), listener.scale(memory).sigmoid(), noise, memory)


class NoisyEncoder(nn.Module):
    """The law of z_t for *noisy* speech: the clean encoder reads the masked recording.

    Called as :class:`FrameEncoder`; ``observed`` keeps the padding of a batch out of the context.
    """

    def __init__(self, listener: Listener | BandListener | CausalListener, encoder: FrameEncoder) -> None:
        super().__init__()
        self.listener, self.encoder = listener, encoder
        self._heard = Recall[Heard]()

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal | CoupledNormal:
        return self.read(x, self.hear(x, observed))

    def hear(self, x: Tensor, observed: Tensor | None = None, steady: Tensor | None = None) -> Heard:
        """What the listener makes of the recording; ``steady`` as in :meth:`Listener.forward`."""
        return self._heard(lambda: self.listener(x, observed, steady), (x, observed, steady), self.listener)

    def steady(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """What is there all the time, as the listener knows it."""
        return cast("Listener | BandListener", self.listener).steady(x, observed)  # ears for streams keep it themselves

    def read(self, x: Tensor, heard: Heard, observed: Tensor | None = None) -> Normal | CoupledNormal:
        """The law of the latents, (…, T, L), given what was heard."""
        mean, couplings = self.encoder(x * heard.mask).mean + heard.shift, self.listener.couplings
        return CoupledNormal(mean, heard.scale, [*couplings], heard.context) if len(couplings) else Normal(mean, heard.scale)


class CleanedEncoder(nn.Module):
    """The law of z_t for *noisy* speech, with an encoder for clean speech that never heard noise: it reads what another prior leaves of it.

    That prior, a VAE, hears the noise and proposes speech; the encoder reads E|s|^2 given the mixture, |gain x|^2 + gain v_n.
    Called as :class:`NoisyEncoder`.

    Args:
        listener: noisy encoder of the VAE.
        decoder: of the VAE, latents → log-variances of speech.
        encoder: for clean speech, of any prior for the same STFT.
    """

    def __init__(self, listener: NoisyEncoder, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.listener, self.decoder, self.encoder = listener, decoder, encoder

    def forward(self, x: Tensor, observed: Tensor | None = None) -> TorchDistribution:
        return self.read(x, self.hear(x, observed), observed)

    def hear(self, x: Tensor, observed: Tensor | None = None, steady: Tensor | None = None) -> Heard:
        """What the listener makes of the recording; ``steady`` as in :meth:`Listener.forward`."""
        return self.listener.hear(x, observed, steady)

    def steady(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """What is there all the time, as the listener knows it."""
        return self.listener.steady(x, observed)

    def read(self, x: Tensor, heard: Heard, observed: Tensor | None = None) -> TorchDistribution:
        """The law of the latents, (…, T, L), given what was heard."""
        speech = self.decoder(self.listener.read(x, heard).mean).exp() + POWER_FLOOR
        gain = speech / (speech + heard.noise)
        expected = (gain.square() * power_of(x) + gain * heard.noise).sqrt()
        law: TorchDistribution = self.encoder(torch.complex(expected, torch.zeros_like(expected)), observed)
        return law


LOG_SCALE = 0.2
"""Factor that makes log-powers of recordings values of order one."""


def log_power(x: Tensor) -> Tensor:
    """log(|x|^2 + POWER_FLOOR), scaled to values of order one: the input of the encoders."""
    return scaled(power_of(x))


def scaled(powers: Tensor) -> Tensor:
    """log(power + POWER_FLOOR), scaled to values of order one."""
    return (powers + POWER_FLOOR).log() * LOG_SCALE


def average_log_power(x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Mean over time of :func:`log_power`, (…, T, F) → (…, 1, F), of the frames with an observed bin."""
    seen = torch.ones_like(x.real[..., :1]) if observed is None else observed.expand(x.shape).any(-1, keepdim=True).to(x.real.dtype)
    return (log_power(x) * seen).sum(-2, keepdim=True) / seen.sum(-2, keepdim=True).clamp_min(1)


def perceptron(sizes: Sequence[int], activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of the sizes with activations between them."""
    layers: list[nn.Module] = []
    for i, (n_in, n_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [activation()] if i else []
        layers += [nn.Linear(n_in, n_out)]
    return nn.Sequential(*layers)


@torch.no_grad()
def take_over(network: nn.Sequential, trained: nn.Sequential, start: int) -> None:
    """The weights of a trained network for one with more inputs, which count for nothing; those of the trained one are from ``start`` on."""
    ours, theirs = cast(nn.Linear, network[0]), cast(nn.Linear, trained[0])
    network[1:].load_state_dict(trained[1:].state_dict())
    ours.weight.zero_()
    ours.weight[:, start : start + theirs.in_features] = theirs.weight
    ours.bias.copy_(theirs.bias)
