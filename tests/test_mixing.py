"""Corpora: SNRs are what the manifest says, noisy = clean + noise, the same arguments make the same corpus, manifests of others are read."""

from __future__ import annotations

import json
import math
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from ppse import audio, mixing
from ppse.audio import AudioError


@pytest.fixture
def material(tmp_path: Path) -> tuple[Path, Path]:
    """Three utterances of 0.2 to 0.4 s, one of them loud; a long noise, a short one, one at another rate."""
    rng = np.random.default_rng(0)
    clean, noise = tmp_path / "clean_in", tmp_path / "noise_in"
    for i, scale in enumerate((0.05, 0.1, 0.9)):
        audio.write(clean / f"p{i}-a.wav", scale * rng.uniform(-1, 1, 3200 + 1600 * i), 16_000)
    audio.write(noise / "street_wide-1.wav", 0.3 * rng.uniform(-1, 1, 20_000), 16_000)
    audio.write(noise / "cafe-2.flac", 0.1 * rng.uniform(-1, 1, 500), 16_000)
    audio.write(noise / "rain.wav", 0.2 * rng.uniform(-1, 1, (2, 48_000)), 48_000)
    return clean, noise


def read(path: str) -> np.ndarray:
    return audio.read_mono(path).astype(np.float64)


def test_files_add_up_and_have_the_snr_of_the_manifest(material, tmp_path):
    clean, noise = material
    manifest = mixing.read_manifest(mixing.mix([clean], [noise], tmp_path / "out", [-5, 10], count=6, seed=1))
    assert len(manifest) == 6
    for key, entry in manifest.items():
        x, s, n = (read(entry[f"{part}_wav"]) for part in ("noisy", "clean", "noise"))
        assert entry["utt_name"] == key and entry["length"] == x.size == s.size == n.size
        assert np.abs(x - (s + n)).max() <= np.finfo(np.float32).eps * np.abs(x).max()
        assert 10 * math.log10((s @ s) / (n @ n)) == pytest.approx(entry["snr"], abs=1e-4)
    loud = max(np.abs(read(entry["noisy_wav"])).max() for entry in manifest.values())
    assert loud > 1, "the loud utterance at -5 dB would have clipped in 16 bit"


def test_clean_speech_is_the_source_file(material, tmp_path):
    clean, noise = material
    manifest = mixing.read_manifest(mixing.mix([clean], [noise], tmp_path / "out", [0], seed=2))
    assert len(manifest) == 3, "one mixture per utterance unless told otherwise"
    for entry in manifest.values():
        source = next(path for path in clean.iterdir() if path.stem in entry["utt_name"])
        assert np.array_equal(read(entry["clean_wav"]), read(str(source)))


def test_short_noise_is_looped(material, tmp_path):
    clean, noise = material
    manifest = mixing.read_manifest(mixing.mix([clean / "p0-a.wav"], [noise / "cafe-2.flac"], tmp_path / "out", [0]))
    n = read(next(iter(manifest.values()))["noise_wav"])
    assert n.size == 3200 and n[:500].std() > 0
    assert np.array_equal(n[:500], n[500:1000]) and np.array_equal(n[:200], n[3000:])


def test_long_noise_starts_at_different_places(material, tmp_path):
    clean, noise = material
    manifest = mixing.read_manifest(mixing.mix([clean / "p0-a.wav"], [noise / "street_wide-1.wav"], tmp_path / "out", [0], count=4))
    starts = [read(entry["noise_wav"])[:8] for entry in manifest.values()]
    assert not any(np.allclose(starts[0], other) for other in starts[1:])


def test_choices_are_balanced(material, tmp_path):
    clean, noise = material
    entries = mixing.read_manifest(mixing.mix([clean], [noise], tmp_path / "out", [-5, 0, 5], count=18)).values()
    assert Counter(entry["snr"] for entry in entries) == {-5.0: 6, 0.0: 6, 5.0: 6}
    assert Counter((entry["noise_type"], entry["snr"]) for entry in entries) == {
        (kind, snr): 2 for kind in ("wide", "cafe", "rain") for snr in (-5.0, 0.0, 5.0)
    }
    used = Counter(path.stem for entry in entries for path in clean.iterdir() if path.stem in entry["utt_name"])
    assert set(used.values()) == {6}


