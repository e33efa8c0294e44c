"""Ears for a recording that goes on: recurrent in time, and a look ahead of a few frames."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..weights import load
from .encoders import Heard, heads, log_power, told
from .recurrent import flattened

WINDOW = 8
"""Frames whose future is heard, up to the last of them, in training: none of the last frame, seven of the first."""

CONTEXT = 250
"""Frames that the running average goes over, 4 s of the shipped STFT."""


class CausalListener(nn.Module):
    """A :class:`ppse.models.encoders.Listener` that remembers the past, as long as the recording goes on, and hears little of the future.

    Two recurrent layers go forward from frame to frame and carry their state; one layer goes back over a window of frames from its end, so that a
    frame is heard anew, and better, for as long as it is in the window. It sees log(|x|^2 + floor) of a recording of unit *running* level, and
    its running mean.

    Args:
        n_freqs, n_latent: F and L.
        size, ahead: of the layers that go forward, and of the one that goes back.

    References:
        Zhang et al. (2016), Highway long short-term memory RNNs for distant speech recognition (latency-controlled recurrence).
    """

    couplings = nn.ModuleList()
    """None: the law of the latents is normal."""

    def __init__(self, n_freqs: int, n_latent: int, size: int, ahead: int) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {"n_freqs": n_freqs, "n_latent": n_latent, "size": size, "ahead": ahead}
        self.n_freqs, self.n_latent = n_freqs, n_latent
        self.now = nn.Linear(n_freqs, size)
        self.background = nn.Linear(n_freqs, size, bias=False)
        self.past = nn.GRU(size, size, num_layers=2, batch_first=True)
        self.ahead = nn.GRU(size, ahead, batch_first=True)
        self.mask, self.shift, self.scale, self.noise = heads(size + ahead, n_freqs, n_latent)

    @classmethod
    def pretrained(cls, name: str = "ears_causal") -> Self:
        """The ears shipped with the package under ``name``, or those in the file of that path; frozen.

        Raises:
            WeightsError: when there is no such file, or it does not hold a CausalListener.
        """
        return load(cls, name)

    def forward(self, x: Tensor, observed: Tensor | None = None, steady: Tensor | None = None) -> Heard:
        """A whole recording (…, T, F) of unit running level in every frame, in windows that begin anywhere: random by :func:`torch.randint`.

        It is for training, where all frames are ``observed`` and what is steady is its own. What is ahead of the last window is silence, where in a
        stream a window ends with the newest frame.
        """
        features = log_power(x)
        means = running_mean(features, CONTEXT)
        memory, _ = self.remember(flattened(features), flattened(means))
        begin = int(torch.randint(WINDOW, ()))
        count = -(-(begin + memory.shape[1]) // WINDOW)
        windows = pad(memory, (0, 0, begin, count * WINDOW - begin - memory.shape[1])).reshape(-1, WINDOW, memory.shape[-1])
        ahead = self._ahead(windows).reshape(len(memory), count * WINDOW, -1)[:, begin : begin + memory.shape[1]]
        return told(self, torch.cat([flat.reshape(*x.shape[:-1], -1) for flat in (memory, ahead)], -1), means)

    def remember(self, features: Tensor, means: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What is remembered at every next frame, (B, T, C), and the state in the end, given that before."""
        memory, state = self.past(torch.relu(self.now(features) + self.background(means)), state)
        return memory, state

    def tell(self, memory: Tensor, means: Tensor) -> Heard:
        """What is heard in a window of frames (W, …), the future heard up to its end."""
        return told(self, torch.cat([memory, self._ahead(memory.unsqueeze(0)).squeeze(0)], -1), means)

    def _ahead(self, windows: Tensor) -> Tensor:
        found: Tensor = self.ahead(windows.flip(1))[0]
        return found.flip(1)


def running_mean(values: Tensor, span: int) -> Tensor:
    """Mean over the last ``span`` frames, or over all so far, (…, T, F) → the same shape."""
    total = values.double().cumsum(-2)
    gone = pad(total, (0, 0, span, 0))[..., : values.shape[-2], :]
    counts = torch.arange(1, values.shape[-2] + 1, device=values.device).clamp_max(span).unsqueeze(-1)
    return ((total - gone) / counts).to(values.dtype)
