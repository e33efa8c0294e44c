"""Several recordings in one inference: each comes out as alone, whoever its company is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ppse
from ppse import audio, methods
from ppse.batch import Extras, enhance_files
from ppse.enhance import enhance
from ppse.infer import Expectation
from ppse.methods import Method
from ppse.mixture import Mixture
from ppse.models import RVAESpeech, StationaryNoise, VAESpeech
from ppse.together import batches, enhance_batch, enhance_together

RATE = 16_000


def wave(seconds: float, seed: int = 0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    n = int(seconds * rate)
    return (0.05 * np.random.default_rng(seed).standard_normal((channels, n)) * (1.5 + np.sin(np.arange(n) / 900))).astype(np.float32)


def mixture(kind: str = "vae") -> Mixture:
    torch.manual_seed(0)
    speech = VAESpeech(513, 4, (16,), 8) if kind == "vae" else RVAESpeech(513, 4, 8)
    return Mixture(speech=speech.requires_grad_(False), noise=StationaryNoise())


@pytest.fixture
def model() -> Mixture:
    return mixture()


@pytest.fixture
def quick() -> Method:
    return methods.mala_em(iterations=2, draws=1, burn_in=0)


@pytest.mark.parametrize("kind", ["vae", "rvae"])
def test_what_is_not_random_comes_out_as_alone(kind: str) -> None:
    """A point estimate of stationary noise: every difference would be padding, or a neighbour, that leaked."""
    model, method = mixture(kind), methods.peem(iterations=3, steps=2)
    read = [(wave(0.5, 1), RATE), (wave(0.31, 2), RATE), (0 * wave(0.4), RATE), (wave(0.7, 3, 8000), 8000)]
    together = enhance_batch(read, model, method, std=True)
    for result, (samples, rate) in zip(together, read, strict=True):
        alone = enhance(samples, model, method, sample_rate=rate, std=True)
        for name in ("speech", "noise"):
            np.testing.assert_allclose(result.estimates[name], alone.estimates[name], atol=2e-5)
            np.testing.assert_allclose(result.std[name], alone.std[name], atol=2e-5)
        assert result.sample_rate == rate and len(result.traces) == len(alone.traces)


def test_what_is_random_has_the_law_that_it_has_alone() -> None:
    """Draws of the speech of a recording in a padded batch, and of the same one alone: equal means and deviations."""
    model, method = mixture(), methods.mala_em(iterations=60, draws=1, burn_in=3, step_size=0.3, chains=2)
    method = replace(method, average=40)
    samples = wave(0.3, 1)
    (short, _), alone = enhance_batch([(samples, RATE), (wave(0.5, 2), RATE)], model, method, std=True), enhance(samples, model, method, std=True)
    scale = alone.estimates["speech"].std()
    assert np.abs(short.estimates["speech"] - alone.estimates["speech"]).mean() < 0.1 * scale
    np.testing.assert_allclose(short.std["speech"].mean(), alone.std["speech"].mean(), rtol=0.03)


def test_a_list_comes_back_in_its_order_with_all_that_was_asked_for(model: Mixture, quick: Method) -> None:
    recordings = [wave(0.5)[0], wave(0.2, channels=2), torch.from_numpy(wave(0.4)[0]), np.zeros(5000)]
    done: list[float] = []
    results = enhance_together(recordings, model, quick, draws=2, report=done.append)
    assert [r.noisy.shape for r in results] == [(1, 8000), (2, 3200), (1, 6400), (1, 5000)]
    for result in results:
        assert result.draws["speech"].shape == (2, *result.noisy.shape) and result.seconds >= 0
        for parts in (result.estimates, {name: drawn[0] for name, drawn in result.draws.items()}):
            np.testing.assert_allclose(sum(parts.values()), result.noisy, atol=1e-5)
    assert done == sorted(done) and done[-1] == 1.0
    assert len(results[0].traces[0].objective) == 2 and 0 <= results[2].traces[0].acceptance[-1] <= 1
    assert not results[3].traces and not results[3].estimates["speech"].any()


def test_acceptance_is_that_of_the_recording(model: Mixture) -> None:
    results = enhance_batch([(wave(0.3, 1), RATE), (wave(0.3, 2), RATE)], model, replace(methods.mala_em(2, 1, 0, step_size=2.0), starts=2))
    rates = [result.traces[0].acceptance for result in results]
    assert rates[0] != rates[1] and all(0 <= rate <= 1 for both in rates for rate in both)


def test_same_seed_same_results_and_the_global_generator_is_left_alone(model: Mixture, quick: Method) -> None:
    read = [(wave(0.3, 1), RATE), (wave(0.2, 2), RATE)]
    before = torch.get_rng_state()
    first, second = (enhance_batch(read, model, quick, seed=3)[1].estimates["speech"] for _ in range(2))
    assert np.array_equal(first, second) and torch.equal(before, torch.get_rng_state())
    assert not np.array_equal(first, enhance_batch(read, model, quick, seed=4)[1].estimates["speech"])


def test_batches_are_bounded_in_number_seconds_and_padding() -> None:
    lengths = np.random.default_rng(0).uniform(0.2, 40, 200).tolist() + [float("inf"), 100.0]
    found = batches(lengths, size=7, window=30.0)
    assert sorted(i for group in found for i in group) == list(range(len(lengths)))
    for group in found:
        own = [lengths[i] for i in group]
        assert len(group) == 1 or (len(group) <= 7 and max(own) * len(group) <= 60 and max(own) <= 30 and max(own) <= 2 * min(own))
    assert max(len(group) for group in found) > 2 and max(len(group) * max(lengths[i] for i in group) for group in found if len(group) > 1) > 30
    with pytest.raises(ValueError, match="size=0; expected 1 or more"):
        batches([1.0], 0, 60.0)


def test_one_broken_file_of_a_batch_does_not_harm_the_others(model: Mixture, quick: Method, tmp_path: Path) -> None:
    for name, samples in {"a": wave(0.3, 1), "b": wave(0.4, 2), "c": wave(0.5, 3), "nan": np.full((1, 6400), np.nan, np.float32)}.items():
        audio.write(tmp_path / f"{name}.wav", samples, RATE, "FLOAT")
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "broken.wav").write_bytes(b"RIFF but no more")
    tasks = {file: tmp_path / "out" / file.name for file in sorted(tmp_path.glob("*.wav"))}
    outcomes = {o.file.stem: o for o in enhance_files(tasks, model, quick, size=8, extras=Extras(std=True, draws=1))}
    assert {name: o.status for name, o in outcomes.items()} == {
        "a": "done", "b": "done", "c": "done", "nan": "failed", "empty": "failed", "broken": "failed",
    }
    assert "NaN" in outcomes["nan"].note and all((tmp_path / "out" / f"{name}.std.npz").is_file() for name in "abc")
    assert not list((tmp_path / "out").glob("nan*")) and audio.read(tmp_path / "out" / "b.wav")[0].shape == (1, 6400)
    (tmp_path / "out" / "b.wav").unlink()
    again = {o.file.stem: o.status for o in enhance_files(tasks, model, quick, size=8, extras=Extras(std=True, draws=1))}
    assert again == {"a": "skipped", "b": "done", "c": "skipped", "nan": "failed", "empty": "failed", "broken": "failed"}


def test_what_an_interruption_left_of_a_batch_comes_out_as_it_would_have(model: Mixture, quick: Method, tmp_path: Path) -> None:
    for name, seconds in {"a": 0.3, "b": 0.35, "c": 0.4, "d": 0.45}.items():
        audio.write(tmp_path / f"{name}.wav", wave(seconds), RATE, "FLOAT")
    whole, cut = ({file: tmp_path / out / file.name for file in sorted(tmp_path.glob("*.wav"))} for out in ("whole", "cut"))
    for tasks in (whole, cut):
        assert all(o.status == "done" for o in enhance_files(tasks, model, quick, size=2))
    for name in "bc":  # of two batches
        (tmp_path / "cut" / f"{name}.wav").unlink()
    again = {o.file.stem: o.status for o in enhance_files(cut, model, quick, size=2)}
    assert again == {"a": "skipped", "b": "done", "c": "done", "d": "skipped"}
    for file, output in cut.items():
        np.testing.assert_array_equal(audio.read(output)[0], audio.read(whole[file])[0])


def test_of_samples_it_is_told_which_cannot_be_used(model: Mixture, quick: Method) -> None:
    with pytest.raises(audio.AudioError, match=r"recordings\[1\]: the samples"):
        enhance_together([wave(0.3), np.full(4000, np.nan, np.float32)], model, quick)


def test_a_batch_that_cannot_be_inferred_is_tried_one_by_one(model: Mixture, tmp_path: Path) -> None:
    def e_step(problem: methods.Problem) -> methods.EStep:
        if problem.x.dim() == 4:
            raise ValueError("no batches")
        drawn = torch.zeros(1, problem.x.shape[0], 4)
        return lambda _: Expectation({"speech.z": drawn})

    for name in ("a", "b"):
        audio.write(tmp_path / f"{name}.wav", wave(0.3), RATE)
    tasks = {tmp_path / f"{name}.wav": tmp_path / "out" / f"{name}.wav" for name in ("a", "b")}
    assert [o.status for o in enhance_files(tasks, model, Method("alone", e_step, iterations=1, average=1), size=2)] == ["done", "done"]


def test_files_side_by_side_are_those_of_the_python_function(model: Mixture, quick: Method, tmp_path: Path) -> None:
    for i in range(3):
        audio.write(tmp_path / f"{i}.wav", wave(0.2 + 0.05 * i, i), RATE, "FLOAT")
    tasks = {tmp_path / f"{i}.wav": tmp_path / "out" / f"{i}.wav" for i in range(3)}
    told: list[tuple[Path, float]] = []
    assert all(o.status == "done" and o.seconds > 0 for o in enhance_files(tasks, model, quick, size=3, report=lambda *what: told.append(what)))
    for result, output in zip(enhance_together(list(tasks), model, quick), tasks.values(), strict=True):
        np.testing.assert_allclose(audio.read(output)[0], result.estimates["speech"], atol=1e-6)
    assert told[-1] == (tmp_path / "0.wav", 1.0)


def test_it_is_exported() -> None:
    assert ppse.enhance_together is enhance_together
