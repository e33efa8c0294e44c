from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from ppse import STFT, choices, weights
from ppse.cli import app
from ppse.corpus import Speech, Waves
from ppse.distributions import power_of
from ppse.listener_recipe import ListenerRecipe, train_listener_of
from ppse.listening import at_other_speeds, distance, equalised, mixtures, told_in_bands, train_listener
from ppse.models import VAESpeech
from ppse.models.band_listener import BandListener
from ppse.stft import POWER_FLOOR, level
from ppse.training import Schedule

SMALL = STFT(64, 16)


def _vae(context: int = 6, bands: int = 0) -> VAESpeech:
    torch.manual_seed(0)
    return VAESpeech(SMALL.n_freqs, 2, (12,), context, bands=bands)


def _waves(count: int, tone: float, seed: int) -> Waves:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(8000) / 16_000
    return Waves([torch.sin(2 * torch.pi * tone * time) + 0.1 * torch.randn(8000, generator=generator) for _ in range(count)], SMALL)


def test_mixtures_have_unit_level_and_the_snr_is_spread() -> None:
    speech, noise = _waves(3, 500.0, 0), _waves(3, 3000.0, 1)
    clean, other = mixtures(speech, noise, 40, 20, torch.Generator().manual_seed(2))
    assert clean.shape == other.shape == (40, 1, 20, SMALL.n_freqs)
    torch.testing.assert_close(level((clean + other).squeeze(1)), torch.ones(40, 1, 1))
    snr = 10 * (power_of(clean).mean((1, 2, 3)) / power_of(other).mean((1, 2, 3))).log10()
    assert snr.max() - snr.min() > 20
    # The first 30 are the recording: a tone at 3 kHz, bin 12 of 33. The simulated ones are not.
    share = power_of(other)[..., 11:14].sum((1, 2, 3)) / power_of(other).sum((1, 2, 3))
    assert share[:30].quantile(0.1) > 0.5 > share[30:].median() and share[:30].min() > share[30:].median()


def test_other_speeds() -> None:
    """A tone of 500 Hz, played at 0.8 and 1.25 of its speed, is one of 400 and of 625 Hz, and longer or shorter."""
    tones = _waves(2, 500.0, 0)
    every, alternately = (at_other_speeds(tones, (0.8, 1.25), each) for each in (True, False))
    assert [len(wave) for wave in every.waves] == [8000, 8000, 10_000, 6400, 10_000, 6400]
    assert [len(wave) for wave in alternately.waves] == [8000, 8000, 10_000, 6400]
    pitches = [16_000 * int(torch.fft.rfft(wave).abs().argmax()) / len(wave) for wave in every.waves]
    np.testing.assert_allclose(pitches, [500, 500, 400, 625, 400, 625], atol=2)


def test_equalisers_are_smooth_and_of_one_segment() -> None:
    x = torch.ones(50, 4, SMALL.n_freqs, dtype=torch.complex64)
    gain = equalised(x, 0.5, torch.Generator().manual_seed(0)).abs().log()
    assert (gain[:, 0] == gain[:, 3]).all() and (gain[0] != gain[1]).any()
    assert gain.diff(dim=-1).abs().max() < 0.5 and 0.3 < gain.std() < 0.9


def test_the_distance_is_zero_for_the_perfect_filter_alone() -> None:
    vae = _vae()
    encoder = vae.noisy_encoder
    assert encoder is not None
    x = torch.randn(2, 1, 9, SMALL.n_freqs, dtype=torch.complex64)
    heard = encoder.hear(x)
    with torch.no_grad():
        speech = vae.decoder(encoder.read(x, heard).mean).exp() + POWER_FLOOR
        estimate = speech / (speech + heard.noise + POWER_FLOOR) * x
        assert float(distance(vae, encoder, estimate, x, heard)) < 1e-6
        assert float(distance(vae, encoder, estimate * 1.5, x, heard)) > 1
        silent = heard._replace(noise=torch.zeros_like(heard.noise))
        assert float(distance(vae, encoder, x, x, silent)) < float(distance(vae, encoder, x, x, heard))


