"""`ppse train semi`, from folders and manifests to weights that are used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from torch import Tensor
from typer.testing import CliRunner

import ppse
from ppse import Mixture, methods, semi, weights
from ppse.cli import app
from ppse.enhance import Enhancement, enhance
from ppse.listening import NOISE_SPEEDS
from ppse.models import NMFNoise, VAESpeech

SMALL = ("--hidden", "6", "--latent", "2", "--context", "4", "--epochs", "1", "--batch", "1", "--frames", "16", "--validation", "0.4", "--inner", "1")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two speakers; pairs of them, one with a file missing; noisy recordings, one of which is clean; one with labels, and one without."""
    rng = np.random.default_rng(0)
    time = np.arange(12_000) / 16_000
    for folder in ("clean", "noisy", "field", "labels"):
        (tmp_path / folder).mkdir()
    entries = {}
    for i in range(3):
        voice = rng.standard_normal(time.size) * (np.sin(20 * time) > 0) + 1e-4 * rng.standard_normal(time.size)
        noisy = voice + 0.3 * rng.standard_normal(time.size)
        soundfile.write(tmp_path / "clean" / f"v{i}-0.wav", 0.1 * voice, 16_000, subtype="FLOAT")
        soundfile.write(tmp_path / "noisy" / f"{i}.wav", 0.1 * noisy, 16_000, subtype="FLOAT")
        soundfile.write(tmp_path / "field" / f"{i}.wav", 0.1 * (noisy if i else voice), 16_000, subtype="FLOAT")
        soundfile.write(tmp_path / "labels" / f"{i}.wav", 0.1 * noisy, 16_000, subtype="FLOAT")
        (tmp_path / "labels" / f"{i}.csv").write_text("0.0,0.3,noise\n")
        entries[f"u{i}"] = {"clean_wav": f"clean/v{i}-0.wav", "noisy_wav": f"noisy/{i}.wav"}
    entries["gone"] = {"clean_wav": "clean/gone.wav", "noisy_wav": "noisy/0.wav"}
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.mark.slow
def test_every_kind_becomes_one_prior_that_enhances(corpus: Path) -> None:
    out = corpus / "prior.safetensors"
    kinds = ("--clean", str(corpus / "clean"), "--noisy", str(corpus / "field"), "--pairs", str(corpus / "manifest.json"))
    command = ["train", "semi", *kinds, "--labels", str(corpus / "labels"), "-o", str(out), *SMALL]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "gone.wav" in result.output and "looks like clean speech" in result.output
    assert all(kind in result.output for kind in ("simulated", "noisy", "pairs", "labels"))
    card = weights.card(out)
    assert out.with_suffix(".png").stat().st_size > 1000
    assert card["finished"] and card["files"] == {"left_out": 2} and card["shares"]["noisy"] == 0.3
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1 and "is there already" in again.output.replace("\n", " ")
    model = Mixture(speech=VAESpeech.pretrained(out), noise=NMFNoise(2))
    estimate = ppse.enhance(corpus / "noisy" / "0.wav", model, methods.amortised()).estimates["speech"]
    assert np.isfinite(estimate).all() and estimate.any()


def test_from_a_trained_prior_the_noise_of_recordings_is_found_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is remixed at other speeds, too, and kept for a run that is interrupted; a prior without ears is refused before, and another one after."""
    found: list[int] = []

    def interrupted(_: VAESpeech, training: semi.Material, validation: semi.Material, *rest: Any, **options: Any) -> None:
        assert training.noise is not None and validation.noise is not None
        for material, count in ((training, 1 + len(NOISE_SPEEDS)), (validation, 1)):
            assert material.noise is not None and len(material.noise.waves) == count
        raise ValueError("interrupted")

    def enhancing(wave: Tensor, model: Mixture, *rest: Any, **options: Any) -> Enhancement:
        found.append(len(wave))
        return enhance(wave, model, *rest, **options)

    monkeypatch.setattr("ppse.found_noise.enhance", enhancing)
    kinds = ("--clean", str(corpus / "clean"), "--noisy", str(corpus / "field"))
    for context in (None, 4):
        start, out = corpus / f"start{context}.safetensors", corpus / f"on{context}.safetensors"
        weights.write(VAESpeech(n_latent=2, hidden=(6,), context=context), start, {})
        command = ["train", "semi", *kinds, "--start", str(start), "-o", str(out), *SMALL]
        with monkeypatch.context() as patch:
            patch.setattr(semi, "train", interrupted)
            result = CliRunner().invoke(app, command)
        if context is None:
            assert result.exit_code == 1 and "no noisy encoder" in result.output and not found
    assert result.exit_code == 1 and "interrupted" in result.output
    assert len([*out.with_suffix(".noise").iterdir()]) == 2
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert len(found) == 2 and not out.with_suffix(".noise").exists()
    weights.write(VAESpeech(n_latent=2, hidden=(6,), context=4), start, {})
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "is of another training" in result.output.replace("\n", " ") and len(found) == 2


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (("--noisy", "field"), "nothing is observed"),
        (("--clean", "clean", "--simulated-weight", "0"), "nothing is noisy"),
        (("--pairs", "none.json"), "no readable manifest"),
        ((), "nothing is observed"),
    ],
)
def test_what_is_missing_is_told(corpus: Path, inputs: tuple[str, ...], message: str) -> None:
    given = [str(corpus / part) if not part.startswith("--") and not part.isdigit() else part for part in inputs]
    result = CliRunner().invoke(app, ["train", "semi", *given, "-o", str(corpus / "out.safetensors"), *SMALL])
    assert result.exit_code == 1 and message in result.output.replace("\n", " ")
    assert not (corpus / "out.safetensors").exists()


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out.safetensors")
    for command in (["semi", "--clean", "speech"], ["listener", "vae", "speech", "--noise", "noise"]):
        result = CliRunner().invoke(app, ["train", *command, "-o", out, "--device", "abacus"])
        assert result.exit_code == 2 and "'abacus' cannot be used here" in " ".join(result.output.replace("│", " ").split())
