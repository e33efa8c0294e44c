"""The other commands as a user types them, and what is wrong usage of any: good input, bad input, exit codes."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path

import arviz as az
import numpy as np
import pytest
import soundfile
from pyro.distributions import Gamma

from ppse import __version__ as version
from ppse import audio, batch, choices, demo, methods, runs, weights
from ppse.models import RVAESpeech

RATE = 16_000


def wave(seconds: float = 0.3, rate: int = RATE, channels: int = 1) -> np.ndarray:
    n = int(seconds * rate)
    return (0.05 * np.random.default_rng(0).standard_normal((channels, n)) * np.sin(np.arange(n) / 900)).astype(np.float32)


@pytest.mark.parametrize(("what", "message"), [(np.nan, "are NaN or infinite"), (0.0, "is silent")])
def test_mix_names_the_noise_that_cannot_be_used(ppse, tmp_path: Path, what: float, message: str) -> None:
    audio.write(tmp_path / "speech" / "a.wav", wave(), RATE)
    audio.write(tmp_path / "noise" / "hum.wav", np.full(RATE, what), RATE, "FLOAT")
    code, out = ppse("mix", "--clean", tmp_path / "speech", "--noise", tmp_path / "noise", "-o", tmp_path / "corpus")
    assert code == 1 and f"error: {tmp_path / 'noise' / 'hum.wav'}" in out and message in out and not (tmp_path / "corpus").exists()
    code, out = ppse("mix", "--clean", tmp_path / "speech", "--noise", tmp_path / "gone", "-o", tmp_path / "corpus")
    assert code == 1 and "gone: no such file or folder" in out


def test_mix_leaves_out_what_cannot_be_used(ppse, tmp_path: Path) -> None:
    for name in ("a.wav", "b.wav"):
        audio.write(tmp_path / "speech" / name, wave(), RATE)
    audio.write(tmp_path / "noise" / "hum.wav", wave(1.0), RATE)
    (tmp_path / "speech" / "bad.wav").write_text("no audio")
    code, out = ppse("mix", "--clean", tmp_path / "speech", "--noise", tmp_path / "noise", "-o", tmp_path / "corpus", "--count", "6")
    assert code == 1 and out.count(f"left out: {tmp_path / 'speech' / 'bad.wav'}: not readable") == 1 and "2 mixtures left out" in out
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    assert f"wrote {tmp_path / 'corpus' / 'manifest.json'}" in out and len(manifest) == 4 == len(list((tmp_path / "corpus" / "clean").iterdir()))


def test_sample_is_sound_and_of_its_seed(ppse, prior: Path, tmp_path: Path) -> None:
    for name, seed in (("a.wav", 1), ("b.wav", 1), ("c.flac", 2)):
        code, out = ppse("sample", "-o", tmp_path / name, "--prior", prior, "--seconds", "0.5", "--seed", seed)
        assert code == 0 and f"wrote {tmp_path / name}" in out
    (a, rate), (b, _), (c, _) = (audio.read(tmp_path / name) for name in ("a.wav", "b.wav", "c.flac"))
    assert rate == RATE and a.shape == c.shape == (1, RATE // 2) and np.abs(a).max() == pytest.approx(0.9, abs=1e-3)
    assert np.array_equal(a, b) and not np.allclose(a, c, atol=0.1)


@pytest.mark.slow
def test_a_run_of_several_windows_is_diagnosed(
    prior: Path, tmp_path: Path, terminal, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Full Bayes, so that there are chains, and a parameter that every window has."""
    method = methods.full_bayes(12, chains=2, steps=2, warm_up=4, priors=lambda *_: {"noise.H": Gamma(1.0, 0.01)})
    monkeypatch.setattr(choices, "method", lambda *_: method)
    monkeypatch.setattr(batch, "enhance", functools.partial(batch.enhance, window=0.4))
    audio.write(tmp_path / "a.wav", wave(0.7), RATE)
    code, out = terminal("enhance", tmp_path / "a.wav", "-o", tmp_path / "o.wav", "--prior", prior, "--save-run", tmp_path / "r.nc")
    assert code == 0 and "1 enhanced" in out
    assert runs.load_run(tmp_path / "r.nc").posterior["noise.H"].sizes["window"] == 2
    code, out = terminal("diagnose", tmp_path / "r.nc", "-o", tmp_path / "figures")
    assert code == 3 and "2 chains of 8 draws each" in out and "noise.H: R-hat" in out and "moved" not in out and "frames fail" in out
    made = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"trace.png", "rank.png", "autocorrelation.png", "frames.png", "predictive.png"} <= made


