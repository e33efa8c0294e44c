from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ppse import STFT, weights
from ppse.corpus import Speech, speaker, split
from ppse.models import DSAESpeech, RVAESpeech, SRNNSpeech, VAESpeech
from ppse.models.dynamical import DynamicalVAE
from ppse.models.recurrent import Layers
from ppse.training import Epoch, Schedule, TrainingError, at_random_level, floored, noisy_segments, train, train_noisy_encoder, train_sequences

STFT_SMALL = STFT(64, 16)
SCHEDULE = Schedule(epochs=5, learning_rate=5e-3, seed=3)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three speakers, two files each: a voice is a comb of harmonics that comes and goes."""
    rng = np.random.default_rng(0)
    time = np.arange(16_000) / 16_000
    paths = []
    for voice, pitch in enumerate((110.0, 170.0, 230.0)):
        for take in range(2):
            sound = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in range(1, 15))
            wave = sound * (1 + np.sin(2 * np.pi * 3 * time)) + 0.01 * rng.standard_normal(time.size)
            paths.append(tmp_path / f"v{voice}-{take}.wav")
            soundfile.write(paths[-1], 0.05 * wave, 16_000)
    return paths


def _speech(files: list[Path]) -> tuple[Speech, Speech]:
    training, validation = split(files, fraction=0.4, seed=0)
    return Speech(training, STFT_SMALL), Speech(validation, STFT_SMALL)


def _vae(context: int = 0) -> VAESpeech:
    return VAESpeech(STFT_SMALL.n_freqs, 2, (12,), context)


def test_held_out_speakers_are_disjoint(files: list[Path]) -> None:
    for seed in range(5):
        training, validation = split(files, fraction=0.4, seed=seed)
        assert training and validation and sorted(training + validation) == sorted(files)
        assert not {speaker(f) for f in training} & {speaker(f) for f in validation}
    assert split(files, seed=1) == split(list(reversed(files)), seed=1)
    assert len({tuple(split(files, fraction=0.4, seed=seed)[1]) for seed in range(10)}) > 1
    with pytest.raises(ValueError, match="at least two"):
        split(files[:2])


def test_the_loss_falls_and_the_best_weights_are_kept(files: list[Path], tmp_path: Path) -> None:
    vae, out = _vae(), tmp_path / "out.safetensors"
    log = train(vae, *_speech(files), out, SCHEDULE, batch=128, card={"data": "combs"})
    assert [e.epoch for e in log] == list(range(5))
    assert log[-1].training < log[0].training - 1 and log[-1].validation < log[0].validation - 1
    best = min(log, key=lambda e: e.validation)
    card = weights.card(out)
    assert card["epoch"] == best.epoch and card["validation_loss"] == best.validation and card["data"] == "combs"
    loaded = VAESpeech.pretrained(str(out)).state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in vae.state_dict().items())
    assert not out.with_suffix(".resume").exists()


def test_memory_pays_where_speech_has_it(files: list[Path], tmp_path: Path) -> None:
    """The combs come and go slowly: memory around a trained VAE explains them better."""
    vae, speech, schedule = _vae(), _speech(files), SCHEDULE._replace(epochs=8)
    frames = train(vae, *speech, tmp_path / "vae.safetensors", schedule, batch=128)
    log = train_sequences(RVAESpeech.around(vae, 16), *speech, tmp_path / "rvae.safetensors", schedule, batch=8, frames=25)
    assert log[-1].training < frames[-1].training - 1
    assert RVAESpeech.pretrained(str(tmp_path / "rvae.safetensors")).skip


def test_weight_of_the_divergence_rises_to_beta() -> None:
    schedule = Schedule(beta=2.0, warm_up=3)
    assert [schedule.phase(epoch).beta for epoch in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert Schedule(beta=0.1).phase(0).beta == 0.1


def test_share_of_the_observed_past_falls_to_none() -> None:
    assert [Schedule(epochs=12).phase(epoch).taught for epoch in range(8)] == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert Schedule(epochs=1).phase(0).taught == 1


class Interrupted(Exception):
    """Ctrl-C."""


@pytest.mark.parametrize("stage", ["vae", "noisy encoder", "sequences"])
def test_a_resumed_run_equals_one_without_a_break(files: list[Path], tmp_path: Path, stage: str) -> None:
    def run(name: str, stop_after: int | None) -> tuple[dict[str, torch.Tensor], dict[str, str], list[Epoch]]:
        def report(epoch: Epoch, _: list[Epoch]) -> None:
            if epoch.epoch == stop_after:
                raise Interrupted

        torch.manual_seed(7)
        vae = _vae(4)
        if stage == "sequences":
            prior, schedule = RVAESpeech.around(vae, 4), SCHEDULE._replace(epochs=3, warm_up=2)
            log = train_sequences(prior, *_speech(files), tmp_path / name, schedule, batch=16, frames=12, report=report)
        elif stage == "vae":
            log = train(vae, *_speech(files), tmp_path / name, SCHEDULE, batch=128, report=report)
        else:
            log = train_noisy_encoder(vae, *_speech(files), tmp_path / name, SCHEDULE._replace(epochs=3), batch=2, frames=16, report=report)
        return *weights.read(tmp_path / name), log

    whole, card, log = run("whole.safetensors", None)
    with pytest.raises(Interrupted):
        run("broken.safetensors", 1)
    assert (tmp_path / "broken.resume").exists()
    resumed, resumed_card, resumed_log = run("broken.safetensors", None)
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)
    assert resumed_card == card
    assert [e._replace(seconds=0) for e in resumed_log] == [e._replace(seconds=0) for e in log]


def test_training_leaves_the_random_generator_alone(files: list[Path], tmp_path: Path) -> None:
    vae, speech = _vae(), _speech(files)
    before = torch.random.get_rng_state()
    train(vae, *speech, tmp_path / "out.safetensors", SCHEDULE._replace(epochs=1), batch=512)
    assert torch.equal(before, torch.random.get_rng_state())


def test_patience_stops_a_run_that_gets_no_better(files: list[Path], tmp_path: Path) -> None:
    frozen = SCHEDULE._replace(epochs=20, learning_rate=0.0, final_learning_rate=0.0, patience=2)
    log = train(_vae(), *_speech(files), tmp_path / "out.safetensors", frozen, batch=512)
    assert len(log) == 3  # the first is the best, two more are no better


def test_a_foreign_resume_file_is_refused(files: list[Path], tmp_path: Path) -> None:
    weights.write(_vae(), tmp_path / "out.resume", {})
    with pytest.raises(weights.WeightsError, match="not the state of an unfinished training; delete it"):
        train(_vae(), *_speech(files), tmp_path / "out.safetensors", SCHEDULE)


@pytest.fixture
def unfinished(files: list[Path], tmp_path: Path) -> Path:
    """A training of the VAE that was interrupted after its first epoch."""

    def stop(_: Epoch, __: list[Epoch]) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        train(_vae(4), *_speech(files), tmp_path / "out.safetensors", SCHEDULE, batch=128, card={"data": "combs", "versions": "1"}, report=stop)
    return tmp_path / "out.safetensors"


@pytest.mark.parametrize(
    ("change", "named"),
    [({"schedule": SCHEDULE._replace(epochs=6)}, "schedule"), ({"schedule": SCHEDULE._replace(seed=4)}, "schedule"),
     ({"card": {"data": "chirps"}}, "card"), ({"batch": 256}, "steps"),
     ({"vae": VAESpeech(STFT_SMALL.n_freqs, 3, (12,), 4)}, "sizes"), ({"cut": True}, "data")],
)
def test_the_state_of_another_training_is_refused(files: list[Path], unfinished: Path, change: dict[str, object], named: str) -> None:
    resume, best = unfinished.with_suffix(".resume").read_bytes(), unfinished.read_bytes()
    if change.pop("cut", False):
        wave, rate = soundfile.read(files[0])
        soundfile.write(files[0], wave[:-40], rate)
    arguments = {"vae": _vae(4), "schedule": SCHEDULE, "batch": 128, "card": {"data": "combs"}} | change
    training, validation = _speech(files)
    with pytest.raises(weights.WeightsError, match=rf"unfinished training that differs in .*{named}.*; delete it to start afresh"):
        train(training=training, validation=validation, out=unfinished, **arguments)
    with pytest.raises(weights.WeightsError, match="unfinished training that differs in .*stage"):
        train_noisy_encoder(_vae(4), training, validation, unfinished, SCHEDULE, card={"data": "combs"})
    assert unfinished.with_suffix(".resume").read_bytes() == resume and unfinished.read_bytes() == best
    log = train(_vae(4), *_speech(files), unfinished, SCHEDULE, batch=128, card={"data": "combs", "versions": "2"}) if named != "data" else []
    assert [e.epoch for e in log] == (list(range(5)) if log else [])  # other versions of the packages may go on


def test_a_damaged_state_is_refused(files: list[Path], unfinished: Path) -> None:
    state = unfinished.with_suffix(".resume")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(weights.WeightsError, match=r"out\.resume: not a readable weights file .*; delete it to start afresh"):
        train(_vae(4), *_speech(files), unfinished, SCHEDULE, batch=128, card={"data": "combs"})


def test_a_state_without_its_weights_is_refused(files: list[Path], unfinished: Path) -> None:
    best = unfinished.read_bytes()
    unfinished.unlink()
    vae = _vae(4)
    before = {key: value.clone() for key, value in vae.state_dict().items()}

    def again() -> list[Epoch]:
        return train(vae, *_speech(files), unfinished, SCHEDULE, batch=128, card={"data": "combs"})

    with pytest.raises(weights.WeightsError, match=r"out\.safetensors: the best weights .* are gone.*put the weights back.*delete .*out\.resume too"):
        again()
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items()) and not unfinished.exists()
    unfinished.write_bytes(best)
    assert [e.epoch for e in again()] == list(range(5))


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")  # Pyro warns, we stop
@pytest.mark.parametrize("where", ["training", "validation", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_training(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    out, vae = tmp_path / "out.safetensors", _vae()
    train(vae, *_speech(files), out, SCHEDULE._replace(epochs=1), batch=512)
    best, before = out.read_bytes(), {key: value.clone() for key, value in vae.state_dict().items()}
    training, validation = _speech(files)
    if where == "gradient":
        next(vae.decoder.parameters()).register_hook(lambda gradient: gradient * torch.nan)
    else:
        broken = training if where == "training" else validation
        nothing = torch.full((32, 16, STFT_SMALL.n_freqs), torch.nan, dtype=torch.complex64)
        monkeypatch.setattr(broken, "segments", lambda *_: nothing)
    with pytest.raises(TrainingError, match=rf"the .*{where}.* in epoch 1 is nan; the best weights so far stay in .*out\.safetensors"):
        train(vae, training, validation, out, SCHEDULE, batch=512)
    assert out.read_bytes() == best and not out.with_suffix(".resume").exists()
    assert all(torch.isfinite(value).all() for value in vae.state_dict().values())
    assert where == "validation" or all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


@pytest.mark.slow
def test_noisy_encoder_learns_while_the_prior_stays(files: list[Path], tmp_path: Path) -> None:
    vae, speech = _vae(6), _speech(files)
    train(vae, *speech, tmp_path / "vae.safetensors", SCHEDULE, batch=128)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    log = train_noisy_encoder(vae, *speech, tmp_path / "out.safetensors", SCHEDULE._replace(epochs=4), batch=4, frames=32)
    assert log[-1].validation < log[0].validation
    changed = {key.split(".")[0] for key, value in vae.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and not changed & {"decoder", "encoder"}


def test_a_vae_without_noisy_encoder_is_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no noisy encoder; build it with VAESpeech\(context"):
        train_noisy_encoder(_vae(), *_speech(files), tmp_path / "out.safetensors")


def test_segments_have_the_level_and_shape_that_training_expects(files: list[Path]) -> None:
    speech = Speech(files, STFT_SMALL)
    clean = speech.segments(200, 8, torch.Generator().manual_seed(0))
    assert clean.shape == (200, 8, 33)
    assert 0.7 < clean.abs().square().mean() < 1.3
    first, again = (speech.segments(4, 8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    levels = at_random_level(clean, torch.Generator().manual_seed(0)).abs().square().mean((-2, -1)) / clean.abs().square().mean((-2, -1))
    decibels = 10 * levels.log10()
    assert decibels.min() > -12.1 and decibels.max() < 3.1 and decibels.std() > 3
    torch.testing.assert_close(floored(clean).abs().square(), clean.abs().square() + 1e-4)
    a, b = noisy_segments(speech, 6, 16, torch.Generator().manual_seed(0))
    assert a.shape == b.shape == (6, 1, 16, 33)


def test_sequences_end_where_a_short_recording_repeats(files: list[Path], tmp_path: Path) -> None:
    short = tmp_path / "short.wav"
    soundfile.write(short, 0.1 * np.random.default_rng(1).standard_normal(64 + 5 * 16), 16_000)  # six frames
    s, whole = Speech([short], STFT_SMALL).sequences(3, 10, torch.Generator().manual_seed(0))
    assert s.shape == (3, 10, 33) and whole.shape == (3, 10, 1) and whole[:, :6].all() and not whole[:, 6:].any()
    log = train_sequences(
        RVAESpeech(33, 2, 4), Speech([short, files[0]], STFT_SMALL), Speech([short], STFT_SMALL), tmp_path / "out.safetensors",
        SCHEDULE._replace(epochs=1), batch=4, frames=10,
    )
    assert np.isfinite(log[0].training) and np.isfinite(log[0].validation)


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda: SRNNSpeech(33, 2, memory=Layers(4), transition=(), reader=Layers(4)),
    lambda: DSAESpeech(33, 2, 2, (4,), transition=4, reader=Layers(4)),
], ids=["srnn", "dsae"])
def test_sequences_begin_with_the_observed_past_and_end_without(
    make: Callable[[], DynamicalVAE], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares: list[float] = []
    prior = make()
    teach = type(prior).teach

    def noted(self: DynamicalVAE, s: torch.Tensor, share: float) -> AbstractContextManager[None]:
        shares.append(share)
        return teach(self, s, share)

    monkeypatch.setattr(type(prior), "teach", noted)
    schedule = SCHEDULE._replace(epochs=6, learning_rate=0.02, mixed=True)
    log = train_sequences(prior, *_speech(files), tmp_path / "out.safetensors", schedule, batch=32, frames=10)
    assert log[-1].training < log[0].training
    taught = list(dict.fromkeys(shares))
    assert taught == [1.0, 0.0, 0.5] and shares[-1] == 0.0  # the 0 after the first epoch is its validation


def test_stretches_are_no_longer_than_the_longest_recording(files: list[Path], tmp_path: Path) -> None:
    speech, logs = _speech(files), []
    for frames in (speech[0].longest, 10**9):
        torch.manual_seed(0)
        prior = RVAESpeech.around(VAESpeech(33, 2, (8,)), 4)
        logs.append(train_sequences(prior, *speech, tmp_path / f"{frames}.safetensors", SCHEDULE._replace(epochs=1), batch=2, frames=frames))
    assert [epoch.training for epoch in logs[0]] == [epoch.training for epoch in logs[1]]
