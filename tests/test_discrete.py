"""Chains of discrete states: evidence, posterior and draws against the sum over all paths."""

from itertools import product

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from ppse.infer.discrete import filtered, forward_backward, log_evidence, sample_path

Chain = tuple[Tensor, Tensor, Tensor]


def _chain(n_frames: int, n_states: int, seed: int = 0, spread: float = 1.5) -> Chain:
    random = torch.Generator().manual_seed(seed)
    initial, transition = (torch.rand(*shape, generator=random, dtype=torch.float64) for shape in ((n_states,), (n_states, n_states)))
    emission = spread * torch.randn(n_frames, n_states, generator=random, dtype=torch.float64)
    return (initial / initial.sum()).log(), (transition / transition.sum(-1, keepdim=True)).log(), emission


def _all_paths(chain: Chain) -> tuple[Tensor, Tensor]:
    """Every path (N, T), and log p(path, x) of each."""
    initial, transition, emission = chain
    n_frames, n_states = emission.shape
    paths = torch.tensor(list(product(range(n_states), repeat=n_frames)))
    joint = initial[paths[:, 0]] + sum(emission[t, paths[:, t]] for t in range(n_frames))
    return paths, joint + sum(transition[paths[:, t], paths[:, t + 1]] for t in range(n_frames - 1))


@pytest.mark.parametrize(("n_frames", "n_states"), [(1, 2), (2, 3), (3, 2), (5, 3), (6, 2), (6, 3), (4, 1)])
def test_posterior_is_that_of_all_paths(n_frames: int, n_states: int) -> None:
    chain = _chain(n_frames, n_states)
    paths, joint = _all_paths(chain)
    weight = joint.softmax(0)
    smoothed = forward_backward(*chain)
    seen = torch.nn.functional.one_hot(paths, n_states).double()
    torch.testing.assert_close(smoothed.log_evidence, joint.logsumexp(0))
    torch.testing.assert_close(log_evidence(*chain), joint.logsumexp(0))
    torch.testing.assert_close(smoothed.marginals, torch.einsum("n,nti->ti", weight, seen))
    torch.testing.assert_close(smoothed.pairs, torch.einsum("n,nti,ntj->tij", weight, seen[:, :-1], seen[:, 1:]))


def test_filtered_evidence_is_that_of_every_beginning() -> None:
    initial, transition, emission = _chain(6, 3)
    for t, value in enumerate(filtered(initial, transition, emission)):
        torch.testing.assert_close(value, _all_paths((initial, transition, emission[: t + 1]))[1].logsumexp(0))


def test_the_slope_of_the_evidence_is_the_posterior() -> None:
    initial, transition, emission = _chain(37, 3)
    emission.requires_grad_()
    transition.requires_grad_()
    of_emission, of_transition = torch.autograd.grad(log_evidence(initial, transition, emission), (emission, transition))
    smoothed = forward_backward(initial, transition, emission)
    torch.testing.assert_close(of_emission, smoothed.marginals)
    torch.testing.assert_close(of_transition, smoothed.pairs.sum(0))


def test_drawn_paths_have_the_frequencies_of_the_posterior() -> None:
    chain = _chain(4, 3)
    paths, joint = _all_paths(chain)
    torch.manual_seed(0)
    drawn = sample_path(chain[0], chain[1], chain[2].expand(20_000, 4, 3))
    index = (drawn * 3 ** torch.arange(3, -1, -1)).sum(-1)
    counts, expected = index.bincount(minlength=len(paths)).double(), 20_000 * joint.softmax(0)
    often = expected > 5
    counts, expected = (torch.cat([v[often], v[~often].sum()[None]]) for v in (counts, expected))
    statistic = ((counts - expected).square() / expected.clamp_min(1e-9)).sum()
    assert float(chi2.sf(statistic, len(counts) - 1)) > 1e-3


def test_a_batch_is_a_loop_and_each_member_may_have_a_chain_of_its_own() -> None:
    chains = [_chain(11, 3, seed) for seed in range(4)]
    initial, transition, emission = (torch.stack(part).reshape(2, 2, *part[0].shape) for part in zip(*chains, strict=True))
    together = forward_backward(initial, transition, emission)
    for i, chain in enumerate(chains):
        for whole, alone in zip(together, forward_backward(*chain), strict=True):
            torch.testing.assert_close(whole[i // 2, i % 2], alone)
    assert sample_path(initial, transition, emission).shape == (2, 2, 11)


def test_impossible_moves_are_never_made_and_spoil_no_slope() -> None:
    transition = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]], dtype=torch.float64).log()
    initial = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log()
    emission = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    paths, joint = _all_paths((initial, transition, emission))
    value = log_evidence(initial, transition, emission)
    torch.testing.assert_close(value, joint[joint > -torch.inf].logsumexp(0))
    assert torch.autograd.grad(value, emission)[0].isfinite().all()
    torch.manual_seed(0)
    drawn = sample_path(initial, transition, emission.detach().expand(500, 5, 3))
    assert (drawn[:, 0] == 0).all() and (drawn.diff(dim=-1) >= 0).all() and (drawn.diff(dim=-1) <= 1).all()


def test_single_precision_tells_states_apart_below_likelihoods_of_spectra() -> None:
    initial, transition, emission = _chain(500, 2, spread=1.0)
    loud = emission - 3000.0
    exact, found = forward_backward(initial, transition, loud), forward_backward(initial.float(), transition.float(), loud.float())
    torch.testing.assert_close(found.marginals.double(), exact.marginals, atol=2e-3, rtol=0)
