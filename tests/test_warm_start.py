import pytest
import torch
from torch import Tensor, nn

from ppse import Mixture
from ppse.guides import EncoderGuide
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech
from ppse.models.encoders import NoisyEncoder
from ppse.warm_start import fit_noise

T, F, L = 20, 9, 3


class _Hears(NoisyEncoder):
    """A noisy encoder whose verdict on the noise is known."""

    def __init__(self, vae: VAESpeech, power: Tensor) -> None:
        assert vae.listener is not None
        super().__init__(vae.listener, vae.encoder)
        self.power = power

    def noise(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        return self.power


def _heard(lead: tuple[int, ...] = ()) -> Tensor:
    """A power that NMF of rank one can have."""
    return (0.1 + torch.rand(*lead, T, 1)) * (0.1 + torch.rand(*lead, 1, F))


def _vae() -> VAESpeech:
    return VAESpeech(F, L, (5,), 4)


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_the_noise_is_what_was_heard(lead: tuple[int, ...]) -> None:
    vae, power = _vae(), _heard(lead)
    model = Mixture(speech=vae, noise=NMFNoise(2))
    x = torch.randn(*lead, T, F, dtype=torch.complex64)
    model.start(x)
    fit_noise(model, EncoderGuide({"speech.z": _Hears(vae, power)}), x, steps=300)
    torch.testing.assert_close(model(x)["noise"].var, power, rtol=0.02, atol=0)


def test_two_noises_share_it_and_a_gain_of_speech_stays() -> None:
    vae, power = _vae(), _heard()
    model = Mixture(speech=FrameGain(vae), low=StationaryNoise(), high=NMFNoise(1))
    x = torch.randn(T, F, dtype=torch.complex64)
    model.start(x)
    gain = {name: value.clone() for name, value in model.speech.named_parameters()}
    fit_noise(model, EncoderGuide({"speech.z": _Hears(vae, power)}), x, steps=300)
    laws = model(x)
    torch.testing.assert_close(laws["low"].var + laws["high"].var, power, rtol=0.05, atol=0)
    assert all(torch.equal(value, gain[name]) for name, value in model.speech.named_parameters())


@pytest.mark.parametrize("encoders", [0, 2])
def test_nothing_is_heard_without_one_noisy_encoder(encoders: int) -> None:
    vaes = {name: _vae() for name in "ab"}
    model = Mixture(**vaes, noise=StationaryNoise())
    x = torch.randn(T, F, dtype=torch.complex64)
    model.start(x)
    before = model(x)["noise"].var.clone()
    modules: dict[str, nn.Module] = {}
    for name, vae in vaes.items():
        modules[f"{name}.z"] = _Hears(vae, _heard()) if encoders else vae.encoder
    fit_noise(model, EncoderGuide(modules), x)
    assert torch.equal(model(x)["noise"].var, before)
