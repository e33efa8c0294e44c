import pytest
import torch
from torch import Tensor

from ppse import Mixture, audio, enhance, methods
from ppse.demo import NOISY
from ppse.models import HarmonicSpeech, HeardNoise, NMFNoise, StationaryNoise, VAESpeech
from ppse.models.encoders import Listener
from ppse.stft import POWER_FLOOR
from ppse.testing import check_source
from ppse.warm_start import fit_noise

T, F, L = 9, 11, 3


def _listener() -> Listener:
    torch.manual_seed(1)
    return Listener(F, L, 4)


def _x(*lead: int) -> Tensor:
    return torch.randn(*lead, T, F, dtype=torch.complex64)


@pytest.mark.parametrize("correction", [NMFNoise(2), NMFNoise(2, spacing=3), StationaryNoise()], ids=["nmf", "knots", "stationary"])
def test_contract(correction: NMFNoise | StationaryNoise) -> None:
    check_source(HeardNoise(_listener(), correction), n_frames=T, n_freqs=F, aside=("listener",))


def test_it_begins_at_what_the_listener_hears() -> None:
    listener, x = _listener(), _x()
    model = Mixture(noise=HeardNoise(listener))
    model.start(x)
    heard = listener(x).noise
    fit_noise(model, heard, ())
    torch.testing.assert_close(model(x)["noise"].var, heard + POWER_FLOOR, rtol=0.02, atol=0)


def test_the_correction_finds_a_wrong_level_in_one_band() -> None:
    """Noise of nine times the power that is heard in the upper bins: EM on noise alone, whose maximum is the mean of the ratio."""
    torch.manual_seed(0)
    listener = _listener()
    frames = 4000
    x = torch.randn(frames, F, dtype=torch.complex64)
    heard = listener(x).noise + POWER_FLOOR
    truth = torch.where(torch.arange(F) > 6, 9.0, 1.0)
    noise = HeardNoise(listener, StationaryNoise())
    model = Mixture(noise=noise)
    model.start(x)
    y = x * (heard * truth).sqrt()
    laws = model(y)
    for _ in range(30):
        laws = model.update(y, laws)
    torch.testing.assert_close((laws["noise"].var / heard).mean(0), truth, rtol=0.12, atol=0)


def test_it_hears_every_stretch_anew_and_needs_a_recording() -> None:
    noise = HeardNoise(_listener())
    model, first, second = Mixture(noise=noise), _x(), _x()[:5]
    with pytest.raises(RuntimeError, match="no recording yet"):
        model(first)
    model.start(first)
    model.follow(second)
    assert model(second)["noise"].var.shape == second.shape
    torch.testing.assert_close(noise.heard, noise.listener(second).noise + POWER_FLOOR)


def test_a_correction_without_m_step_is_refused() -> None:
    with pytest.raises(ValueError, match="HarmonicSpeech, which has no closed-form M-step"):
        HeardNoise(_listener(), HarmonicSpeech(torch.zeros(3), torch.ones(3), F))


def test_amortised_is_the_wiener_filter_of_encoder_and_listener() -> None:
    """With the mean of the code in place of draws, and no NMF, one pass is E[s | x] under what encoder and listener say."""
    noisy = torch.from_numpy(audio.read_mono(NOISY, 16_000))[:24_000]
    vae = VAESpeech.pretrained()
    assert vae.noisy_encoder is not None and vae.listener is not None
    result = enhance(noisy, Mixture(speech=vae, noise=HeardNoise(vae.listener)), methods.amortised(draws=64))
    stft = result.stft
    x = stft.analysis(noisy)
    scale = (x.abs().square().mean()).sqrt()
    with torch.no_grad():
        heard = vae.noisy_encoder.hear(x / scale)
        speech = vae.decoder(vae.noisy_encoder.read(x / scale, heard).mean).exp()
    expected = stft.synthesis(speech / (speech + heard.noise) * x, len(noisy))
    found = torch.from_numpy(result.estimates["speech"][0])
    assert (found - expected).square().mean() < 0.02 * expected.square().mean()
