"""Figures of runs: what is drawn is what was measured, what lacks its data is left out with a reason, and nothing global is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arviz as az
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from ppse import STFT, ComplexNormal, Mixture, to_arviz
from ppse.chain_plots import LAGS, RANK_BINS, coordinate, plot_autocorrelation, plot_pair, plot_rank, plot_trace
from ppse.convergence import Convergence, convergence
from ppse.diagnostic_plots import TYPICAL, WORST, write_figures
from ppse.frame_plots import plot_frames, plot_predictive
from ppse.infer import Draws, Info, Proposal
from ppse.mixture import Frames
from ppse.models import VAESpeech

T, F, L, C, N = 20, 9, 5, 3, 80
SMALL = STFT(16, 4, 100)
ALL = {"trace", "rank", "autocorrelation", "pair", "energy", "frames", "predictive"}


def unit(frames: Frames) -> ComplexNormal:
    """White noise of power 1."""
    return ComplexNormal(0j, torch.ones(frames.size, F))


def independent(x: torch.Tensor | None = None, predictive: int = 0, **stats: Any) -> az.InferenceData:
    """Independent draws of the latents of speech; the second chain of frame 7 is elsewhere."""
    z = torch.randn(N, C, T, L)
    z[:, 1, 7, 2] += 5.0
    ones = torch.ones(N, C, T)
    info = Info(0.6 * ones, ones > 0, -ones, ones < 0, torch.randn(N, C, T))._replace(**stats)
    draws = Draws({"speech.z": z}, info, None, {"speech.z": ("chains", "frames")}, ("chains", "frames"))
    model = Mixture(speech=VAESpeech(F, L, (5,), 4).requires_grad_(False), noise=unit)
    return to_arviz(draws, None if x is None else model, x, stft=SMALL, predictive=predictive)


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second a figure."""
    monkeypatch.setattr("ppse.diagnostic_plots.save_figure", lambda figure, path: None)


@pytest.fixture(scope="module")
def run() -> tuple[az.InferenceData, Convergence]:
    torch.manual_seed(0)
    idata = independent(torch.randn(T, F, dtype=torch.complex64), predictive=5)
    found = convergence(idata)
    assert found is not None
    return idata, found


def test_all_figures_are_written_and_nothing_global_is_touched(run: tuple[az.InferenceData, Convergence], tmp_path: Path) -> None:
    settings, generator = dict(matplotlib.rcParams), np.random.get_state()[1]
    written, left_out = write_figures(*run[:1], tmp_path / "new", run[1])
    assert not left_out and {path.stem for path in written} == ALL
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(f"{name}.png" for name in ALL)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert not pyplot.get_fignums() and dict(matplotlib.rcParams) == settings
    np.testing.assert_array_equal(generator, np.random.get_state()[1])


def test_what_lacks_its_data_is_left_out_with_a_reason(unwritten: None, tmp_path: Path) -> None:
    written, left_out = write_figures(independent(energy=None), tmp_path)
    assert {path.stem for path in written} == {"trace", "rank", "autocorrelation", "pair", "frames"}
    assert set(left_out) == {"energy", "predictive"}
    assert "momentum" in left_out["energy"] and "replicated" in left_out["predictive"]


def test_draws_of_a_guide_have_figures_of_their_own(unwritten: None, tmp_path: Path) -> None:
    lq = torch.randn(N, C, T)
    draws = Draws(
        {"speech.z": torch.randn(N, C, T, L)}, Proposal(lq + torch.rand(N, C, T), lq), None, {"speech.z": ("chains", "frames")}, ("chains", "frames"),
    )
    idata = to_arviz(draws, stft=SMALL)
    written, left_out = write_figures(idata, tmp_path)
    assert [path.stem for path in written] == ["frames"] and "do not depend on one another" in left_out["trace"]
    figure = plot_frames(idata, None)
    assert isinstance(figure, Figure) and [axes.get_ylabel() for axes in figure.axes] == ["Pareto k-hat"]


