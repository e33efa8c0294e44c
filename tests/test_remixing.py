"""Noise of recordings under other speech: where known it is what is left, elsewhere a draw of its posterior; mixtures have a level and an SNR."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppse.models import VAESpeech
from ppse.models.encoders import Heard, NoisyEncoder
from ppse.recordings import Recordings, Stretches
from ppse.remixing import noise_of, recorded_noise, remix
from ppse.stft import POWER_FLOOR, STFT, level

B, T, F = 2, 5, 9


@pytest.fixture
def vae() -> VAESpeech:
    return VAESpeech(F, 2, (12,), context=5).double()


def _stretches(known: Tensor) -> Stretches:
    x, clean = (torch.randn(B, 1, T, F, dtype=torch.complex128) for _ in range(2))
    return Stretches(x, clean, known.expand(B, 1, T, 1))


def _heard(vae: VAESpeech, x: Tensor) -> tuple[NoisyEncoder, Heard]:
    encoder = vae.noisy_encoder
    assert encoder is not None
    heard = encoder.hear(x)
    return encoder, heard._replace(scale=torch.full_like(heard.scale, 1e-9))  # latents that are sure


def test_where_speech_is_known_noise_is_what_is_left(vae: VAESpeech) -> None:
    known = torch.arange(T).unsqueeze(-1) < 3
    data = _stretches(known)
    noise = noise_of(vae, *_with(vae, data))
    mask = data.known.expand_as(data.x)
    assert torch.equal(noise[mask], (data.x - data.clean)[mask])
    assert not torch.isclose(noise[~mask], (data.x - data.clean)[~mask]).any()
    assert not noise.requires_grad


def _with(vae: VAESpeech, data: Stretches) -> tuple[NoisyEncoder, Stretches, Heard]:
    encoder, heard = _heard(vae, data.x)
    return encoder, data, heard


@torch.no_grad()
def test_elsewhere_it_is_a_draw_of_the_posterior(vae: VAESpeech) -> None:
    """Mean and variance are those of the Wiener filter, and so is the power, which the mean alone has not."""
    data = _stretches(torch.tensor(False))
    encoder, _, heard = _with(vae, data)
    torch.manual_seed(3)
    count = 4000
    draws = torch.stack([noise_of(vae, encoder, data, heard) for _ in range(count)])
    v_s = vae.decoder(encoder.read(data.x, heard).mean).exp() + POWER_FLOOR
    v_n = heard.noise + POWER_FLOOR
    mean, variance = v_n / (v_s + v_n) * data.x, v_s * v_n / (v_s + v_n)
    error = (draws.mean(0) - mean).abs().square() / variance * count  # chi-squared of two degrees, halved
    assert float(error.max()) < 14 and 0.6 < float(error.mean()) < 1.4
    torch.testing.assert_close((draws - mean).abs().square().mean(0), variance, rtol=0.1, atol=0)


def test_mixtures_have_unit_level_and_an_snr_of_the_range() -> None:
    generator = torch.Generator().manual_seed(0)
    speech, noise = (scale * torch.randn(200, 30, 20, dtype=torch.complex64) for scale in (0.1, 7.0))
    data = remix(speech, noise, generator)
    assert data.x.shape == (200, 1, 30, 20) and bool(data.known.all())
    torch.testing.assert_close(level(data.x), torch.ones_like(level(data.x)))
    power = [part.abs().square().mean((-2, -1)) for part in (data.clean, data.x - data.clean)]
    snr = 10 * (power[0] / power[1]).log10().squeeze(1)
    assert -10.1 < float(snr.min()) < -9 and 14 < float(snr.max()) < 15.1


def test_every_stretch_keeps_its_own_noise_up_to_a_smooth_gain() -> None:
    """Magnitudes of both parts go with those that were given, frame by frame."""
    generator = torch.Generator().manual_seed(1)
    speech, noise = (torch.randn(4, 50, 20, dtype=torch.complex64) for _ in range(2))
    data = remix(speech, noise, generator)
    for given, found in ((speech, data.clean), (noise, data.x - data.clean)):
        ratio = found.squeeze(1) / given
        assert float(ratio.imag.abs().max()) < 1e-3 * float(ratio.abs().max())
        torch.testing.assert_close(ratio.real, ratio.real[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-5)


def test_pauses_stay_quiet() -> None:
    quiet = 1e-6 * torch.randn(3, 30, 20, dtype=torch.complex64)
    data = remix(torch.randn(3, 30, 20, dtype=torch.complex64), quiet, torch.Generator().manual_seed(0))
    power = [part.abs().square().mean((-2, -1)) for part in (data.clean, data.x - data.clean)]
    assert bool((power[0] > 100 * power[1]).all())
    assert bool(torch.isfinite(remix(torch.zeros(3, 30, 20, dtype=torch.complex64), quiet, torch.Generator()).x.abs()).all())


def test_every_kind_of_recording_gives_as_much_noise() -> None:
    """However long it is; told apart by their levels. Of pairs it is what is left, which needs no draw."""
    vae = VAESpeech(F, 2, (12,), context=5)
    assert vae.noisy_encoder is not None
    stft = STFT.of_freqs(F)
    torch.manual_seed(0)
    hums = [torch.sin(0.1 * torch.arange(size)) for size in (400, 4000)]
    kinds = [Recordings([hum], stft, [part * hum]) for hum, part in zip(hums, (0.0, 0.9), strict=True)]
    noise = recorded_noise(vae, vae.noisy_encoder, kinds, 400, 8, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert noise.shape == (400, 8, F) and not noise.requires_grad
    loud = noise.abs().square().mean((-2, -1)) > 0.1 * noise.abs().square().mean()
    assert float(loud.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert 100 < int(loud[:200].sum()) + int((~loud[200:]).sum()) < 300  # in no order
