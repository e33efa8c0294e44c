"""The shipped prior on the bundled recording: every method makes it better, and ours by a margin that a user hears."""

from __future__ import annotations

import pytest

import ppse
from ppse import audio, demo, methods, metrics
from ppse.methods import Method

SCORES = ("si_sdr", "pesq_wb", "estoi")


def gains(method: Method) -> dict[str, float]:
    """What the method gains on the bundled recording with the shipped prior and the default noise model."""
    clean, noisy = (audio.read(path)[0][0] for path in (demo.CLEAN, demo.NOISY))
    estimate = ppse.enhance(demo.NOISY, method=method, seed=0).estimates["speech"][0]
    before, after = (metrics.score(clean, wave, names=SCORES) for wave in (noisy, estimate))
    return {name: after[name] - before[name] for name in SCORES}


@pytest.mark.parametrize(("method", "bound"), [(methods.default(), 6), (methods.fast(), 4), (methods.hmc_em(), 6)], ids=["default", "fast", "hmc_em"])
def test_our_methods_gain_in_every_score(method: Method, bound: float) -> None:
    found = gains(method)
    assert found["si_sdr"] >= bound and found["pesq_wb"] > 0 and found["estoi"] > 0, found


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [methods.mcem(8), methods.ld_em(20), methods.mala_em(15), methods.vem(15), methods.peem(15)], ids=lambda m: m.name,
)
def test_published_methods_gain_with_few_iterations(method: Method) -> None:
    found = gains(method)
    assert found["si_sdr"] > 0, found
