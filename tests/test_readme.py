"""The Python blocks of the README run, one after the other, as a reader would type them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "enhanced.wav").exists()


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(((?!https?:)[^)]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
