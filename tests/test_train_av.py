"""`ppse train av-vae`, from folders of clips to weights that are used."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from ppse import Mixture, methods, weights
from ppse.cli import app
from ppse.inference import infer
from ppse.models import AVVAESpeech, NMFNoise, VAESpeech
from ppse.mouth import find_lips

SIZES = ("--hidden", "8", "--latent", "3", "--batch", "2", "--frames", "20", "--validation", "0.34")
SMALL = (*SIZES, "--vae-epochs", "1", "--lips-epochs", "1", "--epochs", "1")


@pytest.mark.slow
def test_clips_with_sound_in_them_or_beside_them_become_two_priors(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(3):
        crops = rng.integers(0, 256, (62, 88, 88), dtype=np.uint8)
        sound = 0.1 * rng.standard_normal((1, 39_680))
        path = make_clip(crops, [j / 25 for j in range(62)], sound if i else None, name=f"{i}.mp4")
        path.rename(folder / path.name)
        if not i:
            soundfile.write(folder / "0.wav", sound[0], 16_000)
    (folder / "broken.mp4").write_bytes(b"nothing")
    out = tmp_path / "av.safetensors"
    result = CliRunner().invoke(app, ["train", "av-vae", str(folder), "-o", str(out), *SMALL])
    assert result.exit_code == 0, result.output
    assert "broken.mp4" in result.output
    card = weights.card(out)
    assert card["files"] == {"used": 3, "left_out": 1} and card["noise"] == "none" and card["finished"]
    again = CliRunner().invoke(app, ["train", "av-vae", str(folder), "-o", str(out), *SMALL])
    assert again.exit_code != 0 and "is there already" in again.output.replace("\n", " ")
    assert VAESpeech.pretrained(out.with_suffix(".vae.safetensors")).n_latent == 3
    speech = AVVAESpeech.pretrained(out)
    x = torch.randn(12, 513, dtype=torch.complex64)
    found = infer(Mixture(speech=speech.watching(find_lips(folder / "1.mp4")), noise=NMFNoise(2)), x, methods.fast())
    assert found.sources["speech"].loc.isfinite().all()


def test_the_name_of_the_weights_is_checked_first(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "av-vae", str(tmp_path), "-o", "av.pt"])
    assert result.exit_code == 2 and ".safetensors" in result.output


def test_too_few_images_are_refused_before_anything_is_trained(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "clips"
    folder.mkdir()
    for i in range(3):
        crops, sound = rng.integers(0, 256, (30, 88, 88), dtype=np.uint8), 0.1 * rng.standard_normal((1, 19_200))
        path = make_clip(crops, [j / 25 for j in range(30)], sound, name=f"{i}.mp4")
        path.rename(folder / path.name)
    result = CliRunner().invoke(app, ["train", "av-vae", str(folder), "-o", str(tmp_path / "av.safetensors"), *SMALL])
    assert result.exit_code != 0 and "60 images in 2 recordings; expected 120 or more" in result.output.replace("\n", " ")
    assert not list(tmp_path.glob("*.safetensors"))