@pytest.mark.parametrize(("snrs", "count"), [((0, 5), 8), ((-5, 0, 5), 11), ((-5, 0, 5, 10), 14)])
def test_noises_and_snrs_are_equally_frequent_at_any_count(material, tmp_path, snrs, count):
    clean, noise = material
    entries = mixing.read_manifest(mixing.mix([clean / "p0-a.wav"], [noise], tmp_path / "out", snrs, count=count)).values()
    for choices, total in ((Counter(entry["noise_type"] for entry in entries), 3), (Counter(entry["snr"] for entry in entries), len(snrs))):
        assert len(choices) == total and max(choices.values()) - min(choices.values()) <= 1


def test_order_of_noises_is_random_and_from_the_seed(material, tmp_path):
    clean, noise = material
    orders = {
        tuple(entry["noise_type"] for entry in mixing.read_manifest(mixing.mix([clean], [noise], tmp_path / f"{seed}", [0], seed=seed)).values())
        for seed in range(8)
    }
    assert len(orders) > 1 and all(sorted(order) == ["cafe", "rain", "wide"] for order in orders)


def test_the_manifest_says_what_made_it(material, tmp_path):
    clean, noise = material
    for entry in json.loads(mixing.mix([clean], [noise], tmp_path / "out", [0], seed=11).read_text()).values():
        assert entry["seed"] == 11
        assert entry["versions"] == {name: version(name) for name in ("ppse", "numpy", "soundfile")}


def test_same_seed_same_corpus(material, tmp_path):
    clean, noise = material
    first, again, other = (
        mixing.read_manifest(mixing.mix([clean], [noise], tmp_path / name, [0, 5], count=4, seed=seed))
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    )
    assert list(first) == list(again)
    assert all(np.array_equal(read(first[key]["noisy_wav"]), read(again[key]["noisy_wav"])) for key in first)
    pairs = zip(first.values(), other.values(), strict=True)
    assert any(a["utt_name"] != b["utt_name"] or not np.array_equal(read(a["noise_wav"]), read(b["noise_wav"])) for a, b in pairs)
    assert (tmp_path / "a/manifest.json").read_text() == (tmp_path / "b/manifest.json").read_text(), "no path of this machine inside"


def test_progress_is_reported(material, tmp_path):
    clean, noise = material
    seen = []
    mixing.mix([clean], [noise], tmp_path / "out", [0], count=2, report=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("name", "expected"), [("cafe-2.ogg", "cafe"), ("street.wav", "street"), ("house-aircon_aircon-0.ogg", "aircon"), ("12.wav", "12")]
)
def test_noise_types(name, expected):
    assert mixing.noise_type(Path(name)) == expected


def test_silence_has_no_snr(material, tmp_path):
    clean, noise = material
    silent = tmp_path / "silent.wav"
    audio.write(silent, np.zeros(4000), 16_000)
    with pytest.raises(AudioError, match=r"silent\.wav: is silent"):
        mixing.mix([silent], [noise], tmp_path / "out", [0])
    with pytest.raises(AudioError, match=r"silent\.wav: is silent"):
        mixing.mix([clean], [silent], tmp_path / "out", [0])
    assert not (tmp_path / "out/manifest.json").exists()


