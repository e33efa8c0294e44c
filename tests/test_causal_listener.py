"""A listener that remembers: what it hears frame by frame is what it hears of the whole, and it hears nothing of what comes later."""

from __future__ import annotations

import pytest
import torch

from ppse.models.causal_listener import CONTEXT, WINDOW, CausalListener, running_mean
from ppse.models.encoders import log_power

T, F, L = 21, 5, 3


def _listener() -> CausalListener:
    torch.manual_seed(0)
    listener = CausalListener(F, L, size=4, ahead=2).requires_grad_(False)
    for head in (listener.noise, listener.shift):  # zero at first
        torch.nn.init.normal_(head.weight)
    return listener


@pytest.mark.parametrize("span", [1, 4, 50])
def test_running_mean(span: int) -> None:
    values = torch.randn(2, T, F)
    expected = torch.stack([values[:, max(0, t + 1 - span) : t + 1].mean(1) for t in range(T)], 1)
    torch.testing.assert_close(running_mean(values, span), expected)


def test_a_window_of_a_stream_is_heard_as_in_training() -> None:
    listener, x = _listener(), torch.randn(T, F, dtype=torch.complex64)
    torch.manual_seed(3)
    begin = int(torch.randint(WINDOW, ()))
    torch.manual_seed(3)
    whole = listener(x)
    features = log_power(x)
    means = running_mean(features, CONTEXT)
    state, memory = None, []
    for part in (slice(0, 2), slice(2, 3), slice(3, T)):
        remembered, state = listener.remember(features[None, part], means[None, part], state)
        memory.append(remembered[0])
    window = slice(WINDOW - begin, 2 * WINDOW - begin)
    heard = listener.tell(torch.cat(memory)[window], means[window])
    for found, expected in zip(heard, whole, strict=True):
        torch.testing.assert_close(found, expected[window])


def test_later_windows_are_not_heard() -> None:
    listener, x = _listener(), torch.randn(T, F, dtype=torch.complex64)
    other = x.clone()
    other[-1] += 1
    torch.manual_seed(3)  # windows end before frames 8 - begin, 16 - begin, …
    ends = WINDOW * torch.arange(4) - int(torch.randint(WINDOW, ()))
    last = int(ends[ends < T].max())
    heard = []
    for recording in (x, other):
        torch.manual_seed(3)
        heard.append(listener(recording))
    for one, two in zip(*heard, strict=True):
        assert torch.equal(one[:last], two[:last]) and not torch.equal(one[last:], two[last:])


def test_a_batch_is_heard_one_by_one() -> None:
    listener, x = _listener(), torch.randn(2, 1, T, F, dtype=torch.complex64)
    heard = []
    for recording in (x, x[1, 0]):
        torch.manual_seed(3)
        heard.append(listener(recording))
    for many, one in zip(*heard, strict=True):
        torch.testing.assert_close(many[1, 0], one)
