"""Draws as ArviZ data, what is said of them, and the noise model that LOO picks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
import xarray as xr
from torch import Tensor

from ppse import STFT, ComplexNormal, Mixture, to_arviz, verdict
from ppse.convergence import bfmi, by_group, convergence, max_pareto_k, pareto_k
from ppse.infer import Draws, Group, Info, Proposal, adapt_step_size, gibbs, hmc, log_density, mala, sample
from ppse.mixture import Frames
from ppse.models import StationaryNoise, VAESpeech
from ppse.runs import load_run, save_run

T, F, L, C, N = 7, 9, 3, 4, 11
SMALL = STFT(16, 4, 100)


def white(frames: Frames) -> ComplexNormal:
    """White noise of unknown level."""
    level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, level.unsqueeze(-1).expand(*level.shape[:-1], frames.size, F))  # (C, 1) under chains


def flicker(frames: Frames) -> ComplexNormal:
    """A level per frame."""
    with frames:
        level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, level.unsqueeze(-1).expand(*level.shape, F))


def lifted(x: Tensor) -> Callable[..., Any]:
    """Stationary noise with a prior on its spectrum, at the same place and width as that of the level of white noise."""
    model = Mixture(noise=StationaryNoise())
    model.start(x)
    return poutine.lift(model, prior={"noise.spectrum": dist.LogNormal(torch.zeros(F), 1.0).to_event(1)})


def run(model: Callable[..., Any], *args: Tensor, n: int = N, warmup: int = 5, chains: int = C, step_size: float = 0.05) -> Draws:
    target = log_density(model, *args, chains=chains)
    return sample(target, mala(target, step_size), target.init(jitter=0.1), n, warmup=warmup)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(T, F, dtype=torch.complex64)


def speech_and_flicker() -> Mixture:
    return Mixture(speech=VAESpeech(F, L, (5,), 4).requires_grad_(False), noise=flicker)


def test_dims_are_those_of_the_plates_and_values_stay_in_place(x: Tensor) -> None:
    model = speech_and_flicker()
    draws = run(model, x)
    idata = to_arviz(draws, model, x, stft=SMALL)
    z, level = idata.posterior["speech.z"], idata.posterior["noise.level"]
    assert z.dims == ("chain", "draw", "frame", "latent") and z.shape == (C, N, T, L)
    assert level.dims == ("chain", "draw", "frame")
    np.testing.assert_array_equal(z.values, draws.values["speech.z"].transpose(0, 1))
    np.testing.assert_array_equal(level.values, draws.values["noise.level"].transpose(0, 1))
    stats = idata.sample_stats
    assert all(stats[name].dims == ("chain", "draw", "frame") for name in ("acceptance_rate", "accepted", "lp", "diverging", "step_size"))
    np.testing.assert_array_equal(stats["lp"].values, draws.stats.log_density.transpose(0, 1))
    np.testing.assert_array_equal(stats["step_size"].values, np.full((C, N, T), 0.05, np.float32))
    np.testing.assert_array_equal(idata.observed_data["x"].sel(part="imag").values, x.imag)
    np.testing.assert_allclose(idata.observed_data["freq"].values, torch.fft.rfftfreq(16, 1e-2))


def test_log_likelihood_is_that_of_each_frame_given_each_draw(x: Tensor) -> None:
    model, observed = speech_and_flicker(), torch.rand(T, F) > 0.3
    draws = run(model, x, observed)
    idata = to_arviz(draws, model, x, observed)
    found = idata.log_likelihood["x"]
    assert found.dims == ("chain", "draw", "frame")
    for chain, draw in ((0, 0), (3, 10), (2, 5)):
        values = {name: value[draw, chain] for name, value in draws.values.items()}
        laws = poutine.condition(model, data=values)(x)
        law = laws["speech"] + laws["noise"]
        expected = (law.log_prob(x) * observed).sum(-1)
        torch.testing.assert_close(torch.tensor(found.sel(chain=chain, draw=draw).values), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(idata.constant_data["observed"].values, observed)


def test_frames_have_the_time_of_their_centre() -> None:
    wave = torch.zeros(64)
    wave[20] = 1.0
    x = SMALL.analysis(wave)
    time = to_arviz(run(Mixture(noise=flicker), x), Mixture(noise=flicker), x, stft=SMALL).constant_data["time"].values
    power = x.abs().square().sum(-1)
    assert np.average(time, weights=power) == pytest.approx(20.5 / 100, abs=1 / 100)


def test_what_frames_share_has_no_frame_dim_and_one_block(x: Tensor) -> None:
    model = lifted(x)
    draws = run(model, x, step_size=1e-3)
    idata = to_arviz(draws, model, x, dims={"noise.spectrum": ("freq",)})
    assert idata.posterior["noise.spectrum"].dims == ("chain", "draw", "freq")
    assert idata.sample_stats["lp"].dims == ("chain", "draw")
    # One block holds all: its density is that of the prior, the likelihood of all frames, and the change of variables.
    spectrum = draws.values["noise.spectrum"].squeeze(2)
    prior = (dist.LogNormal(0.0, 1.0).log_prob(spectrum) + spectrum.log()).sum(-1).transpose(0, 1)
    total = idata.log_likelihood["x"].sum("frame").values + prior.numpy()
    np.testing.assert_allclose(idata.sample_stats["lp"].values, total, rtol=1e-3)


def test_a_batch_has_utterances() -> None:
    x = torch.randn(2, 1, T, F, dtype=torch.complex64)
    model, observed = speech_and_flicker(), torch.ones(2, 1, T, 1, dtype=torch.bool)
    draws = run(model, x, observed)
    idata = to_arviz(draws, model, x, observed)
    assert idata.posterior["speech.z"].dims == ("chain", "draw", "utterance", "frame", "latent")
    assert idata.log_likelihood["x"].dims == ("chain", "draw", "utterance", "frame")
    assert idata.observed_data["x"].dims == ("utterance", "frame", "freq", "part")
    assert idata.constant_data["observed"].shape == (2, T, F)
    np.testing.assert_array_equal(idata.posterior["speech.z"].values[1, 3], draws.values["speech.z"][3, :, 1])


def test_latents_of_different_sizes_keep_apart(x: Tensor) -> None:
    model = Mixture(a=VAESpeech(F, 2, (5,), 4).requires_grad_(False), b=VAESpeech(F, 3, (5,), 4).requires_grad_(False))
    posterior = to_arviz(run(model, x)).posterior
    assert posterior["a.z"].dims[-1] == "a.z_latent" and posterior["b.z"].dims[-1] == "b.z_latent"


def test_netcdf_gives_back_all_groups(x: Tensor, tmp_path: Path) -> None:
    model, observed = speech_and_flicker(), torch.rand(T, F) > 0.3
    idata = to_arviz(run(model, x, observed), model, x, observed, stft=SMALL)
    path = str(tmp_path / "run.nc")
    idata.to_netcdf(path)
    back = az.from_netcdf(path)
    assert back.groups() == idata.groups()
    assert set(back.groups()) == {"posterior", "sample_stats", "log_likelihood", "observed_data", "constant_data"}
    for group in idata.groups():
        xr.testing.assert_identical(back[group].load(), idata[group])
    assert int(back.constant_data["sample_rate"]) == 100 and int(back.constant_data["hop"]) == 4
    assert verdict(back) == verdict(idata)
    back.close()


def test_what_does_not_fit_together_is_refused(x: Tensor) -> None:
    model = speech_and_flicker()
    draws = run(model, x)
    with pytest.raises(ValueError, match="needs both model and x"):
        to_arviz(draws, model)
    with pytest.raises(ValueError, match="'speech.z'.*not in both"):
        to_arviz(draws, Mixture(noise=flicker), x)
    with pytest.raises(ValueError, match="'noise.level'.*not in both"):
        to_arviz(run(Mixture(speech=model.speech), x), model, x)
    with pytest.raises(ValueError, match="dims of 'speech.z' are .* 1 event dims"):
        to_arviz(draws, dims={"speech.z": ("a", "b")})


def _independent(n: int = 1000, frames: int = 40) -> Draws:
    """Draws of N(0, 1) per frame, as a perfect kernel would give them; one level for all."""
    x = torch.zeros(frames, F, dtype=torch.complex64)
    draws = run(Mixture(noise=flicker), x, n=2)
    ones = torch.ones(n, C, frames)
    stats = Info(0.6 * ones, ones > 0, -ones, ones < 0)
    return draws._replace(values={"noise.level": torch.randn(n, C, frames).exp()}, stats=stats)


def test_independent_draws_pass() -> None:
    found = verdict(to_arviz(_independent()))
    assert found.passed and found.lines[0].startswith("Passed")
    assert "No divergences" in str(found) and "Acceptance 0.60" in str(found) and "4 chains of 1000 draws" in str(found)
    assert len(found.failing_frames) <= 2


def test_frames_that_fail_are_counted_and_placed_in_time() -> None:
    draws = _independent()
    draws.values["noise.level"][:, 0, [5, 6, 7, 20]] += 3.0  # the first chain is elsewhere
    idata = to_arviz(draws, stft=SMALL)
    found = verdict(idata)
    assert set(found.failing_frames) >= {5, 6, 7, 20} and len(found.failing_frames) <= 6 and not found.passed
    time = idata.constant_data["time"].values
    assert f"{time[5]:.2f} to {time[7]:.2f}" in str(found) and f"{time[20]:.2f} s" in str(found)
    assert f"{len(found.failing_frames)} of 40 frames fail" in str(found) and "frames have not converged" in found.lines[0]
    assert "at frame 5 to 7, 20" in str(verdict(to_arviz(draws)))  # without an STFT there is no time


def test_short_correlated_chains_fail_by_their_sample_size() -> None:
    draws = _independent(200)
    slow = draws.values["noise.level"].log().cumsum(0)
    found = verdict(to_arviz(draws._replace(values={"noise.level": slow})))
    assert not found.passed and len(found.failing_frames) == 40


def test_chains_that_stand_still_fail() -> None:
    draws = _independent(100)
    draws.values["noise.level"][:] = 1.0
    found = verdict(to_arviz(draws))
    assert not found.passed and "40 of 40 coordinates never move" in str(found) and "nan" not in str(found)


def test_divergences_and_rejections_are_told() -> None:
    draws = _independent()
    draws.stats.divergent[:3, 1, 12] = True
    found = verdict(to_arviz(draws))
    assert found.passed and "3 divergent steps" in str(found) and "at frame 12:" in str(found)  # few, in a single frame
    draws.stats.divergent[:2, :, 20:23] = True  # 2 of 1000 in 3 of 40 frames
    found = verdict(to_arviz(draws))
    assert not found.passed and "of the steps diverged in 7.5% of the frames" in found.lines[0]
    draws = _independent()
    draws.stats.acceptance[..., 30:] = 0.01
    assert "10 frames accept less than 0.1, at frame 30 to 39" in str(verdict(to_arviz(draws)))
    draws.stats.acceptance[:] = 0.01
    assert "nearly all moves are rejected" in verdict(to_arviz(draws)).lines[0]
    draws.stats.acceptance[:] = 1.0
    assert "next to nothing was rejected" in str(verdict(to_arviz(draws)))


def test_groups_of_a_sweep_are_judged_apart(x: Tensor, tmp_path: Path) -> None:
    def both(frames: Frames) -> ComplexNormal:
        level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
        with frames:
            gain = pyro.sample("gain", dist.LogNormal(torch.zeros(()), 1.0))
        return ComplexNormal(0j, (level * gain).unsqueeze(-1).expand(*gain.shape, F))

    target = log_density(Mixture(noise=both), x, chains=C)
    kernel = gibbs(target, Group(("noise.gain",), lambda t: hmc(t, 0.2)), Group(("noise.level",), lambda t: hmc(t, 50.0, steps=1)))
    idata = to_arviz(sample(target, kernel, target.init(), N))
    save_run(idata, tmp_path / "run.nc")
    stats = load_run(tmp_path / "run.nc").sample_stats
    assert stats["acceptance_rate:noise.gain"].dims == stats["energy:noise.gain"].dims == ("chain", "draw", "frame")
    assert stats["diverging:noise.level"].dims == stats["step_size:noise.level"].dims == ("chain", "draw")
    assert "energy" not in stats and list(by_group(stats)) == ["noise.gain", "noise.level"]
    told = verdict(idata)
    assert any(line.startswith("noise.gain: No divergences") for line in told.lines)
    assert any(line.startswith("noise.level: ") and "divergent steps (" in line for line in told.lines)
    assert "noise.level: more than 0.1% of the steps diverged" in told.lines[0] and "noise.gain: more" not in told.lines[0]


def test_one_chain_is_too_few() -> None:
    draws = run(Mixture(noise=flicker), torch.randn(T, F, dtype=torch.complex64), chains=1)
    found = verdict(to_arviz(draws))
    assert not found.passed and "two chains or more" in str(found)


def test_energies_that_hardly_change_are_told() -> None:
    draws = _independent()
    energy = torch.randn(1000, C, 40)
    idata = to_arviz(draws._replace(stats=draws.stats._replace(energy=energy)), stft=SMALL)
    fractions = bfmi(idata.sample_stats)
    assert fractions.dims == ("chain", "frame") and abs(float(fractions.mean()) - 2.0) < 0.05  # of independent energies
    found = verdict(idata)
    assert found.passed and "E-BFMI from 1." in str(found)
    energy[:, 0, [3, 4]] = energy[:, 0, [3, 4]].cumsum(0)
    found = verdict(to_arviz(draws._replace(stats=draws.stats._replace(energy=energy))))
    assert found.passed and "2 of 40 frames are below, at frame 3 to 4" in str(found)
    energy[:] = energy.cumsum(0)
    found = verdict(to_arviz(draws._replace(stats=draws.stats._replace(energy=energy))))
    assert not found.passed and "E-BFMI is below 0.3" in found.lines[0]


def test_energies_of_hmc_on_a_gaussian_change_by_what_the_momentum_has() -> None:
    def gaussian() -> None:
        with pyro.plate("frames", 30, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))

    target = log_density(gaussian, chains=C)
    draws = sample(target, hmc(target, 0.15, 12), target.init(), 600, warmup=20)
    fractions = bfmi(to_arviz(draws).sample_stats)
    # Between draws the kinetic energy is drawn anew: of variance d / 2 before and after, and potential and kinetic energy together have d.
    assert abs(float(fractions.mean()) - 1.0) < 0.05


def _proposal(shapes: Tensor, n: int = 500) -> Draws:
    """Draws of a guide whose importance weights, per frame, have a Pareto law of the given shape."""
    log_weights = shapes * torch.empty(n, C, len(shapes)).exponential_()
    log_proposal = torch.randn_like(log_weights)
    stats = Proposal(log_proposal + log_weights, log_proposal)
    return Draws({"noise.level": log_weights}, stats, None, {"noise.level": ("chains", "frames")}, ("chains", "frames"))


def test_pareto_k_is_that_of_the_weights() -> None:
    shapes = torch.tensor([0.2, 0.6, 1.0, 1.5])
    found = pareto_k(to_arviz(_proposal(shapes.repeat(10), 1000)).sample_stats)
    assert found.dims == ("frame",)
    np.testing.assert_allclose(found.values.reshape(10, 4).mean(0), shapes, atol=0.15)
    assert max_pareto_k(100) == pytest.approx(0.5) and max_pareto_k(10_000) == 0.7


def test_a_guide_that_is_the_posterior_passes_and_a_weight_that_is_not_finite_does_not() -> None:
    draws = _proposal(torch.zeros(40))  # equal weights, but for rounding: no tail
    assert isinstance(draws.stats, Proposal)
    assert (pareto_k(to_arviz(draws).sample_stats) == 0).all() and verdict(to_arviz(draws)).passed
    draws.stats.log_density[0, 0, 3] = -torch.inf
    assert verdict(to_arviz(draws)).failing_frames == (3,)


def test_a_guide_is_judged_by_its_importance_weights() -> None:
    shapes = torch.full((40,), 0.1)
    found = verdict(to_arviz(_proposal(shapes)))
    assert found.passed and "guide" in found.lines[0] and not found.failing_frames and "R-hat" not in str(found)
    shapes[[7, 8]] = 3.0
    found = verdict(to_arviz(_proposal(shapes)))
    assert found.passed and found.failing_frames == (7, 8) and "at frame 7 to 8: the posterior is wider" in str(found)
    shapes[:] = 3.0
    found = verdict(to_arviz(_proposal(shapes)))
    assert not found.passed and "in 100.0% of the frames the guide misses the posterior" in found.lines[0]


def test_a_guide_of_one_block_is_judged_as_a_whole() -> None:
    draws = _proposal(torch.full((40,), 3.0))
    whole = Proposal(*(field.sum(-1, keepdim=True) for field in draws.stats))
    found = verdict(to_arviz(draws._replace(stats=whole, blocks=("chains", ""))))
    assert not found.passed and "the guide misses the posterior (" in found.lines[0]
    broken = whole._replace(log_density=whole.log_density * torch.nan)
    assert "k-hat of their importance weights undefined" in str(verdict(to_arviz(draws._replace(stats=broken, blocks=("chains", "")))))


def test_moving_parameters_are_told() -> None:
    found = verdict(to_arviz(_independent(), moved=True))
    assert found.passed and "parameters of the model moved" in str(found)
    assert "moved" not in str(verdict(to_arviz(_independent())))


def test_draws_without_statistics_are_judged_by_themselves() -> None:
    idata = to_arviz(_independent())
    del idata.sample_stats
    found = verdict(idata)
    assert found.passed and "Acceptance" not in str(found)


def test_what_is_not_finite_is_counted_and_not_shouted(caplog: pytest.LogCaptureFixture) -> None:
    draws = _independent(100)
    draws.values["noise.level"][3, 1, :5] = torch.nan
    idata = to_arviz(draws)
    found = convergence(idata)
    assert found is not None and verdict(idata, found) == verdict(idata)
    assert "5 of 40 coordinates never move or are not finite" in str(verdict(idata, found)) and not caplog.records


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ's use of pandas
@pytest.mark.parametrize("truth", ["white", "coloured"])
def test_compare_picks_the_noise_model_that_made_the_data(truth: str) -> None:
    n_frames = 40
    spectrum = torch.ones(F) if truth == "white" else torch.arange(1.0, F + 1) ** -0.7
    x = torch.randn(n_frames, F, dtype=torch.complex64) * spectrum.sqrt()
    runs = {}
    for name, model in {"white": Mixture(noise=white), "coloured": lifted(x)}.items():
        target = log_density(model, x, chains=C)
        # Not from the prior: far below the data the density is so steep that a chain may never come back.
        start = target.init({site: torch.ones(1) for site in target.sites}, jitter=0.3)
        step_size, state = adapt_step_size(lambda e, target=target: mala(target, e), start, 300, 0.01, 0.574)
        runs[name] = to_arviz(sample(target, mala(target, step_size), state, 500, thin=2), model, x)
        judged = verdict(runs[name])
        assert judged.passed, str(judged)
    assert az.loo(runs["coloured"], pointwise=True).pareto_k.max() < 0.7
    table = az.compare(runs, ic="loo")
    assert table.index[0] == truth
    assert table["elpd_diff"].iloc[1] > 2.0


def test_importing_the_package_leaves_arviz_for_later() -> None:
    code = "import ppse, sys; assert not {'arviz', 'xarray', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
