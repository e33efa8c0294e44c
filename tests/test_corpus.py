"""Corpora: who speaks, and what is left out of the training data and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppse import STFT, audio
from ppse.corpus import Speech, speaker, split, split_recordings, split_speech


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("LibriSpeech/train-clean-100/103/1240/103-1240-0000.flac", "103"),  # reader / chapter / reader-chapter-utterance
        ("TIMIT/TRAIN/DR1/FCJF0/SA1.WAV", "FCJF0"),  # region / speaker / sentence
        ("TIMIT/TEST/DR3/MRTK0/SX103.WAV", "MRTK0"),
        ("VCTK/wav48/p225/p225_001.wav", "p225"),
        ("VCTK/wav48_silence_trimmed/p225/p225_001_mic1.flac", "p225"),
        ("flat/FCJF0_SA1.wav", "FCJF0"),
        ("someone/-note.wav", "someone"),
    ],
)
def test_speakers_of_known_corpora(path: str, expected: str) -> None:
    assert speaker(Path(path)) == expected


def test_a_file_without_a_folder_belongs_to_the_one_we_are_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "anna").mkdir()
    monkeypatch.chdir(tmp_path / "anna")
    assert speaker(Path("SA1.WAV")) == "anna"


def test_the_same_sentences_of_timit_are_of_different_speakers(tmp_path: Path) -> None:
    files = [tmp_path / "TRAIN" / place / sentence for place in ("DR1/FCJF0", "DR1/MDAB0", "DR2/FAJW0") for sentence in ("SA1.WAV", "SA2.WAV")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"0" * 100)
    training, validation = split(files, fraction=0.34)
    assert len(validation) == 2 and len({f.parent for f in validation}) == 1 and not {f.parent for f in training} & {f.parent for f in validation}
    with pytest.raises(ValueError, match="2 files of one speaker .*the name of the folder"):
        split(files[:2])


def test_what_has_no_sound_is_not_held_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a-1", "b-1", "c-1", "d-1"):
        audio.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(4000), 16_000)
    for name, content in {"e-1": b"", "f-1": b"no audio"}.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
    files = audio.find([tmp_path])
    for seed in range(8):
        training, validation = split_recordings(files, 0.3, seed)
        assert sorted([*training, *validation]) == files and len(validation) == 1 and validation[0].stem[0] in "abcd"
    with pytest.raises(ValueError, match="of one speaker"):
        split_recordings([tmp_path / "a-1.wav", tmp_path / "e-1.wav"])
    bad = [file for file in files if file.stem[0] in "ef"]
    assert sorted(sum(split_recordings(bad), [])) == bad, "which Speech then refuses, with the reasons"


def test_what_is_left_out_is_told_with_its_reason(tmp_path: Path) -> None:
    rng, stft = np.random.default_rng(0), STFT()
    good = 0.1 * rng.standard_normal(4000)
    broken = good.copy()
    broken[7] = np.nan
    waves = {"good": good, "silent": np.zeros(4000), "short": good[:1000], "broken": broken}
    for name, wave in waves.items():
        audio.write(tmp_path / f"{name}.wav", wave, 16_000, "FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    files = audio.find([tmp_path])
    speech = Speech(files, stft)
    assert len(speech.waves) == 1 and speech.n_frames == (4000 - 1024) // 256 + 1
    reasons = {path.stem: reason for path, reason in speech.left_out.items()}
    assert set(reasons) == {"silent", "short", "broken", "text"}
    for name, expected in (("silent", "is silent"), ("short", "less than a frame"), ("broken", "NaN"), ("text", "not readable as audio")):
        assert expected in reasons[name] and f"{name}.wav" in reasons[name]
    with pytest.raises(audio.AudioError, match=r"none of the 1 files can be used; .*silent\.wav: is silent"):
        Speech([tmp_path / "silent.wav"], stft)


def test_other_recordings_have_another_fingerprint(tmp_path: Path) -> None:
    wave = 0.1 * np.random.default_rng(0).standard_normal(6000)
    for name, length in (("a", 5000), ("b", 6000), ("c", 5999)):
        audio.write(tmp_path / f"{name}.wav", wave[:length], 16_000)
    prints = [Speech([tmp_path / f"{name}.wav" for name in names], STFT()).fingerprint for names in ("ab", "ab", "ac", "a", "ba")]
    assert prints[0] == prints[1] and len(set(prints)) == 4
    audio.write(tmp_path / "d.wav", wave[4999::-1], 16_000)  # as long, and as loud
    assert Speech([tmp_path / "d.wav"], STFT()).fingerprint != prints[3]


def test_speakers_of_whom_nothing_can_be_used_are_not_held_out(tmp_path: Path) -> None:
    rng, stft, read = np.random.default_rng(0), STFT(), list[tuple[int, int]]()
    for name in ("a-1", "b-1", "c-1"):
        audio.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(9000), 16_000)
    audio.write(tmp_path / "d-1.wav", np.zeros(2000), 16_000)  # shorter than all that can be used, so it always fits
    audio.write(tmp_path / "e-1.wav", np.ones(1), 16_000)
    files = audio.find([tmp_path])
    assert [file.stem for file in split_recordings(files, 0.05)[1]] == ["e-1"]
    training, validation = split_speech(files, stft, 0.05, report=lambda *count: read.append(count))
    assert len(training.waves) == 2 and len(validation.waves) == 1 and read[-1] == (5, 5)
    assert {path.stem for path in training.left_out} == {"d-1", "e-1"} and not validation.left_out
    with pytest.raises(ValueError, match="none of the 1 files can be used; .*e-1.wav.*; and 1 files of one speaker .'d'."):
        split_speech(files[3:], stft, 0.05)