def test_a_batch_shows_its_first_recording(unwritten: None, tmp_path: Path) -> None:
    z, ones = torch.randn(N, 2, C, T, L), torch.ones(N, 2, C, T)
    plates = ("utterances", "chains", "frames")
    draws = Draws({"speech.z": z}, Info(ones, ones > 0, -ones, ones < 0, torch.randn(N, 2, C, T)), None, {"speech.z": plates}, plates)
    model = Mixture(speech=VAESpeech(F, L, (5,), 4).requires_grad_(False), noise=unit)
    x = torch.randn(2, 1, T, F, dtype=torch.complex64)
    written, left_out = write_figures(to_arviz(draws, model, x, predictive=3), tmp_path)
    assert not left_out and len(written) == len(ALL)


def test_one_shared_number_has_no_pairs_and_no_frames(unwritten: None, tmp_path: Path) -> None:
    ones = torch.ones(N, C, 1)
    draws = Draws({"noise.level": torch.randn(N, C, 1)}, Info(ones, ones > 0, -ones, ones < 0), None, {"noise.level": ("chains", "")}, ("chains", ""))
    written, left_out = write_figures(to_arviz(draws), tmp_path)
    assert {path.stem for path in written} == {"trace", "rank", "autocorrelation"}
    assert "one number" in left_out["pair"] and "per frame" in left_out["frames"]


