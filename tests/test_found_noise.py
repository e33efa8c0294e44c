"""The noise that EM finds: a draw of every recording, found once, by one worker or by several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ppse import audio
from ppse.audio import AudioError
from ppse.found_noise import forget, noise_found
from ppse.method import Problem
from ppse.methods import hmc_em
from ppse.mixture import Mixture
from ppse.models import HeardNoise, VAESpeech
from ppse.recordings import Recordings
from ppse.stft import STFT
from ppse.workers import Alone

SMALL = STFT.of_freqs(17)
EM = hmc_em(4, steps=1)


def model(shift: float = 0.0) -> Mixture:
    """An untrained VAE whose noisy encoder is off by so much, and what it hears of the noise."""
    torch.manual_seed(0)
    vae = VAESpeech(17, 3, (8,), context=6).requires_grad_(False).eval()
    assert vae.listener is not None
    torch.nn.init.constant_(vae.listener.shift.bias, shift)
    return Mixture(speech=vae, noise=HeardNoise(vae))


def recordings(count: int) -> Recordings:
    return Recordings(list(torch.randn(count, 1600, generator=torch.Generator().manual_seed(0))), SMALL)


def never(_: Problem) -> Any:
    raise AssertionError("EM ran again on a recording that it has done")


def test_what_was_found_is_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    noisy, counts = recordings(2), []
    noise = noise_found(model(), noisy, tmp_path, EM, 0, lambda *count: counts.append(count))
    assert counts == [(1, 2), (2, 2)]
    again = noise_found(model(), noisy, tmp_path, replace(EM, e_step=never), 0)
    for i, wave in enumerate(noisy.waves):
        assert torch.equal(again[i], noise[i]) and noise[i].shape == wave.shape
        assert 0.02 < noise[i].square().mean() / wave.square().mean() < 1.2 and (noise[i] - wave).abs().max() > 0.01
    with pytest.raises(AssertionError, match="EM ran again"):
        noise_found(model(3.0), noisy, tmp_path, replace(EM, e_step=never), 0)  # by another prior
    with pytest.raises(AssertionError, match="EM ran again"):
        noise_found(model(), noisy, tmp_path, replace(EM, e_step=never), 1)  # from another seed


def test_em_runs_on_the_device_of_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def ask(*_: Any, device: str, **__: Any) -> None:
        raise Asked(device)

    monkeypatch.setattr("ppse.found_noise.enhance", ask)
    with pytest.raises(Asked, match="cuda:1"):
        noise_found(model(), recordings(1), tmp_path, EM, 0, team=Alone("cuda:1"))


def test_a_damaged_file_is_found_again(tmp_path: Path) -> None:
    noisy = recordings(2)
    noise = noise_found(model(), noisy, tmp_path, EM, 0)
    cut, empty = sorted(tmp_path.iterdir())
    audio.write(cut, noise[0].numpy()[:800], SMALL.sample_rate, "FLOAT")
    empty.write_bytes(b"")
    assert all(map(torch.equal, noise_found(model(), noisy, tmp_path, EM, 0), noise))


def test_what_was_found_is_no_recording(tmp_path: Path) -> None:
    noise_found(model(), recordings(1), tmp_path / "prior.noise", EM, 0)
    (tmp_path / "field.wav").touch()
    assert audio.find([tmp_path]) == [tmp_path / "field.wav"]


def test_only_what_was_found_is_forgotten(tmp_path: Path) -> None:
    """With what a killed process left of it; nothing happens where there is no such folder."""
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for work in (theirs, ours):
        noise_found(model(), recordings(2), work, EM, 0)
        assert len([*work.iterdir()]) == 2
    (theirs / "field.wav").touch()
    (ours / f".{next(ours.iterdir()).name}.k3j_x").touch()
    for work in (theirs, ours, tmp_path / "none"):
        forget(work)
    assert [path.name for path in theirs.iterdir()] == ["field.wav"] and not ours.exists()


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "prior.noise").touch()
    with pytest.raises(AudioError, match=r"prior\.noise: no folder .*File exists"):
        noise_found(model(), recordings(1), tmp_path / "prior.noise", EM, 0)


def test_where_speech_is_known_noise_is_what_is_left(tmp_path: Path) -> None:
    """A recording that is known whole takes no EM; of one that is known in part the rest is found."""
    waves = list(torch.randn(2, 1600, generator=torch.Generator().manual_seed(0)))
    masks = [torch.ones(1600, dtype=torch.bool), torch.arange(1600) < 500]
    noisy = Recordings(waves, SMALL, [0.3 * wave for wave in waves], masks)
    with pytest.raises(AssertionError, match="EM ran again"):
        noise_found(model(), noisy, tmp_path, replace(EM, e_step=never), 0)
    whole, part = noise_found(model(), noisy, tmp_path, EM, 0)
    assert len(list(tmp_path.iterdir())) == 1
    torch.testing.assert_close(whole, 0.7 * noisy.waves[0])
    torch.testing.assert_close(part[:500], 0.7 * noisy.waves[1][:500])
    assert (part[500:] - 0.7 * noisy.waves[1][500:]).abs().max() > 0.01 and (part[500:] - noisy.waves[1][500:]).abs().max() > 0.01
    torch.testing.assert_close(noise_found(model(), noisy.part([0]), tmp_path, replace(EM, e_step=never), 0)[0], whole)


def test_workers_share_the_recordings_and_have_all_of_the_noise(tmp_path: Path) -> None:
    """The second of two waits until the first is done with its share, and both read what one alone finds."""
    noisy = recordings(3)
    alone = noise_found(model(), noisy, _folder(tmp_path / "alone"), EM, 0)
    shared = _folder(tmp_path / "shared")
    seen: list[list[Tensor]] = []

    class First(Alone):
        count = 2

    class Second(First):
        rank = 1

        def wait(self) -> None:
            assert len(list(shared.iterdir())) == 1, "the second of three recordings is the share of the second worker"
            seen.append(noise_found(model(), noisy, shared, EM, 0, team=First()))

    seen.append(noise_found(model(), noisy, shared, EM, 0, team=Second()))
    assert len(seen) == 2
    for noise in seen:
        assert all(torch.equal(a, b) for a, b in zip(alone, noise, strict=True))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
