"""Many files: what is planned, what is done, skipped or failed, and what is written beside."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ppse import STFT, audio, batch, methods
from ppse.batch import Extras, enhance_files, plan
from ppse.enhance import Enhancement
from ppse.methods import Method
from ppse.mixture import Mixture
from ppse.models import NMFNoise, VAESpeech
from ppse.runs import load_run

RATE = 16_000
ALL = Extras(noise=True, std=True, plot=True)


def wave(seconds: float = 0.2, rate: int = RATE, channels: int = 1) -> np.ndarray:
    n = int(seconds * rate)
    return (0.05 * np.random.default_rng(0).standard_normal((channels, n)) * np.sin(np.arange(n) / 900)).astype(np.float32)


@pytest.fixture
def model() -> Mixture:
    torch.manual_seed(0)
    return Mixture(speech=VAESpeech(513, 4, (16,), 8).requires_grad_(False), noise=NMFNoise(2))


@pytest.fixture
def quick() -> Method:
    return methods.mala_em(iterations=2, draws=1, burn_in=0)


def test_files_of_folders_and_patterns_keep_their_place(tmp_path: Path) -> None:
    for name in ("in/a.wav", "in/deep/b.FLAC", "in/deep/c.aiff", "single.mp3"):
        audio.write(tmp_path / name, wave(), RATE)
    tasks, failed = plan([tmp_path / "in", tmp_path / "single.mp3", tmp_path / "in/deep/c.aiff"], tmp_path / "out")
    assert not failed
    assert {str(k.relative_to(tmp_path)): str(v.relative_to(tmp_path)) for k, v in tasks.items()} == {
        "in/a.wav": "out/a.wav", "in/deep/b.FLAC": "out/deep/b.FLAC", "single.mp3": "out/single.mp3", "in/deep/c.aiff": "out/c.wav",
    }
    tasks, _ = plan([f"{tmp_path}/in/**/*.FLAC"], tmp_path / "out")
    assert list(tasks.values()) == [tmp_path / "out" / "deep" / "b.FLAC"]


def test_what_lies_in_the_output_folder_is_no_input(tmp_path: Path) -> None:
    for name in ("a.wav", "out/a.wav", "out/a.noise.wav"):
        audio.write(tmp_path / name, wave(), RATE)
    tasks, failed = plan([tmp_path], tmp_path / "out")
    assert list(tasks) == [tmp_path / "a.wav"] and not failed


def test_one_file_to_one_file(tmp_path: Path) -> None:
    for name in ("in/a.wav", "in/b.wav"):
        audio.write(tmp_path / name, wave(), RATE)
    assert plan([tmp_path / "in" / "a.wav"], tmp_path / "x.flac") == ({tmp_path / "in" / "a.wav": tmp_path / "x.flac"}, [])
    assert plan([tmp_path / "in" / "a.*"], tmp_path / "x.flac") == ({tmp_path / "in" / "a.wav": tmp_path / "x.flac"}, [])
    for several in ([tmp_path / "in"], [tmp_path / "in" / "a.wav", tmp_path / "in" / "b.wav"], [tmp_path / "in" / "*.wav"]):
        with pytest.raises(audio.AudioError, match="for a folder or several recordings give an output folder"):
            plan(several, tmp_path / "x.flac")
    for foreign in ("x.aiff", "x.m4a"):
        with pytest.raises(audio.AudioError, match=rf"{foreign}: '.*' is no type that outputs can have; use \.wav"):
            plan([tmp_path / "in"], tmp_path / foreign)
        (tmp_path / foreign).mkdir()
        assert len(plan([tmp_path / "in"], tmp_path / foreign)[0]) == 2
    assert plan([tmp_path / "in"], tmp_path / "run.2")[0][tmp_path / "in" / "a.wav"] == tmp_path / "run.2" / "a.wav"
    (tmp_path / "taken").write_text("")
    with pytest.raises(audio.AudioError, match="taken: is a file"):
        plan([tmp_path / "in" / "a.wav"], tmp_path / "taken")


def test_outputs_that_would_replace_one_another(tmp_path: Path) -> None:
    for name in ("x/a.wav", "y/a.wav", "z/a.flac", "n/a.noise.wav"):
        audio.write(tmp_path / name, wave(), RATE)
    tasks, failed = plan([tmp_path / "x", tmp_path / "y", tmp_path / "z"], tmp_path / "out")
    assert len(tasks) == 2 and [f.file.parent.name for f in failed] == ["y"] and "different folders" in failed[0].note
    tasks, failed = plan([tmp_path / "x", tmp_path / "z"], tmp_path / "out", Extras(plot=True))
    assert len(tasks) == 1 and [f.file.name for f in failed] == ["a.flac"]  # both want a.png
    tasks, failed = plan([tmp_path / "x", tmp_path / "n"], tmp_path / "out", Extras(noise=True))
    assert len(tasks) == 1 and [f.file.name for f in failed] == ["a.noise.wav"]


def test_extras_say_what_they_are(model: Mixture, quick: Method, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(0.3, 22_050, 2), 22_050, "FLOAT")
    (outcome,) = enhance_files({tmp_path / "a.wav": tmp_path / "out" / "a.wav"}, model, quick, extras=ALL)
    assert outcome.status == "done" and outcome.audio_seconds == pytest.approx(0.6) and outcome.seconds > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.noise.wav", "a.png", "a.std.npz", "a.wav"]
    speech, noise = (audio.read(tmp_path / "out" / name)[0] for name in ("a.wav", "a.noise.wav"))
    assert speech.shape == noise.shape == (2, 6615)
    with np.load(tmp_path / "out" / "a.std.npz") as file:
        std, time, frequency = file["std"], file["time"], file["frequency"]
    assert std.shape == (2, time.size, frequency.size) and np.isfinite(std).all() and (std > 0).any()
    assert frequency[0] == 0 and frequency[-1] == 8000


def test_frame_times_are_their_centres() -> None:
    stft = STFT()
    click = torch.zeros(RATE)
    click[6000] = 1.0
    power = stft.analysis(click).abs().square().sum(-1).double()
    time = stft.centres(len(power))
    assert (power @ torch.from_numpy(time) / power.sum()).item() == pytest.approx(6000 / RATE, abs=stft.hop / 4 / RATE)


def test_done_is_skipped_unless_something_is_missing(model: Mixture, quick: Method, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    tasks, out = {tmp_path / "a.wav": tmp_path / "out" / "a.wav"}, tmp_path / "out" / "a.wav"

    def run(overwrite: bool = False, extras: Extras | None = None) -> str:
        (outcome,) = enhance_files(tasks, model, quick, overwrite=overwrite, extras=extras)
        return outcome.status

    assert run() == "done"
    first, stamp = audio.read(out)[0], out.stat().st_mtime_ns
    assert run() == "skipped" and out.stat().st_mtime_ns == stamp
    (told,) = enhance_files(tasks, model, quick)
    assert "--overwrite" in told.note
    assert run(extras=Extras(noise=True)) == "done" and run(extras=Extras(noise=True)) == "skipped"
    assert run(overwrite=True) == "done" and np.array_equal(audio.read(out)[0], first)  # same seed


@pytest.mark.parametrize("name", ["a.wav", "a.noise.wav"])
def test_a_folder_in_the_place_of_an_output_is_not_done(model: Mixture, tmp_path: Path, name: str) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    (tmp_path / "out" / name).mkdir(parents=True)

    def never(problem: methods.Problem) -> None:
        raise AssertionError("inference began")

    for overwrite in (False, True):
        tasks = {tmp_path / "a.wav": tmp_path / "out" / "a.wav"}
        (outcome,) = enhance_files(tasks, model, Method("never", never), overwrite=overwrite, extras=Extras(noise=True))
        assert outcome.status == "failed" and f"{name}: a folder, expected a file to write" in outcome.note


def test_seed_is_per_file_so_the_order_does_not_matter(model: Mixture, quick: Method, tmp_path: Path) -> None:
    for name in ("a", "b"):
        audio.write(tmp_path / f"{name}.wav", wave(0.2 if name == "a" else 0.3), RATE, "FLOAT")
    both = {tmp_path / f"{n}.wav": tmp_path / "both" / f"{n}.wav" for n in "ab"}
    list(enhance_files(both, model, quick, seed=5))
    list(enhance_files({tmp_path / "b.wav": tmp_path / "alone.wav"}, model, quick, seed=5))
    # Samples and not bytes: float wav files note the second at which they were written.
    alone, together = (audio.read(file)[0] for file in (tmp_path / "alone.wav", tmp_path / "both" / "b.wav"))
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError("no memory"), ValueError("odd"), KeyError("k")])
def test_whatever_befalls_one_file_the_next_gets_done(
    model: Mixture, quick: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception,
) -> None:
    for name in ("a.wav", "b.wav"):
        audio.write(tmp_path / name, wave(), RATE)
    real = batch.enhance

    def failing(file: Path, *args: object, **kwargs: object) -> Enhancement:
        if file.name == "a.wav":
            raise error
        return real(file, *args, **kwargs)

    monkeypatch.setattr(batch, "enhance", failing)
    outcomes = list(enhance_files({tmp_path / n: tmp_path / "out" / n for n in ("a.wav", "b.wav")}, model, quick))
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert type(error).__name__ in outcomes[0].note and str(tmp_path / "a.wav") in outcomes[0].note


def test_disk_full_while_writing(model: Mixture, quick: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(audio.os, "replace", full)
    (outcome,) = enhance_files({tmp_path / "a.wav": tmp_path / "out" / "a.wav"}, model, quick, extras=ALL)
    assert outcome.status == "failed" and "No space left" in outcome.note and "free space" in outcome.note
    assert list((tmp_path / "out").iterdir()) == []


def test_no_inference_when_the_output_could_not_be_written(model: Mixture, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(), RATE)
    (tmp_path / "file").write_text("in the way")

    def never(problem: methods.Problem) -> None:
        raise AssertionError("inference began")

    (outcome,) = enhance_files({tmp_path / "a.wav": tmp_path / "file" / "a.wav"}, model, Method("never", never))
    assert outcome.status == "failed" and "cannot be written" in outcome.note


@pytest.mark.parametrize("extras", [Extras(), Extras(noise=True)])
def test_recordings_are_never_replaced(model: Mixture, quick: Method, tmp_path: Path, extras: Extras) -> None:
    path = tmp_path / ("b.noise.wav" if extras.noise else "a.wav")
    audio.write(path, wave(), RATE)
    (tmp_path / "link").symlink_to(tmp_path)
    out = tmp_path / "link" / ("b.wav" if extras.noise else "a.wav")
    before = path.read_bytes()
    for overwrite in (True, False):
        (outcome,) = enhance_files({path: out}, model, quick, overwrite=overwrite, extras=extras)
        assert outcome.status == "failed" and "output equals input" in outcome.note and path.read_bytes() == before


@pytest.mark.parametrize(
    ("suffix", "subtype"), [(".wav", "PCM_U8"), (".wav", "PCM_24"), (".wav", "FLOAT"), (".wav", "DOUBLE"), (".wav", "ULAW"), (".flac", "PCM_24"),
                            (".ogg", "VORBIS"), (".mp3", "MPEG_LAYER_III")],
)
def test_type_and_sample_format_stay(model: Mixture, quick: Method, tmp_path: Path, suffix: str, subtype: str) -> None:
    path, out = tmp_path / f"a{suffix}", tmp_path / "out" / f"a{suffix}"
    audio.write(path, wave(), RATE, subtype)
    (outcome,) = enhance_files({path: out}, model, quick)
    before, after = soundfile.info(path), soundfile.info(out)
    assert outcome.status == "done" and outcome.note == ""
    assert (after.subtype, after.samplerate, after.frames) == (before.subtype, before.samplerate, before.frames)


def test_another_type_and_clipping_are_told(model: Mixture, quick: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio.write(tmp_path / "a.wav", 40 * wave(), RATE, "FLOAT")
    (outcome,) = enhance_files({tmp_path / "a.wav": tmp_path / "out.flac"}, model, quick)
    assert ".wav became .flac" in outcome.note and "beyond full scale were clipped" in outcome.note
    formats = soundfile.available_formats()
    monkeypatch.setattr(batch.soundfile, "available_formats", lambda: {k: v for k, v in formats.items() if k != "MP3"})
    audio.write(tmp_path / "b.wav", wave(), RATE)
    (tmp_path / "b.mp3").write_bytes((tmp_path / "b.wav").read_bytes())
    tasks, _ = plan([tmp_path / "b.mp3"], tmp_path / "out")
    (outcome,) = enhance_files(tasks, model, quick)
    assert outcome.output == tmp_path / "out" / "b.wav" and outcome.note == ".mp3 became .wav"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [("a.mp3", "b.wav", "PCM_16"), ("a.wav", "b.mp3", "MPEG_LAYER_III"), ("a.ogg", "b.flac", "PCM_16"), ("a.flac", "b.wav", "PCM_16")],
)
def test_a_type_becomes_another(model: Mixture, quick: Method, tmp_path: Path, source: str, target: str, expected: str) -> None:
    audio.write(tmp_path / source, wave(), RATE)
    (outcome,) = enhance_files({tmp_path / source: tmp_path / "out" / target}, model, quick)
    found = soundfile.info(tmp_path / "out" / target)
    assert outcome.status == "done" and (found.subtype, found.samplerate) == (expected, RATE)
    assert outcome.note == f"{Path(source).suffix} became {Path(target).suffix}"


@pytest.mark.parametrize(("target", "rate", "channels"), [("b.mp3", 96_000, 1), ("b.mp3", RATE, 3), ("b.flac", RATE, 9), ("b.xyz", RATE, 1)])
def test_what_the_output_cannot_hold_is_found_out_before_inference(model: Mixture, tmp_path: Path, target: str, rate: int, channels: int) -> None:
    audio.write(tmp_path / "a.wav", wave(0.1, rate, channels), rate)

    def never(problem: methods.Problem) -> None:
        raise AssertionError("inference began")

    (outcome,) = enhance_files({tmp_path / "a.wav": tmp_path / target}, model, Method("never", never))
    reason = "is no audio type" if target == "b.xyz" else f"cannot hold {channels} channels at {rate} Hz"
    assert outcome.status == "failed" and reason in outcome.note and "inference" not in outcome.note and not (tmp_path / target).exists()


def test_what_an_interruption_left(tmp_path: Path) -> None:
    tasks = {Path(name): tmp_path / name for name in ("a.wav", "b.wav", "c.wav")}
    left = batch.left(tasks, [batch.Outcome(Path("a.wav"), tmp_path / "a.wav", "done")])
    assert [(o.file.name, o.status) for o in left] == [("b.wav", "left"), ("c.wav", "left")]
    assert batch.summary(left, {})["left"] == 2


def test_summary_is_json(tmp_path: Path) -> None:
    outcomes = [
        batch.Outcome(Path("a"), Path("b"), "done", "", 2.0, 8.0), batch.Outcome(Path("c"), Path("d"), "skipped"),
        batch.Outcome(Path("e"), None, "failed", "why"),
    ]
    made = json.loads(json.dumps(batch.summary(outcomes, {"seed": 3})))
    assert (made["done"], made["skipped"], made["failed"], made["real_time_factor"]) == (1, 1, 1, 0.25)
    assert made["settings"] == {"seed": 3} and made["files"][2] == {
        "file": "e", "output": None, "status": "failed", "note": "why", "seconds": 0.0, "audio_seconds": 0.0,
    }
    assert batch.summary([], {})["real_time_factor"] is None


def test_draws_and_runs_of_every_channel_are_written_and_resumed(model: Mixture, quick: Method, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.concatenate([wave(), 0 * wave(), wave()]), RATE, "FLOAT")
    tasks, extras = {tmp_path / "a.wav": tmp_path / "out" / "a.wav"}, Extras(draws=2, run=True)
    (outcome,) = enhance_files(tasks, model, quick, extras=extras)
    assert outcome.status == "done" and outcome.note == "channel 2 is silent, or the model has no latents: no run to save"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.channel3.nc", "a.draw1.wav", "a.draw2.wav", "a.nc", "a.wav"]
    speech, *drawn = (audio.read(tmp_path / "out" / f"a{suffix}.wav")[0] for suffix in ("", ".draw1", ".draw2"))
    assert all(one.shape == speech.shape and not one[1].any() for one in drawn) and not np.array_equal(*drawn)
    idata = load_run(tmp_path / "out" / "a.nc")
    assert {"posterior", "posterior_predictive", "prior", "observed_data", "log_likelihood"} <= set(idata.groups())
    assert [next(iter(enhance_files(tasks, model, quick, extras=extras))).status for _ in range(2)] == ["skipped", "skipped"]
    for lost in ("a.nc", "a.draw2.wav"):
        (tmp_path / "out" / lost).unlink()
        assert [next(iter(enhance_files(tasks, model, quick, extras=extras))).status for _ in range(2)] == ["done", "skipped"]
    # More draws of the same seed: the speech is the same.
    before = audio.read(tmp_path / "out" / "a.wav")[0]
    assert next(iter(enhance_files(tasks, model, quick, extras=Extras(draws=5)))).status == "done"
    assert np.array_equal(audio.read(tmp_path / "out" / "a.wav")[0], before) and (tmp_path / "out" / "a.draw5.wav").is_file()


def test_a_run_where_one_says(model: Mixture, quick: Method, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", np.concatenate([wave(), wave()]), RATE)
    tasks, extras = {tmp_path / "a.wav": tmp_path / "out" / "a.wav"}, Extras(run=True, run_file=tmp_path / "runs" / "mine.nc")
    assert extras.files(tmp_path / "out" / "a.wav") == [tmp_path / "runs" / "mine.nc", tmp_path / "out" / "a.wav"]
    assert next(iter(enhance_files(tasks, model, quick, extras=extras))).status == "done"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine.channel2.nc", "mine.nc"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.wav"]
    assert next(iter(enhance_files(tasks, model, quick, extras=extras))).status == "skipped"


def test_runs_that_would_replace_one_another(tmp_path: Path) -> None:
    for name in ("x/a.wav", "z/a.flac"):
        audio.write(tmp_path / name, wave(), RATE)
    tasks, failed = plan([tmp_path / "x", tmp_path / "z"], tmp_path / "out", Extras(run=True))
    assert len(tasks) == 1 and [f.file.name for f in failed] == ["a.flac"]


@pytest.mark.parametrize("stage", ["run", "speech"])
def test_nothing_half_is_left_when_a_run_cannot_be_written(
    model: Mixture, quick: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str,
) -> None:
    """Interrupted while the run, or the speech after it, is written: no temporary files, and the next run does it all again."""
    audio.write(tmp_path / "a.wav", wave(), RATE)
    tasks, extras = {tmp_path / "a.wav": tmp_path / "out" / "a.wav"}, Extras(draws=1, run=True)
    real = audio.os.replace

    def interrupted(source: str, target: Path) -> None:
        if Path(target).name == ("a.nc" if stage == "run" else "a.wav"):
            raise KeyboardInterrupt
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(audio.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(enhance_files(tasks, model, quick, extras=extras))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.draw1.wav", *(["a.nc"] if stage == "speech" else [])]
    assert next(iter(enhance_files(tasks, model, quick, extras=extras))).status == "done"
    assert load_run(tmp_path / "out" / "a.nc").posterior.sizes["draw"] == 1
