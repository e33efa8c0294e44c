"""Enhancing files and folders as a user types it: good input, bad input, exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ppse import audio, batch, methods
from ppse.enhance import RANK, SPACING
from ppse.mixture import Mixture
from ppse.models import NMFNoise, VAESpeech

RATE = 16_000


def wave(seconds: float = 0.3, rate: int = RATE, channels: int = 1) -> np.ndarray:
    n = int(seconds * rate)
    return (0.05 * np.random.default_rng(0).standard_normal((channels, n)) * np.sin(np.arange(n) / 900)).astype(np.float32)


def test_folder_keeps_its_tree_and_is_resumed(ppse, prior: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "deep/b.flac", "deep/c.ogg", "deep/d.mp3"):
        audio.write(tmp_path / "in" / name, wave(0.3, 22_050), 22_050)
    code, out = ppse("enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior, "--keep-noise", "--std", "--plot")
    assert code == 0 and "4 enhanced, 0 there already, 0 failed" in out
    for name in ("a.wav", "deep/b.flac", "deep/c.ogg", "deep/d.mp3"):
        made = tmp_path / "out" / name
        assert soundfile.info(made).samplerate == 22_050
        assert made.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        speech, noise, noisy = (audio.read(path)[0] for path in (made, made.with_suffix(".noise.wav"), tmp_path / "in" / name))
        assert speech.shape == noise.shape == noisy.shape
        together = audio.resample((speech + noise)[0], 22_050, RATE)  # the band of the model: above it nothing is estimated
        assert np.corrcoef(together, audio.resample(noisy[0], 22_050, RATE))[0, 1] > 0.97
        assert speech.any() and not np.allclose(speech, noisy, atol=1e-3)
        with np.load(made.with_suffix(".std.npz")) as std:
            assert std["std"].shape == (1, len(std["time"]), len(std["frequency"]))
    (tmp_path / "out" / "a.wav").unlink()
    code, out = ppse("enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior)
    assert (tmp_path / "out" / "a.wav").exists()
    assert code == 0 and "1 enhanced, 3 there already (--overwrite redoes them), 0 failed" in out


@pytest.mark.parametrize(("rate", "channels", "subtype"), [(8_000, 1, "PCM_16"), (48_000, 1, "PCM_24"), (16_000, 6, "FLOAT")])
def test_rate_channels_and_sample_format_stay(ppse, prior: Path, tmp_path: Path, rate: int, channels: int, subtype: str) -> None:
    audio.write(tmp_path / "in.wav", wave(0.3, rate, channels), rate, subtype)
    code, _ = ppse("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--prior", prior)
    found = soundfile.info(tmp_path / "out.wav")
    assert code == 0 and (found.samplerate, found.channels, found.subtype, found.frames) == (rate, channels, subtype, int(0.3 * rate))


def test_float_beyond_full_scale_keeps_its_level(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "in.wav", 100 * wave(), RATE, "FLOAT")
    assert ppse("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--prior", prior, "--keep-noise")[0] == 0
    speech, noise = (audio.read(tmp_path / name)[0] for name in ("out.wav", "out.noise.wav"))
    assert np.allclose(speech + noise, 100 * wave(), atol=1e-3) and np.abs(speech + noise).max() > 1


BAD = {
    "text.wav": (b"this is not audio, it is a text file", "not readable as audio"),
    "empty.wav": (b"", "not readable as audio"),
    "cut.flac": (b"fLaC\x00\x00", "not readable as audio"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_named_and_the_others_get_done(ppse, prior: Path, tmp_path: Path, name: str) -> None:
    audio.write(tmp_path / "in" / "good.wav", wave(), RATE)
    (tmp_path / "in" / name).write_bytes(BAD[name][0])
    code, out = ppse("enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and name in out and BAD[name][1] in out and "1 enhanced" in out and "1 failed" in out
    assert (tmp_path / "out" / "good.wav").exists() and not (tmp_path / "out" / name).exists()


@pytest.mark.parametrize(
    ("samples", "message"),
    [(np.zeros(0), "no samples"), (np.array([0.1, np.nan, 0.2]), "NaN or infinite"), (np.array([np.inf]), "NaN or infinite")],
)
def test_unusable_samples(ppse, prior: Path, tmp_path: Path, samples: np.ndarray, message: str) -> None:
    soundfile.write(tmp_path / "in.wav", samples, RATE, subtype="FLOAT")
    code, out = ppse("enhance", tmp_path / "in.wav", "-o", tmp_path / "out.wav", "--prior", prior)
    assert code == 1 and message in out and not (tmp_path / "out.wav").exists()


def test_missing_file_empty_folder_and_pattern(ppse, prior: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    audio.write(tmp_path / "good.wav", wave(), RATE)
    inputs = [tmp_path / name for name in ("gone.wav", "nothing", "*.wav", "*.xyz")]
    code, out = ppse("enhance", *inputs, "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and "1 enhanced" in out and "3 failed" in out
    assert "no such file" in out and "a folder without audio" in out


def test_an_unexpected_error_of_one_file_is_a_message(ppse, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.wav", "b.wav"):
        audio.write(tmp_path / "in" / name, wave(), RATE)
    real = batch.enhance

    def failing(file: Path, *args: object, **kwargs: object) -> object:
        if file.name == "a.wav":
            raise RuntimeError("out of memory")
        return real(file, *args, **kwargs)

    monkeypatch.setattr(batch, "enhance", failing)
    code, out = ppse("enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and f"failed: {tmp_path / 'in' / 'a.wav'}: RuntimeError: out of memory" in out and "Traceback" not in out
    assert "1 enhanced, 0 there already, 1 failed" in out and [p.name for p in (tmp_path / "out").iterdir()] == ["b.wav"]


def test_output_equal_to_input_is_refused(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    before = (tmp_path / "a.wav").read_bytes()
    code, out = ppse("enhance", tmp_path / "a.wav", "-o", tmp_path, "--prior", prior, "--overwrite")
    assert code == 1 and "output equals input" in out and (tmp_path / "a.wav").read_bytes() == before


def test_output_folder_that_cannot_be_written(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    (tmp_path / "file").write_text("not a folder")
    code, out = ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / "file" / "out", "--prior", prior)
    assert code == 1 and "cannot be written" in out


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_disk_full_or_no_permission(ppse, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    (tmp_path / "out").mkdir()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(audio.soundfile, "write", refuse)
    code, out = ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and os.strerror(number) in out and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("name", ["out.aiff", "out.m4a", "out.txt", "out.raw"])
def test_types_that_are_not_written_are_refused_at_once(ppse, prior: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    monkeypatch.setattr(batch, "enhance", lambda *_, **__: pytest.fail("inference began"))
    code, out = ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / name, "--prior", prior)
    assert code == 1 and f"'{Path(name).suffix}' is no type that outputs can have; use .wav" in out and not (tmp_path / name).exists()
    if name != "out.aiff":  # which the library can write
        code, out = ppse("sample", "-o", tmp_path / name, "--prior", prior)
        assert code == 1 and f"'{Path(name).suffix}' is no audio type that can be written" in out and not (tmp_path / name).exists()


def test_results_that_cannot_be_written_are_found_out_before_any_work(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    (tmp_path / "file").write_text("in the way")
    code, out = ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / "o.wav", "--prior", prior, "--json", tmp_path / "file" / "r.json")
    assert code == 1 and "r.json: cannot be written" in out and not (tmp_path / "o.wav").exists()


def test_two_inputs_for_one_output(ppse, prior: Path, tmp_path: Path) -> None:
    for folder in ("x", "y"):
        audio.write(tmp_path / folder / "a.wav", wave(), RATE)
    code, out = ppse("enhance", tmp_path / "x", tmp_path / "y", "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and "1 enhanced" in out and "different folders" in out


@pytest.mark.parametrize("damage", ["truncated", "tampered", "other model", "missing"])
def test_weights_that_cannot_be_used(ppse, prior: Path, tmp_path: Path, damage: str) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    data = prior.read_bytes()
    if damage == "truncated":
        prior.write_bytes(data[: len(data) // 2])
    elif damage == "tampered":
        prior.write_bytes(data.replace(b'\\"n_latent\\": 4', b'\\"n_latent\\": 5'))
    elif damage == "other model":
        prior.write_bytes(data.replace(b"VAESpeech", b"VAESpooch"))
    else:
        prior.unlink()
    code, out = ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and str(prior) in out.replace(" ", "") and "Traceback" not in out


def test_interrupted_run_keeps_what_is_done_and_goes_on(prior: Path, tmp_path: Path) -> None:
    for i in range(3):
        audio.write(tmp_path / "in" / f"{i}.wav", wave(0.3 if i == 0 else 20.0), RATE)
    # A shell that runs the tests in the background may have them ignore Ctrl-C; a user's terminal does not.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from ppse.cli import main; main()"
    arguments = ["enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior, "--method", "mcem", "--json", tmp_path / "r.json"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "0.wav").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "go on" in out and "Traceback" not in out and "1 enhanced, 0 there already, 0 failed, 2 left" in out
    made = json.loads((tmp_path / "r.json").read_text())
    assert [file["status"] for file in made["files"]] == ["done", "left", "left"] and made["left"] == 2 and made["real_time_factor"] > 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.wav"]
    tasks, _ = batch.plan([tmp_path / "in"], tmp_path / "out")
    for long in (tmp_path / "in" / "1.wav", tmp_path / "in" / "2.wav"):
        audio.write(long, wave(), RATE)
    model = Mixture(speech=VAESpeech.pretrained(str(prior)), noise=NMFNoise(2))
    outcomes = list(batch.enhance_files(tasks, model, methods.mala_em(iterations=1, draws=1, burn_in=0)))
    assert [outcome.status for outcome in outcomes] == ["skipped", "done", "done"]


def test_draws_and_a_run_that_can_be_diagnosed(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "in" / "a.wav", wave(0.5), RATE)
    arguments = ["enhance", tmp_path / "in" / "a.wav", "-o", tmp_path / "o.wav", "--prior", prior, "--draws", "2", "--save-run", tmp_path / "r.nc"]
    code, out = ppse(*arguments)
    assert code == 0 and "1 enhanced" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "o.draw1.wav", "o.draw2.wav", "o.wav", "r.nc", "tiny.safetensors"]
    assert all(soundfile.info(tmp_path / f"o{suffix}.wav").frames == int(0.5 * RATE) for suffix in ("", ".draw1", ".draw2"))
    code, out = ppse("diagnose", tmp_path / "r.nc", "-o", tmp_path / "figures")
    assert code == 3 and "too few draws to tell" in out and "parameters of the model moved" in out  # one draw of one chain
    made = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert made == ["frames.png", "predictive.png"] and "left out: trace.png (needs two chains" in out
    code, out = ppse(*arguments)
    assert code == 0 and "0 enhanced, 1 there already" in out


def test_a_run_for_every_file_of_a_folder(ppse, prior: Path, tmp_path: Path) -> None:
    for name in ("a.wav", "deep/b.flac"):
        audio.write(tmp_path / "in" / name, wave(), RATE)
    arguments = ["enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior, "--save-run"]
    code, out = ppse(*arguments, tmp_path / "r.nc")
    said = " ".join(out.replace("│", " ").split())  # the message stands in a box
    assert code == 2 and "one file for 2 recordings; use --save-run auto" in said and not (tmp_path / "out").exists()
    code, out = ppse(*arguments, "auto")
    assert code == 0 and (tmp_path / "out" / "a.nc").is_file() and (tmp_path / "out" / "deep" / "b.nc").is_file()
    assert ppse(*arguments, "auto")[1].count("2 there already") == 1


def test_results_of_every_file_as_json(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "in" / "a [red].wav", wave(), RATE)  # what looks like markup is a name
    (tmp_path / "in" / "b.wav").write_text("no audio")
    code, out = ppse("enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior, "--json", tmp_path / "r.json", "--seed", "7")
    made = json.loads((tmp_path / "r.json").read_text())
    assert code == 1 and (made["done"], made["skipped"], made["failed"]) == (1, 0, 1)
    assert [Path(file["file"]).name for file in made["files"]] == ["a [red].wav", "b.wav"]
    assert made["settings"]["seed"] == 7 and (made["settings"]["rank"], made["settings"]["spacing"]) == (RANK, SPACING)
    assert made["settings"]["versions"]["torch"] and made["real_time_factor"] > 0
    code, out = ppse("enhance", tmp_path / "gone [red].wav", "-o", tmp_path / "out", "--prior", prior)
    assert code == 1 and "gone [red].wav: no such file" in out


def test_a_folder_side_by_side(ppse, prior: Path, tmp_path: Path) -> None:
    for i in range(3):
        audio.write(tmp_path / "in" / f"{i}.wav", wave(0.3 + 0.05 * i), RATE)
    arguments = ["enhance", tmp_path / "in", "-o", tmp_path / "out", "--prior", prior, "--batch", "3", "--json", tmp_path / "r.json"]
    code, out = ppse(*arguments)
    assert code == 0 and "3 enhanced" in out
    assert json.loads((tmp_path / "r.json").read_text())["settings"]["batch"] == 3
    assert [soundfile.info(tmp_path / "out" / f"{i}.wav").frames for i in range(3)] == [4800, 5600, 6400]
    code, out = ppse(*arguments)
    assert code == 0 and "3 there already" in out


def test_results_never_replace_what_is_read_or_written_beside_them(ppse, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    (tmp_path / "labels.txt").write_text("0\t0.1\tnoise\n")
    enhance = ["enhance", tmp_path / "a.wav", "-o", tmp_path / "out", "--keep-noise", "--prior", prior]
    evaluate = ["evaluate", tmp_path, "--manifest", tmp_path / "manifest.json"]
    (tmp_path / "manifest.json").write_text(json.dumps({"a": {"clean_wav": "a.wav", "noisy_wav": "a.wav"}}))
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for arguments, results in (
        (enhance, "a.wav"), (enhance, "out/a.wav"), (enhance, "out/a.noise.wav"), ([*enhance, "--labels", tmp_path / "labels.txt"], "labels.txt"),
        ([*enhance, "--save-run", tmp_path / "run.nc"], "run.nc"), (enhance, prior), (evaluate, "manifest.json"), (evaluate, "a.wav"),
        ([*evaluate, "--csv", tmp_path / "scores"], "scores"),
    ):
        code, out = ppse(*arguments, "--json", tmp_path / results)
        assert code == 2 and "would be lost" in " ".join(out.replace("│", " ").split()), (results, out)
    code, out = ppse(*evaluate, "--csv", tmp_path / "manifest.json")
    assert code == 2 and "--csv" in out
    assert all(path.read_bytes() == content for path, content in before.items())
