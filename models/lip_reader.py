"""A small network that looks at a mouth: one embedding an image, brought to the frames of the sound, and read with its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

POOLED = 2
"""Crops are averaged over so many pixels either way before anything else."""


class LipReader(nn.Module):
    """Images of a mouth to what they tell about each frame of sound.

    Three convolutions and a dense layer see every image on its own (:meth:`see`); interpolated to the frames of the STFT
    (:func:`follow`), one convolution along time reads each with its neighbours (:meth:`read`). Any frame rate will do.

    Args:
        n_seen: E, size of the embeddings.
        reach: how many frames of sound before and behind are read with each: 6 of 16 ms see what 1/10 s before and behind looked like.
    """

    def __init__(self, n_seen: int, reach: int) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.2), nn.Linear(32 * 6 * 6, n_seen),
        )
        self.along = nn.Conv1d(n_seen, n_seen, 2 * reach + 1, padding=reach)

    def see(self, images: Tensor) -> Tensor:
        """Embeddings of images as :func:`prepared` makes them, (…, V, 44, 44) → (…, V, E)."""
        flat: Tensor = self.image(images.reshape(-1, 1, *images.shape[-2:]))
        return flat.reshape(*images.shape[:-2], -1)

    def read(self, seen: Tensor) -> Tensor:
        """What the frames of sound are told, from embeddings that are brought to them, (…, T, E) → (…, T, E)."""
        flat = relu(seen).reshape(-1, *seen.shape[-2:])
        told: Tensor = relu(self.along(flat.mT)).mT
        return told.reshape(seen.shape)


def prepared(frames: Tensor, good: Tensor | None = None) -> Tensor:
    """Crops (V, 88, 88) at half the size, without the brightness and contrast of the recording, (V, 44, 44).

    Those are the medians over the frames, so that a few frames that show something else hardly count; frames that are not ``good`` (V,)
    do not at all, where any is.
    """
    small = avg_pool2d(frames.unsqueeze(1), POOLED).squeeze(1)
    chosen = small if good is None or not good.any() else small[good]
    flat = chosen.flatten(1)
    return (small - flat.mean(1).median()) / flat.std(1).median().clamp_min(1e-3)


def follow(seen: Tensor, place: Tensor) -> Tensor:
    """Embeddings (…, V, E) of images brought to the frames of sound, (…, T, E), by interpolation between the two images around each.

    Args:
        seen: of the images.
        place: (…, T), at which of them every frame lies, with a fraction (:class:`ppse.lips.Alignment`).
    """
    before = place.long()
    after = (before + 1).clamp_max(seen.shape[-2] - 1)
    weight = (place - before).to(seen.dtype).unsqueeze(-1)
    earlier, later = (torch.take_along_dim(seen, at.unsqueeze(-1), -2) for at in (before, after))
    return earlier.lerp(later, weight)
