"""Codes of clean speech, and the training of a prior over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ppse.codes
from ppse import weights
from ppse.codes import codes, train_codes
from ppse.corpus import Speech
from ppse.models import CodeChain, VAESpeech
from ppse.stft import STFT
from ppse.training import LEVEL_RANGE, floored


def _speech(folder: Path, name: str, seconds: float) -> Speech:
    """Noise whose loudness drifts: its codes are correlated from frame to frame."""
    rng = np.random.default_rng(len(name))
    n = int(seconds * 16_000)
    drift = np.interp(np.arange(n), np.arange(0, n + 4000, 4000), rng.standard_normal(len(np.arange(0, n + 4000, 4000))))
    soundfile.write(folder / f"{name}.wav", 0.05 * np.exp(drift) * rng.standard_normal(n), 16_000, subtype="FLOAT")
    return Speech([folder / f"{name}.wav"], STFT())


@pytest.fixture
def vae() -> VAESpeech:
    made = VAESpeech(n_latent=3, hidden=(8,))
    made.encoder.network[-1].bias.data[3:] = -3.0  # an encoder that is sure of itself
    return made.eval().requires_grad_(False)


def test_codes_are_draws_of_the_encoder_at_levels_of_training(tmp_path: Path, vae: VAESpeech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppse.codes, "STRETCH", 4.0)
    speech = _speech(tmp_path, "a", 5.5)
    state = torch.get_rng_state()
    first, second = codes(vae, speech)
    assert torch.equal(state, torch.get_rng_state())
    assert first.shape == ((64_000 - 1024) // 256 + 1, 3) and second.shape == ((24_000 - 1024) // 256 + 1, 3)
    assert torch.equal(first, next(codes(vae, speech))) and not torch.equal(first, next(codes(vae, speech, seed=1)))
    s = STFT().analysis(speech.waves[0][:64_000])[3 : 3 + len(first)]

    def misfit(decibel: float) -> float:
        law = vae.encoder(floored(s * 10 ** (decibel / 20)))
        return float(((first - law.mean) / law.stddev).square().mean())

    # At the level that was drawn, they differ from the mean by what the encoder says, and at others by more.
    assert min(misfit(level) for level in np.arange(LEVEL_RANGE[0], LEVEL_RANGE[1], 0.25)) == pytest.approx(1, abs=0.2)
    assert max(misfit(level) for level in LEVEL_RANGE) > 1.5


def test_training_writes_the_chain_of_the_codes(tmp_path: Path, vae: VAESpeech) -> None:
    training, validation = _speech(tmp_path, "a", 8), _speech(tmp_path, "bc", 5)
    out = tmp_path / "codes.safetensors"
    chain = train_codes(vae, training, validation, out, card={"licence": "CC0"})
    expected = CodeChain(3)
    expected.fit(list(codes(vae, training)))
    loaded = CodeChain.pretrained(str(out))
    for name, value in expected.state_dict().items():
        assert torch.equal(chain.state_dict()[name], value) and torch.equal(loaded.state_dict()[name], value)
    card = weights.card(out)
    held = list(codes(vae, validation))
    assert card["licence"] == "CC0" and card["frames"] == sum(len(z) for z in codes(vae, training))
    assert card["validation"] == pytest.approx(float(chain.law(len(held[0])).log_prob(held[0]).mean()), abs=0.01)
    assert card["independent"] == pytest.approx(float(torch.distributions.Normal(0, 1).log_prob(held[0]).sum(-1).mean()), abs=0.01)
    assert card["validation"] > card["independent"]


def test_too_little_speech_is_told(tmp_path: Path, vae: VAESpeech) -> None:
    speech = _speech(tmp_path, "a", 0.1)
    with pytest.raises(ValueError, match="pairs of neighbouring frames; expected more than 6"):
        train_codes(vae, speech, speech, tmp_path / "codes.safetensors")
