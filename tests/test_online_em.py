"""Block-online EM: what is frozen is exact, what slides stays in place, and models that cannot go on are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ppse import Mixture
from ppse.distributions import ComplexNormal
from ppse.infer import log_density
from ppse.models import FrameGain, NMFNoise, RVAESpeech, SmoothNMFNoise, StationaryNoise, VAESpeech
from ppse.models.recurrent import Layers
from ppse.online_em import Continued, _reader, _Window
from ppse.running_level import RunningLevel


def tiny_vae() -> VAESpeech:
    return VAESpeech(n_freqs=9, n_latent=3, hidden=(8,), context=4).requires_grad_(False)


def test_window_given_its_past_is_the_conditional_of_the_utterance() -> None:
    """log p of all frames changes by as much as log p of the window, when only the window changes."""
    prior = RVAESpeech(9, 3, hidden=5, causal=True, decoder=Layers(5, (4,), (6,), depth=2)).double().requires_grad_(False)
    x, noise = torch.randn(12, 9, dtype=torch.complex128), torch.rand(12, 9, dtype=torch.float64) + 0.1
    z, other = torch.randn(2, 2, 12, 3, dtype=torch.float64)
    other[:, :7] = z[:, :7]

    full = log_density(Mixture(speech=prior, rest=lambda _: ComplexNormal(0j, noise)), x, chains=2)
    expected = full({"speech.z": other}) - full({"speech.z": z})
    memory = prior._modules["memory"] = Continued(prior.memory)
    for piece in (z[:, :3], z[:, 3:7]):
        memory.remember(piece)
    window = _Window("speech", prior, (torch.zeros(5, 9, dtype=torch.complex128), torch.ones(5, 1) > 0, torch.ones(5, 9).double()), 2, 1.0)
    target = window.seen(x[7:], torch.ones(5, 1) > 0, noise[7:])
    torch.testing.assert_close(target({"speech.z": other[:, 7:]}) - target({"speech.z": z[:, 7:]}), expected)


def started(spacing: int, frames: int) -> NMFNoise:
    noise = NMFNoise(2, spacing=spacing)
    noise.start(torch.ones(frames, 5) + 0j)
    return noise


def test_activations_slide() -> None:
    noise = started(1, 4)
    noise.H = torch.arange(1.0, 9).reshape(4, 2)
    noise.slide(4, 1, 5, power=2.0)
    torch.testing.assert_close(noise.H.detach(), 2 * torch.tensor([[3.0, 4], [5, 6], [7, 8], [7, 8], [7, 8]]))


def test_activations_on_knots_slide() -> None:
    noise = started(4, 9)
    noise.H = torch.stack([torch.tensor([1.0, 5, 9]), torch.ones(3)], -1)  # t + 1 in frame t
    noise.slide(9, 4, 13)
    torch.testing.assert_close(noise.H.detach()[:, 0], torch.tensor([5.0, 9, 9, 9]))
    torch.testing.assert_close(noise.H.detach()[:, 1], torch.ones(4))


def test_spectrum_keeps_its_place() -> None:
    noise = StationaryNoise()
    noise.start(torch.full((4, 5), 2.0) + 0j)
    noise.slide(4, 2, 6, power=0.5)
    torch.testing.assert_close(noise.spectrum.detach(), torch.full((5,), 2.0))


def test_level() -> None:
    level = RunningLevel(4)
    assert level(torch.zeros(2)) == 1.0 and level.scale == 1.0, "nothing was heard yet"
    assert level(torch.full((4,), 4.0)) == 0.25 and level.scale == 2.0
    assert level(torch.zeros(8)) == 1.0 and level.scale == 2.0, "in silence it stays"
    assert level(torch.ones(9)) == 4.0 and level.scale == 1.0, "older frames are forgotten"


@pytest.mark.parametrize(("model", "source", "message"), [
    (lambda: Mixture(speech=tiny_vae(), noise=NMFNoise(2)), "music", "no source 'music'; it has speech, noise"),
    (lambda: Mixture(speech=tiny_vae(), noise=SmoothNMFNoise(2)), "speech", "'noise' cannot be fitted as a recording goes on"),
    (lambda: Mixture(speech=VAESpeech(9, 3, (8,)), noise=NMFNoise(2)), "speech", "no encoder hears 'speech' in noise"),
    (lambda: Mixture(speech=FrameGain(tiny_vae()), noise=NMFNoise(2)), "speech", "no encoder hears"),
    (lambda: Mixture(speech=RVAESpeech(hidden=4), noise=NMFNoise(2)), "speech", "depend on later ones"),
])
def test_models_that_cannot_go_on(model: Callable[[], Mixture], source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _reader(model(), source, None)


def test_models_that_can() -> None:
    reader = _reader(Mixture(speech=RVAESpeech(hidden=4, causal=True), noise=StationaryNoise()), "speech", None)
    heard = reader.hear(torch.ones(3, 513) + 0j)
    assert isinstance(heard.noise, Tensor) and heard.noise.shape == (3, 513)