def test_what_is_told_in_bands_is_least_where_it_is_true() -> None:
    listener = _vae(bands=5).listener
    assert isinstance(listener, BandListener)
    clean, noise = torch.randn(2, 2, 1, 9, SMALL.n_freqs, dtype=torch.complex64)
    heard = listener(clean + noise)
    right = heard._replace(mask=clean.abs() / (clean + noise).abs(), noise=power_of(noise))
    wrong = [right._replace(noise=factor * right.noise) for factor in (0.5, 2.0)] + [right._replace(mask=3 * right.mask)]
    told = [float(told_in_bands(listener, clean, noise, each)) for each in (right, *wrong)]
    assert told[0] < min(told[1:])
    quiet = right._replace(mask=torch.ones_like(right.mask), noise=torch.zeros_like(right.noise))
    assert abs(float(told_in_bands(listener, clean, torch.zeros_like(noise), quiet))) < 1e-3


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str, float], Path]:
    def make(name: str, tone: float) -> Path:
        (tmp_path / name).mkdir()
        rng = np.random.default_rng(0)
        for voice in range(3):
            for take in range(2):
                wave = np.sin(2 * np.pi * tone * (1 + voice / 5) * np.arange(8000) / 16_000) + 0.05 * rng.standard_normal(8000)
                soundfile.write(tmp_path / name / f"v{voice}-{take}.wav", 0.1 * wave, 16_000)
        return tmp_path / name

    return make


@pytest.mark.slow
def test_command_line(folders: Callable[[str, float], Path], tmp_path: Path) -> None:
    weights.write(VAESpeech(n_latent=2, hidden=(4,)), tmp_path / "vae.safetensors", {})
    speech, noise, out = folders("speech", 300.0), folders("noise", 2000.0), tmp_path / "aware.safetensors"
    small = ["--context", "3", "--epochs", "1", "--batch", "2", "--frames", "16", "--validation", "0.4", "--no-mixed"]
    command = ["train", "listener", str(tmp_path / "vae.safetensors"), str(speech), "--noise", str(noise), "-o", str(out), *small]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "listener 1/1" in run.output and out.with_suffix(".png").stat().st_size > 1000
    heard = choices.model(str(out), "heard")
    assert heard.speech.source.settings["bands"] == 40 and heard.noise.ears.settings["bands"] == 0  # bands for speech, bins for noise


@pytest.mark.parametrize("bands", [0, 5])
def test_training_lowers_the_loss_and_leaves_the_speech_model(folders: Callable[[str, float], Path], tmp_path: Path, bands: int) -> None:
    speech, noise = (sorted(folders(name, tone).glob("*.wav")) for name, tone in (("speech", 300.0), ("noise", 2000.0)))
    data = (Speech(speech[:4], SMALL), Speech(noise[:4], SMALL)), (Speech(speech[4:], SMALL), Speech(noise[4:], SMALL))
    vae = _vae(bands=bands)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    log = train_listener(vae, *data, tmp_path / "out.safetensors", Schedule(4, 5e-3), batch=4, frames=20)
    assert log[-1].training < log[0].training and log[-1].validation < log[0].validation
    after = vae.state_dict()
    assert all(torch.equal(after[key], before[key]) == (not key.startswith("listener")) for key in before)


def test_a_recipe_makes_weights_with_what_was_heard_in_the_card(folders: Callable[[str, float], Path], tmp_path: Path) -> None:
    speech, noise, out = folders("speech", 300.0), folders("noise", 2000.0), tmp_path / "aware.safetensors"
    vae = VAESpeech(n_latent=2, hidden=(4,))
    told: list[str] = []
    (noise / "broken.wav").write_bytes(b"no sound")
    recipe = ListenerRecipe(context=3, epochs=1, batch=2, frames=16, validation=0.4, couplings=2)
    train_listener_of(vae, [str(speech)], [str(noise)], out, recipe, left_out=told.append)
    card = weights.card(out)
    assert card["finished"] and card["noise"].startswith("simulated, and recordings: noise (") and len(told) == 1 and "broken.wav" in told[0]
    trained = VAESpeech.pretrained(out)
    assert trained.listener is not None and torch.equal(trained.decoder[0].weight, vae.decoder[0].weight)
    with pytest.raises(weights.WeightsError, match="is there already"):
        train_listener_of(vae, [str(speech)], [str(noise)], out, recipe)
    with pytest.raises(ValueError, match="bands=400 for 513 frequencies"):
        train_listener_of(vae, [str(speech)], [str(noise)], tmp_path / "other.safetensors", replace(recipe, bands=400))
    with pytest.raises(ValueError, match="1 recordings of noise; expected two or more"):
        train_listener_of(vae, [str(speech)], [str(noise / "v0-0.wav")], tmp_path / "other.safetensors", recipe)
