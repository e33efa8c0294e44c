"""The benchmarks of speed and of samplers run, and write what they print. (That of quality needs other enhancers, which the tests do not install.)"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ppse import mixing
from ppse.demo import CLEAN

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed.py"


@pytest.mark.slow
@pytest.mark.parametrize(("row", "tables"), [("fast", 1), ("4", 9)])
def test_speed(tmp_path: Path, row: str, tables: int) -> None:
    command = [sys.executable, str(SPEED), "--seconds", "0.3", "--threads", "1", "--only", row, "--out", "speed.md"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "speed.md").read_text()
    assert page == run.stdout and f"`python benchmarks/speed.py --seconds 0.3 --threads 1 --only {row} --out speed.md`" in page
    rows = re.findall(rf"^\| {row} \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == tables
    for cells in ([float(cell) for cell in found.split("|")] for found in rows):
        assert len(cells) == 3 and min(cells) > 0
    peak = float(rows[0].split("|")[2])
    assert 0.05 < peak < 20, "GB of a process with torch in it"


@pytest.mark.slow
def test_sampling(tmp_path: Path) -> None:
    settings = ["--seconds", "0.1", "--chains", "2", "--kernels", "hmc", "mala", "slice", "nuts", "--draws", *4 * ["4"], "--warmup", *4 * ["2"]]
    command = [sys.executable, str(SPEED.with_name("sampling.py")), *settings, "--out", "sampling.md"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "sampling.md").read_text()
    assert all(line in page for line in run.stdout.splitlines())
    rows = re.findall(r"^\| (\w+) \| 2 x 4 \| (.*) \|$", page, re.MULTILINE)
    assert [name for name, _ in rows] == ["hmc", "mala", "slice", "nuts"] and "as multiples of that of NUTS: hmc " in page


@pytest.mark.slow
def test_coupled(tmp_path: Path) -> None:
    settings = ["--chains", "4", "--steps", "20", "--seconds", "0.2", "--sweeps", "2", "--windows", "4"]
    command = [sys.executable, str(SPEED.with_name("coupled.py")), *settings, "--out", "coupled.md"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "coupled.md").read_text()
    assert all(line in page for line in run.stdout.splitlines())
    assert len(re.findall(r"^\| (?:prior|decoder) \| [\d.]+ \| .*published", page, re.MULTILINE)) == 8
    rows = re.findall(r"^\| (\w+) \| (utterance|4 frames) ", page, re.MULTILINE)
    assert rows == [("mala", "utterance"), ("mala", "4 frames"), ("hmc", "utterance"), ("hmc", "4 frames")]


@pytest.mark.slow
def test_resynthesis(tmp_path: Path) -> None:
    command = [sys.executable, str(SPEED.with_name("resynthesis.py")), "vae", "rvae", "--out", "resynthesis.md"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) M \| (.*) \|$", (tmp_path / "resynthesis.md").read_text(), re.MULTILINE)
    assert [name for name, *_ in rows] == ["vae", "rvae"]
    vae, rvae = ([float(cell) for cell in cells.split("|")] for *_, cells in rows)
    assert all(a < b for a, b in zip(vae[:3], rvae[:3], strict=True)) and rvae[3] < vae[3]  # memory pays: scores rise, the loss falls


@pytest.mark.slow
def test_amortised(tmp_path: Path) -> None:
    clean, rate = soundfile.read(CLEAN)
    soundfile.write(tmp_path / "clean.wav", clean[rate // 2 : 3 * rate // 2], rate)
    soundfile.write(tmp_path / "noise.wav", 0.1 * np.random.default_rng(0).standard_normal(rate), rate)
    manifest = mixing.mix([str(tmp_path / "clean.wav")], [str(tmp_path / "noise.wav")], tmp_path / "corpus", [0.0], 1, 0)
    command = [sys.executable, str(SPEED.with_name("amortised.py")), str(manifest), "--count", "1", "--starts", "1"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    rows = re.findall(r"^\| (\w+), .*`(\w+)`.* \| ([+-][\d.]+) \| .* \| ([\d.]+) \|$", run.stdout, re.MULTILINE)
    assert len(rows) == 8 and all(float(gain) > 0 for *_, gain, _ in rows)
    seconds = {(prior, method): float(time) for prior, method, _, time in rows}
    assert seconds["rvae", "amortised"] < seconds["rvae", "default"]
    assert len(re.findall(r"^\| .*, median of 1 \| \d+ \| \d+ \|$", run.stdout, re.MULTILINE)) == 5


@pytest.mark.slow
def test_adaptation(tmp_path: Path) -> None:
    settings = ["--epochs", "1", "--methods", "amortised", "--out", "here"]
    command = [sys.executable, str(SPEED.with_name("adaptation.py")), *settings]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^has not been shown to help, which takes 5 held out: bound of held-out recordings", run.stdout, re.MULTILINE)
    (row,) = re.findall(r"^\| amortised \| (.*) \|$", run.stdout, re.MULTILINE)
    before, after, gain = row.split(" | ")[:3]
    assert float(after) - float(before) == pytest.approx(float(gain.split()[0]), abs=0.02)
    assert (tmp_path / "here" / "adapted.safetensors").is_file() and (tmp_path / "here" / "scores.json").is_file()


@pytest.mark.slow
def test_band(tmp_path: Path) -> None:
    clean, rate = soundfile.read(CLEAN)
    (tmp_path / "speech").mkdir()
    soundfile.write(tmp_path / "speech" / "a.wav", clean[rate // 2 : 3 * rate // 2], rate)
    command = [sys.executable, str(SPEED.with_name("partial.py")), "band", "speech", "--count", "1"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    found = re.findall(r"^\| ([a-z ,]+) \| ([\d.]+) \| [\d.]+ \| \d+ \| \d+ \|$", run.stdout, re.MULTILINE)
    rows = {name: float(distance) for name, distance in found}
    assert len(rows) == 4 and rows["posterior"] < rows["silence"]
