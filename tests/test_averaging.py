"""Several models at once: the posterior is the mixture of theirs, in one recording, in a batch, in windows, and by the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ppse
from ppse import audio, choices, methods, weights
from ppse.cli import app
from ppse.distributions import ComplexNormal
from ppse.given import labelled
from ppse.labels import Label
from ppse.mixture import Mixture
from ppse.models import HeardNoise, HeardSpeech, NMFNoise, RVAESpeech, StationaryNoise, VAESpeech
from ppse.source_posterior import averaged, in_turn

RATE = 16_000
METHOD = methods.peem(iterations=3, steps=2)
"""Not random given the start of the noise, and stationary noise starts at no random place."""


def wave(seconds: float = 0.6, seed: int = 0) -> np.ndarray:
    n = int(seconds * RATE)
    return (0.05 * np.random.default_rng(seed).standard_normal(n) * (1.5 + np.sin(np.arange(n) / 900))).astype(np.float32)


def mixture(seed: int, kind: type = VAESpeech) -> Mixture:
    torch.manual_seed(seed)
    speech = VAESpeech(513, 4, (16,), 8) if kind is VAESpeech else RVAESpeech(513, 4, 8)
    return Mixture(speech=speech.requires_grad_(False), noise=StationaryNoise())


@pytest.fixture
def pair() -> list[Mixture]:
    return [mixture(0), mixture(1, RVAESpeech)]


def test_moments_are_those_of_the_mixture_of_laws() -> None:
    torch.manual_seed(0)
    laws = [{"s": ComplexNormal(torch.randn(2, 3, dtype=torch.complex64), torch.rand(2, 3))} for _ in range(3)]
    law = averaged(laws)["s"]
    drawn = torch.stack([each["s"].sample(torch.Size([40_000])) for each in laws]).flatten(0, 1)
    torch.testing.assert_close(law.loc, drawn.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(law.var, (drawn - law.loc).abs().square().mean(0), atol=0.05, rtol=0.03)
    assert averaged(laws[:1])["s"] is laws[0]["s"]


def test_draws_come_from_each_in_turn() -> None:
    parts = [{"s": torch.full((2, 4), float(number))} for number in (0, 1)]
    assert in_turn(parts, 3)["s"][:, 0].tolist() == [0.0, 1.0, 0.0]
    assert in_turn([{}, {}], 0) == {}


def test_estimate_and_deviation(pair: list[Mixture]) -> None:
    noisy = wave()
    both = ppse.enhance(noisy, pair, METHOD, std=True, draws=3)
    alone = [ppse.enhance(noisy, model, METHOD, std=True) for model in pair]
    for name in ("speech", "noise"):
        mean = np.mean([each.estimates[name] for each in alone], 0)
        np.testing.assert_allclose(both.estimates[name], mean, atol=1e-6)
        # The variance has that of each, and how far they are apart.
        assert (both.std[name] ** 2 >= np.mean([each.std[name] ** 2 for each in alone], 0) * (1 - 1e-3) - 1e-9).all()
    assert np.abs(alone[0].estimates["speech"] - alone[1].estimates["speech"]).max() > 1e-3, "the models should not agree"
    assert (both.std["speech"] ** 2 > 1.01 * np.mean([each.std["speech"] ** 2 for each in alone], 0)).any()
    assert both.draws["speech"].shape == (3, 1, len(noisy))
    np.testing.assert_allclose(both.draws["speech"] + both.draws["noise"], np.broadcast_to(noisy, (3, 1, len(noisy))), atol=1e-5)
    assert [len(trace.objective) for trace in both.traces] == [3, 3]


def test_one_model_in_a_list_is_that_model(pair: list[Mixture]) -> None:
    one, other = (ppse.enhance(wave(), model, METHOD) for model in (pair[0], pair[:1]))
    assert np.array_equal(one.estimates["speech"], other.estimates["speech"])


def test_windows_and_channels(pair: list[Mixture]) -> None:
    noisy = np.stack([wave(1.1), wave(1.1)])
    done: list[float] = []
    both = ppse.enhance(noisy, pair, METHOD, window=0.5, report=done.append)
    assert np.array_equal(both.estimates["speech"][0], both.estimates["speech"][1])
    np.testing.assert_allclose(both.estimates["speech"] + both.estimates["noise"], noisy, atol=1e-5)
    assert done == sorted(done) and done[-1] == pytest.approx(1.0)
    assert len(both.traces) == 2 * 3 * 2


def test_a_batch(pair: list[Mixture]) -> None:
    recordings = [wave(0.5, 1), wave(0.4, 2)]
    done: list[float] = []
    for result, noisy in zip(ppse.enhance_together(recordings, pair, METHOD, draws=2, report=done.append), recordings, strict=True):
        np.testing.assert_allclose(result.estimates["speech"], ppse.enhance(noisy, pair, METHOD).estimates["speech"], atol=2e-5)
        np.testing.assert_allclose(result.draws["speech"].sum(1) + result.draws["noise"].sum(1), np.stack([noisy, noisy]), atol=1e-5)
        assert len(result.traces) == 2
    assert done == sorted(done) and done[-1] == pytest.approx(1.0)


def test_models_of_other_sources_are_refused(pair: list[Mixture]) -> None:
    three = Mixture(speech=pair[0].speech, noise=StationaryNoise(), hum=StationaryNoise())
    with pytest.raises(ValueError, match="hum.*expected the same in each"):
        ppse.enhance(wave(), [pair[0], three], METHOD)


def test_what_two_models_share_each_fits_for_itself(pair: list[Mixture]) -> None:
    """In the second window, too, where each goes on from what it found in the first."""
    noise, noisy = NMFNoise(3), wave(1.1)
    shared = [Mixture(speech=each.speech, noise=noise) for each in pair]
    own = [Mixture(speech=each.speech, noise=NMFNoise(3)) for each in pair]
    one, other = (ppse.enhance(noisy, models, METHOD, window=0.5) for models in (shared, own))
    np.testing.assert_array_equal(one.estimates["speech"], other.estimates["speech"])


def test_labels_hold_under_every_model(pair: list[Mixture]) -> None:
    known = labelled([Label(0.1, 0.4, "noise")])
    both = ppse.enhance(wave(), pair, METHOD, given=[known], std=True)
    inner = slice(int(0.2 * RATE), int(0.3 * RATE))
    assert np.abs(both.estimates["speech"][0, inner]).max() == 0
    assert np.abs(both.estimates["speech"]).max() > 0


def test_none_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no model in the sequence"):
        ppse.enhance(wave(), [], METHOD)


def test_other_stfts_are_refused(pair: list[Mixture]) -> None:
    with pytest.raises(ValueError, match=r"STFTs of \[512, 1024\]"):
        ppse.enhance(wave(), [pair[0], Mixture(speech=VAESpeech(257, 4, (16,), 8), noise=StationaryNoise())], METHOD)


def test_traces_and_figure_tell_the_models_apart(pair: list[Mixture], tmp_path: Path) -> None:
    both = ppse.enhance(wave(), pair, METHOD)
    assert [trace.model for trace in both.traces] == [0, 1]
    legend = both.plot(tmp_path / "both.png").axes[-2].get_legend()
    assert legend is not None and [text.get_text() for text in legend.get_texts()] == ["from 0 s, model 1", "from 0 s, model 2"]


def test_a_run_is_that_of_one_model(pair: list[Mixture]) -> None:
    with pytest.raises(ValueError, match="keep_run with 2 models"):
        ppse.enhance(wave(), pair, METHOD, keep_run=True)


def test_names_joined_by_plus() -> None:
    first, second = choices.models("vae", "nmf+heard", rank=3)
    assert isinstance(first.noise, NMFNoise) and first.noise.rank == 3
    assert isinstance(second.noise, HeardNoise)
    assert isinstance(first.speech, HeardSpeech) and isinstance(second.speech, HeardSpeech)
    assert not any(isinstance(mixture.speech, HeardSpeech) for mixture in choices.models("vae", "nmf+stationary"))
    assert isinstance(choices.model("vae", "heard").speech, HeardSpeech)
    for wrong, reason in (("nmf+nmf", "twice"), ("nmf+", "no noise model ''"), ("nmf+wind", "no noise model 'wind'")):
        with pytest.raises(Exception, match=reason):
            choices.models("vae", wrong)
    with pytest.raises(Exception, match="leave --rank out"):
        choices.models("vae", "stationary+heard", rank=3)


def test_which_ears_hear_what(tmp_path: Path) -> None:
    for prior in ("rvae", "vae_aware"):  # bands hear the speech, bins the noise
        mixture = choices.model(prior, "heard")
        assert mixture.speech.noisy_encoder is not None and mixture.noise.ears.settings["bands"] == 0
    for prior in ("rvae", "vae_aware", "vae"):
        mixture = choices.model(prior, "bands")
        assert isinstance(mixture.speech, HeardSpeech) and mixture.noise.ears.settings["bands"] == 40
    other = tmp_path / "other.safetensors"
    for bands in (0, 5):  # there are no others for its STFT
        weights.write(VAESpeech(129, 2, (4,), 3, bands=bands), other, {})
        for noise in ("heard", "bands"):
            assert choices.model(str(other), noise).noise.ears.settings["bands"] == bands
        assert choices.heard(VAESpeech.pretrained(str(other))).noise.ears.settings["bands"] == bands
    assert choices.heard(VAESpeech.pretrained("vae_aware")).noise.ears.settings["bands"] == 0


def test_command(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        audio.write(tmp_path / "in" / f"{name}.wav", wave(0.5, seed)[None], RATE)
    command = ["enhance", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--method", "amortised", "--json", str(tmp_path / "r.json")]
    result = CliRunner().invoke(app, [*command, "--noise", "nmf+stationary", "--batch", "2"])
    assert result.exit_code == 0, result.output
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"a.wav", "b.wav"}
    settings = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert settings["noise"] == "nmf+stationary" and settings["rank"] == 4
    refused = CliRunner().invoke(app, [*command, "--noise", "nmf+heard", "--save-run", "auto"])
    assert refused.exit_code == 2 and "name one of them" in refused.output
