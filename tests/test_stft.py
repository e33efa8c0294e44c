import math

import pytest
import torch

from ppse import STFT
from ppse.stft import level

SETTINGS = [STFT(), STFT(64, 32), STFT(64, 16), STFT(60, 20)]


@pytest.mark.parametrize("stft", SETTINGS, ids=lambda s: f"{s.n_fft}/{s.hop}")
@pytest.mark.parametrize("length", [1, 2, 15, 255, 256, 257, 1023, 4097])
def test_perfect_reconstruction_and_energy(stft: STFT, length: int) -> None:
    wave = torch.randn(2, length, dtype=torch.float64)
    x = stft.analysis(wave)
    assert x.shape == (2, stft.n_frames(length), stft.n_freqs)
    torch.testing.assert_close(stft.synthesis(x, length), wave, rtol=0, atol=1e-12)
    doubled = torch.full((stft.n_freqs,), 2.0, dtype=torch.float64)
    doubled[0] = doubled[-1] = 1.0  # each bin but the first and last stands for its conjugate too
    torch.testing.assert_close((x.abs().square() * doubled).sum((-2, -1)), wave.square().sum(-1))


def test_single_precision_reconstruction() -> None:
    wave = torch.randn(12_345)
    stft = STFT()
    assert stft.analysis(wave).dtype == torch.complex64
    assert (stft.synthesis(stft.analysis(wave), 12_345) - wave).abs().max() < 1e-5


def test_synthesis_is_the_adjoint_of_analysis() -> None:
    """Projection: synthesis of any STFT is the waveform whose analysis is nearest."""
    stft, wave = STFT(64, 16), torch.randn(200, dtype=torch.float64)
    x = torch.randn(stft.n_frames(200), stft.n_freqs, dtype=torch.complex128)
    nearest = stft.synthesis(x, 200)

    def distance(w: torch.Tensor) -> torch.Tensor:
        weight = torch.full((stft.n_freqs,), 2.0, dtype=torch.float64)
        weight[0] = weight[-1] = 1.0
        error = torch.view_as_real(stft.analysis(w) - torch.complex(x.real, _hermitian(x.imag)))
        return (error.square().sum(-1) * weight).sum()

    nearest.requires_grad_()
    (gradient,) = torch.autograd.grad(distance(nearest), nearest)
    assert gradient.abs().max() < 1e-10
    assert distance(nearest) < distance(nearest.detach() + 0.01 * wave)


def _hermitian(imag: torch.Tensor) -> torch.Tensor:
    """The imaginary part without the first and last bin, where a real frame has none."""
    keep = torch.ones(imag.shape[-1], dtype=imag.dtype)
    keep[0] = keep[-1] = 0
    return imag * keep


def test_white_noise_has_the_documented_power() -> None:
    stft, wave = STFT(64, 16), 2 * torch.randn(200_000, dtype=torch.float64)
    power = stft.analysis(wave)[4:-4, 1:-1].abs().square()
    # 12,500 frames, at least a quarter of them independent, 31 bins: standard error below 1 / sqrt(12500 / 4 * 15).
    assert abs(power.mean().item() / (4 * stft.hop / stft.n_fft) - 1) < 5 / math.sqrt(12_500 / 4 * 15)


@pytest.mark.parametrize(("n_fft", "hop"), [(1024, 1024), (1024, 300), (64, 48)])
def test_settings_without_perfect_reconstruction_are_refused(n_fft: int, hop: int) -> None:
    with pytest.raises(ValueError, match="at least twice"):
        STFT(n_fft, hop)


def test_level_scales_with_power_and_ignores_pauses() -> None:
    x = torch.randn(3, 40, 9, dtype=torch.complex128)
    torch.testing.assert_close(level(9 * x), 81 * level(x))
    with_pause = torch.cat([x, 1e-4 * torch.randn(3, 40, 9, dtype=torch.complex128)], -2)
    torch.testing.assert_close(level(with_pause), level(x))
    torch.testing.assert_close(level(x), x.abs().square().mean((-2, -1), keepdim=True))


def test_silence_has_level_one() -> None:
    assert torch.equal(level(torch.zeros(5, 9, dtype=torch.complex64)), torch.ones(1, 1))
