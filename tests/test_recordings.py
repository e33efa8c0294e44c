"""Noisy recordings with what is known of the speech in them; what is wrong with them is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from ppse import STFT, audio
from ppse.recordings import Recordings, labelled, misalignment, paired, power_range, unlabelled
from ppse.stft import level

SMALL = STFT(64, 16)
RATE = 16_000


def _voice(seed: int = 0, seconds: float = 1.0) -> Tensor:
    """Bursts of coloured noise, with pauses that are silent but for a whisper, like clean speech."""
    generator = torch.Generator().manual_seed(seed)
    wave = torch.randn(int(seconds * RATE), generator=generator)
    smooth = torch.nn.functional.avg_pool1d(wave[None], 4, 1, 2)[0, : wave.numel()]
    gate = (torch.arange(wave.numel()) // 2000 % 2).float()
    return 0.1 * (smooth * gate + 1e-4 * wave)


def _noisy(voice: Tensor, snr: float = -5.0, seed: int = 9) -> Tensor:
    noise = torch.randn(voice.shape, generator=torch.Generator().manual_seed(seed))
    return voice + noise * (voice.square().mean() / noise.square().mean() * 10 ** (-snr / 10)).sqrt()


def _write(path: Path, wave: Tensor) -> str:
    soundfile.write(path, wave.numpy(), RATE, subtype="FLOAT")
    return path.name


@pytest.mark.parametrize("lag", [-4000, -40, 40, 1000])
def test_a_shift_is_found(lag: int) -> None:
    clean = _voice()
    noisy = _noisy(clean)
    assert misalignment(clean, noisy, RATE) is None
    found = misalignment(clean, noisy.roll(lag), RATE)
    assert found and f"{abs(lag)} samples" in found and ("behind" if lag > 0 else "ahead") in found


def test_speech_of_another_recording_is_found() -> None:
    found = misalignment(_voice(1), _noisy(_voice(2)), RATE)
    assert found and "not in the noisy recording" in found
    found = misalignment(_voice(1)[:-1], _voice(1), RATE)
    assert found and "16000 noisy and 15999 clean samples" in found


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_speech_of_another_loudness_is_found(gain: float) -> None:
    clean = _voice()
    found = misalignment(gain * clean, _noisy(clean), RATE)
    assert found and "expected 1, as the recording is the sum of speech and noise" in found
    assert misalignment(-clean, _noisy(clean), RATE), "and of another sign"


def test_other_knowledge_of_the_same_recordings_has_another_fingerprint() -> None:
    noisy, clean, mask = [_noisy(_voice())], [_voice()], torch.zeros(RATE, dtype=torch.bool)
    masks = [mask.clone(), mask.clone()]
    masks[0][100:200] = masks[1][101:201] = True
    made = [
        *(Recordings([wave], SMALL) for wave in (noisy[0], noisy[0].flip(0))),
        *(Recordings(noisy, SMALL, [wave]) for wave in (clean[0], clean[0].flip(0))),
        *(Recordings(noisy, SMALL, clean, [known]) for known in masks),
    ]
    assert len({each.fingerprint for each in made}) == len(made)
    assert Recordings(noisy, SMALL, clean).fingerprint == made[2].fingerprint


def test_pairs_that_do_not_fit_are_left_out(tmp_path: Path) -> None:
    voices = [_voice(seed) for seed in range(5)]
    noisy = [_noisy(voice) for voice in voices]
    noisy[1] = noisy[1].roll(500)
    noisy[2] = noisy[2][:-100]
    entries = {}
    for i, (s, x) in enumerate(zip(voices, noisy, strict=True)):
        entries[f"u{i}"] = {"clean_wav": _write(tmp_path / f"c{i}.wav", s), "noisy_wav": _write(tmp_path / f"n{i}.wav", x)}
    (tmp_path / "c3.wav").unlink()
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(entries))
    reasons: list[str] = []
    pairs = paired([manifest], SMALL, reasons.append)
    assert len(pairs.waves) == 2 and pairs.known == 1
    assert len(reasons) == 3
    assert "'u1'" in reasons[0] and "500 samples" in reasons[0]
    assert "'u2'" in reasons[1] and "15900 noisy and 16000 clean" in reasons[1]
    assert "c3.wav" in reasons[2]
    manifest.write_text(json.dumps({"u1": entries["u1"]}))
    with pytest.raises(audio.AudioError, match="none of the pairs can be used"):
        paired([manifest], SMALL, reasons.append)
    with pytest.raises(audio.AudioError, match="no readable manifest"):
        paired([tmp_path / "none.json"], SMALL, reasons.append)


def test_clean_speech_among_noisy_recordings_is_left_out(tmp_path: Path) -> None:
    voice = _voice()
    _write(tmp_path / "a.wav", voice)
    for i in range(2):
        _write(tmp_path / f"b{i}.wav", _noisy(voice, seed=i))
    assert power_range(voice, SMALL) > 40 > 10 > power_range(_noisy(voice), SMALL)
    assert power_range(voice[: SMALL.n_fft], SMALL) == 0  # too short to tell
    reasons: list[str] = []
    noisy = unlabelled([tmp_path], SMALL, reasons.append, clean=[tmp_path / "b1.wav"])
    assert len(noisy.waves) == 1 and noisy.known == 0
    assert len(reasons) == 2 and "a.wav: looks like clean speech" in reasons[0] and "b1.wav: is given as clean speech too" in reasons[1]


def test_labels_say_what_is_known(tmp_path: Path) -> None:
    wave = _noisy(_voice())
    for name, text in (("a", "0.25\t0.5\tnoise\n0.5\t0.75\tclean\n"), ("b", None), ("c", "0.5\t0.2\tnoise\n"), ("d", "0\t9\t\n"), ("e", "0\t1\t\n")):
        _write(tmp_path / f"{name}.wav", wave)
        if text:
            (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "e.csv").write_text("0,1\n")
    reasons: list[str] = []
    data = labelled([tmp_path], SMALL, reasons.append)
    assert len(data.waves) == 1 and data.known == pytest.approx(0.5)
    wrong = ("b.wav: no labels beside it", "c.txt: a label from 0.5 s to 0.2 s", "d.txt: a label from 0 s to 9 s", "e.wav: has labels in")
    assert len(reasons) == 4 and all(part in reason for part, reason in zip(wrong, reasons, strict=True))
    frames = (RATE - 64) // 16 + 1
    x, clean, known = data.stretches(1, frames, torch.Generator().manual_seed(0))
    assert torch.equal(known.flatten(), torch.tensor([16 * t >= 4000 and 16 * t + 64 <= 12_000 for t in range(frames)]))
    silent, whole = range(250, 497), range(500, 747)  # frames that lie in one label
    assert not clean[0, 0, silent].any() and torch.equal(clean[0, 0, whole], x[0, 0, whole])


def test_stretches_are_of_unit_level_and_of_one_place() -> None:
    voices = [_voice(seed, seconds) for seed, seconds in ((0, 0.5), (1, 1.0))]
    data = Recordings([20 * _noisy(voice) for voice in voices], SMALL, [20 * voice for voice in voices])
    assert torch.allclose(torch.stack([level(SMALL.analysis(wave)).squeeze() for wave in data.waves]), torch.ones(2))
    x, clean, known = data.stretches(64, 20, torch.Generator().manual_seed(0))
    assert x.shape == clean.shape == (64, 1, 20, 33) and known.shape == (64, 1, 20, 1) and bool(known.all())
    # If speech were taken from another place than the recording, what is left of it would hold the speech, too.
    noise = x - clean
    assert float(10 * torch.log10(clean.abs().square().mean() / noise.abs().square().mean())) == pytest.approx(-5.0, abs=1.0)
    again = data.stretches(64, 20, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip((x, clean, known), again, strict=True))


def test_what_is_held_out_is_not_trained_on() -> None:
    data = Recordings([_noisy(_voice(seed), seed=seed) for seed in range(8)], SMALL)
    for fraction, expected in ((0.01, 1), (0.3, 2), (1.0, 7)):
        training, validation = data.split(fraction, seed=3)
        assert len(validation.waves) == expected and len(training.waves) == 8 - expected
        seen = sorted(float(wave[0]) for part in (training, validation) for wave in part.waves)
        assert np.allclose(seen, sorted(float(wave[0]) for wave in data.waves), rtol=1e-4)
    with pytest.raises(ValueError, match="one recording"):
        Recordings([_voice()], SMALL).split(0.1)
    with pytest.raises(ValueError, match="recording 0: 16000 / 15999 / 15999 samples"):
        Recordings([_voice()], SMALL, [_voice()[:-1]], [torch.ones(15_999, dtype=torch.bool)])
