"""Every example runs, as a reader would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
CHAINS = ["--chains", "2", "--warmup", "5", "--samples", "8"]

# Example → tiny settings, and what it must print.
TINY = {
    "adapt.py": (["--epochs", "1", "--iterations", "2"], ["adapting to the room", "shipped, adapt_em", "adapted to the room, hmc_em"]),
    "audiovisual.py": (["--epochs", "1", "--iterations", "4"], ["lips: SI-SDR", "lips believed where covered", "wrote chain.png"]),
    "choose_noise_model.py": ([*CHAINS, "--lead", "0.5"], ["elpd_loo", "NMF, rank 2: speech at SI-SDR"]),
    "compare_methods.py": (["--iterations", "2"], ["SVI: SI-SDR", "EM, MALA: SI-SDR"]),
    "full_bayes.py": (CHAINS, ["Not to be relied on", "codes: R-hat", "at knot 3"]),
    "heavy_tails.py": (["--iterations", "2", "--out", "."], ["Gaussian: SI-SDR", "alpha-stable: SI-SDR"]),
    "inpainting.py": (["--iterations", "2", "--draws", "2", "--seconds", "1", "--out", "."], ["1 gaps of 60 ms", "a draw:", "standard deviation"]),
    "known_silences.py": (["--iterations", "2"], ["0.9 s of 2.4 s are labelled", "without labels: SI-SDR", "with labels: SI-SDR"]),
    "listen_to_draws.py": (["--iterations", "2", "--draws", "2", "--out", "."], ["a draw", "deviation (dB) per half second"]),
    "new_noise_model.py": (["--iterations", "3"], ["SI-SDR"]),
    "switch_two_priors.py": (["--iterations", "3", "--plot", "regimes.png"], ["speech with probability", "wrote regimes.png"]),
    "three_regimes.py": (["--frames", "60", "--iterations", "4"], ["frames whose regime is found", "after silence"]),
    "two_noises.py": (["--iterations", "3"], ["machine", "SI-SDR"]),
}
SOUNDS = {
    "inpainting.py": {"mean.wav", "draw.wav"},
    "heavy_tails.py": {"noisy.wav", "Gaussian.wav", "Student-t.wav", "alpha-stable.wav"},
    "listen_to_draws.py": {"mean.wav", "draw0.wav", "draw1.wav"},
}


def test_every_example_is_listed_and_short() -> None:
    scripts = {path.name: path for path in EXAMPLES.glob("*.py")}
    assert set(scripts) == set(TINY)
    overview = (EXAMPLES / "README.md").read_text()
    for name, path in scripts.items():
        assert f"`{name}`" in overview
        assert len(path.read_text().splitlines()) < 120, f"{name} is too long to be read from top to bottom"


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_example_runs(name: str, tmp_path: Path) -> None:
    settings, expected = TINY[name]
    run = subprocess.run([sys.executable, str(EXAMPLES / name), *settings], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    for words in expected:
        assert words in run.stdout
    assert {path.name for path in tmp_path.glob("*.wav")} == SOUNDS.get(name, set())
