"""Which expert of a source that switches sounds when: the posterior of its chain as an output, and as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .switching import regimes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .enhance import Enhancement, Run
    from .lips import Lips

IMAGES = 24
"""Images in a strip of lips."""


class RegimePosterior(NamedTuple):
    """The posterior of a chain of regimes.

    Attributes:
        times: of the centres of the frames, (T,), in seconds.
        probability: p(m_t = m | x), (T, M), from all draws that were kept.
    """

    times: NDArray[np.float64]
    probability: NDArray[np.float64]

    def path(self) -> NDArray[np.int64]:
        """The most probable expert of every frame, (T,)."""
        return self.probability.argmax(-1)


def regime_posterior(result: Enhancement, channel: int = 0) -> RegimePosterior:
    """Which expert when, with probability, of an enhanced recording. Where windows overlap, each has the frames of its half.

    Args:
        result: of ``enhance(…, keep_run=True)`` with a model in which one source switches.

    Raises:
        ValueError: when no run of the channel was kept, or its model does not switch.
    """
    runs = [run for run in result.runs if run.channel == channel]
    if not runs:
        raise ValueError(f"regime_posterior: no run of channel {channel} was kept; ask for it, enhance(…, keep_run=True). A silent channel has none")
    shares = [_share(run) for run in runs]
    times = [run.start + result.stft.centres(len(share)) for run, share in zip(runs, shares, strict=True)]
    borders = [-np.inf, *((before[-1] + after[0]) / 2 for before, after in zip(times, times[1:], strict=False)), np.inf]
    inside = [(time >= low) & (time < high) for time, low, high in zip(times, borders, borders[1:], strict=False)]
    return RegimePosterior(
        np.concatenate([time[kept] for time, kept in zip(times, inside, strict=True)]),
        np.concatenate([share[kept] for share, kept in zip(shares, inside, strict=True)]),
    )


def plot_regimes(
    result: Enhancement, path: str | os.PathLike[str] | None = None, channel: int = 0, *, experts: Sequence[str] | None = None,
    lips: Lips | None = None,
) -> Figure:
    """The posterior of the chain under the spectrogram of the recording, and under the lips that were watched, where there are some.

    Args:
        result: as for :func:`regime_posterior`.
        path: where to write the figure (type by suffix), atomically; not written when None.
        experts: their names, in the order in which the source has them; "expert 0", … unless given.
        lips: shown as a strip of images, those that cannot be relied on in a red frame.

    Returns:
        the figure, not shown.

    Raises:
        ValueError: as :func:`regime_posterior`; when there is not a name for each expert.
        AudioError: when the file cannot be written.
    """
    from matplotlib.figure import Figure

    from .plots import brightest, draw_spectrogram, save_figure, spectrogram

    posterior = regime_posterior(result, channel)
    count = posterior.probability.shape[-1]
    names = [f"expert {i}" for i in range(count)] if experts is None else list(experts)
    if len(names) != count:
        raise ValueError(f"plot_regimes: {len(names)} names, {names}, for {count} experts; expected one each")
    heights = ([0.8] if lips is not None else []) + [2.2, 1.0]
    figure = Figure(figsize=(11, 1.0 + 1.7 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    power = spectrogram(result.noisy[channel], result)
    image = draw_spectrogram(panels[-2], power, result, brightest(power))
    panels[-2].set(title="noisy", ylabel="frequency (kHz)")
    figure.colorbar(image, cax=panels[-2].inset_axes((1.01, 0.0, 0.012, 1.0)), label="power (dB)")
    panels[-1].stackplot(posterior.times, posterior.probability.T, labels=names, alpha=0.8, linewidth=0)
    panels[-1].set(xlabel="time (s)", ylabel="probability", ylim=(0, 1))
    panels[-1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True)
    duration = result.noisy.shape[-1] / result.sample_rate
    if lips is not None:
        _draw_lips(panels[0], lips, duration)
    panels[-1].set_xlim(0, duration)
    if path is not None:
        save_figure(figure, path)
    return figure


def _share(run: Run) -> NDArray[np.float64]:
    """How often every expert was drawn, (T, M)."""
    args = (run.x,) if run.observed is None else (run.x, run.observed)
    with torch.no_grad(), torch.random.fork_rng():
        found = regimes(run.model, args, {})
    if found.site not in run.draws.values:
        raise ValueError(f"regime_posterior: no draws of '{found.site}' in the run, which has {list(run.draws.values)}")
    path: Tensor = run.draws.values[found.site]
    seen = torch.nn.functional.one_hot(path, found.chain.n_states).double()
    share: NDArray[np.float64] = seen.flatten(0, -3).mean(0).cpu().numpy()
    return share


def _draw_lips(panel: Axes, lips: Lips, duration: float) -> None:
    """Some of the images side by side, each around the time at which it was shown."""
    centres = (np.arange(IMAGES) + 0.5) * duration / IMAGES
    times = lips.times.cpu().numpy()
    for centre in centres[(centres >= times[0] - duration / IMAGES) & (centres <= times[-1] + duration / IMAGES)]:
        index = int(np.abs(times - centre).argmin())
        width = 0.46 * duration / IMAGES
        box: Any = (centre - width, centre + width, 0.0, 1.0)
        panel.imshow(lips.frames[index].cpu().numpy(), cmap="gray", aspect="auto", extent=box, vmin=0.0, vmax=1.0)
        if not bool(lips.good[index]):
            panel.plot([box[0], box[1], box[1], box[0], box[0]], [0, 0, 1, 1, 0], color="red", linewidth=1.2)
    panel.set(ylim=(-0.02, 1.02), yticks=[], title="lips")
