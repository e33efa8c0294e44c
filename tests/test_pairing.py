"""Pairing: every enhanced file with its own reference, whatever else lies around; what cannot be paired is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ppse import audio
from ppse.pairing import items_from_folders, items_from_manifest


def touch(root: Path, *names: str) -> None:
    for name in names:
        audio.write(root / name, np.ones(100), 16_000)


def manifest(root: Path, *names: str) -> Path:
    entries = {name: {"utt_name": name, "noisy_wav": f"noisy/{name}.wav", "clean_wav": f"clean/{name}.wav", "snr": 5.0} for name in names}
    (root / "manifest.json").write_text(json.dumps(entries))
    return root / "manifest.json"


def found(root: Path, path: Path, enhanced: str = "out") -> dict[str, str]:
    items, problems = items_from_manifest(path, root / enhanced)
    assert not problems
    return {item.name: str(item.enhanced.relative_to(root)) for item in items}


def test_by_name_whatever_the_type_and_whatever_lies_beside(tmp_path: Path) -> None:
    touch(tmp_path, "out/a.flac", "out/a.noise.wav", "out/b.wav", "out/stranger.wav")
    (tmp_path / "out/a.std.npz").touch()
    path = manifest(tmp_path, "a", "b")
    assert found(tmp_path, path) == {"a": "out/a.flac", "b": "out/b.wav"}
    items, _ = items_from_manifest(path, tmp_path / "out")
    assert items[0].clean == tmp_path / "clean/a.wav" and items[0].noisy == tmp_path / "noisy/a.wav" and items[0].snr == 5.0


def test_names_with_dots(tmp_path: Path) -> None:
    touch(tmp_path, "out/a_+2.5dB.wav", "out/a_+2.wav", "out/a_+2.5dB.noise.wav")
    assert found(tmp_path, manifest(tmp_path, "a_+2.5dB", "a_+2")) == {"a_+2.5dB": "out/a_+2.5dB.wav", "a_+2": "out/a_+2.wav"}


def test_the_same_name_in_two_folders_is_paired_by_place(tmp_path: Path) -> None:
    touch(tmp_path, "out/x/a.wav", "out/y/a.wav")
    assert found(tmp_path, manifest(tmp_path, "x/a", "y/a")) == {"x/a": "out/x/a.wav", "y/a": "out/y/a.wav"}


def test_the_whole_corpus_enhanced_clean_and_noise_too(tmp_path: Path) -> None:
    touch(tmp_path, *(f"out/{kind}/{name}.wav" for kind in ("clean", "noise", "noisy") for name in "ab"))
    assert found(tmp_path, manifest(tmp_path, "a", "b")) == {"a": "out/noisy/a.wav", "b": "out/noisy/b.wav"}


def test_a_flat_folder_never_serves_two_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "out/a.wav", "out/b.wav")
    items, problems = items_from_manifest(manifest(tmp_path, "x/a", "y/a", "x/b"), tmp_path / "out")
    assert [item.name for item in items] == ["x/b"] and len(problems) == 2 and all("no file for" in problem for problem in problems)


@pytest.mark.parametrize("rival", ["out/a.flac", "out/deep/a.wav"])
def test_two_candidates_are_no_guess(tmp_path: Path, rival: str) -> None:
    touch(tmp_path, "out/other/a.wav" if "deep" in rival else "out/a.wav", rival, "out/b.wav")
    items, problems = items_from_manifest(manifest(tmp_path, "a", "b"), tmp_path / "out")
    assert [item.name for item in items] == ["b"]
    assert len(problems) == 1 and "'a' may be" in problems[0] and str(tmp_path / rival) in problems[0]


def test_a_missing_estimate_is_named_and_the_others_are_paired(tmp_path: Path) -> None:
    touch(tmp_path, "out/b.wav")
    items, problems = items_from_manifest(manifest(tmp_path, "a", "b"), tmp_path / "out")
    assert [item.name for item in items] == ["b"] and problems == [
        f"{tmp_path / 'out'}: no file for 'a'; enhance all of the corpus into one folder, which keeps its places"
    ]


def test_three_folders(tmp_path: Path) -> None:
    touch(tmp_path, "clean/x/a.wav", "clean/y/a.wav", "clean/b.wav", "noisy/x/a.flac", "noisy/y/a.flac", "noisy/b.flac")
    touch(tmp_path, "out/x/a.wav", "out/x/a.noise.wav", "out/y/a.wav", "out/deep/b.mp3", "out/stranger.wav")
    items, problems = items_from_folders(tmp_path / "clean", tmp_path / "noisy", tmp_path / "out")
    assert {item.name: (item.clean, item.noisy, item.enhanced) for item in items} == {
        "deep/b": (tmp_path / "clean/b.wav", tmp_path / "noisy/b.flac", tmp_path / "out/deep/b.mp3"),
        "x/a": (tmp_path / "clean/x/a.wav", tmp_path / "noisy/x/a.flac", tmp_path / "out/x/a.wav"),
        "y/a": (tmp_path / "clean/y/a.wav", tmp_path / "noisy/y/a.flac", tmp_path / "out/y/a.wav"),
    }
    assert len(problems) == 1 and "clean: no file for 'stranger'" in problems[0]


def test_a_recording_that_is_called_noise(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{folder}/{name}.wav" for folder in ("clean", "noisy", "out") for name in ("a", "a.noise")))
    items, problems = items_from_folders(tmp_path / "clean", tmp_path / "noisy", tmp_path / "out")
    assert [item.enhanced.name for item in items] == ["a.noise.wav", "a.wav"] and not problems