def test_one_chain_and_chains_that_stand_still_or_are_not_finite(unwritten: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    idata = independent()
    written, left_out = write_figures(idata.isel(chain=[0]), tmp_path)
    assert "two chains" in left_out["rank"] and {path.stem for path in written} == {"energy", "frames"}
    idata.posterior["speech.z"][:] = 1.0
    _, left_out = write_figures(idata, tmp_path)
    assert set(left_out) == {"predictive"}
    idata.sample_stats["energy"][:, 3] = np.inf
    _, left_out = write_figures(idata, tmp_path)
    assert set(left_out) == {"predictive", "energy"}
    idata.sample_stats["energy"][:, :, 0] = 1.0
    idata.posterior["speech.z"][:] = np.nan
    idata.sample_stats["energy"][:] = np.nan
    _, left_out = write_figures(idata, tmp_path)
    assert set(left_out) == {"predictive", "energy"} and "finite" in left_out["energy"] and not caplog.records


def test_the_worst_coordinate_is_named_and_placed(run: tuple[az.InferenceData, Convergence]) -> None:
    idata, found = run
    worst = coordinate(idata, "speech.z", {"frame": 7, "latent": 2}, float(found.rhat["speech.z"].max()))
    assert worst.label == f"speech.z at {SMALL.centres(T)[7]:.2f} s, latent 2"
    np.testing.assert_array_equal(worst.draws, idata.posterior["speech.z"].values[..., 7, 2])
    figure = plot_trace([worst])
    assert isinstance(figure, Figure) and f"(R-hat {worst.rhat:.3f})" in figure.axes[1].get_title()
    lines = [line.get_ydata() for line in figure.axes[1].get_lines()]
    assert len(lines) == C
    np.testing.assert_allclose(lines, worst.draws)
    figure = plot_pair(idata, found, worst)
    assert isinstance(figure, Figure) and "speech.z at" in figure.get_suptitle() and "latent 2" in {axes.get_ylabel() for axes in figure.axes}


def test_coordinates_of_parameters_say_where_they_are() -> None:
    ones = torch.ones(N, C, 1)
    values = {"noise.W": torch.randn(N, C, 1, F, 2), "a.z": torch.randn(N, C, T, 2), "b.z": torch.randn(N, C, T, 3)}
    plates = {"noise.W": ("chains", ""), "a.z": ("chains", "frames"), "b.z": ("chains", "frames")}
    draws = Draws(values, Info(ones, ones > 0, -ones, ones < 0), None, plates, ("chains", ""))
    bare, named = to_arviz(draws), to_arviz(draws, stft=SMALL, dims={"noise.W": ("freq", "pattern")})
    at = {"noise.W_event_0": 3, "noise.W_event_1": 1}
    assert coordinate(bare, "noise.W", at, 1.0).label == "noise.W[3, 1]"
    assert coordinate(named, "noise.W", {"freq": 4, "pattern": 1}, 1.0).label == "noise.W at 25 Hz, pattern 1"
    assert coordinate(bare, "b.z", {"frame": 2, "b.z_latent": 1}, 1.0).label == "b.z frame 2, latent 1"
    found = convergence(bare)
    assert found is not None
    figure = plot_pair(bare, found, coordinate(bare, "noise.W", at, 1.0))
    assert isinstance(figure, Figure) and "noise.W[3], where" in figure.get_suptitle()
    assert {axes.get_xlabel() for axes in figure.axes} == {"", "entry 0", "entry 1"}


def test_ranks_of_every_chain_are_all_counted(run: tuple[az.InferenceData, Convergence]) -> None:
    idata, found = run
    shown = coordinate(idata, "speech.z", {"frame": 7, "latent": 2}, 2.0)
    counts = [patch.get_data().values for patch in plot_rank([shown]).axes[0].patches if hasattr(patch, "get_data")]
    assert len(counts) == C and all(c.sum() == N and len(c) == N // 5 < RANK_BINS for c in counts)
    assert counts[1][-(N // 5) // 3 :].sum() > 0.95 * N  # this chain is above all others


def test_autocorrelations_are_those_of_arviz(run: tuple[az.InferenceData, Convergence]) -> None:
    shown = coordinate(run[0], "speech.z", {"frame": 3, "latent": 1}, 1.0)
    lines = [line.get_ydata() for line in plot_autocorrelation([shown]).axes[0].get_lines()]
    np.testing.assert_allclose(lines, [az.autocorr(chain)[:LAGS] for chain in shown.draws])


def test_frames_show_the_smallest_sample_size_and_the_largest_rhat(run: tuple[az.InferenceData, Convergence]) -> None:
    idata, found = run
    figure = plot_frames(idata, found)
    assert isinstance(figure, Figure)
    panels = {axes.get_ylabel(): axes for axes in figure.axes}
    curves = {line.get_label(): line for line in panels["effective\nsample size"].get_lines()}
    np.testing.assert_allclose(curves["bulk, smallest"].get_xdata(), SMALL.centres(T))
    np.testing.assert_allclose(curves["bulk, smallest"].get_ydata(), found.bulk["speech.z"].min("latent"))
    np.testing.assert_allclose(curves["tail, smallest"].get_ydata(), found.tail["speech.z"].min("latent"))
    largest = next(line for line in panels["R-hat"].get_lines() if line.get_label() == "largest")
    np.testing.assert_allclose(largest.get_ydata(), found.rhat["speech.z"].max("latent"))
    assert int(np.argmax(largest.get_ydata())) == 7
    image = panels["frequency (kHz)"].images[0]
    power = (idata.observed_data["x"] ** 2).sum("part").values
    np.testing.assert_allclose(image.get_array(), 10 * np.log10(power.T), rtol=1e-4)
    assert image.get_extent()[3] == pytest.approx(0.05)  # kHz


def test_the_predictive_check_counts_what_lies_in_the_band(run: tuple[az.InferenceData, Convergence]) -> None:
    idata, _ = run
    figure = plot_predictive(idata)
    assert isinstance(figure, Figure)
    for axes, name in zip(figure.axes, ("spectrum", "envelope"), strict=True):
        replicated, data = idata.posterior_predictive[f"x.{name}"], idata.observed_data[f"x.{name}"]
        low, high = (replicated.quantile(q, ("chain", "draw")) for q in (0.05, 0.95))
        share = 100 * float(((data >= low) & (data <= high)).mean())
        assert f"{share:.0f} % of the data" in axes.get_title()
        assert np.allclose(axes.get_lines()[-1].get_ydata(), 10 * np.log10(data), rtol=1e-4)


def test_the_most_telling_coordinates_are_shown(
    run: tuple[az.InferenceData, Convergence], unwritten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("ppse.diagnostic_plots.plot_trace", lambda chosen: shown.extend(chosen) or "not now")
    idata, found = run
    write_figures(idata, tmp_path, found)
    rhats = np.sort(found.rhat["speech.z"].values, axis=None)[::-1]
    assert len(shown) == WORST + TYPICAL and shown[0].at == {"frame": 7, "latent": 2}
    np.testing.assert_allclose([c.rhat for c in shown[:WORST]], rhats[:WORST])
    assert all(abs(c.rhat - np.median(rhats)) < 0.01 for c in shown[WORST:])
