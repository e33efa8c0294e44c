"""The blocks of docs/recipes.md run, one after the other, and do what the text says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ppse.models
from ppse.infer import LogDensity, log_density

TEXT = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What a reader has who types all blocks."""
    found: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(compile(block, "recipes.md", "exec"), found)
    return found


def test_every_model_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `(\w+)[.(]", TEXT, re.MULTILINE))
    no_sources = {"Autoregressive", "CodeChain", "GammaChain", "LinearChain", "MarkovChain"}
    sources = {name for name in ppse.models.__all__ if isinstance(getattr(ppse.models, name), type)} - no_sources
    assert table == sources


def test_two_noises_and_speech_sum_to_the_recording(names: dict[str, Any]) -> None:
    estimates = names["two_noises"]
    assert set(estimates) == {"speech", "hiss", "clicks"} and set(names["result"].estimates) == {"speech", "hum", "rest"}
    for found in (estimates, names["result"].estimates):
        torch.testing.assert_close(torch.from_numpy(sum(found.values()))[0], names["noisy"], rtol=0, atol=1e-5)


def test_prior_of_speech_has_its_level_and_falls_towards_high_frequencies(names: dict[str, Any]) -> None:
    spectrum: Tensor = names["prior_spectrum"]
    assert names["prior_power"].shape == (10, 200, 513) and spectrum.isfinite().all()
    assert spectrum[:128].mean() > 10 * spectrum[256:].mean()


def test_gains_and_codes_are_accepted_frame_by_frame(names: dict[str, Any]) -> None:
    assert names["loud"].block == ("frames",) and set(names["loud"].sites) == {"speech.z", "speech.gain"}


def test_gibbs_moves_all_sites_of_the_joint_density(names: dict[str, Any]) -> None:
    values = names["draws"].values
    assert set(values) == {"speech.z", "noise.W", "noise.H"}
    assert all((v[0] != v[-1]).any() and v.isfinite().all() for v in values.values())


def test_conditioned_model_has_the_noise_left(names: dict[str, Any]) -> None:
    joint, conditioned, z = names["joint"], names["noise_alone"], names["z"]
    assert set(conditioned.sites) == {"noise.W", "noise.H"}
    position = joint.init({"speech.z": z})
    noise = {name: position[name] for name in conditioned.sites}
    torch.testing.assert_close(joint(position), conditioned(noise), rtol=1e-5, atol=0.1)


def _position(target: LogDensity) -> dict[str, Tensor]:
    return {name: torch.randn_like(value) for name, value in target.init().items()}


def test_bins_that_are_not_observed_tell_nothing(names: dict[str, Any]) -> None:
    x, observed, masked = names["x"], names["observed"], names["masked"]
    position = _position(masked)
    values = []
    for other in (x, torch.where(observed, x, 100 + x), torch.where(observed, 100 + x, x)):
        values.append(log_density(names["plain"], other, observed, chains=2)(position))
    assert torch.equal(values[0], values[1]) and (values[0] != values[2]).any()
    prior = -0.5 * (position["speech.z"].square() + 1.8378770664).sum(-1)
    torch.testing.assert_close(values[0][:, 10:13], prior[:, 10:13])
    assert names["filled_in"].var.isfinite().all()


def test_speech_is_zero_where_it_is_known_to_be(names: dict[str, Any]) -> None:
    quiet, silent = names["quiet"], names["silent"]
    assert (quiet.loc[silent] == 0).all() and (quiet.var[silent] == 0).all() and (quiet.loc[~silent] != 0).all()


def test_tempered_densities_are_powers(names: dict[str, Any]) -> None:
    position = _position(names["half"])
    whole = log_density(names["plain"], names["x"], chains=2)(position)
    prior = -0.5 * (position["speech.z"].square() + 1.8378770664).sum(-1)
    torch.testing.assert_close(names["half"](position), prior + 0.5 * (whole - prior))
    torch.testing.assert_close(names["flat"](position), 0.5 * whole)
    torch.testing.assert_close(names["scaled"](position), 0.5 * whole)


def test_annealing_ends_where_the_density_is_higher(names: dict[str, Any]) -> None:
    cold = names["cold"]
    assert cold(names["start"]).mean() > cold(cold.init()).mean()


def test_codes_walk_by_the_given_step_and_stay_unit_normal(names: dict[str, Any]) -> None:
    walk = names["walk"]
    assert walk.block == ()
    z: Tensor = log_density(ppse.Mixture(speech=names["walking"]), torch.zeros(2000, 513, dtype=torch.complex64)).init()["speech.z"]
    assert abs((z[:, 1:] - z[:, :-1]).std().item() / names["step"] - 1) < 0.02
    assert abs(z.std().item() - 1) < 0.1

