"""Evaluation: gains are those of the files, groups and intervals are right, result files hold it all."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

from ppse import audio, evaluation, mixing, pairing
from ppse.audio import AudioError
from ppse.evaluation import Score
from ppse.metrics import METRICS, si_sdr
from ppse.pairing import Item


def voice(generator: np.random.Generator, seconds: float = 1.0) -> np.ndarray:
    t = np.arange(int(seconds * 16_000)) / 16_000
    pitch = generator.uniform(90, 220)
    return 0.05 * sum(np.sin(2 * np.pi * k * pitch * t + k) / k for k in range(1, 30)) * np.abs(np.sin(2 * np.pi * 3 * t))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Four mixtures at two SNRs with two noises, and estimates from which half of the noise amplitude is gone."""
    rng = np.random.default_rng(0)
    for i in range(2):
        audio.write(tmp_path / f"speech/s{i}.wav", voice(rng), 16_000)
    for kind in ("hum", "rain"):
        audio.write(tmp_path / f"noises/{kind}.wav", 0.1 * rng.standard_normal(30_000), 16_000)
    path = mixing.mix([tmp_path / "speech"], [tmp_path / "noises"], tmp_path / "corpus", [0, 10], count=4)
    for entry in mixing.read_manifest(path).values():
        s, n = audio.read_mono(entry["clean_wav"]), audio.read_mono(entry["noise_wav"])
        audio.write(tmp_path / "enhanced" / Path(entry["noisy_wav"]).name, s + n / 2, 16_000, subtype="FLOAT")
    return tmp_path


def test_a_corpus_with_a_known_gain(corpus):
    seen = []
    items, unpaired = pairing.items_from_manifest(corpus / "corpus/manifest.json", corpus / "enhanced")
    scores, problems = evaluation.evaluate(items, lambda done, total: seen.append((done, total)))
    assert not unpaired and not problems and seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rows = {row["group"]: row for row in evaluation.summarise(scores)}
    assert list(rows) == ["all", "+0 dB", "+10 dB", "hum", "rain"]
    assert [row["files"] for row in rows.values()] == [4, 2, 2, 2, 2]
    assert rows["all"]["si_sdr"]["gain_mean"] == pytest.approx(20 * math.log10(2), abs=0.1)  # noise hardly correlates with speech
    assert rows["+10 dB"]["si_sdr"]["noisy_mean"] - rows["+0 dB"]["si_sdr"]["noisy_mean"] == pytest.approx(10, abs=0.2)
    for metric in METRICS:
        r = rows["all"][metric]
        assert r["gain_low"] <= r["gain_mean"] <= r["gain_high"] and r["gain_mean"] > 0
        assert r["gain_mean"] == pytest.approx(r["enhanced_mean"] - r["noisy_mean"])
    content = json.loads(evaluation.to_json(scores, list(rows.values()), seed=7, real_time_factor=0.25))
    assert content["seed"] == 7 and content["real_time_factor"] == 0.25 and len(content["files"]) == 4
    assert {"python", "ppse", "torch", "pyro-ppl", "numpy", "pesq", "pystoi"} == content["versions"].keys()


def test_one_pair_that_cannot_be_scored_leaves_the_others(corpus, monkeypatch):
    items, _ = pairing.items_from_manifest(corpus / "corpus/manifest.json", corpus / "enhanced")
    whole, _ = evaluation.evaluate(items)
    items[1].enhanced.write_bytes(b"no audio")
    items[2].clean.unlink()
    seen = []
    scores, problems = evaluation.evaluate(items, lambda done, total: seen.append((done, total)))
    assert [score.name for score in scores] == [items[0].name, items[3].name] and scores[0] == whole[0] and seen[-1] == (4, 4)
    assert f"{items[1].enhanced}: not readable as audio" in problems[0] and f"{items[2].clean}: no such file" in problems[1]
    monkeypatch.setattr(evaluation.metrics, "score", lambda *_: 1 / 0)
    scores, problems = evaluation.evaluate(items[:1])
    assert not scores and f"{items[0].enhanced}: ZeroDivisionError" in problems[0]


