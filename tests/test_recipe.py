"""Training of a prior from folders: the two stages, one after the other; resumed, and never mixed up with another training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ppse import STFT, audio, corpus, training, weights
from ppse.models import DKFSpeech, RVAESpeech, VAESpeech
from ppse.models.recurrent import Layers
from ppse.recipe import Recipe, SequenceRecipe, train_prior, train_sequence_prior

TINY = Recipe(latent=2, hidden=(8,), context=4, epochs=2, noisy_epochs=1, validation=0.4, seed=3)


@pytest.fixture
def speech(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    time = np.arange(12_000) / 16_000
    for voice, pitch in enumerate((110.0, 170.0, 230.0)):
        sound = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in range(1, 10))
        audio.write(tmp_path / "speech" / f"v{voice}-0.wav", 0.05 * sound, 16_000)
    return str(tmp_path / "speech")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return weights.read(path)[0]


def test_is_the_two_stages_of_training_in_order(speech: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    read: list[tuple[int, int]] = []
    train_prior(
        [speech], tmp_path / "a.safetensors", TINY, note="combs", licence="none", report=lambda stage, log: seen.append((stage, len(log))),
        reading=lambda done, total: read.append((done, total)),
    )
    assert seen == [("vae", 1), ("vae", 2), ("noisy", 1)] and read == [(1, 3), (2, 3), (3, 3)]
    files, held = corpus.split(audio.find([speech]), 0.4, 3)
    data = corpus.Speech(files, STFT()), corpus.Speech(held, STFT())
    torch.manual_seed(3)
    vae = VAESpeech(n_latent=2, hidden=(8,), context=4)
    schedule = training.Schedule(2, final_learning_rate=2e-5, patience=99, seed=3)
    training.train(vae, *data, tmp_path / "b.vae.safetensors", schedule)
    training.train_noisy_encoder(vae, *data, tmp_path / "b.safetensors", schedule._replace(epochs=1))
    for name in ("{}.vae.safetensors", "{}.safetensors"):
        ours, theirs = (tensors(tmp_path / name.format(x)) for x in "ab")
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    card = weights.card(tmp_path / "a.safetensors")
    assert card["data"] == ["speech"] and card["data_note"] == "combs" and card["licence"] == "none" and card["recipe"]["latent"] == 2
    assert card["hours"]["training"] > 0 and card["hours"]["validation"] > 0 and card["versions"]["torch"] and "validation_loss" in card
    assert card["files"] == {"used": 3, "left_out": 0} and card["scores"] == {} and {"python", "ppse", "pyro-ppl", "numpy"} < card["versions"].keys()
    assert VAESpeech.pretrained(str(tmp_path / "a.safetensors")).noisy_encoder is not None


def test_the_random_generator_is_left_alone(speech: str, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train_prior([speech], tmp_path / "a.safetensors", replace(TINY, epochs=1))
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_left_out_is_told_and_counted(speech: str, tmp_path: Path) -> None:
    (tmp_path / "speech" / "v0-broken.wav").write_text("no audio")
    reasons: list[str] = []
    out = tmp_path / "a.safetensors"
    train_prior([speech], out, replace(TINY, context=0, epochs=1), left_out=reasons.append)
    assert len(reasons) == 1 and "v0-broken.wav: not readable" in reasons[0]
    assert weights.card(out)["files"] == {"used": 3, "left_out": 1}


class Interrupted(Exception):
    """Ctrl-C."""


@pytest.mark.parametrize("after", [("vae", 1), ("vae", 2), ("noisy", 1)])
def test_goes_on_where_it_was_interrupted(speech: str, tmp_path: Path, after: tuple[str, int]) -> None:
    def stop(stage: str, log: list[training.Epoch]) -> None:
        if (stage, len(log)) == after:
            raise Interrupted

    recipe = TINY if after[0] == "noisy" else replace(TINY, context=0)
    out, whole = tmp_path / "a.safetensors", tmp_path / "whole.safetensors"
    stages: list[tuple[str, int]] = []
    with pytest.raises(Interrupted):
        train_prior([speech], out, recipe, report=stop)
    assert list(tmp_path.glob("*.resume"))
    train_prior([speech], out, recipe, report=lambda stage, log: stages.append((stage, len(log))))
    assert stages == ([("vae", 2)] if after == ("vae", 1) else [])  # nothing is done twice
    assert not list(tmp_path.glob("*.resume")) and weights.card(out)["finished"]
    if after == ("vae", 1):
        train_prior([speech], whole, recipe)
        assert all(torch.equal(value, tensors(whole)[key]) for key, value in tensors(out).items())


def test_another_training_is_not_taken_up(speech: str, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    plain = replace(TINY, context=0, epochs=1)
    train_prior([speech], out, plain)
    assert VAESpeech.pretrained(str(out)).noisy_encoder is None and not (tmp_path / "a.vae.safetensors").exists()
    with pytest.raises(weights.WeightsError, match="is there already, of the same data and settings"):
        train_prior([speech], out, plain)
    before = out.read_bytes()
    with pytest.raises(weights.WeightsError, match=r"of another training \(recipe seed is 3, here 4\)"):
        train_prior([speech], out, replace(plain, seed=4))
    with pytest.raises(weights.WeightsError, match=r"of another training \(licence is '', here 'CC0'\)"):
        train_prior([speech], out, plain, licence="CC0")
    assert out.read_bytes() == before
    weights.annotate(out, scores={"si_sdr": 7.0}, versions={"ppse": "0.0"})
    with pytest.raises(weights.WeightsError, match="of the same data and settings"):
        train_prior([speech], out, plain)


def test_an_unfinished_training_of_other_settings_is_not_taken_up(speech: str, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise Interrupted

    out = tmp_path / "a.safetensors"
    with pytest.raises(Interrupted):
        train_prior([speech], out, TINY, report=stop)
    (tmp_path / "a.vae.safetensors").unlink()  # all that tells is the state
    with pytest.raises(weights.WeightsError, match=r"a\.vae\.resume: the state of an unfinished training that differs in card, schedule, data; "):
        train_prior([speech], out, replace(TINY, seed=4))


def test_data_that_cannot_be_used(speech: str, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(audio.AudioError, match="without audio"):
        train_prior([str(tmp_path / "nothing")], tmp_path / "a.safetensors", TINY)
    with pytest.raises(ValueError, match="at least two"):
        train_prior([f"{speech}/v0*"], tmp_path / "a.safetensors", TINY)
    (tmp_path / "file").write_text("")
    with pytest.raises(audio.AudioError, match="cannot be written"):
        train_prior([speech], tmp_path / "file" / "a.safetensors", TINY)


def test_another_model_is_another_training(speech: str, tmp_path: Path) -> None:
    out, settings = tmp_path / "a.safetensors", SequenceRecipe(epochs=1, batch=2, frames=8, validation=0.4)

    def dkf(latent: int = 2) -> DKFSpeech:
        return DKFSpeech(n_latent=latent, reader=Layers(4))

    train_sequence_prior(dkf, [speech], out, settings)
    with pytest.raises(weights.WeightsError, match="is there already, of the same data and settings"):
        train_sequence_prior(dkf, [speech], out, settings)
    with pytest.raises(weights.WeightsError, match="of another training .recipe model is 'DKFSpeech', here 'RVAESpeech'"):
        train_sequence_prior(lambda: RVAESpeech(n_latent=2, reader=Layers(4)), [speech], out, settings)
    with pytest.raises(weights.WeightsError, match="recipe sizes n_latent is 2, here 3"):
        train_sequence_prior(lambda: dkf(3), [speech], out, settings)

    def other() -> DKFSpeech:
        prior = dkf()
        prior.load_state_dict({key: value + 1 for key, value in prior.state_dict().items()})
        return prior

    with pytest.raises(weights.WeightsError, match="of another training .recipe start is"):
        train_sequence_prior(other, [speech], out, settings)