WRONG = {
    "nothing to enhance": ["enhance"],
    "no such command": ["nonsense"],
    "method": ["enhance", "a.wav", "-o", "o", "--method", "magic"],
    "noise": ["enhance", "a.wav", "-o", "o", "--noise", "magic"],
    "chains": ["enhance", "a.wav", "-o", "o", "--method", "peem", "--chains", "2"],
    "iterations": ["enhance", "a.wav", "-o", "o", "--iterations", "0"],
    "device": ["enhance", "a.wav", "-o", "o", "--device", "abacus"],
    "device without values": ["enhance", "a.wav", "-o", "o", "--device", "meta"],
    "rank": ["enhance", "a.wav", "-o", "o", "--noise", "stationary", "--rank", "8"],
    "spacing": ["enhance", "a.wav", "-o", "o", "--noise", "stationary", "--spacing", "16"],
    "seed": ["enhance", "a.wav", "-o", "o", "--seed", "-1"],
    "name of a run": ["enhance", "a.wav", "-o", "o", "--save-run", "run.txt"],
    "negative draws": ["enhance", "a.wav", "-o", "o", "--draws", "-1"],
    "weights name": ["train", "speech", "-o", "prior.pt"],
    "weights name of a dynamical VAE": ["train", "dvae", "rvae", "speech", "-o", "prior.pt"],
    "dynamical VAE": ["train", "dvae", "rnn", "speech", "-o", "prior.safetensors"],
    "what to compare": ["evaluate", "o"],
}

