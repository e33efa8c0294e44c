"""Lost stretches are filled, what is there stays as it is, and the uncertainty is that of the Gaussian law under the draws of the latents."""

from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from ppse import ComplexNormal, Mixture, audio
from ppse.cli import app
from ppse.inpainting import SPREAD, Gap, bridge_guide, default_method, inpaint, read_gaps
from ppse.labels import LabelError
from ppse.mixture import Frames
from ppse.models import CodeChain, CodePrior, FrameGain, NMFNoise, VAESpeech

RATE = 16_000


def _noise(seconds: float = 1.0, scale: float = 0.1) -> NDArray[np.float32]:
    return (scale * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def _hiss(frames: Frames) -> ComplexNormal:
    """White noise of an unknown level, the same in all frames."""
    level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, level.reshape(*level.shape, *(1,) * (level.dim() == 0)).unsqueeze(-1).expand(*level.shape[:-1], frames.size, 513))


def _tiny() -> CodePrior:
    torch.manual_seed(0)
    return CodePrior(VAESpeech(513, 2, (4,)), CodeChain(2))


def test_white_noise_of_unknown_level_is_filled_with_its_like() -> None:
    wave = _noise()
    lost = wave.copy()
    lost[8000:8640] = 0
    result = inpaint(lost, [(0.5, 0.54)], _hiss, default_method(10), draws=10)
    inside = slice(8100, 8540)
    assert np.abs(result.estimate[0, inside]).mean() < 0.05  # nothing around it tells of white noise
    assert abs(result.draws[:, 0, inside].std() / 0.1 - 1) < 0.2
    deviation = result.deviation()[0]
    assert abs(deviation[inside].mean() / 0.1 - 1) < 0.2 and not deviation[:8000].any() and not deviation[8640:].any()


def test_digital_silence_goes_on() -> None:
    result = inpaint(np.stack([_noise(), 0 * _noise()]), [(0.5, 0.53)], _tiny(), default_method(2), draws=2)
    assert result.estimate[0, 8000:8480].all() and not result.estimate[1].any() and not result.draws[:, 1].any()


@pytest.mark.parametrize("rate", [16_000, 22_050, 8000])
def test_what_is_there_stays_and_gaps_are_not_read(rate: int) -> None:
    wave = np.stack([_noise(), 0.5 * _noise()])[: 2 if rate == RATE else 1, :rate]
    gaps = [(0.7, 0.72), (0.3, 0.33)]
    spoilt = wave.copy()
    known = np.ones(wave.shape[1], bool)
    for start, end in gaps:
        known[round(start * rate) : round(end * rate)] = False
    spoilt[:, ~known] = 7.0
    first, second = (inpaint(w, gaps, _tiny(), default_method(2), sample_rate=rate, draws=2) for w in (wave, spoilt))
    assert first.gaps[0].start == 0.3 and first.estimate.shape == wave.shape and first.draws.shape == (2, *wave.shape)
    np.testing.assert_array_equal(first.estimate, second.estimate)
    np.testing.assert_array_equal(first.draws, second.draws)
    for found in (first.estimate, *first.draws):
        np.testing.assert_array_equal(found[:, known], wave[:, known])
        assert np.isfinite(found).all() and np.abs(found[:, ~known]).max() > 0


def test_latents_start_on_the_line_between_those_on_either_side() -> None:
    x, observed = torch.randn(6, 513, dtype=torch.complex64), torch.tensor([False, True, False, False, True, False]).unsqueeze(-1)
    guide = bridge_guide(Mixture(speech=VAESpeech(513, 2, (4,))))
    assert guide is not None
    with torch.no_grad():
        mean, deviation = guide.laws(x, observed)["speech.z"]
    a, b = mean[1], mean[4]
    torch.testing.assert_close(mean, torch.stack([a, a, (2 * a + b) / 3, (a + 2 * b) / 3, b, b]))
    assert (deviation[~observed.squeeze(-1)] == SPREAD).all() and (a != b).all()


