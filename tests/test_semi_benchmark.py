"""The study of labels hands every recording to one kind, and holds out a tenth of each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ppse import STFT, weights
from ppse.corpus import Waves
from ppse.models import VAESpeech
from ppse.semi import Material

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


def test_noise_is_found_under_the_base_for_the_semi_supervised_alone(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained on starts from the base, and has the noise that was found; the others never hear a recording."""
    found: list[bool] = []
    trained: dict[str, Any] = {}

    def find(training: Material, validation: Material, vae: VAESpeech, work: Path, seed: int) -> tuple[Material, Material]:
        base = weights.load(VAESpeech, tmp_path / "weights" / "base_0.safetensors").state_dict()
        found.append(all(torch.equal(value, base[name]) for name, value in vae.state_dict().items()))
        noise = Waves([torch.ones(2000)], STFT())
        return training._replace(noise=noise), validation._replace(noise=noise)

    def train(vae: VAESpeech, training: Material, validation: Material, path: Path, *rest: Any, **options: Any) -> None:
        trained[path.stem] = training
        weights.write(vae, path, {})

    monkeypatch.setattr(study, "with_noise", find)
    monkeypatch.setattr(study.semi, "train", train)
    clean, others = (Waves([torch.randn(2000)], STFT()) for _ in range(2))
    data = study.Data(clean, others, [torch.randn(1100) for _ in range(COUNT)], [torch.randn(1100) for _ in range(COUNT)])
    settings = study.SMALL._replace(latent=2, hidden=6, context=4)
    for arm, unlabelled in (("unsupervised", 0.0), ("semi", 1.0)):
        study.train(study.Cell(arm, 0.0, unlabelled, 0), data, tmp_path, settings)
    assert found == [True]
    assert {name: material.noise is not None for name, material in trained.items()} == {
        "base_0": False, "unsupervised_0_0_0": False, "semi_0_1_0": True,
    }
    assert trained["base_0"].noisy is None and trained["unsupervised_0_0_0"].noisy is None