def test_what_cannot_be_mixed_is_left_out_on_request(material, tmp_path):
    clean, noise = material
    (clean / "p3-a.wav").write_text("no audio")
    (clean / "p4-a.wav").symlink_to(clean / "p0-a.wav")
    reasons, steps = [], []
    path = mixing.mix([clean], [noise], tmp_path / "out", [0], report=lambda *step: steps.append(step), left_out=reasons.append)
    entries = json.loads(path.read_text()).values()
    assert len(reasons) == 1 and "p3-a.wav: not readable as audio" in reasons[0] and steps == [(i + 1, 5) for i in range(5)]
    assert len(entries) == 4 == len(list((tmp_path / "out/noisy").iterdir()))
    assert all((tmp_path / "out" / entry[f"{kind}_wav"]).is_file() for entry in entries for kind in ("noisy", "clean", "noise"))
    with pytest.raises(AudioError, match=r"p3-a\.wav: not readable"):
        mixing.mix([clean], [noise], tmp_path / "strict", [0])
    with pytest.raises(AudioError, match=r"p3-a\.wav: not readable"):
        mixing.mix([clean / "p3-a.wav"], [noise], tmp_path / "nothing", [0], count=3, left_out=reasons.append)
    assert not (tmp_path / "nothing").exists() and not (tmp_path / "strict/manifest.json").exists()


def test_what_is_not_finite_is_named(material, tmp_path):
    clean, noise = material
    broken = tmp_path / "broken.wav"
    audio.write(broken, np.array([0.1, np.nan, 0.2] * 2000), 16_000, subtype="FLOAT")
    for speech, other in (([broken], [noise]), ([clean], [broken])):
        with pytest.raises(AudioError, match=r"broken\.wav: 2000 samples are NaN or infinite, the first at index 1"):
            mixing.mix(speech, other, tmp_path / "out", [0])
    assert not (tmp_path / "out/manifest.json").exists()


@pytest.mark.parametrize(("snrs", "count", "message"), [([], None, "at least one finite"), ([math.nan], None, "finite"), ([0], 0, "count is 0")])
def test_impossible_requests(material, tmp_path, snrs, count, message):
    clean, noise = material
    with pytest.raises(ValueError, match=message):
        mixing.mix([clean], [noise], tmp_path / "out", snrs, count=count)


def test_manifests_of_other_toolkits(tmp_path):
    entry = {"utt_name": "440", "noisy_wav": "{noisy_root}/440_0.wav", "clean_wav": "{clean_root}/44/440.wav", "length": 5.7, "snr": 0}
    (tmp_path / "test.json").write_text(json.dumps({"440": entry}))
    found = mixing.read_manifest(tmp_path / "test.json", noisy_root="/n", clean_root="/c")["440"]
    assert (found["noisy_wav"], found["clean_wav"]) == (str(Path("/n/440_0.wav")), str(Path("/c/44/440.wav")))
    found = mixing.read_manifest(tmp_path / "test.json")["440"]
    assert (found["noisy_wav"], found["clean_wav"]) == (str(tmp_path / "440_0.wav"), str(tmp_path / "44/440.wav"))


@pytest.mark.parametrize("content", ["no json", "[]", '{"a": {"noisy_wav": "x.wav"}}', '{"a": 3}', '{"a": {"noisy_wav": 1, "clean_wav": 2}}'])
def test_broken_manifests_are_refused(tmp_path, content):
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(AudioError, match=r"m\.json: no readable manifest"):
        mixing.read_manifest(tmp_path / "m.json")
    with pytest.raises(AudioError, match="no readable manifest"):
        mixing.read_manifest(tmp_path / "missing.json")


def test_the_manifest_of_another_corpus_stays(material, tmp_path):
    clean, noise = material
    path = mixing.mix([clean], [noise], tmp_path / "out", [0], seed=2)
    before = path.read_bytes()
    assert mixing.mix([clean], [noise], tmp_path / "out", [0], seed=2) == path and path.read_bytes() == before, "the same corpus again"
    with pytest.raises(AudioError, match="another corpus.*choose another folder"):
        mixing.mix([clean], [noise], tmp_path / "out", [5], seed=3)
    assert path.read_bytes() == before


def test_manifests_without_entries_are_told_and_byte_order_marks_skipped(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text("{}")
    with pytest.raises(AudioError, match="no entries"):
        mixing.read_manifest(path)
    path.write_text('{"a": {"noisy_wav": "noisy/a.wav", "clean_wav": "clean/a.wav"}}', encoding="utf-8-sig")
    assert list(mixing.read_manifest(path)) == ["a"]
