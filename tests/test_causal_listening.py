"""Training of ears for streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from ppse import STFT, weights
from ppse.causal_listening import BLOCK, LEVEL, running_level, train_causal_listener
from ppse.cli import app
from ppse.corpus import Waves
from ppse.listener_recipe import ListenerRecipe, train_listener_of
from ppse.models import VAESpeech
from ppse.models.causal_listener import CausalListener
from ppse.running_level import RunningLevel
from ppse.stft import level
from ppse.streaming import Stream
from ppse.training import Schedule

SMALL = STFT(64, 16)


def _waves(count: int, tone: float, seed: int) -> Waves:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(8000) / 16_000
    return Waves([torch.sin(2 * torch.pi * tone * time) + 0.1 * torch.randn(8000, generator=generator) for _ in range(count)], SMALL)


def test_running_level_is_that_of_a_stream() -> None:
    """What is known at the end of a block of three, of the last nine frames."""
    x = torch.randn(2, 14, 5, dtype=torch.complex64) * torch.logspace(-2, 1, 14)[:, None]
    found = running_level(x, block=3, span=9)
    for t in range(14):
        end = min(14, 3 * (t // 3) + 3)
        torch.testing.assert_close(found[:, t], level(x[:, max(0, end - 9) : end]).squeeze(-1))


def test_training_has_the_blocks_and_the_level_of_a_stream() -> None:
    stream, power = Stream(), torch.rand(30)
    assert stream._block == BLOCK and stream._em._level._frames == LEVEL
    level_of, known = RunningLevel(9), running_level(power.sqrt().reshape(-1, 1) + 0j, BLOCK, 9)
    for i in range(0, 30, BLOCK):
        level_of(power[i : i + BLOCK])
        torch.testing.assert_close(known[i : i + BLOCK], torch.full((BLOCK, 1), level_of.scale**2))


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae, listener = VAESpeech(SMALL.n_freqs, 2, (12,)), CausalListener(SMALL.n_freqs, 2, 6, 4)
    before = [parameter.clone() for parameter in vae.parameters()]
    (speech, noise), held = ((_waves(count, 300.0, count), _waves(count, 2000.0, count + 9)) for count in (4, 2))
    log = train_causal_listener(
        listener, vae, (speech, noise), held, tmp_path / "ears.safetensors", Schedule(4, 5e-3), batch=4, frames=20,  # type: ignore[arg-type]
    )
    assert log[-1].training < log[0].training and log[-1].validation < log[0].validation
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))
    loaded = CausalListener.pretrained(str(tmp_path / "ears.safetensors"))
    assert all(torch.equal(one, two) for one, two in zip(loaded.parameters(), listener.parameters(), strict=True))


@pytest.fixture
def folders(tmp_path: Path) -> Callable[[str, float], Path]:
    def folder(name: str, tone: float) -> Path:
        place = tmp_path / name
        place.mkdir()
        for i in range(6):
            wave = np.sin(2 * np.pi * tone * np.arange(12_000) / 16_000) + 0.1 * np.random.default_rng(i).normal(size=12_000)
            soundfile.write(place / f"v{i}-0.wav", 0.1 * wave, 16_000)
        return place

    return folder


def test_command(folders: Callable[[str, float], Path], tmp_path: Path) -> None:
    speech, noise, out = folders("speech", 300.0), folders("noise", 2000.0), tmp_path / "ears.safetensors"
    small = ["--context", "4", "--ahead", "3", "--epochs", "1", "--batch", "2", "--frames", "16", "--validation", "0.4", "--no-mixed"]
    run = CliRunner().invoke(app, ["train", "listener", "vae", str(speech), "--noise", str(noise), "-o", str(out), *small])
    assert run.exit_code == 0 and "ppse stream --ears" in run.output, run.output
    assert weights.card(out)["finished"] and CausalListener.pretrained(str(out)).settings["size"] == 4


def test_couplings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without couplings"):
        train_listener_of(VAESpeech.pretrained(), [], [], tmp_path / "ears.safetensors", ListenerRecipe(ahead=2, couplings=1))


def test_latents_of_another_vae_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this is another; give 'vae'"):
        train_listener_of(VAESpeech(n_latent=2, hidden=(4,)), [], [], tmp_path / "ears.safetensors", ListenerRecipe(ahead=2))