NAMED = {
    "device without values": "'meta' cannot be used here", "name of a run": "should end in .nc", "rank": "leave --rank out",
    "spacing": "leave --spacing out",
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_usage(terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    audio.write("a.wav", wave(), RATE)
    code, out = terminal(*WRONG[kind])
    assert code == 2 and "Traceback" not in out and not Path("o").exists()
    assert kind not in NAMED or NAMED[kind] in out


@pytest.mark.parametrize("command", ["enhance", "train vae", "train dvae", "mix", "evaluate", "sample", "demo"])
def test_help_names_every_command_and_its_options(terminal, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    *group, name = command.split()
    code, out = terminal(*group, name, "--help")
    assert code == 0 and f"ppse {command}" in out and "--out" in out or command == "evaluate" and "--manifest" in out
    assert name in terminal(*group, "--help")[1]


def test_a_method_of_so_many_iterations(terminal, prior: Path, tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", wave(0.5), RATE)
    found = {}
    for name, given in (("none", []), ("its own", ["--iterations", "16"]), ("two", ["--iterations", "2"])):
        code, _ = terminal("enhance", tmp_path / "a.wav", "-o", tmp_path / f"{name}.wav", "--prior", prior, "--method", "fast", *given)
        found[name] = audio.read(tmp_path / f"{name}.wav")[0]
        assert code == 0
    assert np.array_equal(found["none"], found["its own"]) and not np.array_equal(found["none"], found["two"])
    assert choices.method("default", iterations=85).tied.iterations == 45


def test_version_and_completion(terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    assert terminal("--version") == (0, f"ppse {version}")
    monkeypatch.setenv("_PPSE_COMPLETE", "source_bash")
    code, out = terminal()
    assert code == 0 and "complete" in out and "ppse" in out


def test_demo_on_the_bundled_and_on_ones_own_recording(ppse, prior: Path, tmp_path: Path) -> None:
    made = ["enhanced.png", "enhanced.wav", "noise.wav", "noisy.wav"]
    code, out = ppse("demo", "-o", tmp_path / "demo", "--prior", prior)
    assert code == 0 and "noisy: si_sdr 3." in out.replace("2.9", "3.") and "enhanced: si_sdr" in out
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted([*made, "scores.json"])
    assert json.loads((tmp_path / "demo" / "scores.json").read_text())["noisy"]["si_sdr"] == pytest.approx(3.0, abs=0.1)
    audio.write(tmp_path / "own.wav", 100 * wave(0.3, 8_000), 8_000, "FLOAT")
    code, out = ppse("demo", "-o", tmp_path / "own", "--prior", prior, "--input", tmp_path / "own.wav")
    assert code == 0 and "si_sdr" not in out and sorted(path.name for path in (tmp_path / "own").iterdir()) == made
    assert soundfile.info(tmp_path / "own" / "enhanced.wav").samplerate == 8_000
    noisy, enhanced, noise = (audio.read(tmp_path / "own" / f"{name}.wav")[0] for name in ("noisy", "enhanced", "noise"))
    assert np.array_equal(noisy, 100 * wave(0.3, 8_000)) and np.allclose(enhanced + noise, noisy, atol=1e-3) and np.abs(noisy).max() > 1
    assert {soundfile.info(tmp_path / "demo" / name).subtype for name in made if name.endswith(".wav")} == {"PCM_16"}  # as the bundled one


def test_the_demo_recording_is_small_and_in_order() -> None:
    clean, noisy = (audio.read(path)[0] for path in (demo.CLEAN, demo.NOISY))
    assert clean.shape == noisy.shape and 4 < clean.shape[1] / RATE < 8
    assert demo.CLEAN.stat().st_size + demo.NOISY.stat().st_size < 300_000
    assert 10 * np.log10(np.mean(clean**2) / np.mean((noisy - clean) ** 2)) == pytest.approx(3.0, abs=0.05)
    assert np.abs(noisy).max() < 1


def test_mix_enhance_evaluate(ppse, prior: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for i in range(4):
        audio.write(tmp_path / "speech" / f"{i}.wav", wave(1.5), RATE)
        audio.write(tmp_path / "noise" / f"hum_{i}.wav", 0.1 * rng.standard_normal(RATE), RATE)
    corpus = tmp_path / "corpus"
    assert ppse("mix", "--clean", tmp_path / "speech", "--noise", tmp_path / "noise", "-o", corpus, "--snr", "0", "--snr", "5", "--seed", "3")[0] == 0
    assert ppse("enhance", corpus / "noisy", "-o", tmp_path / "out", "--prior", prior, "--json", tmp_path / "t.json")[0] == 0
    written = ["--json", tmp_path / "r.json", "--csv", tmp_path / "r.csv", "--timing", tmp_path / "t.json"]
    code, out = ppse("evaluate", tmp_path / "out", "--manifest", corpus / "manifest.json", *written)
    assert code == 0 and "+0 dB" in out and "+5 dB" in out
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["real_time_factor"] == json.loads((tmp_path / "t.json").read_text())["real_time_factor"] > 0
    assert "Intervals of seed 0; python 3" in out and f"ppse {version}" in out and "Command: ppse evaluate" in out
    assert results["command"].startswith("ppse evaluate ") and str(corpus) in results["command"] and results["left_out"] == []
    assert ppse("evaluate", tmp_path / "out", "--manifest", corpus / "manifest.json", "--card", prior)[0] == 0
    assert weights.card(prior)["scores"]["si_sdr"]["gain_mean"] == results["summary"][0]["si_sdr"]["gain_mean"]
    broken, *others = sorted((tmp_path / "out").iterdir())
    broken.write_bytes(b"no audio")
    code, out = ppse("evaluate", tmp_path / "out", "--manifest", corpus / "manifest.json", "--json", tmp_path / "rest.json")
    assert code == 1 and f"left out: {broken}: not readable" in out and "| all | 3 |" in out and "3 files scored, 1 left out" in out
    rest = json.loads((tmp_path / "rest.json").read_text())
    assert [f for f in results["files"] if f["name"] != broken.stem] == rest["files"] and len(rest["left_out"]) == 1
    for other in others:
        other.unlink()
    code, out = ppse("evaluate", tmp_path / "out", "--manifest", corpus / "manifest.json")
    assert code == 1 and "0 files scored, 4 left out" in out and "| all |" not in out
    assert results["versions"]["ppse"] and len(results["files"]) == 4
    with (tmp_path / "r.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {made["name"] for made in results["files"]} == json.loads((corpus / "manifest.json").read_text()).keys()
    for made in results["files"]:
        assert float(rows[made["name"]]["enhanced_si_sdr"]) == made["enhanced"]["si_sdr"] != made["noisy"]["si_sdr"]
        assert made["noisy"]["si_sdr"] == pytest.approx(made["snr"], abs=0.5)
    (tmp_path / "t.json").write_text("{")
    code, out = ppse("evaluate", tmp_path / "out", "--manifest", corpus / "manifest.json", "--timing", tmp_path / "t.json")
    assert code == 1 and "t.json: no results of 'ppse enhance --json'" in out


@pytest.mark.slow
def test_train_and_use_the_weights(ppse, tmp_path: Path) -> None:
    for name in ("a-0", "a-1", "b-0", "c-0"):
        audio.write(tmp_path / "speech" / f"{name}.wav", wave(3.0), RATE)
    out = tmp_path / "prior.safetensors"
    sizes = ("--latent", "4", "--hidden", "16", "--context", "8", "--validation", "0.3")
    assert ppse("train", tmp_path / "speech", "-o", out, "--epochs", "2", "--noisy-epochs", "1", *sizes)[0] == 0
    assert out.exists() and out.with_suffix(".vae.png").exists() and weights.card(out)["hours"]
    code, said = ppse("train", tmp_path / "speech", "-o", out, "--epochs", "2", "--noisy-epochs", "1", *sizes)
    assert code == 1 and "is there already" in said
    assert ppse("train", tmp_path / "speech", "-o", tmp_path / "b.safetensors", "--epochs", "1", "--no-noisy-encoder", *sizes)[0] == 0
    audio.write(tmp_path / "a.wav", wave(), RATE)
    assert ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / "o.wav", "--prior", out)[0] == 0
    assert ppse("sample", "-o", tmp_path / "s.wav", "--prior", out, "--seconds", "0.5")[0] == 0


@pytest.mark.slow
def test_train_a_dynamical_vae_and_use_it(ppse, tmp_path: Path) -> None:
    for name in ("a-0", "a-1", "b-0", "c-0"):
        audio.write(tmp_path / "speech" / f"{name}.wav", wave(3.0), RATE)
    out = tmp_path / "prior.safetensors"
    train = ("train", "dvae", "rvae_causal", tmp_path / "speech", "-o", out, "--epochs", "2", "--latent", "4", "--hidden", "8", "--validation", "0.3")
    assert ppse(*train)[0] == 0 and out.with_suffix(".png").exists()
    assert weights.card(out)["recipe"]["beta"] == 1.0 and RVAESpeech.pretrained(out).causal
    code, said = ppse(*train)
    assert code == 1 and "is there already" in said
    audio.write(tmp_path / "a.wav", wave(), RATE)
    assert ppse("enhance", tmp_path / "a.wav", "-o", tmp_path / "o.wav", "--prior", out, "--method", "fast")[0] == 0


def draws(tmp_path: Path, name: str, values: np.ndarray) -> Path:
    runs.save_run(az.from_dict({"speech.z": values}, dims={"speech.z": ["frame", "latent"]}), tmp_path / name)
    return tmp_path / name


def test_a_run_is_judged_in_words_figures_and_exit_code(ppse, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 500, 6, 2))
    code, out = ppse("diagnose", draws(tmp_path, "good.nc", values))
    assert code == 0 and "Passed" in out and "R-hat" in out and "0 of 6 frames fail" in out and "wrote" not in out
    code, out = ppse("diagnose", draws(tmp_path, "bad.nc", values.cumsum(1)), "-o", tmp_path / "figures")
    assert code == 3 and "Not to be relied on" in out and "6 of 6 frames fail (100.0%), at frame 0 to 5" in out
    made = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert made == ["autocorrelation.png", "frames.png", "pair.png", "rank.png", "trace.png"] and all(name in out for name in made)
    assert "left out: energy.png (only kernels" in out and "left out: predictive.png (no data were replicated" in out


def test_a_run_that_cannot_be_judged_is_explained(ppse, tmp_path: Path) -> None:
    path = draws(tmp_path, "run.nc", np.zeros((2, 10, 3, 1)))
    cut = path.read_bytes()[:-500]
    for name, content, reason in (("text.nc", b"hello" * 99, "no NetCDF file"), ("cut.nc", cut, "truncated"), ("empty.nc", b"", "empty")):
        (tmp_path / name).write_bytes(content)
        code, out = ppse("diagnose", tmp_path / name)
        assert code == 1 and f"{name}: " in out and reason in out and "Traceback" not in out
    code, out = ppse("diagnose", tmp_path / "none.nc", "-o", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    assert code == 1 and "none.nc: no such file; expected a run" in out
    runs.save_run(az.from_dict(prior={"z": np.zeros((1, 5))}), tmp_path / "prior.nc")
    code, out = ppse("diagnose", tmp_path / "prior.nc")
    assert code == 1 and "no posterior group, but prior" in out
    (tmp_path / "file").write_text("")
    code, out = ppse("diagnose", path, "-o", tmp_path / "file")
    assert code == 1 and "cannot be written" in out
