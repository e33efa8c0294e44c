import pytest
import torch
from torch import Tensor

from ppse import Mixture, audio, enhance, methods
from ppse.demo import NOISY
from ppse.guides import starting_guide
from ppse.models import DKFSpeech, HarmonicSpeech, HeardNoise, KnownSilence, NMFNoise, StationaryNoise, VAESpeech
from ppse.models.encoders import CleanedEncoder
from ppse.models.recurrent import Layers
from ppse.stft import POWER_FLOOR
from ppse.testing import check_source
from ppse.warm_start import fit_noise

T, F, L = 9, 11, 3


def _ears() -> VAESpeech:
    torch.manual_seed(1)
    return VAESpeech(F, L, (5,), context=4)


def _heard(ears: VAESpeech, x: Tensor) -> Tensor:
    assert ears.noisy_encoder is not None
    return ears.noisy_encoder.hear(x).noise.detach()


def _x(*lead: int) -> Tensor:
    return torch.randn(*lead, T, F, dtype=torch.complex64)


@pytest.mark.parametrize("correction", [NMFNoise(2), NMFNoise(2, spacing=3), StationaryNoise()], ids=["nmf", "knots", "stationary"])
def test_contract(correction: NMFNoise | StationaryNoise) -> None:
    check_source(HeardNoise(_ears(), correction), n_frames=T, n_freqs=F, aside=("ears",))


def test_it_begins_at_what_the_listener_hears() -> None:
    ears, x = _ears(), _x()
    model = Mixture(noise=HeardNoise(ears))
    model.start(x)
    heard = _heard(ears, x)
    fit_noise(model, heard, ())
    off = 10 * (model(x)["noise"].var / (heard + POWER_FLOOR)).log10()
    assert off.abs().max() < 0.8 and off.abs().mean() < 0.3  # dB; the patterns of the correction begin at random


def test_the_correction_finds_a_wrong_level_in_one_band() -> None:
    """Noise of nine times the power that is heard in the upper bins: EM on noise alone, whose maximum is the mean of the ratio."""
    torch.manual_seed(0)
    ears = _ears()
    frames = 4000
    x = torch.randn(frames, F, dtype=torch.complex64)
    heard = _heard(ears, x) + POWER_FLOOR
    truth = torch.where(torch.arange(F) > 6, 9.0, 1.0)
    noise = HeardNoise(ears, StationaryNoise())
    model = Mixture(noise=noise)
    model.start(x)
    y = x * (heard * truth).sqrt()
    laws = model(y)
    for _ in range(30):
        laws = model.update(y, laws)
    torch.testing.assert_close((laws["noise"].var / heard).mean(0), truth, rtol=0.12, atol=0)


def test_it_hears_every_stretch_anew_and_needs_a_recording() -> None:
    noise = HeardNoise(_ears())
    model, first, second = Mixture(noise=noise), _x(), _x()[:5]
    with pytest.raises(RuntimeError, match="no recording yet"):
        model(first)
    model.start(first)
    model.follow(second)
    assert model(second)["noise"].var.shape == second.shape
    torch.testing.assert_close(noise.heard, _heard(noise.ears, second) + POWER_FLOOR)


def test_a_correction_without_m_step_is_refused() -> None:
    with pytest.raises(ValueError, match="HarmonicSpeech, which has no closed-form M-step"):
        HeardNoise(_ears(), HarmonicSpeech(torch.zeros(3), torch.ones(3), F))


def test_amortised_is_the_wiener_filter_of_encoder_and_ears() -> None:
    """With the mean of the code in place of draws, and no NMF, one pass is E[s | x] under what encoder and listener say."""
    noisy = torch.from_numpy(audio.read_mono(NOISY, 16_000))[:24_000]
    vae = VAESpeech.pretrained()
    assert vae.noisy_encoder is not None
    result = enhance(noisy, Mixture(speech=vae, noise=HeardNoise(vae)), methods.amortised(draws=64))
    stft = result.stft
    x = stft.analysis(noisy)
    scale = (x.abs().square().mean()).sqrt()
    with torch.no_grad():
        heard = vae.noisy_encoder.hear(x / scale)
        speech = vae.decoder(vae.noisy_encoder.read(x / scale, heard).mean).exp()
    expected = stft.synthesis(speech / (speech + heard.noise) * x, len(noisy))
    found = torch.from_numpy(result.estimates["speech"][0])
    assert (found - expected).square().mean() < 0.02 * expected.square().mean()


def test_ears_without_a_listener_are_refused() -> None:
    with pytest.raises(ValueError, match="this VAE has no listener"):
        HeardNoise(VAESpeech(F, L, (5,)))


@pytest.mark.parametrize("kind", ["the same VAE", "its speech model, another listener", "memory"])
def test_inference_starts_at_what_the_ears_of_the_noise_propose(kind: str) -> None:
    """The latents of another prior are those that its own encoder reads from what the ears leave of the recording."""
    ears, x = _ears(), _x()
    other = _ears()
    with torch.no_grad():
        other.listener.mask.bias.sub_(5)
    speech = {"the same VAE": ears, "its speech model, another listener": other, "memory": DKFSpeech(F, L, (5,), reader=Layers(3))}[kind]
    guide = starting_guide(Mixture(speech=speech, noise=HeardNoise(ears)))
    laws, noise = guide.listen(x)
    torch.testing.assert_close(noise, _heard(ears, x))
    own = ears.noisy_encoder.read(x, ears.noisy_encoder.hear(x))
    if kind == "memory":
        cleaned = CleanedEncoder(ears.noisy_encoder, ears.decoder, speech.encoder)
        own = cleaned.read(x, cleaned.hear(x))
    torch.testing.assert_close(laws["speech.z"][0], own.mean)
    # So it is where the noise is known to be silent in part.
    known = starting_guide(Mixture(speech=speech, noise=KnownSilence(HeardNoise(ears), torch.arange(T) < 2)))
    torch.testing.assert_close(known.laws(x)["speech.z"][0], own.mean)