def test_channels_and_rates_are_brought_together_and_small_differences_of_length_cut(tmp_path):
    s = voice(np.random.default_rng(1))
    x = s + 0.02 * np.random.default_rng(2).standard_normal(s.size)
    audio.write(tmp_path / "s.wav", s, 16_000, subtype="FLOAT")
    audio.write(tmp_path / "x.wav", np.stack([x, x]), 16_000, subtype="FLOAT")
    audio.write(tmp_path / "e.wav", audio.resample(s.astype(np.float32), 16_000, 48_000)[:-900], 48_000, subtype="FLOAT")
    score = evaluation.judge(Item("a", tmp_path / "s.wav", tmp_path / "x.wav", tmp_path / "e.wav"))
    n = s.size - 300
    assert score.noisy["si_sdr"] == pytest.approx(si_sdr(s[:n], x[:n]), abs=1e-3)
    assert score.enhanced["si_sdr"] > 30


@pytest.mark.parametrize(("estimate", "message"), [(np.ones(8000), "expected one length"), (np.full(16_000, np.nan), "NaN")])
def test_what_is_no_estimate_of_the_recording_is_refused(tmp_path, estimate, message):
    audio.write(tmp_path / "s.wav", voice(np.random.default_rng(1)), 16_000)
    audio.write(tmp_path / "e.wav", estimate, 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"e\.wav: .*{message}"):
        evaluation.judge(Item("a", tmp_path / "s.wav", tmp_path / "s.wav", tmp_path / "e.wav"))


def known(gains: list[float], snr: float = 0.0) -> list[Score]:
    flat = dict.fromkeys(METRICS, 1.0)
    return [Score(f"u{i}", snr, "hum", flat, dict.fromkeys(METRICS, 1.0 + gain)) for i, gain in enumerate(gains)]


def test_means_medians_and_seeds():
    [everything, *_] = evaluation.summarise(known([0.0, 1.0, 5.0]))
    r = everything["estoi"]
    assert (r["gain_mean"], r["gain_median"], r["noisy_mean"], r["enhanced_median"]) == pytest.approx((2.0, 1.0, 1.0, 2.0))
    assert 0 <= r["gain_low"] < 2 < r["gain_high"] <= 5
    many = known(list(np.random.default_rng(0).standard_normal(40)))
    assert evaluation.summarise(many, seed=1) == evaluation.summarise(many, seed=1) != evaluation.summarise(many, seed=2)


def test_undefined_scores_are_left_out_counted_and_null_in_json():
    scores = known([1.0, math.nan, 3.0])
    rows = evaluation.summarise(scores)
    assert rows[0]["pesq_wb"]["gain_mean"] == pytest.approx(2.0) and rows[0]["pesq_wb"]["undefined"] == 1
    assert "Not defined, and left out: si_sdr of 1, pesq_wb of 1, estoi of 1 of 3 files." in evaluation.markdown(rows)
    assert "Not defined" not in evaluation.markdown(evaluation.summarise(known([1.0])))
    text = evaluation.to_json(scores, rows, 0, problems=["b.wav: gone"])
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["files"][1]["enhanced"]["pesq_wb"] is None and content["left_out"] == ["b.wav: gone"] and content["command"]
    only = evaluation.summarise(known([math.nan]))
    assert evaluation.headline(only)["estoi"] == {"noisy_mean": 1.0, "gain_mean": None, "gain_low": None, "gain_high": None}


def test_infinite_scores_are_no_reason_to_warn():
    perfect = dict.fromkeys(METRICS, math.inf)
    scores = [Score("a", 0.0, "hum", perfect, perfect), Score("b", 0.0, "hum", dict.fromkeys(METRICS, 0.0), perfect)]
    row = evaluation.summarise(scores)[0]["si_sdr"]
    assert row["undefined"] == 1 and row["gain_mean"] == row["enhanced_mean"] == math.inf  # inf - inf is no gain


def test_table_and_csv():
    scores = known([0.5, 1.5]) + known([2.0, 2.0], snr=-5.0)
    table = evaluation.markdown(evaluation.summarise(scores)).splitlines()
    assert len({line.count("|") for line in table}) == 1, "a ragged table"
    assert [line.split("|")[1].strip() for line in table[2:]] == ["all", "-5 dB", "+0 dB", "hum"]
    assert "1.00 | +2.00 [+2.00, +2.00]" in table[3]
    lines = list(csv.DictReader(io.StringIO(evaluation.to_csv(scores))))
    assert [line["enhanced_si_sdr"] for line in lines] == ["1.5", "2.5", "3.0", "3.0"]
    assert lines[2]["snr"] == "-5.0" and lines[2]["noise_type"] == "hum" and lines[0]["noisy_estoi"] == "1.0"
