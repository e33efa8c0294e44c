"""Figures hold what they should; how they look, people judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ppse import audio
from ppse.enhance import Enhancement, Trace
from ppse.plots import COLUMNS, plot_enhancement, plot_training
from ppse.training import Epoch

RATE = 16_000
PNG = b"\x89PNG"


def result(seconds: float = 1.0, rate: int = RATE, channels: int = 1, traces: bool = True) -> Enhancement:
    time = np.arange(int(seconds * rate)) / rate
    tone = np.tile(0.1 * np.sin(2 * np.pi * 1000 * time), (channels, 1)).astype(np.float32)
    hiss = 0.001 * np.random.default_rng(0).standard_normal(tone.shape).astype(np.float32)
    made = Enhancement(rate, tone + hiss, {"speech": tone, "noise": hiss})
    made.traces = [Trace(c, start, [1.0, 2.0, 3.0], [0.5, 0.6]) for c in range(channels) for start in (0.0, 5.0)] if traces else []
    return made


def test_figure_has_one_scale_and_the_tone_at_its_frequency(tmp_path: Path) -> None:
    figure = plot_enhancement(result(), tmp_path / "deep" / "a.png")
    assert (tmp_path / "deep" / "a.png").read_bytes()[:4] == PNG
    images = {axes.get_title(): axes.images[0] for axes in figure.axes if axes.get_title() and axes.images}
    assert list(images) == ["noisy", "enhanced", "noise"]
    assert len({image.get_clim() for image in images.values()}) == 1
    for name, (low, high) in {"noisy": (0.95, 1.05), "enhanced": (0.95, 1.05)}.items():
        spectrum = images[name].get_array()
        left, right, bottom, top = images[name].get_extent()
        assert low < np.argmax(spectrum.mean(1)) / (len(spectrum) - 1) * (top - bottom) < high
        assert left < 0 < 1 < right
    assert images["noise"].get_array().max() < images["noisy"].get_array().max() - 10


def test_traces_of_all_windows_end_at_the_last_iteration() -> None:
    axes = {a.get_title(): a for a in plot_enhancement(result()).axes}
    assert [list(line.get_xdata()) for line in axes["objective"].lines] == [[1, 2, 3]] * 2
    assert [list(line.get_xdata()) for line in axes["acceptance"].lines] == [[2, 3]] * 2
    assert axes["objective"].get_legend() is not None


def test_channel_is_chosen_and_checked() -> None:
    made = result(channels=2)
    made.noisy[1] = 0
    figure = plot_enhancement(made, channel=1)
    noisy = next(a for a in figure.axes if a.get_title() == "noisy").images[0]
    assert np.ptp(noisy.get_array()) == 0
    with pytest.raises(ValueError, match="channel 2; the recording has channels 0 to 1"):
        plot_enhancement(made, channel=2)


@pytest.mark.parametrize(("seconds", "rate"), [(1 / RATE, RATE), (0.5, 8_000), (0.5, 48_000), (30.0, RATE)])
def test_any_length_and_rate(seconds: float, rate: int, tmp_path: Path) -> None:
    figure = plot_enhancement(result(seconds, rate, traces=False), tmp_path / "a.png")
    for axes in figure.axes:
        for image in axes.images:
            assert image.get_array().shape[1] <= COLUMNS + 1 and np.isfinite(image.get_array()).all()
    assert any("silent" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_long_recordings_are_averaged_not_thinned() -> None:
    made = result(60.0)
    made.noisy[0, 30 * RATE : 30 * RATE + 200] += 1.0  # a click, short of one column
    noisy = next(a for a in plot_enhancement(made).axes if a.get_title() == "noisy").images[0].get_array().data
    loud = np.argmax(noisy[400])
    assert abs(loud / noisy.shape[1] - 0.5) < 0.01 and noisy[400, loud] > np.median(noisy[400]) + 10


def test_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(audio.AudioError, match="cannot be written"):
        plot_enhancement(result(0.1), tmp_path / "file" / "a.png")
    with pytest.raises(audio.AudioError, match="cannot be written"):
        plot_enhancement(result(0.1), tmp_path / "a.xyz")
    assert not (tmp_path / "a.xyz").exists()


def test_deviation_has_a_panel_on_the_same_scale_and_draws_a_band() -> None:
    made = result()
    frames = made.stft.n_frames(RATE)
    made.std = {"speech": np.full((1, frames, made.stft.n_freqs), 0.01, np.float32)}
    spread = np.linspace(0.5, 2.0, 21, dtype=np.float32)[:, None, None]
    made.draws = {"speech": spread * made.estimates["speech"]}
    figure = plot_enhancement(made)
    images = [axes.images[0] for axes in figure.axes if axes.images and axes.get_title()]
    variance = next(axes.images[0] for axes in figure.axes if axes.get_title() == "posterior variance of speech")
    np.testing.assert_allclose(variance.get_array(), -40.0, atol=1e-3)
    assert len({image.get_clim() for image in images}) == 1 and variance.get_array().shape[::-1] == (frames, made.stft.n_freqs)
    level = next(axes for axes in figure.axes if axes.get_ylabel() == "level (dB)")
    lines = {line.get_label(): line.get_ydata() for line in level.lines}
    np.testing.assert_allclose(lines["estimate (mean)"], 10 * np.log10(0.005), atol=0.1)  # the mean power of a sine of amplitude 0.1
    np.testing.assert_allclose(lines["median of the draws"] - lines["estimate (mean)"], 20 * np.log10(1.25), atol=1e-3)
    ends = level.collections[0].get_paths()[0].vertices[:, 1] - np.mean(lines["estimate (mean)"])
    assert ends.min() == pytest.approx(20 * np.log10(0.575), abs=0.2) and ends.max() == pytest.approx(20 * np.log10(1.925), abs=0.2)


def test_without_draws_there_is_no_band() -> None:
    made = result()
    made.draws = {"speech": made.estimates["speech"][None]}
    assert not [axes for axes in plot_enhancement(made).axes if axes.get_ylabel() == "level (dB)"]


def test_loss_curves(tmp_path: Path) -> None:
    plot_training([Epoch(0, 3.0, 4.0, 1e-3, 1.0), Epoch(1, 2.0, 3.5, 1e-3, 1.0)], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:4] == PNG
