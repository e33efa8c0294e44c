"""Which expert when: from the draws that a result keeps, and drawn under spectrogram and lips."""

from pathlib import Path

import numpy as np
import pyro
import pytest
import torch

from ppse import ComplexNormal, Mixture, enhance
from ppse.enhance import Enhancement
from ppse.inference_data import to_arviz
from ppse.lips import Lips
from ppse.methods import fast, switching_gibbs, switching_vem
from ppse.models import StationaryNoise, SwitchingSpeech, VAESpeech
from ppse.regimes import plot_regimes, regime_posterior


def _loud(frames: pyro.plate) -> ComplexNormal:
    return ComplexNormal(0j, torch.full((frames.size, 513), 4.0))


def _quiet(frames: pyro.plate) -> ComplexNormal:
    return ComplexNormal(0j, torch.full((frames.size, 513), 1e-4))


def _floor(frames: pyro.plate) -> ComplexNormal:
    return ComplexNormal(0j, torch.full((frames.size, 513), 0.01))


def _result(**how: object) -> Enhancement:
    """One second: quiet, then loud from 0.4 s on."""
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(16_000) * torch.where(torch.arange(16_000) < 6_400, 0.03, 1.0)
    model = Mixture(speech=SwitchingSpeech([_quiet, _loud]), noise=_floor)
    return enhance(wave, model, how.pop("method", switching_vem(4, average=2)), **{"keep_run": True} | how)  # type: ignore[arg-type]  # of any kind here


@pytest.mark.parametrize("how", [{}, {"window": 0.5}, {"method": switching_gibbs(4)}, {"method": fast(4)}])
def test_the_loud_part_is_found(how: dict[str, object]) -> None:
    times, probability = posterior = regime_posterior(_result(**how))
    assert probability.shape == (len(times), 2) and np.allclose(probability.sum(-1), 1) and (np.diff(times) > 0).all()
    inside = (np.abs(times - 0.4) > 0.05) & (times > 0.03) & (times < 0.97)
    assert ((times > 0.4) == (posterior.path() == 1))[inside].mean() > 0.97


def test_the_chain_is_in_the_inference_data() -> None:
    result = _result()
    run = result.runs[0]
    idata = to_arviz(run.draws, run.model, run.x, run.observed, stft=result.stft, moved=run.moved)
    regime = idata["posterior"]["speech.regime"]
    assert regime.dims == ("chain", "draw", "frame")
    assert np.allclose((regime == 1).mean(("chain", "draw")).values, regime_posterior(result).probability[:, 1])


def test_picture_with_lips(tmp_path: Path) -> None:
    lips = Lips.at_rate(torch.rand(25, 88, 88), 25.0)
    lips = Lips(lips.frames, lips.times, lips.times < 0.5)
    figure = plot_regimes(_result(), tmp_path / "a.png", experts=["quiet", "loud"], lips=lips)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    strip, spectrogram, chain = figure.axes[:3]
    assert len(strip.images) > 20 and 8 < len(strip.lines) < 16 and spectrogram.images
    assert [text.get_text() for text in chain.get_legend().get_texts()] == ["loud", "quiet"]
    assert len(plot_regimes(_result()).axes) == 2


def test_what_is_missing_is_told() -> None:
    with pytest.raises(ValueError, match="keep_run=True"):
        regime_posterior(_result(keep_run=False))
    with pytest.raises(ValueError, match="1 names, .* for 2 experts"):
        plot_regimes(_result(), experts=["quiet"])
    plain = Mixture(speech=VAESpeech(513, 2, (4,)), noise=StationaryNoise())
    result = enhance(0.1 * torch.randn(8_000), plain, fast(2), keep_run=True)
    with pytest.raises(ValueError, match="expected one source that switches"):
        regime_posterior(result)
