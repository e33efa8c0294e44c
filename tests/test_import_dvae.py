"""Published checkpoints: networks of the published layout, written out from the formulas, give what the imported priors give."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pyro.poutine as poutine
import pytest
import soundfile
import torch
from published_dvae import ALL, DKF, PUBLISHED, PUBLISHED_RVAE, SRNN, VAE, Files, Settings
from torch.distributions import Normal

from ppse import cli, weights
from ppse.import_dvae import GAIN, import_dvae
from ppse.mixture import Mixture
from ppse.stft import POWER_FLOOR


def command(*arguments: str | Path) -> object:
    """The exit code of a command."""
    with pytest.raises(SystemExit) as found:
        cli.app([str(argument) for argument in arguments])
    return found.value.code


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.mark.parametrize("settings", ALL.values(), ids=ALL.keys())
def test_encoder_prior_and_decoder_are_those_of_the_published_network(files: Files, settings: Settings) -> None:
    published = PUBLISHED[settings["name"]](settings, files.write(settings))
    model = import_dvae(files.checkpoint, files.config)[0].double()
    x, z = torch.randn(7, 9, dtype=torch.complex128), torch.randn(7, 3, dtype=torch.float64)
    mixture = Mixture(speech=model)
    with torch.no_grad(), poutine.condition(data={"speech.z": z}):
        mixture.start(x)
        trace = poutine.trace(mixture).get_trace(x)
    heard, prior = trace.nodes["_RETURN"]["value"]["speech"], trace.nodes["speech.z"]["fn"]
    close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    close(model.encoder(x).log_prob(z), Normal(*published.encode(GAIN * x.abs().square(), z)).log_prob(z))
    close(prior.log_prob(z), Normal(*published.prior(z)).log_prob(z).sum(-1))
    close(heard.var, published.decode(z) / GAIN + POWER_FLOOR)


def test_the_published_sizes_give_the_published_number_of_weights(files: Files) -> None:
    files.write(PUBLISHED_RVAE)
    model, card = import_dvae(files.checkpoint, files.config)
    assert sum(p.numel() for p in model.parameters()) == 1_026_849
    assert card["notes"] == [] and card["published"]["tag"] == "RVAE-NonCausal"


def test_a_checkpoint_of_the_training_loop_and_of_several_gpus_is_found(files: Files) -> None:
    found = files.write(VAE)
    plain = import_dvae(files.checkpoint, files.config)[0].state_dict()
    for name in ("model_state_dict", "state_dict"):
        torch.save({"epoch": 3, name: {f"module.{key}": value for key, value in found.items()}}, files.checkpoint)
        wrapped = import_dvae(files.checkpoint, files.config)[0].state_dict()
        assert all(torch.equal(plain[key], wrapped[key]) for key in plain)


def test_one_frequency_is_no_spectrum(files: Files) -> None:
    files.write(VAE | {"x_dim": "1"})
    with pytest.raises(ValueError, match="n_freqs=1; expected 2 or more"):
        import_dvae(files.checkpoint, files.config)


def test_stft_of_another_training_is_told(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(VAE)
    assert command("import-dvae", files.checkpoint, files.config, "-o", files.out) == 0
    assert "samples of a window: 1024 in the training, 16 here" in capsys.readouterr().err
    assert weights.card(files.out)["notes"] == [
        "samples of a window: 1024 in the training, 16 here", "of the FFT: 1024 in the training, 16 here",
        "between frames: 256 in the training, 4 here",
    ]


@pytest.mark.parametrize(
    "settings", [PUBLISHED_RVAE | {"dim_RNN_h": "9", "dense_g_z": "7"}, VAE | {"x_dim": "257"}, DKF, SRNN], ids=["rvae", "vae 257", "dkf", "srnn"],
)
def test_the_result_enhances(files: Files, settings: Settings) -> None:
    files.write(settings)
    noisy, clean = files.out.with_name("noisy.wav"), files.out.with_name("clean.wav")
    soundfile.write(noisy, 0.1 * np.random.default_rng(0).standard_normal(20 * int(settings["x_dim"])), 16_000)
    assert command("import-dvae", files.checkpoint, files.config, "-o", files.out, "--licence", "MIT") == 0
    assert command("enhance", noisy, "-o", clean, "--prior", files.out, "--method", "fast") == 0
    assert weights.card(files.out)["licence"] == "MIT"
    estimate, rate = soundfile.read(clean)
    assert rate == 16_000 and len(estimate) == 20 * int(settings["x_dim"]) and np.isfinite(estimate).all() and estimate.any()
