"""The study of labels hands every recording to one kind, and holds out a tenth of each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppse import STFT
from ppse.corpus import Waves

COUNT = 40


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.delitem(sys.modules, "semi", raising=False)
    import semi

    yield semi
    del sys.modules["semi"], sys.modules["semi_report"]


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "pairs", "noisy"),
    [
        (0.05, 1.0, (1, 1), (35, 3)), (0.05, 0.25, (1, 1), (9, 1)), (0.05, 0.0, (1, 1), (0, 0)),
        (0.0, 1.0, (0, 0), (36, 4)), (1.0, 1.0, (36, 4), (0, 0)),
    ],
)
def test_cells(study: Any, labelled: float, unlabelled: float, pairs: tuple[int, int], noisy: tuple[int, int]) -> None:
    """Recording i lasts 1100 + i samples."""
    clean, others = (Waves([torch.randn(2000)], STFT()) for _ in range(2))
    waves = [torch.randn(1100 + i) for i in range(COUNT)]
    data = study.Data(clean, others, waves, [0.5 * wave for wave in waves])
    halves = study.material(data, study.Cell("semi", labelled, unlabelled, 0))
    seen: list[int] = []
    for half, speech, known, unknown in zip(halves, (clean, others), pairs, noisy, strict=True):
        assert half.clean is speech and half.labels is None and half.noise is None
        assert len(half.pairs.waves if half.pairs else []) == known and len(half.noisy.waves if half.noisy else []) == unknown
        for part in (half.pairs, half.noisy):
            seen += [len(wave) - 1100 for wave in part.waves] if part else []
        if half.noisy:
            assert half.noisy.known == 0
        if half.pairs:
            assert half.pairs.known == 1
    assert len(set(seen)) == len(seen) == sum(pairs) + sum(noisy)
