"""Langevin EM for priors that tie the frames, and that default and fast are it for dynamical VAEs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import ppse
from ppse import methods, weights
from ppse.inference import infer
from ppse.methods import Method
from ppse.mixture import Mixture
from ppse.models import FrameGain, NMFNoise, RVAESpeech, StationaryNoise, VAESpeech

F, T, L = 17, 12, 3


def tied() -> RVAESpeech:
    return RVAESpeech(F, L, 5).requires_grad_(False)


@pytest.mark.parametrize(("method", "iterations"), [(methods.default(), 32), (methods.default(2), 1), (methods.fast(), 5), (methods.fast(1), 1)])
def test_default_and_fast_are_langevin_where_the_frames_are_tied(method: Method, iterations: int) -> None:
    for speech in (tied(), FrameGain(tied())):
        found = method.suited(Mixture(speech=speech, noise=StationaryNoise()))
        assert found.name == method.name and found.starts == 1 and found.iterations == iterations and 1 <= found.average <= iterations
        assert found.suited(Mixture(speech=speech)) is found
    assert method.suited(Mixture(speech=VAESpeech(F, L, (5,)), noise=StationaryNoise())) is method


def test_what_runs_before_is_suited_too() -> None:
    method = methods.full_bayes()
    suited = method.suited(Mixture(speech=tied()))
    assert method.before is not None and suited.before is not None
    assert suited.before.iterations == 5 and suited.all_iterations == method.all_iterations - 11


@pytest.mark.parametrize("method", [methods.default(6), methods.fast(9), methods.langevin_em(3, chains=2)], ids=lambda m: m.name)
def test_it_enhances(method: Method) -> None:
    """3 iterations each, and the progress ends at 1."""
    seen: list[float] = []
    wave = 0.1 * np.random.default_rng(0).standard_normal(400)
    result = ppse.enhance(wave, Mixture(speech=tied(), noise=NMFNoise(2)), method, report=seen.append)
    assert len(result.traces[0].objective) == 3 and seen[-1] == 1
    np.testing.assert_allclose(sum(result.estimates.values())[0], wave, atol=1e-5)


def test_draws_of_many_particles_are_those_of_the_tempered_posterior() -> None:
    """Speech whose variance does not depend on z: the posterior of z is the prior N(0, I), whatever the likelihood power, and is reached."""
    speech = tied()
    for parameter in (speech.decoder[-1].weight, speech.memory.memory.weight_hh_l0):
        parameter.zero_()
    found = infer(Mixture(speech=speech, noise=StationaryNoise()), torch.randn(T, F, dtype=torch.complex64), methods.langevin_em(100, chains=60))
    z = found.draws["speech.z"]
    assert z.shape[-3:] == (60, T, L)
    # Half a kick, -z h / 2, is a tenth of the momentum: hardly tamed, within the bias of the step, 1 / (1 - h^2 / 4), and that of taming.
    assert z.mean().abs() < 5 / z.numel() ** 0.5
    assert 1.0 < z.var() < 1.4


def test_every_setting_counts() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    laws = []
    for settings in ({}, {"likelihood_power": 1.0}, {"step_size": 0.3}, {"persistence": 0.0}, {"settle": 2}):
        torch.manual_seed(0)
        model = Mixture(speech=tied(), noise=StationaryNoise())
        torch.manual_seed(1)
        laws.append(infer(model, x, methods.langevin_em(4, **settings)).sources["speech"].loc)
    assert not any(torch.allclose(laws[0], other) for other in laws[1:])


@pytest.mark.slow
def test_benchmark_of_an_imported_prior(tmp_path: Path) -> None:
    weights.write(RVAESpeech(n_latent=3, hidden=5), tmp_path / "rvae.safetensors", {})
    for name, seed in (("noisy", 0), ("clean", 1)):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * np.random.default_rng(seed).standard_normal(16_000), 16_000)
    script = Path(__file__).parents[1] / "benchmarks" / "interop.py"
    files = ["--prior", "rvae.safetensors", "--noisy", "noisy.wav", "--clean", "clean.wav", "--out", "page.md"]
    command = [sys.executable, str(script), *files, "--seeds", "2", "--only", "1 particle", "fast: 5 iterations"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "page.md").read_text()
    whole, part = (re.search(rf"^\| {name} \| .* \| ([\d.]+) \| 1/([\d.]+) \|$", page, re.MULTILINE) for name in ("1 particle", "fast: 5 iterations"))
    assert whole is not None and part is not None and whole[2] == "1.0" and float(part[2]) > 0
