import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppse import Mixture
from ppse.guides import starting_guide
from ppse.infer import hmc, log_density, sample
from ppse.models import DKFSpeech, HeardSpeech, PartiallyObserved, StationaryNoise, VAESpeech
from ppse.models.recurrent import Layers
from ppse.testing import check_source

T, F, L = 6, 11, 3


def _ears(seed: int = 1) -> VAESpeech:
    torch.manual_seed(seed)
    return VAESpeech(F, L, (5,), context=4)


def _memory() -> DKFSpeech:
    torch.manual_seed(2)
    return DKFSpeech(F, L, (5,), reader=Layers(3))


def _x(*lead: int) -> Tensor:
    return torch.randn(*lead, T, F, dtype=torch.complex128)


@pytest.mark.parametrize("speech", [_ears(), _ears(3), _memory()], ids=["the same", "another", "memory"])
def test_contract(speech: VAESpeech | DKFSpeech) -> None:
    aside = ("noisy_encoder", "source.encoder", *(("source.listener",) if isinstance(speech, VAESpeech) else ()))
    check_source(HeardSpeech(speech, _ears()), n_frames=T, n_freqs=F, aside=aside)


def test_the_density_is_that_of_the_prior_times_a_power_of_what_is_heard() -> None:
    ears, x = _ears().double(), _x()
    plain, heard = (Mixture(speech=source, noise=StationaryNoise()).double() for source in (ears, HeardSpeech(_ears(), ears, weight=0.7)))
    for model in (plain, heard):
        model.start(x)
        model.requires_grad_(False)
    z = torch.randn(T, L, dtype=torch.float64)

    def density(model: Mixture) -> Tensor:
        return poutine.trace(poutine.condition(model, data={"speech.z": z})).get_trace(x).log_prob_sum()

    assert ears.noisy_encoder is not None
    law = ears.noisy_encoder(x)
    torch.testing.assert_close(density(heard) - density(plain), 0.7 * Normal(law.mean, law.stddev).log_prob(z).sum())


def test_frames_are_still_accepted_one_by_one_and_the_posterior_is_nearer_to_what_is_heard() -> None:
    ears, x = _ears().double(), _x()
    assert ears.noisy_encoder is not None
    law = ears.requires_grad_(False).noisy_encoder(x)
    away = []
    for source in (_ears(), HeardSpeech(_ears(), ears, weight=4.0)):
        model = Mixture(speech=source, noise=StationaryNoise()).double()
        model.start(x)
        model.requires_grad_(False)
        target = log_density(model, x, chains=64)
        assert target.block == ("frames",)
        z = sample(target, hmc(target, 0.2, 5), target.init(), 60).values["speech.z"]
        away.append(float(((z[30:] - law.mean) / law.stddev).square().mean()))
    assert away[1] < 0.6 * away[0]


def test_inference_starts_at_what_is_heard() -> None:
    ears, x = _ears().double(), _x()
    guide = starting_guide(Mixture(speech=HeardSpeech(_ears().double(), ears)))
    assert guide is not None and ears.noisy_encoder is not None
    torch.testing.assert_close(guide.laws(x)["speech.z"][0], ears.noisy_encoder(x).mean)


def test_ears_hear_the_noise_where_the_speech_is_known_to_be_silent() -> None:
    ears, x = _ears().double(), _x()
    heard = HeardSpeech(_ears(), ears)
    PartiallyObserved(heard, torch.zeros_like(x), torch.arange(T).unsqueeze(-1) < 3).start(x)
    assert heard.law is not None and ears.noisy_encoder is not None
    torch.testing.assert_close(heard.law.mean, ears.noisy_encoder(x).mean)


def test_what_cannot_hear_is_refused() -> None:
    with pytest.raises(ValueError, match="a VAE without a listener"):
        HeardSpeech(_ears(), VAESpeech(F, L, (5,)))
    with pytest.raises(ValueError, match="STFTs of 12 frequencies, the prior for 11"):
        HeardSpeech(_ears(), VAESpeech(F + 1, L, (5,), context=4))
    with pytest.raises(ValueError, match="weight=0; expected a positive number"):
        HeardSpeech(_ears(), _ears(), weight=0)
    with pytest.raises(RuntimeError, match="no recording yet"):
        Mixture(speech=HeardSpeech(_ears(), _ears())).double()(_x())
