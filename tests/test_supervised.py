"""The supervised baseline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppse import STFT, weights
from ppse.optimisation import Schedule
from ppse.recordings import Recordings
from ppse.supervised import SupervisedEnhancer, squared_error, train

SMALL = STFT(64, 16)
F = SMALL.n_freqs


def _pair(seed: int) -> tuple[Tensor, Tensor]:
    """A tone that comes and goes, alone and in white noise at 0 dB."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(8000) / 16_000
    clean = torch.sin(2 * torch.pi * (900 + 200 * seed) * time) * (torch.sin(30 * time) > 0)
    return clean, clean + 0.5 * torch.randn(8000, generator=generator)


@pytest.mark.parametrize("mapping", [False, True])
def test_it_learns_to_enhance_and_is_read_back(mapping: bool, tmp_path: Path) -> None:
    pairs = [_pair(seed) for seed in range(3)]
    clean, noisy = ([pair[i] for pair in pairs] for i in (0, 1))
    torch.manual_seed(0)
    network, out = SupervisedEnhancer(F, 8, mapping=mapping), tmp_path / "supervised.safetensors"
    data = Recordings(noisy[:2], SMALL, clean[:2]), Recordings(noisy[2:], SMALL, clean[2:])
    log = train(network, *data, out, Schedule(3, 3e-2, final_learning_rate=5e-3), batch=4, frames=32, steps=6)
    assert log[-1].validation < log[0].validation
    estimate = network.enhance(noisy[2])
    left, was = (float(squared_error(SMALL.analysis(wave), SMALL.analysis(clean[2]))) for wave in (estimate, noisy[2]))
    assert left < 0.7 * was
    loaded = weights.load(SupervisedEnhancer, out)
    torch.testing.assert_close(loaded.enhance(100 * noisy[2]), 100 * estimate, rtol=1e-3, atol=1e-2)
    assert weights.card(out)["supervised"]["loss"] == ("mapping" if mapping else "mask")


def test_the_error_is_that_of_complex_spectra() -> None:
    clean = torch.tensor([[4.0 + 0j, 9j]])
    assert squared_error(clean, clean) == 0
    assert float(squared_error(torch.tensor([[-1.0 + 0j, 9.0]]), clean)) == pytest.approx(25 + 162)


def test_unlabelled_recordings_are_refused(tmp_path: Path) -> None:
    noisy = Recordings([_pair(0)[1]], SMALL)
    with pytest.raises(ValueError, match="not known everywhere"):
        train(SupervisedEnhancer(F, 4), noisy, noisy, tmp_path / "out.safetensors")
