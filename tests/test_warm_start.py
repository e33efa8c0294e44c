import pytest
import torch
from torch import Tensor

from ppse import Mixture, methods
from ppse.guides import EncoderGuide, starting_guide
from ppse.methods import Problem
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech
from ppse.warm_start import fit_noise

T, F, L = 20, 9, 3


def _heard(lead: tuple[int, ...] = ()) -> Tensor:
    """A power that NMF of rank one can have."""
    return (0.1 + torch.rand(*lead, T, 1)) * (0.1 + torch.rand(*lead, 1, F))


def _vae() -> VAESpeech:
    return VAESpeech(F, L, (5,), 4)


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_the_noise_is_what_was_heard(lead: tuple[int, ...]) -> None:
    power = _heard(lead)
    model = Mixture(speech=_vae(), noise=NMFNoise(2))
    x = torch.randn(*lead, T, F, dtype=torch.complex64)
    model.start(x)
    fit_noise(model, power, {"speech"}, steps=300)
    torch.testing.assert_close(model(x)["noise"].var, power, rtol=0.02, atol=0)


def test_two_noises_share_it_and_a_gain_of_speech_stays() -> None:
    power = _heard()
    model = Mixture(speech=FrameGain(_vae()), low=StationaryNoise(), high=NMFNoise(1))
    x = torch.randn(T, F, dtype=torch.complex64)
    model.start(x)
    gain = {name: value.clone() for name, value in model.speech.named_parameters()}
    fit_noise(model, power, {"speech"}, steps=300)
    laws = model(x)
    torch.testing.assert_close(laws["low"].var + laws["high"].var, power, rtol=0.05, atol=0)
    assert all(torch.equal(value, gain[name]) for name, value in model.speech.named_parameters())


def test_hmc_em_starts_the_noise_at_what_the_noisy_encoder_hears() -> None:
    model = Mixture(speech=_vae(), noise=StationaryNoise())
    x = torch.randn(T, F, dtype=torch.complex64)
    model.start(x)
    guide = starting_guide(model)
    assert guide is not None
    power = guide.listen(x)[1]
    assert power is not None
    methods.hmc_em().e_step(Problem(model, model, x, None, guide, {}))
    torch.testing.assert_close(model(x)["noise"].var, power.mean(0).expand(T, F), rtol=0.02, atol=0)


@pytest.mark.parametrize("encoders", [0, 2])
def test_nothing_is_heard_without_one_noisy_encoder(encoders: int) -> None:
    vaes = {name: _vae() for name in "ab"}
    guide = EncoderGuide({f"{name}.z": (vae.noisy_encoder if encoders else None) or vae.encoder for name, vae in vaes.items()})
    assert guide.listen(torch.randn(T, F, dtype=torch.complex64))[1] is None
