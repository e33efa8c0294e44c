"""Runs of several starts as more chains, and of several windows in a row."""

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
from ppse.diagnostic_plots import write_figures
from ppse.frame_plots import plot_predictive
from ppse.infer import Draws, Info
from ppse.mixture import Frames
from ppse.stitching import starts_as_chains, windows_in_a_row

F, C, N, HOP = 5, 3, 20, 2
SMALL = STFT(8, HOP, 100)
"""Frames are 0.02 s apart."""


def white(frames: Frames) -> ComplexNormal:
    """White noise of unknown level, and unknown level of every frame."""
    level = pyro.sample("level", dist.Gamma(torch.tensor(3.0), 1.0))
    with frames:
        gain = pyro.sample("gain", dist.Gamma(torch.tensor(5.0), 5.0))
    return ComplexNormal(0j, (level * gain).unsqueeze(-1).expand(*gain.shape, F))


def run(x: Tensor, first: int = 0) -> az.InferenceData:
    """A run whose draws say where they are from: gain = 1 + frame number (of the recording), level = 1 + chain, per start."""
    lead, n_frames = x.shape[:-3] if x.dim() == 4 else (), x.shape[-2]
    shape = (N, *lead, C)
    level = (1 + torch.arange(C) + (10 * torch.arange(lead[0]).unsqueeze(-1) if lead else 0)).float().expand(shape).unsqueeze(-1).contiguous()
    gain = (1 + first + torch.arange(n_frames)).float().expand(*shape, n_frames).contiguous()
    batch = ("utterances",) if lead else ()
    plates = {"noise.level": (*batch, "chains", ""), "noise.gain": (*batch, "chains", "frames")}
    stats = Info(level / 100, level > 0, -level, level < 0)
    draws = Draws({"noise.level": level, "noise.gain": gain}, stats, None, plates, (*batch, "chains", ""))
    observed = torch.tensor([True] * (F - 1) + [False]).expand(x.shape)
    return to_arviz(draws, Mixture(noise=white), x, observed, stft=SMALL, predictive=4)


def test_starts_become_chains() -> None:
    x = torch.randn(1, 1, 7, F, dtype=torch.complex64).repeat_interleave(2, 0)
    batch, joined = run(x), starts_as_chains(run(x))
    assert all("utterance" not in joined[group].dims for group in joined.groups()) and set(joined.groups()) == set(batch.groups())
    assert joined.posterior.sizes["chain"] == 2 * C and list(joined.posterior["chain"]) == list(range(2 * C))
    assert joined.posterior["noise.level"].isel(draw=0).values.tolist() == [1, 2, 3, 11, 12, 13]
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior"):
        for name, values in joined[group].data_vars.items():
            halves = [batch[group][name].isel(utterance=i).transpose("chain", "draw", ...).values for i in range(2)]
            np.testing.assert_array_equal(values.transpose("chain", "draw", ...).values, np.concatenate(halves))
    xr.testing.assert_identical(joined.observed_data, batch.observed_data.isel(utterance=0, drop=True))
    assert joined.constant_data["observed"].dims == ("frame", "freq")
    alone = starts_as_chains(run(x[0, 0]))
    assert alone.posterior.sizes["chain"] == C


def test_one_window_is_left_as_it_is() -> None:
    idata = run(torch.randn(7, F, dtype=torch.complex64))
    assert windows_in_a_row([(3.0, idata)]) is idata


