"""Ears that listen in bands."""

import numpy as np
import pytest
import torch

from ppse.models import VAESpeech
from ppse.models.band_listener import BandListener, auditory_bands, over_time
from ppse.online_ears import EAR, forgetful

F, L, K = 65, 3, 8


def _ears() -> BandListener:
    torch.manual_seed(0)
    ears = BandListener(F, L, 6, K)
    for head in (ears.noise, ears.follow, ears.mask):
        torch.nn.init.normal_(head.weight)
    return ears.requires_grad_(False)


def test_bands_share_out_every_bin() -> None:
    bands = auditory_bands(513, 40)
    torch.testing.assert_close(bands.sum(1), torch.ones(513))
    assert (bands.sum(0) > 0).all() and (bands >= 0).all()
    width = (bands > 0).sum(0)
    assert width[:5].max() <= 5 and width[-5:].min() > 30  # wider and wider
    assert ((bands > 0).sum(1) <= 2).all()


def test_so_many_bands_that_one_is_empty() -> None:
    with pytest.raises(ValueError, match="bands=40 for 33 frequencies"):
        BandListener(33, 2, 4, 40)


def test_quantiles_are_of_the_frames_that_are_seen() -> None:
    values = torch.randn(2, 1, 50, 3)
    seen = torch.rand(2, 1, 50, 1) < 0.6
    found = over_time(values, (0.4, 0.1), seen)
    for row in range(2):
        kept = values[row, 0][seen[row, 0, :, 0]].sort(0).values
        np.testing.assert_array_equal(found[row, 0], kept[[int(0.4 * len(kept)), int(0.1 * len(kept))]])
    np.testing.assert_array_equal(over_time(values, (0.4,)), values.sort(-2).values[..., 20:21, :])
    assert not over_time(values, (0.4,), torch.zeros_like(seen)).any()


def test_padding_is_not_heard() -> None:
    ears = _ears()
    short, long = torch.randn(1, 1, 30, F, dtype=torch.complex64), torch.randn(1, 1, 41, F, dtype=torch.complex64)
    batch = torch.cat([torch.nn.functional.pad(short, (0, 0, 0, 11), value=7.0), long])
    observed = torch.ones(2, 1, 41, 1, dtype=torch.bool)
    observed[0, :, 30:] = False
    together = ears(batch, observed)
    for found, expected in zip(together, ears(short), strict=True):
        torch.testing.assert_close(found[:1, :, :30], expected, rtol=1e-4, atol=1e-5)
    for found, expected in zip(together, ears(long), strict=True):
        torch.testing.assert_close(found[1:], expected, rtol=1e-4, atol=1e-5)


def test_untaught_ears_hear_steady_noise() -> None:
    """Coloured noise with a hum, in which something loud happens a quarter of the time: the level within 3 dB, the hum where it is."""
    torch.manual_seed(1)
    power = torch.linspace(0.1, 2, F)
    power[20] = 30
    x = power.sqrt() * torch.randn(400, F, dtype=torch.complex64)
    x[::4] *= 10
    heard = BandListener(F, L, 6, K)(x).noise
    quiet = (10 * (heard / power).log10())[torch.arange(400) % 4 != 0]
    assert quiet.mean().abs() < 3 and heard[1].argmax() == 20


def test_what_is_steady_in_a_whole_recording_serves_its_end() -> None:
    vae = VAESpeech(F, L, (4,), 6, bands=K)
    vae.listener = _ears()
    encoder = vae.noisy_encoder
    assert encoder is not None
    x, seen = torch.randn(100, F, dtype=torch.complex64), torch.ones(100, 1, dtype=torch.bool)
    x[-EAR:] *= 10
    heard = forgetful(encoder)(x, 3, seen, 1.0)
    assert heard.noise.shape == (EAR, F)
    torch.testing.assert_close(heard.noise, encoder.hear(x[-EAR:], steady=encoder.steady(x)).noise)
    assert heard.noise.mean() < encoder.hear(x[-EAR:]).noise.mean()  # which takes loud frames for the usual ones


def test_silence_and_one_frame() -> None:
    ears = _ears()
    for x in (torch.zeros(5, F, dtype=torch.complex64), torch.randn(1, F, dtype=torch.complex64)):
        assert all(part.isfinite().all() for part in ears(x))
