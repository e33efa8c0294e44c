"""Block-online EM: the sources of the newest frames of a recording that goes on, from those frames and what is kept of the past."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from .distributions import ComplexNormal, power_of
from .guides import starting_guide
from .guides.encoder import Encoded
from .infer import TARGET_ACCEPTANCE, LogDensity, hmc, log_density
from .mixture import Mixture, Updatable, posterior
from .models import RVAESpeech, VAESpeech
from .models.causal_listener import CausalListener
from .models.encoders import CleanedEncoder, Heard, NoisyEncoder
from .models.heard_speech import heard_by
from .models.recurrent import Lengths, Recurrence, State
from .online_ears import Remembering, forgetful
from .running_level import RunningLevel
from .stft import frame_power
from .warm_start import fit_noise

REST = "all_else"
"""Name in the graph of a window of all that is not the source."""

STEP_SIZE, STEP_RATE = 0.5, 0.2
"""Step size of the kernel at first, in standard deviations of the encoder, and nats that its logarithm moves by per unit of acceptance."""


@runtime_checkable
class Slidable(Protocol):
    """A source whose parameters can move on with a recording; see :meth:`ppse.models.NMFNoise.slide`."""

    def slide(self, before: int, dropped: int, after: int, power: float = 1.0) -> None: ...


class Continued(nn.Module):
    """In the place of a :class:`Recurrence` that only looks back: the same, but it begins with what it remembers of earlier frames."""

    def __init__(self, memory: Recurrence) -> None:
        super().__init__()
        self.memory = memory
        self.state: State = None

    def forward(self, frames: Tensor, lengths: Lengths | None = None) -> Tensor:
        """Output for the next frames (…, T, n). Streams have no padding."""
        return self.memory.advance(frames, self.state)[0]

    def remember(self, frames: Tensor) -> None:
        """These frames are past from now on. What comes behind them is another z, so that the memo of the decoder (:mod:`ppse.memo`) holds."""
        self.state = self.memory.advance(frames, self.state)[1]


class OnlineEM:
    """E[s | x] of one source in the newest frames, block by block; memory and time per block do not grow. Random from the global generator.

    In every block the ears hear the last frames and propose the latents of the new ones; the noise is fitted to the power of all
    that is not the source in the last seconds; and the latents of the last ``window`` frames move by one HMC step, given all that is
    behind them, which is frozen: noise by its power, speech by the state of the recurrent decoder.

    Args:
        model: of one recording; is changed.
        source: name of what is to be estimated: a prior whose frames are independent, or a causal :class:`RVAESpeech`.
        window: frames whose latents move.
        context: frames that the noise is fitted to, and that tell ears without memory what is stationary; ``EAR`` or more.
        chains, steps, temperature: as in :func:`ppse.methods.hmc_em`.
        iterations: of EM per block.
        level_frames: frames over which the level of the recording is taken.
        ears: a listener that remembers, for the latents of the shipped VAE, or a VAE with a listener, which hears the last frames anew in every
            block; the noisy encoder of the source unless given.

    Raises:
        ValueError: when a source cannot go on from frame to frame; the message names it.

    References:
        Lefevre, Bach & Fevotte (2011), Online algorithms for nonnegative matrix factorization with the Itakura-Saito divergence.
    """

    def __init__(
        self, model: Mixture, source: str, *, window: int, context: int, chains: int, iterations: int, steps: int, temperature: float,
        level_frames: int, ears: CausalListener | VAESpeech | None = None,
    ) -> None:
        self._reader = _reader(model, source, ears)
        self._hear = Remembering(ears, window) if isinstance(ears, CausalListener) else forgetful(self._reader)
        self._model, self._source, self._site = model, source, f"{source}.z"
        speech: Any = model.sources[source]
        self._speech = speech
        self._noises: dict[str, Any] = {name: noise for name, noise in model.sources.items() if name != source}
        self._window_size, self._context = window, context
        self._chains, self._iterations, self._steps, self._temperature = chains, iterations, steps, temperature
        self._memory: Continued | None = None
        if isinstance(speech, RVAESpeech):
            self._memory = speech._modules["memory"] = Continued(speech.memory)
        self._level = RunningLevel(level_frames)
        self._raw = torch.zeros(0, speech.n_freqs, dtype=torch.complex64)
        self._noise, self._seen = torch.zeros(0, speech.n_freqs), torch.zeros(0, 1, dtype=torch.bool)
        self._z = torch.zeros(chains, 0, speech.n_latent)
        self._width = torch.zeros(0, speech.n_latent)
        self._step_size = STEP_SIZE
        self._window: _Window | None = None

    def __call__(self, frames: Tensor) -> Tensor:
        """The next frames (B, F), in the units of the waveform → E[s | x] of the last ``window`` ones, or of all so far, (≤window, F)."""
        self._raw = torch.cat([self._raw, frames])[-self._context :]
        change = self._level(frame_power(frames))
        observed = frame_power(self._raw).unsqueeze(-1) > 0  # a muted microphone tells nothing of the noise
        window = slice(-self._window_size, None)
        if not self._started and not observed.any():
            return torch.zeros_like(self._raw[window])
        x = self._raw / self._level.scale
        heard = self._hear(x, len(frames), observed, change)
        law = self._reader.read(x[window], Heard(*(part[window] for part in heard)), observed[window])
        if self._started:
            self._go_on(len(frames), heard, law.mean, law.stddev, observed, change)
        else:
            known = slice(-len(heard.noise), None)
            self._start(x[known], heard, law.mean, law.stddev, observed[known])
        return self._infer(x[window], observed[window]) * self._level.scale

    @property
    def _started(self) -> bool:
        return len(self._noise) > 0

    def _start(self, x: Tensor, heard: Heard, mean: Tensor, deviation: Tensor, observed: Tensor) -> None:
        self._model.start(x, observed)
        fit_noise(self._model, heard.noise, {self._source}, observed)
        self._noise, self._seen = heard.noise, observed
        self._z, self._width = mean.expand(self._chains, -1, -1), deviation

    def _go_on(self, new: int, heard: Heard, mean: Tensor, deviation: Tensor, observed: Tensor, change: float) -> None:
        """The window moves: new frames begin as the encoder has them, the first ones become the past."""
        before = len(self._noise)
        self._noise = torch.cat([self._noise * change, heard.noise[-new:]])[-self._context :]
        self._seen = torch.cat([self._seen, observed[-new:]])[-self._context :]
        for noise in self._noises.values():
            noise.slide(before, before + new - len(self._noise), len(self._noise), change)
        z = torch.cat([self._z, mean[-new:].expand(self._chains, -1, -1)], -2)
        leaving = max(0, z.shape[-2] - self._window_size)
        if leaving and self._memory is not None:
            self._memory.remember(z[:, :leaving])
        self._z, self._width = z[:, leaving:], torch.cat([self._width, deviation[-new:]])[leaving:]

    def _infer(self, x: Tensor, observed: Tensor) -> Tensor:
        """EM on the window (W, F) at unit level; the mean of the source over draws."""
        plate, width = pyro.plate("frames", len(self._noise), dim=-1), len(x)
        with poutine.block():
            laws: dict[str, ComplexNormal] = {name: noise(plate) for name, noise in self._noises.items()}
        estimate = torch.zeros_like(x)
        for _ in range(self._iterations):
            laws = self._model.update(self._noise.sqrt().to(x.dtype), laws, self._seen)
            target = self._density(x, observed, torch.stack([law.var.expand(self._noise.shape)[-width:] for law in laws.values()]).sum(0))
            kernel = hmc(target, self._step_size, self._steps, {self._site: self._width})
            state, info = kernel.step(kernel.init({self._site: self._z}))
            self._z = state.position[self._site]
            # One number that follows the recording for ever: a search that settles would lose it.
            self._step_size *= math.exp(STEP_RATE * (float(info.acceptance.mean()) - TARGET_ACCEPTANCE["hmc"]))
            graph: Any = target.trace(state.position)
            found = posterior(graph.nodes["_RETURN"]["value"], x)
            estimate += found[self._source].loc.mean(0) / self._iterations
            noise = found[REST]
            self._noise[-width:] = (power_of(noise.loc) + noise.var).mean(0)
        return estimate

    def _density(self, x: Tensor, observed: Tensor, noise: Tensor) -> LogDensity:
        """log p of the latents of the window, given the variance of the noise."""
        if self._window is None or len(x) != self._window.size:
            self._window = _Window(self._source, self._speech, (x, observed, noise), self._chains, self._temperature)
        return self._window.seen(x, observed, noise)


class _Window:
    """A density whose graph is made once and then looks at new values in the same tensors, which saves half of the time of a block."""

    def __init__(self, source: str, speech: Any, values: tuple[Tensor, Tensor, Tensor], chains: int, temperature: float) -> None:
        self._values = x, observed, noise = [value.clone() for value in values]
        sources: dict[str, Any] = {source: speech, REST: lambda _: ComplexNormal(0j, noise)}
        self.size, self.target = len(x), log_density(Mixture(**sources), x, observed, chains=chains, temperature=temperature)

    def seen(self, *values: Tensor) -> LogDensity:
        for kept, value in zip(self._values, values, strict=True):
            kept.copy_(value)
        return self.target


def _reader(model: Mixture, source: str, ears: CausalListener | VAESpeech | None) -> NoisyEncoder | CleanedEncoder:
    """What makes latents of the source of what is heard, once it is clear that the model can go on from frame to frame."""
    if source not in model.sources:
        raise ValueError(f"stream: the model has no source '{source}'; it has {', '.join(model.sources)}")
    for name, noise in model.sources.items():
        if name != source and not (isinstance(noise, Updatable) and isinstance(noise, Slidable)):
            raise ValueError(f"stream: '{name}' cannot be fitted as a recording goes on (no update or slide); use NMFNoise or StationaryNoise")
    speech: Any = model.sources[source]
    reader: Any = None
    if isinstance(speech, Encoded) and ears is None:
        guide = starting_guide(model)
        reader = dict(zip(guide.sites, guide.children(), strict=True)).get(f"{source}.z") if guide else None
    elif isinstance(speech, Encoded):
        vae = ears if isinstance(ears, VAESpeech) else VAESpeech.pretrained()
        if isinstance(ears, CausalListener) and (ears.n_freqs, ears.n_latent) != (vae.n_freqs, vae.n_latent):
            found = f"{ears.n_freqs} frequencies and {ears.n_latent} latents"
            raise ValueError(f"stream: these ears are for {found}, the shipped VAE has {vae.n_freqs} and {vae.n_latent}; give 'ears_causal'")
        reader = heard_by(vae, speech.encoder, speech.n_freqs)
    if not isinstance(reader, NoisyEncoder | CleanedEncoder):
        raise ValueError(f"stream: no encoder hears '{source}' in noise; use a prior with a noisy encoder, or one for the STFT of the shipped VAE")
    frames = torch.ones(2, speech.n_freqs)
    target = _Window(source, speech, (frames + 0j, frames > 0, frames), 1, 1.0).target
    if target.sites != (f"{source}.z",) or not (target.block or (isinstance(speech, RVAESpeech) and speech.causal)):
        raise ValueError(f"stream: the frames of '{source}' depend on later ones, or on more than z; use VAESpeech, or a causal RVAESpeech")
    return reader
