"""Ears of streams: blocks, levels and muted frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppse.models.causal_listener import CausalListener
from ppse.models.encoders import Heard
from ppse.online_ears import Remembering

F = 5


def _ears(window: int = 8) -> Remembering:
    torch.manual_seed(0)
    listener = CausalListener(F, 3, size=4, ahead=2).requires_grad_(False)
    torch.nn.init.normal_(listener.noise.weight)
    return Remembering(listener, window)


def _hear(ears: Remembering, x: Tensor, blocks: list[int], seen: Tensor | None = None) -> Heard:
    seen = torch.ones(len(x), 1, dtype=torch.bool) if seen is None else seen
    end = 0
    for count in blocks:
        end += count
        heard = ears(x[:end], count, seen[:end], 1.0)
    return heard


def test_blocks_of_any_size_are_heard_alike() -> None:
    x = torch.randn(300, F, dtype=torch.complex64)
    one, two = _hear(_ears(), x, [3] * 100), _hear(_ears(), x, [1, 5, 2, 7] * 20)
    for found, expected in zip(one, two, strict=True):
        assert found.shape[0] == 8
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_noise_has_the_unit_of_now() -> None:
    """Powers in the last unit were a fourth: so is the noise that was heard then, and what is new is heard as it is."""
    x, ears, same = torch.randn(9, F, dtype=torch.complex64), _ears(), _ears()
    seen = torch.ones(9, 1, dtype=torch.bool)
    for each in (ears, same):
        each(x[:6], 6, seen[:6], 1.0)
    found, expected = ears(x, 3, seen, 0.25).noise, same(x, 3, seen, 1.0).noise
    torch.testing.assert_close(found[-3:], expected[-3:])
    torch.testing.assert_close(found[:-3], expected[:-3] / 4)


@pytest.mark.parametrize("first", [0, 6])
def test_muted_frames_say_nothing_of_the_background(first: int) -> None:
    x, seen = torch.randn(12, F, dtype=torch.complex64), torch.ones(12, 1, dtype=torch.bool)
    x[first : first + 3], seen[first : first + 3] = 0, False
    ears = _ears()
    heard = _hear(ears, x, [6, 3, 3], seen)
    assert heard.noise.isfinite().all()
    power = x.abs().square()[seen.flatten()]
    assert (10 * (ears._means[-1] / 0.2).exp().log10() - 10 * (power.log().mean(0)).exp().log10()).abs().max() < 2  # dB; zeros would be -50
