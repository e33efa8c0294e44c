"""Mixtures of encoders: their law, and that weights and responsibilities are learnt."""

import pyro
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from ppse.guides import EncoderMixture
from ppse.infer import fit


class _Says(nn.Module):
    """An encoder that says the same of every recording."""

    def __init__(self, loc: float, scale: float = 0.5) -> None:
        super().__init__()
        self.loc, self.scale = nn.Parameter(torch.tensor(loc), requires_grad=False), scale

    def forward(self, x: Tensor, observed: Tensor | None = None) -> Normal:
        return Normal(self.loc.expand(*x.shape[:-1], 2), self.scale)


def test_its_law_is_the_mixture() -> None:
    guide, x = EncoderMixture("z", [_Says(-1.0), _Says(2.0, 1.0)], [0.25, 0.75]), torch.zeros(3, 1, 5, 4)
    guide.start(x)
    trace = poutine.trace(guide).get_trace(x)
    z = trace.nodes["z"]["value"]
    assert z.shape == (3, 1, 5, 2)
    parts = torch.stack([Normal(-1.0, 0.5).log_prob(z).sum(-1) + torch.tensor(0.25).log(),
                         Normal(2.0, 1.0).log_prob(z).sum(-1) + torch.tensor(0.75).log()])
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), parts.logsumexp(0))


def test_each_frame_learns_whom_to_listen_to() -> None:
    x = torch.zeros(6, 4)
    truth = torch.tensor([-1.0, -1.0, -1.0, 2.0, 2.0, 2.0])

    def model(x: Tensor, observed: Tensor | None = None) -> None:
        with pyro.plate("frames", 6, dim=-1):
            pyro.sample("z", Normal(truth.unsqueeze(-1).expand(6, 2), 0.5).to_event(1))

    with pyro.poutine.seed(rng_seed=0):
        guide = EncoderMixture("z", [_Says(-1.0), _Says(2.0)])
        guide.start(x)
        fit(model, guide, x, steps=400, learning_rate=0.05)
    assert (guide.weights[:3, 0] > 0.9).all() and (guide.weights[3:, 1] > 0.9).all()
    shared = EncoderMixture("z", [_Says(-1.0), _Says(2.0)], per_frame=False)
    shared.start(x)
    assert shared.weights.shape == (2,)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="1 encoders"):
        EncoderMixture("z", [_Says(0.0)])
    with pytest.raises(ValueError, match="as many positive numbers"):
        EncoderMixture("z", [_Says(0.0), _Says(1.0)], [1.0, 0.0])
    guide = EncoderMixture("z", [_Says(0.0), _Says(1.0)])
    guide.start(torch.zeros(6, 4))
    with pytest.raises(RuntimeError, match="weights of 6 frames, x has 5"):
        guide(torch.zeros(5, 4))
