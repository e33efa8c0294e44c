"""Frames in which a source is known to be silent: exact zeros, and nothing learnt from them."""

import pytest
import torch
from torch import Tensor

import ppse
from ppse import Mixture, methods
from ppse.guides import starting_guide
from ppse.infer import log_density
from ppse.inference import infer
from ppse.mixture import Source
from ppse.models import FrameGain, KnownSilence, NMFNoise, StationaryNoise, VAESpeech
from ppse.testing import check_source

T, F = 7, 11
SILENT = torch.tensor([True, True, False, False, False, True, False])

SOURCES: dict[str, tuple[Source, tuple[str, ...]]] = {
    "vae": (VAESpeech(F, 3, (6,)), ("source.encoder",)),
    "stationary": (StationaryNoise(), ()),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_contract(name: str) -> None:
    source, aside = SOURCES[name]
    check_source(KnownSilence(source, SILENT), n_frames=T, n_freqs=F, aside=aside)


def _mixture(silent: Tensor = SILENT) -> Mixture:
    return Mixture(speech=KnownSilence(VAESpeech(F, 3, (6,)), silent), noise=StationaryNoise())


def test_estimate_is_zero_in_silence_and_the_noise_is_all_there_is() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    laws = infer(_mixture(), x, methods.mala_em(iterations=3)).sources
    assert (laws["speech"].loc[SILENT] == 0).all() and (laws["speech"].var[SILENT] == 0).all()
    assert laws["speech"].loc[~SILENT].abs().min() > 0
    torch.testing.assert_close(laws["noise"].loc[SILENT], x[SILENT])


def test_latents_follow_their_prior_in_silence_and_the_posterior_elsewhere() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    model, plain = _mixture(), Mixture(speech=VAESpeech(F, 3, (6,)), noise=StationaryNoise())
    plain.load_state_dict({name.replace("speech.source.", "speech."): v for name, v in model.state_dict().items() if "silent" not in name})
    for mixture in (model, plain):
        mixture.start(x)
    targets = [log_density(mixture, x, chains=2) for mixture in (model, plain)]
    assert targets[0].block == ("frames",)
    position = {"speech.z": torch.randn(2, T, 3)}
    values, slopes = zip(*(target.value_and_grad(position) for target in targets), strict=True)
    torch.testing.assert_close(slopes[0]["speech.z"][:, SILENT], -position["speech.z"][:, SILENT])
    torch.testing.assert_close(values[0][:, ~SILENT], values[1][:, ~SILENT])


def test_noise_starts_at_and_is_fitted_to_the_frames_in_which_it_may_be() -> None:
    x = torch.randn(T, F, dtype=torch.complex128)
    spoilt = torch.where(SILENT.unsqueeze(-1), 100 * x, x)
    found = []
    for recording in (x, spoilt):
        noise = KnownSilence(FrameGain(NMFNoise(2)), SILENT)
        torch.manual_seed(0)
        noise.start(recording)
        power, own = recording.abs().square(), torch.ones(T, F, dtype=torch.float64) * ~SILENT.unsqueeze(-1)
        for _ in range(5):
            own = noise.update(power, own, torch.full_like(own, 0.1))
        found.append(own)
    torch.testing.assert_close(found[0], found[1])
    assert (found[0][SILENT] == 0).all() and (found[0][~SILENT] > 0).all()


def test_silence_of_a_batch_is_that_of_every_utterance() -> None:
    x = torch.randn(2, 1, T, F, dtype=torch.complex64)
    both = torch.stack([SILENT, ~SILENT]).unsqueeze(1)
    laws = infer(_mixture(both), x, methods.mala_em(iterations=2)).sources
    assert ((laws["speech"].var == 0).all(-1) == both).all()


def test_inference_starts_at_the_encoder_of_what_is_wrapped() -> None:
    guide = starting_guide(Mixture(speech=FrameGain(KnownSilence(VAESpeech(F, 3, (6,)), SILENT))))
    assert guide is not None and guide.sites == ("speech.z",)


def test_enhances_a_recording_with_a_silent_beginning() -> None:
    samples = torch.randn(8000).numpy()
    silent = torch.zeros(ppse.STFT().n_frames(8000), dtype=torch.bool)
    silent[:16] = True  # 4096 samples, of which the last 768 also lie in frames that follow
    model = Mixture(speech=KnownSilence(VAESpeech.pretrained(), silent), noise=StationaryNoise())
    speech = ppse.enhance(samples, model, methods.hmc_em(2)).estimates["speech"][0]
    assert abs(speech[: 4096 - 768]).max() < 1e-6 and abs(speech[4096:]).max() > 0


def test_wrong_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="7 frames are marked, and the recording, or this window of it, has 9"):
        infer(_mixture(), torch.randn(9, F, dtype=torch.complex64), methods.mala_em(iterations=2))
    with pytest.raises(ValueError, match="expected a boolean one"):
        KnownSilence(StationaryNoise(), torch.ones(3))
