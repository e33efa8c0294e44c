"""What is known of a recording: labels and a reference, through windows, channels and the command line."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

import ppse
from ppse import Mixture, audio, methods
from ppse.cli import app
from ppse.given import Stretch, labelled, referenced, told
from ppse.labels import Label, LabelError
from ppse.models import FrameGain, KnownSilence, NMFNoise, PartiallyObserved, StationaryNoise, VAESpeech
from ppse.stft import STFT

RATE = 16_000
LABELS = [Label(0.0, 0.4), Label(0.6, 0.8, "clean")]


def _noise(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def _model() -> Mixture:
    return Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(2, spacing=8))


def _stretch(first: int, last: int, length: int) -> Stretch:
    stft = STFT()
    return Stretch(stft.analysis(torch.randn(last - first)), first, last, length, 2.0, stft)


def test_frames_that_lie_in_a_label_as_a_whole_are_known() -> None:
    """Against the samples that each frame reads: known are the frames that no sample outside of the labels changes."""
    length, stft = 16_000, STFT()
    labels = [Label(0.0, 0.2), Label(0.2, 0.4), Label(0.6, 1.0)]  # two that touch are as one
    outside = torch.zeros(length)
    outside[6400:9600] = 1.0
    for first, last in ((0, length), (4096, 12_001)):
        model = told(_model(), [labelled(labels)], _stretch(first, last, length))
        known = model.speech.known.squeeze(-1)
        assert torch.equal(known, stft.analysis(outside[first:last]).abs().sum(-1) == 0)
        assert isinstance(model.noise, NMFNoise) and (model.speech.parts == 0).all()


def test_where_there_is_only_speech_all_else_is_silent() -> None:
    model = told(Mixture(speech=VAESpeech.pretrained(), hum=StationaryNoise(), rest=NMFNoise(1)), [labelled(LABELS)], _stretch(0, 16_000, 16_000))
    assert isinstance(model.speech, PartiallyObserved)
    for noise in (model.hum, model.rest):
        assert isinstance(noise, KnownSilence) and torch.equal(noise.silent, model.hum.silent) and noise.silent.sum() == 9


@pytest.mark.parametrize("window", [60.0, 0.8])
def test_enhance_is_silent_where_it_is_told_so_and_keeps_what_is_clean(window: float) -> None:
    noisy = np.stack([_noise(1.5), np.zeros(24_000, np.float32)])
    result = ppse.enhance(noisy, _model(), methods.hmc_em(2), given=[labelled([*LABELS, Label(1.3, 1.5)])], window=window)
    speech, noise = (result.estimates[name][0] for name in ("speech", "noise"))
    hop = 1024  # frames that lie in two stretches reach so far into both
    assert abs(speech[: 6400 - hop]).max() < 1e-6 and abs(speech[20_800 + hop :]).max() < 1e-6
    assert abs(noise[9600 + hop : 12_800 - hop]).max() < 1e-6
    np.testing.assert_allclose(speech[9600 + hop : 12_800 - hop], noisy[0, 9600 + hop : 12_800 - hop], atol=1e-6)
    np.testing.assert_allclose(speech + noise, noisy[0], atol=1e-5)
    assert abs(speech[6400:9600]).max() > 1e-3 and not result.estimates["speech"][1].any()


def test_parameters_of_the_noise_go_on_from_window_to_window_under_what_is_known() -> None:
    """The second window is told nothing; its noise starts where the first one left it, as without labels."""
    noisy = _noise(1.5)
    seen = []

    class Spy(NMFNoise):
        def follow(self, x: torch.Tensor, observed: torch.Tensor | None = None) -> None:
            seen.append(self.W.detach().clone())
            super().follow(x, observed)

    model = Mixture(speech=FrameGain(FrameGain(VAESpeech.pretrained())), noise=Spy(2, spacing=8))
    ppse.enhance(noisy, model, methods.hmc_em(2), given=[labelled(LABELS)], window=0.8)
    assert seen and all(w.shape == (513, 2) for w in seen)


def test_a_run_of_a_recording_with_labels_can_be_looked_into() -> None:
    result = ppse.enhance(_noise(1.0), _model(), methods.hmc_em(4), given=[labelled(LABELS)], keep_run=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ, on few draws
        idata = result.to_arviz(predictive=2)
    assert "speech.z" in idata["posterior"] and "x" in idata["observed_data"]


def test_a_reference_is_the_source_in_its_band() -> None:
    stft, speech, noise = STFT(), _noise(1.0, 1), _noise(1.0, 2)
    given = [referenced(speech, low=300, high=3000)]
    result = ppse.enhance(speech + noise, _model(), methods.hmc_em(2), given=given, std=True)
    band = (stft.frequencies >= 300) & (stft.frequencies < 3000)
    deviation = result.std["speech"][0]
    assert deviation[:, band].max() < 1e-5 and deviation[:, ~band].min() > 1e-5
    found, truth = (stft.analysis(torch.from_numpy(wave))[10:50, 30:180] for wave in (result.estimates["speech"][0], speech))
    assert (found - truth).abs().square().mean() < 1e-3 * truth.abs().square().mean()


def test_a_reference_of_a_lower_rate_tells_of_what_it_can_hold() -> None:
    model = told(_model(), [referenced(_noise(0.5), 8000)], _stretch(0, 16_000, 16_000))
    assert model.speech.known.sum() == (STFT().frequencies < 3800).sum()
    assert told(_model(), [referenced(_noise(1.0))], _stretch(0, 16_000, 16_000)).speech.known.all()


def test_labels_shorter_than_a_frame_are_told() -> None:
    with pytest.raises(LabelError, match=r"0\.03 s.*0\.064 s or more"):
        ppse.enhance(_noise(0.5), _model(), methods.fast(1), given=[labelled([Label(0.1, 0.13), Label(0.2, 0.22)])])


def test_knowledge_that_does_not_fit_is_refused() -> None:
    noisy, method = _noise(1.0), methods.hmc_em(1)
    with pytest.raises(LabelError, match="the recording lasts 1 s; are they of another one"):
        ppse.enhance(noisy, _model(), method, given=[labelled([Label(0.5, 3.0)])])
    with pytest.raises(LabelError, match="overlap"):
        labelled([Label(0.5, 3.0), Label(1.0, 2.0)])
    with pytest.raises(ValueError, match="no source 'speech' to know something of; it has noise"):
        ppse.enhance(noisy, Mixture(noise=StationaryNoise()), method, given=[labelled(LABELS)])
    with pytest.raises(ValueError, match="the reference lasts 0.5 s, the recording 1 s"):
        ppse.enhance(noisy, _model(), method, given=[referenced(noisy[:8000])])
    with pytest.raises(ValueError, match="no bin of the model from 5000 to 6000 Hz"):
        ppse.enhance(noisy, _model(), method, given=[referenced(noisy[:8000], 8000, low=5000, high=6000)])
    with pytest.raises(ValueError, match="0 <= low < high"):
        referenced(noisy, low=100, high=10)
    with pytest.raises(audio.AudioError, match="the reference"):
        referenced(noisy * np.nan)


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        audio.write(tmp_path / "in" / f"{name}.wav", _noise(1.0), RATE, subtype="FLOAT")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0.0\t0.4\tnoise\n")
    (tmp_path / "labels" / "b.csv").write_text("0,9\n")
    run = CliRunner().invoke(app, [
        "enhance", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--method", "fast", "--labels", str(tmp_path / "labels"),
        "--json", str(tmp_path / "r.json"),
    ])
    assert run.exit_code == 1 and "the recording lasts 1 s" in run.output
    summary = json.loads((tmp_path / "r.json").read_text())
    assert (summary["done"], summary["failed"]) == (1, 1) and summary["settings"]["labels"].endswith("labels")
    assert abs(audio.read(tmp_path / "out" / "a.wav")[0][0, :5000]).max() < 1e-6
    both = CliRunner().invoke(app, ["enhance", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--labels", str(tmp_path / "labels" / "a.txt")])
    assert both.exit_code == 2 and "one file for 2 recordings" in " ".join(both.output.replace("│", " ").split())
    none = CliRunner().invoke(app, ["enhance", str(tmp_path / "in"), "-o", str(tmp_path / "none"), "--labels", str(tmp_path / "in")])
    assert none.exit_code == 2 and "has the name of a recording" in " ".join(none.output.replace("│", " ").split())
    (tmp_path / "labels" / "a.csv").write_text("0,0.4\n")
    twice = CliRunner().invoke(app, ["enhance", str(tmp_path / "in" / "a.wav"), "-o", str(tmp_path / "two"), "--labels", str(tmp_path / "labels")])
    assert twice.exit_code == 1 and "expected one file" in twice.output
