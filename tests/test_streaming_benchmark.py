"""The benchmark of streaming runs, and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "streaming.py"


@pytest.mark.slow
def test_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=32_000) * (1 + np.sin(np.arange(32_000) / 900)) * 0.05
    soundfile.write(tmp_path / "clean.wav", wave, 16_000)
    soundfile.write(tmp_path / "noisy.wav", wave + 0.02 * rng.normal(size=wave.size), 16_000)
    (tmp_path / "manifest.json").write_text(json.dumps({"one": {"clean_wav": "clean.wav", "noisy_wav": "noisy.wav"}}))
    command = [sys.executable, str(BENCHMARK), str(tmp_path / "manifest.json"), "--method", "fast", "--out", "table.md"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "table.md").read_text()
    assert page == run.stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")][2:]
    streams = [f"stream, ears of {name}, 128 ms" for name in ("ears_causal", "vae")]
    assert [row[:2] for row in rows] == [["", "noisy"], *(["vae", how] for how in ("fast", *streams))]
    assert all(len(row) == 7 and float(row[2]) > -30 and float(row[6]) >= 0 for row in rows)
