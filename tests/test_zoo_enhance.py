"""Every source of the zoo in a mixture that enhances a recording, and draws of every prior: finite, and as loud as they should be."""

from __future__ import annotations

import pytest
import torch

import ppse
from ppse import Mixture, methods
from ppse.infer import log_density
from ppse.mixture import Source
from ppse.models import (
    AlphaStable,
    ARNoise,
    AutoregressiveVAESpeech,
    FrameGain,
    HarmonicSpeech,
    HeavyTailed,
    NMFNoise,
    NMFSpeech,
    SmoothNMFNoise,
    StationaryNoise,
    VAESpeech,
)

NOISES: dict[str, Source] = {
    "student-t": HeavyTailed(StationaryNoise()),
    "student-t bins": HeavyTailed(NMFNoise(2, spacing=8), per_bin=True),
    "stable": AlphaStable(StationaryNoise()),
    "stable bins, alpha 0.3": AlphaStable(NMFNoise(2), alpha=0.3, per_bin=True),
    "drifting": ARNoise(),
    "smooth nmf": SmoothNMFNoise(2),
}
SPEECH: dict[str, Source] = {
    "vae with memory": AutoregressiveVAESpeech.pretrained(),
    "gain on vae": FrameGain(VAESpeech.pretrained()),
    "nmf": NMFSpeech(torch.full((513, 2), 1 / 513), torch.ones(2), torch.full((2,), 2 / 513)),
    "harmonic": HarmonicSpeech(torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.5])),
}


@pytest.mark.parametrize("name", [*NOISES, *SPEECH])
def test_enhances(name: str) -> None:
    samples = 0.1 * torch.randn(6000).numpy()
    speech = SPEECH.get(name, SPEECH["gain on vae"])
    result = ppse.enhance(samples, Mixture(speech=speech, noise=NOISES.get(name, StationaryNoise())), methods.mala_em(iterations=2), std=True)
    total = sum(result.estimates.values())
    assert abs(total[0] - samples).max() < 1e-4 * abs(samples).max()
    assert all(abs(estimate).max() > 0 for estimate in result.estimates.values())
    assert all((std >= 0).all() and std.max() < float("inf") for std in result.std.values())


@pytest.mark.parametrize("name", [*NOISES, *SPEECH])
def test_prior_has_the_level_of_the_recording(name: str) -> None:
    """Speech, which is sparse, by its mean; noise, whose tails may have none, by its median. The density at draws of the prior is finite."""
    source = {**NOISES, **SPEECH}[name]
    x = torch.randn(60, 513, dtype=torch.complex64)
    model = Mixture(source=source)
    with torch.no_grad():
        model.start(x)
        power = torch.stack([model(x)["source"].sample().abs().square() for _ in range(5)])
        assert power.isfinite().all()
        assert 0.01 < (power.median() if name in NOISES else power.mean()) < 100
        target = log_density(model, x, chains=3)
        assert target(target.init()).isfinite().all()