def test_same_seed_same_result_and_the_global_generator_stays() -> None:
    wave, prior = _noise(), FrameGain(_tiny())
    state = torch.random.get_rng_state()
    first, second = (inpaint(wave, [(0.5, 0.54)], prior, default_method(2), draws=2) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_array_equal(first.draws, second.draws)


def test_saves_the_estimate_and_draws(tmp_path: Path) -> None:
    result = inpaint(_noise(), [(0.5, 0.54)], _tiny(), default_method(2), draws=2)
    for name, draw, expected in (("mean", None, result.estimate), ("draw", 1, result.draws[1])):
        result.save(tmp_path / f"{name}.wav", draw)
        np.testing.assert_allclose(audio.read(tmp_path / f"{name}.wav")[0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("gaps", "message"),
    [
        ([], "no gaps"), ([(0.5, 0.5)], "expected start < end"), ([(0.9, 1.1)], "within the recording"), ([(-0.1, 0.1)], "within the recording"),
        ([(0.1, 0.4)], "a gap of 0.3 s"), ([(0.1, 0.2), (0.22, 0.3)], "expected 0.064 s between two"), ([(0.1, 0.2), (0.15, 0.3)], "join them"),
    ],
)
def test_bad_gaps_are_refused(gaps: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inpaint(_noise(), gaps, _tiny())


def test_gaps_are_read_whatever_their_marks_say(tmp_path: Path) -> None:
    (tmp_path / "gaps.txt").write_text("0.5\t0.53\tlost packet\n1\t1.2\tclean\n")
    assert read_gaps(tmp_path / "gaps.txt") == [Gap(0.5, 0.53), Gap(1.0, 1.2)]
    with pytest.raises(LabelError, match="none.csv: cannot be read"):
        read_gaps(tmp_path / "none.csv")


def test_nothing_to_infer_from_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing is observed"):
        inpaint(_noise(0.1), [(0.001, 0.099)], _tiny())
    with pytest.raises(ValueError, match="the prior has no latents"):
        inpaint(_noise(), [(0.5, 0.52)], NMFNoise(2), default_method(2))
    with pytest.raises(ValueError, match="draws=1"):
        inpaint(_noise(), [(0.5, 0.52)], _tiny(), draws=1)


@pytest.mark.slow
def test_command_line(tmp_path: Path) -> None:
    wave = _noise()
    audio.write(tmp_path / "in.wav", wave, RATE, subtype="FLOAT")
    (tmp_path / "gaps.csv").write_text("start,end\n0.5,0.53\n")
    command = ["inpaint", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--gaps", str(tmp_path / "gaps.csv"), "--draws", "2"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0 and "1 gaps filled" in run.output
    filled = audio.read(tmp_path / "out.wav")[0][0]
    assert np.abs(filled - wave)[:8000].max() < 1e-4 < np.abs(filled - wave)[8000:8480].max()
    assert CliRunner().invoke(app, [*command[:3], str(tmp_path / "in.wav"), *command[4:]]).exit_code == 2


def test_the_command_names_the_file_of_gaps_that_do_not_fit(tmp_path: Path) -> None:
    audio.write(tmp_path / "in.wav", _noise(), RATE, subtype="FLOAT")
    (tmp_path / "gaps.csv").write_text("start,end\n9,9.1\n")
    command = ["inpaint", str(tmp_path / "in.wav"), "-o", str(tmp_path / "out.wav"), "--gaps", str(tmp_path / "gaps.csv")]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 1 and not (tmp_path / "out.wav").exists()
    message = "".join(run.output.split())
    assert "gaps.csv:inpaint:agapfrom9sto9.1s" in message
    run = CliRunner().invoke(app, [command[0], str(tmp_path / "none.wav"), *command[2:]])
    assert run.exit_code == 1 and "gaps.csv" not in run.output, "what is wrong with the recording is told of it"
