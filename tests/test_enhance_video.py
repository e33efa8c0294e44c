"""Videos on the command line: the sound is enhanced, the pictures stay, the lips count where they are seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ppse import audio, batch, choices, methods, video, watched, weights
from ppse.cli import app
from ppse.models import AVVAESpeech, VAESpeech
from ppse.switching_vem import switching_vem

Clip = Callable[..., Path]
Command = Callable[..., tuple[int, str]]
WAVE = (0.05 * np.random.default_rng(0).standard_normal((1, 8000))).astype(np.float32)
PLAIN = np.linspace(40, 200, 12, dtype=np.uint8)[:, None, None] * np.ones((1, 96, 128), np.uint8)
CROPS = np.random.default_rng(1).integers(0, 255, (12, 88, 88), dtype=np.uint8)
TIMES = np.arange(12) / 25


@pytest.fixture
def priors(tmp_path: Path) -> list[str]:
    """Options that name two tiny priors, of sound and of lips."""
    torch.manual_seed(0)
    heard = VAESpeech(513, 4, (16,), 8)
    weights.write(heard, tmp_path / "heard.safetensors", {})
    seeing = AVVAESpeech.around(heard, 4)
    seeing.law.power.fill_(0.1)  # as if it had been learnt
    weights.write(seeing, tmp_path / "seen.safetensors", {})
    return ["--prior", str(tmp_path / "heard.safetensors"), "--lips", str(tmp_path / "seen.safetensors")]


@pytest.fixture
def ppse(monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr(choices, "method", lambda *_: methods.mala_em(iterations=2, draws=1, burn_in=0))
    monkeypatch.setattr(watched, "switching_vem", lambda **how: switching_vem(2, average=1, **how))

    def run(*args: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["enhance", *map(str, args)])
        return result.exit_code, " ".join(result.output.split())

    return run


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".wav", ".flac"])
def test_a_video_becomes_video_or_sound(make_clip: Clip, tmp_path: Path, ppse: Command, priors: list[str], suffix: str) -> None:
    source, target = make_clip(PLAIN, TIMES, WAVE), tmp_path / "out" / f"new{suffix}"
    code, out = ppse(source, "-o", target, *priors[:2])
    assert code == 0 and "1 enhanced" in out
    if video.is_video(target):
        for (_, before), (_, after) in zip(video.pictures(source), video.pictures(target), strict=True):
            assert np.array_equal(before, after)
        assert video.sound(target)[0].size >= 8000
    else:
        assert audio.read(target)[0].shape == video.sound(source)[0].shape


def test_a_folder_of_videos_and_sound(make_clip: Clip, tmp_path: Path, ppse: Command, priors: list[str]) -> None:
    folder = make_clip(PLAIN, TIMES, WAVE, name="a.mp4").parent / "in"
    folder.mkdir()
    (tmp_path / "a.mp4").rename(folder / "a.mp4")
    make_clip(PLAIN, TIMES, name="silent.mp4").rename(folder / "silent.mp4")
    (folder / "broken.mov").write_bytes(b"no video" * 50)
    audio.write(folder / "b.wav", WAVE, 16_000)
    code, out = ppse(folder, "-o", tmp_path / "out", *priors[:2])
    assert code == 1 and "2 enhanced" in out and "2 failed" in out
    assert "silent.mp4: a video without sound" in out and "broken.mov: not readable as video" in out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.mp4", "b.wav"]
    assert "2 there already" in ppse(folder, "-o", tmp_path / "out", *priors[:2])[1]


def test_sound_does_not_become_video(tmp_path: Path, ppse: Command, priors: list[str]) -> None:
    audio.write(tmp_path / "b.wav", WAVE, 16_000)
    code, out = ppse(tmp_path / "b.wav", "-o", tmp_path / "b.mp4", *priors[:2])
    assert code == 1 and "has no pictures" in out and not (tmp_path / "b.mp4").exists()


@pytest.mark.slow
def test_lips_count_where_they_are_seen(
    make_clip: Clip, tmp_path: Path, ppse: Command, priors: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Crops in a video with sound, crops beside the sound, a video without a mouth, and sound alone: all of them are enhanced."""
    monkeypatch.setattr(batch, "PREDICTIVE", 0)
    folder = tmp_path / "in"
    folder.mkdir()
    for name, frames, sound in (("crops.mp4", CROPS, WAVE), ("beside.mp4", CROPS, None), ("faceless.mp4", PLAIN, WAVE)):
        make_clip(frames, TIMES, sound, name=name).rename(folder / name)
    for name in ("beside.wav", "alone.wav"):
        audio.write(folder / name, WAVE, 16_000)
    code, out = ppse(folder, "-o", tmp_path / "out", *priors, "--save-run", "auto", "--json", tmp_path / "r.json")
    assert code == 0 and "4 enhanced" in out
    assert "alone.wav: no video, so only the prior of sound" in out and "faceless.mp4: no face in any of 12 frames" in out
    assert "crops.mp4:" not in out and "beside" not in out.replace("beside every", "")
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["lips"] == priors[3]
    import arviz as az

    for stem, seen in (("crops", True), ("beside", True), ("faceless", False), ("alone", False)):
        assert any("expert1" in name for name in az.from_netcdf(tmp_path / "out" / f"{stem}.nc").posterior) == seen


def test_a_prior_that_does_not_know_right_lips_says_so(make_clip: Clip, tmp_path: Path, ppse: Command, priors: list[str]) -> None:
    weights.write(AVVAESpeech.around(VAESpeech(513, 4, (16,), 8), 4), tmp_path / "young.safetensors", {})
    clip = make_clip(CROPS, TIMES, WAVE, name="crops.mp4")
    code, out = ppse(clip, "-o", tmp_path / "c.wav", *priors[:2], "--lips", tmp_path / "young.safetensors")
    assert code == 0 and "crops.mp4: this prior has not learnt what right lips look like" in out


def test_the_method_for_sound_stays_beside_that_for_lips() -> None:
    method = methods.fast()
    assert replace(watched.watching(method), tied=method.tied) == method


def test_lips_that_are_not_shipped_are_refused(tmp_path: Path, ppse: Command, priors: list[str]) -> None:
    audio.write(tmp_path / "b.wav", WAVE, 16_000)
    code, out = ppse(tmp_path / "b.wav", "-o", tmp_path / "c.wav", *priors[:2], "--lips", tmp_path / "none.safetensors")
    assert code == 1 and "none.safetensors" in out
    code, out = ppse(tmp_path / "b.wav", "-o", tmp_path / "c.wav", "--prior", "rvae", *priors[2:])
    assert code == 2 and "'rvae' has memory" in out and "such as vae" in out
    code, out = ppse(tmp_path / "b.wav", "-o", tmp_path / "c.wav", *priors, "--noise", "heard")
    assert code == 2 and "narrowed to what is heard" in out
    code, out = ppse(tmp_path / "b.wav", "-o", tmp_path / "c.wav", *priors[:2], "--lips", tmp_path / "heard.safetensors")
    assert code == 1 and "AVVAESpeech" in out


def test_a_prior_that_watches_goes_with_one_that_hears(tmp_path: Path, ppse: Command, priors: list[str]) -> None:
    audio.write(tmp_path / "b.wav", WAVE, 16_000)
    code, out = ppse(tmp_path / "b.wav", "-o", tmp_path / "c.wav", "--prior", priors[3])
    assert code == 0 and "seen.safetensors watches lips" in out and "b.wav: no video, so only the prior of sound is used" in out