@pytest.mark.parametrize("gap", [-4, 0, 3], ids=["overlap", "no overlap", "silence between"])
def test_windows_stand_in_a_row_and_each_has_its_half_of_an_overlap(gap: int) -> None:
    """Against the frames of the recording, whose numbers the draws tell."""
    sizes = [10, 12, 6]
    firsts = [0, 10 + gap, 10 + gap + 12 + gap]
    xs = [torch.randn(n, F, dtype=torch.complex64) for n in sizes]
    parts = [run(x, first) for x, first in zip(xs, firsts, strict=True)]
    whole = windows_in_a_row([(first * HOP / 100, part) for first, part in zip(firsts, parts, strict=True)])
    numbers = whole.posterior["noise.gain"].isel(chain=0, draw=0).values - 1
    half = max(0, -gap) // 2
    kept = [range(0, sizes[0] - half), range(half, sizes[1] - half), range(half, sizes[2])]
    expected = [first + i for first, own in zip(firsts, kept, strict=True) for i in own]
    assert numbers.tolist() == expected and (gap > 0 or expected == list(range(firsts[-1] + sizes[-1])))  # all frames once
    np.testing.assert_allclose(whole.constant_data["time"], parts[0].constant_data["time"].values[0] + np.array(expected) * HOP / 100)
    assert whole.posterior["frame"].values.tolist() == list(range(len(expected)))
    power = np.concatenate([(x.abs() ** 2).numpy()[list(own)] for x, own in zip(xs, kept, strict=True)])
    np.testing.assert_allclose((whole.observed_data["x"] ** 2).sum("part"), power, rtol=1e-5)
    np.testing.assert_array_equal(whole.log_likelihood["x"].values, np.concatenate(
        [part.log_likelihood["x"].values[..., list(own)] for part, own in zip(parts, kept, strict=True)], axis=-1,
    ))
    # What has no frames has a value of every window.
    assert whole.posterior["noise.level"].dims == ("chain", "draw", "window") and whole.posterior["noise.level"].shape == (C, N, 3)
    assert whole.sample_stats["acceptance_rate"].dims == ("chain", "draw", "window")
    assert whole.observed_data["x.spectrum"].dims == ("window", "freq") and whole.constant_data["n_fft"].dims == ()
    assert whole.posterior.attrs == parts[0].posterior.attrs


def test_what_a_shorter_window_lacks_is_no_nan() -> None:
    """Knots of activations: a window of 20 frames has one less than one of 24."""
    def made(n_frames: int, knots: int) -> az.InferenceData:
        stats = Info(*(torch.ones(N, C, 1) for _ in range(4)))
        values = {"H": torch.randn(N, C, 1, knots, 2), "z": torch.randn(N, C, n_frames)}
        return to_arviz(Draws(values, stats, None, {"H": ("chains", ""), "z": ("chains", "frames")}, ("chains", "")), stft=SMALL)

    whole = windows_in_a_row([(0.0, made(24, 4)), (24 * HOP / 100, made(20, 3))])
    assert whole.posterior["H"].shape == (C, N, 2, 3, 2) and bool(whole.posterior["H"].notnull().all())
    assert whole.posterior["z"].sizes["frame"] == 44


def test_figures_of_several_windows(tmp_path: Path) -> None:
    """The spectrum of the recording is the mean of those of its windows; replicated under the draws as well."""
    xs = [g * torch.randn(40, F, dtype=torch.complex64) for g in (1.0, 3.0)]
    whole = windows_in_a_row([(i * 40 * HOP / 100, run(x, 40 * i)) for i, x in enumerate(xs)])
    written, left_out = write_figures(whole, tmp_path)
    assert {"predictive.png", "trace.png", "pair.png"} - {path.name for path in written} <= {f"{name}.png" for name in left_out}
    assert "predictive.png" in {path.name for path in written}
    figure = plot_predictive(whole)
    assert not isinstance(figure, str)
    drawn = next(line for line in figure.axes[0].lines if line.get_label() == "data").get_ydata()
    power = torch.stack([x.abs().square().mean(0) for x in xs]).mean(0)[:-1]
    np.testing.assert_allclose(drawn[:-1], 10 * power.log10().numpy(), rtol=1e-4)
    assert np.isnan(drawn[-1])  # not observed, so neither in the band nor outside
    shares = {f"{100 * k / (F - 1):.0f} % of the data" for k in range(F)}
    assert any(share in figure.axes[0].get_title() for share in shares)
