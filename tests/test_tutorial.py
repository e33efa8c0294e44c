"""The tutorial runs, and the page in docs is of today's code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SOURCE = (DOCS / "tutorial.py").read_text()
PAGE = (DOCS / "tutorial.md").read_text()


def _cells() -> list[tuple[str, str]]:
    """(kind, text) of every cell, in the percent format of jupytext."""
    parts = re.split(r"^# %%(.*)\n", SOURCE, flags=re.MULTILINE)[1:]
    return [("text" if "[markdown]" in kind else "code", text.strip()) for kind, text in zip(parts[::2], parts[1::2], strict=True)]


@pytest.mark.slow
def test_runs_with_small_settings(tmp_path: Path) -> None:
    small, count = re.subn(r"^CHAINS, WARMUP, DRAWS, ITERATIONS = .*$", "CHAINS, WARMUP, DRAWS, ITERATIONS = 2, 5, 50, 2", SOURCE, flags=re.MULTILINE)
    assert count == 1
    (tmp_path / "tutorial.py").write_text(small)
    run = subprocess.run([sys.executable, "tutorial.py"], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    for words in ("speech.z dist", "NMF noise: SI-SDR", "refused: log_density", "Not to be relied on", "elpd_loo", "within two deviations"):
        assert words in run.stdout
    assert {path.name for path in tmp_path.glob("*.wav")} == {"draw0.wav", "draw1.wav", "draw2.wav"}


def test_page_is_of_todays_cells() -> None:
    code = [text for kind, text in _cells() if kind == "code"]
    assert len(code) >= 10
    assert [block.strip() for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)] == code, "run 'make docs'"
    for kind, text in _cells():
        if kind == "text":
            assert re.sub(r"^# ?", "", text, flags=re.MULTILINE).strip() in PAGE, "run 'make docs'"


def test_figures_are_those_of_the_page_and_small() -> None:
    shown = set(re.findall(r"!\[png\]\(([^)]+)\)", PAGE))
    files = {str(path.relative_to(DOCS)): path.stat().st_size for path in (DOCS / "tutorial_files").iterdir()}
    assert shown == set(files)
    assert "Warning" not in PAGE and "site-packages" not in PAGE  # of the machine that made it
    assert len(shown) >= 4
    assert sum(files.values()) < 300_000


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", PAGE):
        assert (DOCS / target).exists(), target
