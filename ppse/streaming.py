"""Enhancement while the recording is still coming in: samples go in as they arrive, and come out after a bounded time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from .audio import AudioError
from .block_stft import Analyser, Synthesiser
from .enhance import RANK, _samples, stft_of
from .mixture import Mixture
from .models import NMFNoise, VAESpeech
from .models.causal_listener import CausalListener
from .online_ears import EAR
from .online_em import OnlineEM

LEVEL_SECONDS = 10.0
"""Span over which the level of the recording is taken."""


class Stream:
    """One channel of a recording that goes on for as long as it likes, enhanced with a bounded look-ahead.

    Pieces of any size go in, and the samples that are due come out: the same ones, however the recording is cut. Memory does not grow.
    Inference goes on where the last block ended (:class:`ppse.online_em.OnlineEM`), and blocks overlap as the frames of an STFT do, so
    there is no seam. The first second or two are less good than what follows, as the noise is not known yet.

    Args:
        model: ``Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(rank=4))`` unless given. Its prior has independent frames or is a
            causal RVAESpeech; its noises are NMFNoise or StationaryNoise. Is copied, never changed.
        source: name of the source that comes out.
        seed: same seed and samples, same result. The global generator stays as it was.
        look_ahead: frames that are heard before a frame comes out, at most; the last frame of a block has ``look_ahead - block + 1``.
        block: frames that are inferred at once, ``look_ahead + 1`` unless given. Fewer cost more, and leave more of the look-ahead.
        window: frames whose latents still move; those behind are frozen. The shipped ears were trained with 8.
        context: seconds of the recording that the noise is fitted to, and that tell ears without memory what is stationary.
        chains: particles per frame, over which the estimate is averaged.
        iterations, steps: HMC steps per block, and leapfrog steps in each, at most.
        temperature: of the joint density, 1 for the posterior; see :func:`ppse.methods.hmc_em`.
        ears: ``CausalListener.pretrained()``, which remembers, and has heard recorded noise, unless given; for a prior of another STFT its own.
            Or a VAE with a listener, which hears the last frames anew in every block: ``VAESpeech.pretrained()`` has heard simulated noise alone.

    Attributes:
        sample_rate: of the samples, that of the model, in Hz.

    Raises:
        ValueError: when a number is out of its range, the model cannot be inferred frame by frame, or the ears have no listener or are for another
            STFT.

    >>> stream = Stream()
    >>> noisy = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    >>> clean = [stream.push(noisy[:1500]), stream.push(noisy[1500:]), stream.flush()]
    >>> sum(len(piece) for piece in clean), stream.latency
    (4000, 0.128)
    """

    def __init__(
        self, model: Mixture | None = None, *, source: str = "speech", seed: int = 0, look_ahead: int = 4, block: int | None = None, window: int = 8,
        context: float = 4.0, chains: int = 4, iterations: int = 1, steps: int = 3, temperature: float = 1.0,
        ears: CausalListener | VAESpeech | None = None,
    ) -> None:
        block = look_ahead + 1 if block is None else block
        counts = {"look_ahead": look_ahead, "block": block, "window": window, "chains": chains, "iterations": iterations, "steps": steps}
        for name, count in counts.items():
            if type(count) is not int:
                raise ValueError(f"stream: {name}={count!r}; expected a whole number")
        if not (1 <= block <= look_ahead + 1 <= window <= EAR):
            raise ValueError(f"stream: {block=}, {look_ahead=}, {window=}; expected 1 <= block <= look_ahead + 1 <= window <= {EAR} frames")
        if min(chains, iterations, steps) < 1 or not context > 0 or not temperature > 0:
            raise ValueError(f"stream: {chains=}, {iterations=}, {steps=}, {context=}, {temperature=}; expected 1 or more, and positive numbers")
        model = copy.deepcopy(model) if model else Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(RANK))
        self._stft, self._block, self._look_ahead = stft_of(model), block, look_ahead
        self.sample_rate = self._stft.sample_rate
        per_second = self.sample_rate / self._stft.hop
        self._random = torch.Generator().manual_seed(seed).get_state()
        with torch.random.fork_rng(devices=[]):  # weights that are read for the first time draw some, and others do not
            if ears is None:
                shipped = CausalListener.pretrained()
                ears = shipped if getattr(model.sources.get(source), "n_freqs", None) == shipped.n_freqs else None
            self._em = OnlineEM(
                model, source, window=window, context=max(EAR, round(context * per_second)), chains=chains, iterations=iterations, steps=steps,
                temperature=temperature, level_frames=round(LEVEL_SECONDS * per_second), ears=copy.deepcopy(ears),
            )
        self._analyse, self._synthesise = Analyser(self._stft), Synthesiser(self._stft)
        self._arrived = torch.zeros(0, self._stft.n_freqs, dtype=torch.complex64)
        self._sums, self._counts = self._arrived, torch.zeros(0, 1)
        self._pushed = self._returned = 0
        self._ended = False

    @property
    def latency(self) -> float:
        """Seconds from when a sample goes in to when it comes out, at most, without the time of the computation: the STFT window and the
        look-ahead."""
        return (self._stft.n_fft + self._look_ahead * self._stft.hop) / self.sample_rate

    def push(self, samples: ArrayLike) -> NDArray[np.float32]:
        """The next samples of the recording, (N,), as :func:`ppse.enhance` takes them, N may be 0 → those of the estimate that are due.

        Raises:
            AudioError: when they are not finite, or of a shape or type that one channel cannot have. The stream stays as it was.
            ValueError: behind :meth:`flush`.
        """
        if self._ended:
            raise ValueError("stream: it was flushed, so the recording has ended; make another Stream for the next one")
        if np.size(samples) == 0:
            return np.zeros(0, np.float32)
        checked = _samples(np.asarray(samples))
        if len(checked) > 1:
            raise AudioError(f"the samples: {len(checked)} channels; expected one, so make a Stream for each")
        self._pushed += checked.size
        self._arrived = torch.cat([self._arrived, self._analyse(torch.from_numpy(checked[0]))])
        finished = []
        while len(self._arrived) >= self._block:
            finished.append(self._next(self._block))
        return self._given(finished)

    def flush(self) -> NDArray[np.float32]:
        """The recording has ended → what was still waiting, so that as many samples came out as went in."""
        if self._ended or not self._pushed:
            return np.zeros(0, np.float32)
        self._ended = True
        missing = self._stft.n_frames(self._pushed) * self._stft.hop - self._pushed
        self._arrived = torch.cat([self._arrived, self._analyse(torch.zeros(missing))])
        finished = []
        while len(self._arrived):
            finished.append(self._next(self._block))
        finished.append(self._synthesise(self._sums / self._counts))
        return self._given(finished)

    def _next(self, count: int) -> Tensor:
        """Infer a block; the samples that are due then."""
        block, self._arrived = self._arrived[:count], self._arrived[count:]
        with self._generator(), torch.no_grad(), pyro.validation_enabled(False):
            estimate = self._em(block)
        self._sums = torch.cat([self._sums, torch.zeros_like(block)])
        self._counts = torch.cat([self._counts, torch.zeros(len(block), 1)])
        self._sums += estimate[-len(self._sums) :]
        self._counts += 1
        due = max(0, len(self._sums) - (self._look_ahead - self._block + 1))
        finished = self._synthesise(self._sums[:due] / self._counts[:due])
        self._sums, self._counts = self._sums[due:], self._counts[due:]
        return finished

    def _given(self, finished: list[Tensor]) -> NDArray[np.float32]:
        """Samples that are handed out, without those of the zeros that :meth:`flush` put behind the recording."""
        wave = torch.cat([torch.zeros(0), *finished])[: self._pushed - self._returned]
        self._returned += len(wave)
        result: NDArray[np.float32] = wave.numpy()
        return result

    @contextmanager
    def _generator(self) -> Iterator[None]:
        """The random numbers of this stream go on; the global generator does not notice."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._random)
            yield
            self._random = torch.get_rng_state()
