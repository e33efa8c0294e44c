"""Laws with memory over frames against closed forms, and recurrent networks that padding must not reach."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from ppse.models.encoders import RecurrentEncoder
from ppse.models.recurrent import RUN_UP, STRETCH, Layers, Recurrence, RecurrentNormal, lengths
from ppse.testing import assert_moments

T, L, R, S = 5, 2, 0.7, 0.6
CONTEXT = torch.arange(T, dtype=torch.float64).unsqueeze(-1)


def chain(past: Tensor, context: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
    """z_t = R z_t-1 + context_t + S noise, each coordinate alone."""
    loc = R * past + context
    return loc, torch.full_like(loc, S), None


def joint() -> tuple[Tensor, Tensor]:
    """Mean (T,) and covariance (T, T) of a coordinate of the chain: z = A^-1 (context + S noise), A = I - R shift."""
    inverse = torch.linalg.inv(torch.eye(T, dtype=torch.float64) - R * torch.diag(torch.ones(T - 1, dtype=torch.float64), -1))
    return inverse @ CONTEXT.squeeze(-1), S**2 * inverse @ inverse.mT


def test_density_is_that_of_the_joint_law() -> None:
    law, (mean, covariance) = RecurrentNormal(chain, L, CONTEXT), joint()
    z = torch.randn(3, T, L, dtype=torch.float64)
    expected = MultivariateNormal(mean, covariance).log_prob(z.mT).sum(-1)
    torch.testing.assert_close(law.log_prob(z).sum((-1, -2)), expected)
    assert law.log_prob(z).shape == z.shape and law.batch_shape == (T, L) and law.event_shape == ()
    # The term of a frame depends on the frames before it, and no other.
    moved = z.clone()
    moved[:, 3] += 1
    changed = (law.log_prob(moved) != law.log_prob(z)).any(-1).any(0)
    assert changed.tolist() == [False, False, False, True, True]


def test_draws_have_the_moments_of_the_joint_law() -> None:
    torch.manual_seed(0)
    mean, covariance = joint()
    drawn = RecurrentNormal(chain, 1, CONTEXT).rsample(torch.Size((1000, 4))).squeeze(-1)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (drawn - mean).unsqueeze(-1), upper=False).squeeze(-1)
    pairs = torch.combinations(torch.arange(T))
    values = torch.cat([white, white[..., pairs].sum(-1)], -1)
    assert_moments(values, torch.zeros(values.shape[-1]), torch.tensor([1.0] * T + [2.0] * len(pairs)))


def test_path_of_means_solves_the_recursion_without_noise() -> None:
    law, (mean, _) = RecurrentNormal(chain, L, CONTEXT), joint()
    torch.testing.assert_close(law.mean, mean.unsqueeze(-1).expand(T, L))
    torch.testing.assert_close(law.stddev, torch.full((T, L), S, dtype=torch.float64))  # of the innovations, not the marginal ones


@pytest.mark.parametrize("frames", [RUN_UP + STRETCH, RUN_UP + STRETCH + 1, RUN_UP + 3 * STRETCH, 120])
def test_path_of_means_by_stretches_is_the_one_frame_by_frame(frames: int) -> None:
    """But for what the run-up leaves out of the past before it."""
    torch.manual_seed(0)
    context = torch.randn(2, 1, frames, 1, dtype=torch.float64)
    law = RecurrentNormal(chain, L, context)
    exact = law._path(None)[1]
    assert law.mean.shape == law.stddev.shape == (2, 1, frames, L)
    torch.testing.assert_close(law.mean[..., : RUN_UP + STRETCH, :], exact.loc[..., : RUN_UP + STRETCH, :])
    torch.testing.assert_close(law.mean, exact.loc, rtol=0, atol=8 * R**RUN_UP)
    if frames > RUN_UP + STRETCH:
        assert (law.mean != exact.loc).any()  # else nothing was left out


def test_expanded_law_is_the_same_law() -> None:
    law = RecurrentNormal(chain, L, CONTEXT)
    z = torch.randn(4, 3, T, L, dtype=torch.float64)
    wide = law.expand(torch.Size((3, T, L)))
    assert wide.rsample().shape == (3, T, L) and wide.batch_shape == (3, T, L)
    torch.testing.assert_close(wide.log_prob(z), law.log_prob(z))
    assert wide.to_event(1).log_prob(z).shape == (4, 3, T)


@pytest.mark.parametrize("depth", [1, 2])
def test_density_of_a_draw_needs_no_second_pass_and_is_the_same(depth: int) -> None:
    """Frame by frame, as it was drawn, and from one call of the network."""
    torch.manual_seed(1)
    encoder = RecurrentEncoder(9, L, Layers(4, (6,), (5,), depth), Layers(3, (4,), (), depth)).double()
    law = encoder(torch.randn(2, 1, T, 9, dtype=torch.complex128))
    z = law.rsample()
    torch.testing.assert_close(law.log_prob(z), law.log_prob(z.clone()))
    torch.testing.assert_close(law.given(law.mean).loc, law.mean)
    law.log_prob(z).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize(("forward", "backward"), [(True, False), (False, True), (True, True)])
def test_padding_does_not_reach_other_frames(forward: bool, backward: bool) -> None:
    torch.manual_seed(2)
    network = Recurrence(L, Layers(4, (3,), (), 2), forward=forward, backward=backward).double()
    frames, ends = torch.randn(3, 2, T, L, dtype=torch.float64), (T, 1, 3)
    out = network(frames, ends)
    for b, end in enumerate(ends):
        torch.testing.assert_close(out[b, :, :end], network(frames[b, :, :end]))
    # Which frames see which.
    moved = frames.clone()
    moved[:, :, 2] += 1
    seen = (network(moved) != network(frames)).any(-1)[0, 0].tolist()
    assert seen == [backward, backward, True, forward, forward]


@pytest.mark.parametrize("depth", [1, 2])
def test_network_goes_on_where_it_stopped(depth: int) -> None:
    torch.manual_seed(3)
    network = Recurrence(L, Layers(4, (3,), (), depth)).double()
    frames = torch.randn(2, T, L, dtype=torch.float64)
    rest, state = [], None
    for start, end in ((0, 1), (1, 3), (3, 4), (4, 5)):
        out, state = network.advance(frames[:, start:end], state)
        rest.append(out)
    torch.testing.assert_close(torch.cat(rest, 1), network(frames))


def test_lengths_are_behind_the_last_observed_frame() -> None:
    x = torch.zeros(3, 1, T, 4, dtype=torch.complex64)
    observed = (torch.arange(T) < torch.tensor([T, 2, 0]).reshape(-1, 1, 1)).unsqueeze(-1)
    assert lengths(observed, x) == (T, 2, 1)  # at least one, as networks need a frame
    hole = torch.ones(T, 1, dtype=torch.bool)
    hole[1:3] = False
    assert lengths(hole, x[0, 0]) is None and lengths(None, x) is None
    assert lengths(torch.arange(4) < 2, x) is None  # bins that no frame has


def test_law_keeps_the_contract_of_torch() -> None:
    """Under one network that ignores the past it is a Normal law."""
    def flat(past: Tensor, context: Tensor, state: None) -> tuple[Tensor, Tensor, None]:
        return context.expand_as(past), torch.ones_like(past), None

    law, normal = RecurrentNormal(flat, L, CONTEXT), Normal(CONTEXT.expand(T, L), 1.0)
    z = torch.randn(T, L, dtype=torch.float64)
    torch.testing.assert_close(law.log_prob(z), normal.log_prob(z))
    torch.manual_seed(4)
    drawn = law.sample()
    torch.manual_seed(4)
    torch.testing.assert_close(drawn, normal.loc + torch.randn(T, L, dtype=torch.float64))
