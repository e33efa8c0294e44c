"""How far frames reach into one another, on models whose reach is known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse import Mixture
from ppse.infer import log_density, receptive_field
from ppse.models import AutoregressiveVAESpeech, RVAESpeech, StationaryNoise, VAESpeech


def _smoothed(z: Tensor, before: int, after: int) -> Tensor:
    """Sums over the frames in reach, by a convolution."""
    padded = torch.nn.functional.pad(z, (before, after))
    return padded.unfold(-1, before + after + 1, 1).sum(-1)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 0), (0, 2), (2, 3)])
def test_receptive_field_of_a_convolution(before: int, after: int) -> None:
    def model() -> None:
        with pyro.plate("frames", 30, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(30, dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(_smoothed(z, before, after).tanh(), 1.0), obs=torch.ones(30, dtype=torch.float64))

    assert receptive_field(log_density(model, chains=2, block=())) == (before, after)


@pytest.mark.parametrize("slope", [True, False], ids=["with a slope", "by a threshold"])
def test_frames_that_reach_one_another_in_a_corner_count_all(slope: bool) -> None:
    """Neighbours alone are coupled, but for one pair of frames far apart, which no frame that is probed may be part of."""
    def model() -> None:
        with pyro.plate("frames", 30, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(30, dtype=torch.float64), 1.0))
            far = z[..., 6:7] if slope else 10 * (z[..., 29:] > 0)  # the moves look at the last frame, the slopes at all
            late = torch.where(torch.arange(30) == 19, far, torch.zeros_like(far))
            pyro.sample("x", dist.Normal(_smoothed(z, 1, 0) + late, 1.0), obs=torch.ones(30, dtype=torch.float64))

    assert receptive_field(log_density(model, chains=4, block=())) == (29, 29)


@pytest.mark.parametrize(
    ("speech", "reach"),
    [
        (VAESpeech(9, 2, (4,)), (0, 0)), (AutoregressiveVAESpeech(9, 2, (4,)), (1, 0)), (RVAESpeech(9, 2, 4, causal=True), (11, 0)),
        (RVAESpeech(9, 2, 4), (11, 11)),
    ],
    ids=["independent", "chain", "causal", "both ways"],
)
def test_receptive_field_of_priors_of_speech(speech: VAESpeech | RVAESpeech, reach: tuple[int, int]) -> None:
    """Through the graph of a mixture, for a batch of two."""
    x = torch.randn(2, 1, 12, 9, dtype=torch.complex64)
    model = Mixture(speech=speech, noise=StationaryNoise())
    model.start(x)
    assert receptive_field(log_density(model, x, chains=2, block=("utterances",))) == reach


def test_a_reach_that_is_long_counts_all() -> None:
    def model() -> None:
        with pyro.plate("frames", 200, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(200, dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(_smoothed(z, 40, 40), 1.0), obs=torch.ones(200, dtype=torch.float64))

    assert receptive_field(log_density(model, block=())) == (199, 199)
