"""Every example runs, as a reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = {
    "new_noise_model.py": ["--iterations", "3"],
    "sample_posterior.py": ["--chains", "2", "--warmup", "3", "--samples", "8"],
    "two_noises.py": ["--iterations", "3"],
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_example_runs(name: str, tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, str(EXAMPLES / name), *TINY[name]], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert "SI-SDR" in run.stdout or "R-hat" in run.stdout
