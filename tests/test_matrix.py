"""The matrix of models and methods is complete, and docs/matrix.md says what is so."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pyro.nn import PyroModule

from ppse import guides, methods, models

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "matrix.md").read_text()


def test_all_models_methods_and_guides_are_in_it() -> None:
    sources = {name for name in models.__all__ if inspect.isclass(getattr(models, name)) and issubclass(getattr(models, name), PyroModule)}
    rows = set(re.findall(r"\w+", " ".join(re.findall(r"^\| ([A-Z][^|]*) \|", PAGE, re.MULTILINE))))
    assert sources <= rows, f"no row of {sources - rows}"
    columns = {name.strip() for header in re.findall(r"^\| \|(.*)\|$", PAGE, re.MULTILINE) for name in header.split("|")}
    assert {make.__name__ for make in methods.ALL} <= columns
    families = {name for name in guides.__all__ if inspect.isfunction(getattr(guides, name)) and not name.endswith("_guide")}
    kernels = {"metropolis", "langevin", "kinetic_langevin", "mala", "hmc", "elliptical_slice", "gibbs", "nuts", "parallel_tempering"}
    assert families | {"encoder"} | kernels <= columns


def test_no_cell_is_empty_and_every_reason_is_one_of_ours() -> None:
    rows = [row.strip("| ").split(" | ") for row in PAGE.splitlines() if row.startswith("| ") and not row.startswith("| |")]
    assert len(rows) > 5 * 12
    assert all(re.fullmatch(r"yes|no \(\d+\)", cell) for row in rows for cell in row[1:])
    reasons = re.findall(r"^(\d+)\. (\w+): ", PAGE, re.MULTILINE)  # errors of ours say where; those of torch do not, and would be faults
    assert [int(number) for number, _ in reasons] == list(range(1, len(re.findall(r"^\d+\. ", PAGE, re.MULTILINE)) + 1))
    assert {int(number) for number in re.findall(r"no \((\d+)\)", PAGE)} == {int(number) for number, _ in reasons}


@pytest.mark.slow
def test_the_page_is_what_the_benchmark_finds() -> None:
    run = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "matrix.py")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == PAGE, "python benchmarks/matrix.py --out docs/matrix.md makes another page: look at the difference, then commit it"
