"""What goes into the groups beside posterior and likelihood: predictive data, draws of guides, EM."""

from __future__ import annotations

from pathlib import Path

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

from ppse import STFT, ComplexNormal, Mixture, to_arviz
from ppse.infer import Draws, Info, Proposal
from ppse.mixture import Frames
from ppse.runs import load_run, save_run

T, F, C, N = 12, 5, 3, 200
SMALL = STFT(8, 2, 100)


def white(frames: Frames) -> ComplexNormal:
    """White noise of unknown level, and unknown level of every frame."""
    level = pyro.sample("level", dist.Gamma(torch.tensor(3.0), 1.0))
    with frames:
        gain = pyro.sample("gain", dist.Gamma(torch.tensor(5.0), 5.0))
    return ComplexNormal(0j, (level * gain).unsqueeze(-1).expand(*gain.shape, F))


MODEL = Mixture(noise=white)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(T, F, dtype=torch.complex64)


def known(level: float = 2.0) -> Draws:
    """Draws that all are the same: what is replicated under them has a known law."""
    ones = torch.ones(N, C, 1)
    values = {"noise.level": level * ones, "noise.gain": torch.ones(N, C, T)}
    plates = {"noise.level": ("chains", ""), "noise.gain": ("chains", "frames")}
    return Draws(values, Info(ones, ones > 0, -ones, ones < 0), None, plates, ("chains", ""))


def test_replicated_data_have_the_law_of_the_model(x: Tensor) -> None:
    idata = to_arviz(known(), MODEL, x, stft=SMALL, predictive=N)
    spectrum, envelope = (idata.posterior_predictive[f"x.{name}"] for name in ("spectrum", "envelope"))
    assert spectrum.dims == ("chain", "draw", "freq") and envelope.dims == ("chain", "draw", "frame")
    np.testing.assert_allclose(spectrum["freq"], SMALL.frequencies)
    for values, averaged in ((spectrum.values, T), (envelope.values, F)):  # means of `averaged` exponential variables of mean 2
        count = values.size
        assert abs(values.mean() - 2.0) < 4 * 2.0 / np.sqrt(averaged * count)
        assert values.var() == pytest.approx(4.0 / averaged, rel=0.25)


def test_the_prior_is_that_of_the_model(x: Tensor) -> None:
    idata = to_arviz(known(), MODEL, x, predictive=N)
    level, gain = idata.prior["noise.level"], idata.prior["noise.gain"]
    assert level.dims == ("chain", "draw") and gain.dims == ("chain", "draw", "frame") and level.shape == (1, N)
    assert abs(level.values.mean() - 3.0) < 4 * np.sqrt(3.0 / N) and level.values.var() == pytest.approx(3.0, rel=0.5)
    assert abs(gain.values.mean() - 1.0) < 4 * np.sqrt(0.2 / (N * T))
    # Every replicated envelope belongs to the level and gain that are drawn along with it.
    ratio = idata.prior_predictive["x.envelope"] / (level * gain)
    assert abs(ratio.values.mean() - 1.0) < 4 / np.sqrt(ratio.size * F)


def test_observed_data_have_what_replicated_data_are_compared_with(x: Tensor) -> None:
    observed = torch.ones(T, F, dtype=torch.bool)
    observed[:, -1], observed[3, 0] = False, False
    idata = to_arviz(known(), MODEL, x, observed, predictive=2)
    power = np.where(observed, x.abs().square(), 0.0)
    np.testing.assert_allclose(idata.observed_data["x.spectrum"][:-1], power.sum(0)[:-1] / observed.sum(0).numpy()[:-1], rtol=1e-5)
    np.testing.assert_allclose(idata.observed_data["x.envelope"], power.sum(1) / observed.sum(1).numpy(), rtol=1e-5)
    assert bool(idata.observed_data["x.spectrum"][-1].isnull())
    assert bool(idata.posterior_predictive["x.spectrum"].isel(freq=-1).isnull().all())  # nothing there was observed
    assert bool(idata.posterior_predictive["x.spectrum"].isel(freq=slice(-1)).notnull().all())


def test_a_batch_keeps_its_utterances() -> None:
    x = torch.randn(2, 1, T, F, dtype=torch.complex64)
    ones = torch.ones(N, 2, C, 1)
    values = {"noise.level": ones, "noise.gain": torch.ones(N, 2, C, T)}
    plates = {"noise.level": ("utterances", "chains", ""), "noise.gain": ("utterances", "chains", "frames")}
    idata = to_arviz(Draws(values, Info(ones, ones > 0, -ones, ones < 0), None, plates, ("utterances", "chains", "")), MODEL, x, predictive=4)
    assert idata.posterior_predictive["x.spectrum"].dims == ("chain", "draw", "utterance", "freq")
    assert idata.prior["noise.gain"].dims == ("chain", "draw", "utterance", "frame")
    assert idata.observed_data["x.envelope"].dims == ("utterance", "frame")


def test_predictive_draws_are_reproducible_and_leave_the_generator_alone(x: Tensor) -> None:
    before = torch.random.get_rng_state()
    one, same, other = (to_arviz(known(), MODEL, x, predictive=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    xr.testing.assert_identical(one.posterior_predictive, same.posterior_predictive)
    assert not one.posterior_predictive.equals(other.posterior_predictive) and not one.prior.equals(other.prior)
    assert one.posterior_predictive.sizes["draw"] == 3 and one.posterior_predictive.sizes["chain"] == C


def test_draws_of_a_guide_have_their_densities(x: Tensor) -> None:
    draws = known()
    lp, lq = torch.randn(N, C, T), torch.randn(N, C, T)
    idata = to_arviz(draws._replace(stats=Proposal(lp, lq), blocks=("chains", "frames")), MODEL, x)
    assert set(idata.sample_stats.data_vars) == {"lp", "log_proposal"}
    np.testing.assert_array_equal(idata.sample_stats["log_proposal"], lq.transpose(0, 1))


def test_energy_is_kept_where_a_kernel_has_one(x: Tensor) -> None:
    draws = known()
    assert isinstance(draws.stats, Info) and "energy" not in to_arviz(draws).sample_stats
    energy = torch.randn(N, C, 1)
    idata = to_arviz(draws._replace(stats=draws.stats._replace(energy=energy)))
    np.testing.assert_array_equal(idata.sample_stats["energy"], energy[..., 0].T)
    assert az.bfmi(idata).shape == (C,)


def test_a_file_gives_back_all_groups(x: Tensor, tmp_path: Path) -> None:
    idata = to_arviz(known(), MODEL, x, torch.ones(T, F, dtype=torch.bool), stft=SMALL, predictive=3, moved=True)
    save_run(idata, tmp_path / "run.nc")
    back = load_run(tmp_path / "run.nc")
    groups = {"posterior", "sample_stats", "log_likelihood", "observed_data", "constant_data", "prior", "posterior_predictive", "prior_predictive"}
    assert set(back.groups()) == groups
    for group in groups:
        xr.testing.assert_identical(back[group], idata[group])
    assert back.posterior.attrs["parameters_moved"] == 1


def test_predictive_needs_the_model(x: Tensor) -> None:
    with pytest.raises(ValueError, match="predictive, needs both model and x"):
        to_arviz(known(), predictive=3)
    with pytest.raises(ValueError, match="predictive=-1; expected 0"):
        to_arviz(known(), MODEL, x, predictive=-1)
