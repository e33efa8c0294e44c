"""Coverage is nominal where the law is right and is not where it is wrong; recalibration mends what it was fitted for.

Bounds of the statistical tests are 5 standard errors over independent replicates.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.poutine as poutine
import pytest
import torch
from scipy.stats import kstest, rice
from torch import Tensor

import ppse
from ppse import audio, demo, methods, mixing, recalibration
from ppse.distributions import ComplexNormal
from ppse.enhance import Enhancement
from ppse.infer import hmc
from ppse.mixture import draw_sources
from ppse.models import StationaryNoise, VAESpeech
from ppse.recalibration import PROBABILITIES, Case, Recalibration, fit, floored, relative_uncertainty, shipped
from ppse.testing import around_truth
from ppse.uncertainty import (
    LEVELS,
    coverage,
    draws_pit,
    error_correlation,
    magnitude_interval,
    magnitude_pit,
    magnitude_quantile,
    stft_law,
)

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "coverage.py"


def law_of(shape: tuple[int, ...] = (200, 50), mean: float = 1.0) -> ComplexNormal:
    """Bins of all relative uncertainties."""
    loc = mean * torch.randn(shape, dtype=torch.complex128)
    return ComplexNormal(loc, torch.exp(2 * torch.randn(shape, dtype=torch.float64)))


def assert_nominal(pit: np.ndarray) -> None:
    """Replicates come first and are independent; what lies within one need not be."""
    shares = np.array([list(coverage(replicate).values()) for replicate in pit])
    error = np.abs(shares.mean(0) - LEVELS) / (shares.std(0, ddof=1) / np.sqrt(len(shares)))
    assert np.all(error < 5), f"coverage {shares.mean(0)}, {error} standard errors from {LEVELS}"


@pytest.mark.parametrize("ratio", [0.0, 0.3, 3.0, 60.0, 99.0, 101.0, 1e4])
def test_pit_and_quantile_are_those_of_the_rice_law(ratio: float) -> None:
    """The noncentral chi-square below, and the normal law above, of a mean 100 times the deviation of a part."""
    scale = 0.7
    law = ComplexNormal(torch.tensor([-1j * ratio * scale]), torch.tensor([2 * scale**2], dtype=torch.float64))
    true = np.clip(ratio + np.array([-2.0, 0.5, 2.0]), 0.1, None)
    expected = rice.cdf(true, ratio)
    found = np.array([magnitude_pit(law, torch.tensor([scale * r + 0j], dtype=torch.complex128))[0] for r in true])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    back = np.array([magnitude_quantile(law, p)[0] for p in expected])
    np.testing.assert_allclose(back / scale, true, rtol=1e-3)


def test_pit_of_the_right_law_is_uniform() -> None:
    law = law_of()
    assert kstest(magnitude_pit(law, law.sample()).ravel(), "uniform").pvalue > 1e-4
    wrong = ComplexNormal(law.loc, 0.7 * law.var)
    assert kstest(magnitude_pit(wrong, law.sample()).ravel(), "uniform").pvalue < 1e-4


def test_intervals_agree_with_the_pit() -> None:
    law = law_of()
    truth = law.sample()
    for level, share in coverage(magnitude_pit(law, truth)).items():
        low, high = magnitude_interval(law, level)
        assert np.mean((low <= truth.abs().numpy()) & (truth.abs().numpy() <= high)) == pytest.approx(share, abs=1e-3)


def test_known_bins() -> None:
    law = ComplexNormal(torch.tensor([1 + 0j, 1 + 0j, 0j]), torch.zeros(3))
    assert magnitude_pit(law, torch.tensor([1j, 0.5 + 0j, 1 + 0j])).tolist() == [0.5, 0.0, 1.0]
    low, high = magnitude_interval(law)
    assert low.tolist() == high.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("n", [3, 10, 39])
def test_pit_of_draws_is_uniform_for_any_number(n: int) -> None:
    values = np.random.default_rng(1).standard_normal((n + 1, 20_000))
    assert kstest(draws_pit(values[1:], values[0]), "uniform").pvalue > 1e-4
    assert kstest(draws_pit(0.8 * values[1:], values[0]), "uniform").pvalue < 1e-4


def posterior_magnitudes(temperature: float) -> tuple[Tensor, Tensor]:
    """True magnitudes (replicate, T, F) of speech simulated by a small VAE in stationary noise, and 39 posterior draws before them.

    The chains pass through the true latents, at a random place, so nothing needs to converge.
    """
    like = torch.ones(250, 1, 4, 5, dtype=torch.complex128)
    vae = VAESpeech(5, 2, (4,)).double()
    with torch.no_grad():
        for weight in vae.decoder.parameters():
            weight *= 3  # so that z matters
    model = ppse.Mixture(speech=vae, noise=StationaryNoise())
    model.start(0.7 * like)
    with torch.no_grad():
        trace = poutine.trace(poutine.uncondition(model)).get_trace(like)
        x, laws = trace.nodes["x"]["value"], trace.nodes["_RETURN"]["value"]
        truth = draw_sources(laws, x)["speech"]
    drawn = around_truth(model, lambda target: hmc(target, 0.5, 4), draws=39, thin=2)(x, {"speech.z": trace.nodes["speech.z"]["value"]})
    side_by_side = {name: value.squeeze(2).movedim(0, 1) for name, value in drawn.items()}
    with torch.no_grad(), pyro.plate("chains", 39, dim=-2):
        laws = poutine.condition(model, data=side_by_side)(x)
    tempered = {name: ComplexNormal(law.loc, temperature * law.var) for name, law in laws.items()}
    return truth[:, 0].abs(), draw_sources(tempered, x)["speech"].movedim(1, 0).abs()


def test_intervals_of_draws_are_nominal_on_data_from_the_model() -> None:
    truth, draws = posterior_magnitudes(temperature=1.0)
    assert_nominal(draws_pit(draws, truth))


def test_intervals_of_wrong_draws_are_not_nominal() -> None:
    truth, draws = posterior_magnitudes(temperature=0.3)
    with pytest.raises(AssertionError, match="standard errors"):
        assert_nominal(draws_pit(draws, truth))


def test_coverage_where() -> None:
    assert coverage([0.5, 0.5, 0.99, 0.99], where=[True, True, True, False]) == pytest.approx({0.5: 2 / 3, 0.8: 2 / 3, 0.95: 2 / 3})


def test_errors_correlate_with_deviations_as_they_should() -> None:
    deviation = np.random.default_rng(0).lognormal(size=2000)
    assert error_correlation(deviation, -3 * deviation) == pytest.approx(1.0)
    assert abs(error_correlation(deviation, np.random.default_rng(1).standard_normal(2000))) < 0.12


def sparse_case(generator: torch.Generator) -> Case:
    """A law, and a truth that is mostly off or four times as far off as the law says."""
    shape = (100, 40)
    loc = torch.randn(shape, dtype=torch.complex128, generator=generator)
    law = ComplexNormal(loc, torch.exp(2 * torch.randn(shape, dtype=torch.float64, generator=generator)))
    error = law.var.sqrt() * torch.randn(shape, dtype=torch.complex128, generator=generator)
    return law, law.loc + torch.where(torch.rand(shape, generator=generator) < 0.5, 4.0, 0.5) * error


def sparse_fit() -> Recalibration:
    generator = torch.Generator().manual_seed(0)
    cases = [sparse_case(generator) for _ in range(10)]
    deviations = [np.ones(1000)] * 10
    errors = [3 * np.random.default_rng(i).standard_normal(1000) for i in range(10)]
    return fit(cases, deviations, errors, "made up")


def test_recalibration_mends_other_data() -> None:
    mended, (law, truth) = sparse_fit(), sparse_case(torch.Generator().manual_seed(99))
    before, after = coverage(magnitude_pit(law, truth)), coverage(mended.pit(law, truth))
    assert abs(before[0.95] - 0.95) > 0.1 and all(abs(share - level) < 0.03 for level, share in after.items())
    for level, share in after.items():
        low, high = mended.interval(law, level)
        assert np.mean((low <= truth.abs().numpy()) & (truth.abs().numpy() <= high)) == pytest.approx(share, abs=2e-3)
    ratio = (truth - law.loc).abs().square().mean().item() / np.square(mended.std(law)).mean()
    assert ratio == pytest.approx(1.0, abs=0.1)
    assert mended.waveform == pytest.approx(3.0, abs=0.1) and mended.provenance == "made up"


def test_map_of_probabilities_is_monotone_and_narrower_levels_lie_within() -> None:
    mended, law = sparse_fit(), law_of()
    ends = [mended.interval(law, level) for level in (0.3, 0.5, 0.8, 0.9, 0.95, 0.99)]
    for (inner_low, inner_high), (low, high) in zip(ends, ends[1:], strict=False):
        assert np.all(low <= inner_low) and np.all(inner_high <= high) and np.isfinite(high).all()


def test_floor_of_uncertainty() -> None:
    law = floored(ComplexNormal(torch.tensor([10 + 0j, 1 + 0j, 0j]), torch.tensor([0.0, 1.0, 0.0])))
    assert law.var.tolist() == pytest.approx([1.0, 1.0, 0.0])
    assert relative_uncertainty(law).tolist() == pytest.approx([1 / 101, 0.5, 0.0])


def test_shipped_recalibrations() -> None:
    for name in ("fast", "default", "hmc_em", "full_bayes"):
        found = shipped(name)
        assert len(found.scores) == len(found.deviation) == 4 and found.provenance
        assert all(len(scores) == len(PROBABILITIES) and np.all(np.diff(scores) > 0) for scores in found.scores)
        low, high = found.interval(law_of((5, 6)))
        assert np.all((low >= 0) & (low < high)) and np.isfinite(high).all()


def test_law_of_a_result() -> None:
    samples, sample_rate = audio.read(demo.NOISY)
    result = ppse.enhance(samples[:, :8000], method=methods.fast(iterations=2), sample_rate=sample_rate, std=True)
    law = stft_law(result)
    assert law.var.shape == result.std["speech"][0].shape and torch.allclose(law.var.sqrt(), torch.from_numpy(result.std["speech"][0]))
    assert torch.allclose(result.stft.synthesis(law.loc, 8000), torch.from_numpy(result.estimates["speech"][0]), atol=1e-5)


def test_messages() -> None:
    with pytest.raises(ValueError, match=r"no deviation of 'speech', there is one of \[\]; ask for it: enhance\(…, std=True\)"):
        stft_law(Enhancement(16_000, np.zeros((1, 9), np.float32), {"speech": np.zeros((1, 9), np.float32)}))
    with pytest.raises(ValueError, match="level 95: expected a probability between 0 and 1"):
        coverage([0.5], levels=[95])
    with pytest.raises(ValueError, match="level 1.5"):
        sparse_fit().interval(law_of((2, 2)), 1.5)
    with pytest.raises(ValueError, match="no value counts"):
        coverage([0.5], where=[False])
    with pytest.raises(ValueError, match=r"draws of shape \(3, 4\), truth of \(5,\)"):
        draws_pit(np.zeros((3, 4)), np.zeros(5))
    with pytest.raises(ValueError, match="no recalibration of 'mcem'; there is one of default, fast"):
        shipped("mcem")
    silent = ComplexNormal(torch.zeros(5, 5, dtype=torch.complex64), torch.zeros(5, 5))
    with pytest.raises(ValueError, match="the 25 bins of class 1 of 4 have no distinct quantiles"):
        fit([(silent, silent.loc)], [np.ones(3)], [np.ones(3)], "")


@pytest.mark.slow
def test_benchmark(tmp_path: Path) -> None:
    clean, noisy = (audio.read(path)[0] for path in (demo.CLEAN, demo.NOISY))
    hiss = 1e-3 * np.random.default_rng(0).standard_normal(clean.shape).astype(np.float32)  # no recording is silent between words as synthesis is
    for name, wave in (("speech", clean + hiss), ("noise", noisy - clean)):
        audio.write(tmp_path / f"{name}.wav", wave, mixing.RATE, subtype="FLOAT")
    manifest = mixing.mix([tmp_path / "speech.wav"], [tmp_path / "noise.wav"], tmp_path / "corpus", [0.0, 5.0])
    command = [
        sys.executable, str(BENCHMARK), str(manifest), "--fit", str(manifest), "--methods", "fast", "--seconds", "1.5", "--replicates", "0",
        "--threads", "1", "--save", "found.json", "--out", "page.md",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "page.md").read_text()
    before, _, after = (line.split("|")[2].split("/") for line in page.splitlines() if line.startswith(("| fast", "| …")))
    # Fitted on the very same mixture, it must be nominal; before, it is not.
    assert abs(float(before[2]) - 95) > 10 and [float(share) for share in after] == pytest.approx([50, 80, 95], abs=3)
    stored = json.loads((tmp_path / "found.json").read_text())
    assert stored["fast"].keys() == set(Recalibration._fields) and recalibration.SHIPPED.exists()
