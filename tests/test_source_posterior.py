"""What is gathered of the sources over a run: moments of their posterior, and joint draws."""

from __future__ import annotations

import pytest
import torch

from ppse import ComplexNormal, posterior
from ppse.source_posterior import Moments, SourceDraws

T, F = 12, 9


def test_the_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no law was added"):
        Moments().laws()


def test_moments_follow_the_law_of_total_variance() -> None:
    locs, moments = torch.randn(40, T, F, dtype=torch.complex128), Moments()
    var = torch.rand(40, T, F, dtype=torch.float64)
    for i in range(0, 40, 4):
        moments.add({"s": ComplexNormal(locs[i : i + 4], var[i : i + 4])})
    law = moments.laws()["s"]
    torch.testing.assert_close(law.loc, locs.mean(0))
    torch.testing.assert_close(law.var, var.mean(0) + (locs - locs.mean(0)).abs().square().mean(0))


@pytest.mark.parametrize("means", [(0j, 0j), (1 + 0j, 0j), (1 + 0j, -1 + 0j)], ids=["none", "one", "opposite"])
@pytest.mark.parametrize(("x", "speech", "noise"), [
    ((T, F), (T, F), (T, F)), ((T, F), (4, T, F), (4, T, F)), ((T, F), (4, T, F), (T, F)), ((T, F), (4, T, 1), (1, T, F)),
    ((2, 1, T, F), (2, 1, T, F), (2, 1, T, F)), ((2, 1, T, F), (2, 4, T, F), (2, 1, T, F)),
])
def test_the_mean_over_draws_given_the_mixture_is_that_of_its_posteriors(
    x: tuple[int, ...], speech: tuple[int, ...], noise: tuple[int, ...], means: tuple[complex, complex],
) -> None:
    mixture, posteriors, moments = torch.randn(x, dtype=torch.complex128), [], Moments()
    for _ in range(3):
        laws = {
            name: ComplexNormal(mean, torch.rand(shape, dtype=torch.float64))
            for name, mean, shape in zip(("s", "n"), means, (speech, noise), strict=True)
        }
        posteriors.append(posterior(laws, mixture))
        moments.add_given(laws, mixture)
    for name, law in moments.laws().items():
        draws = [ComplexNormal(each[name].loc, each[name].var).expand(torch.broadcast_shapes(speech, noise)) for each in posteriors]
        loc, var = (torch.stack([getattr(draw, what) for draw in draws]) for what in ("loc", "var"))
        dims = (0, -3) if loc.dim() > 3 else (0,)  # of iterations and of draws
        expected = var.mean(dims) + (loc - loc.mean(dims, keepdim=True)).abs().square().mean(dims)
        torch.testing.assert_close((law.loc.reshape(expected.shape), law.var.reshape(expected.shape)), (loc.mean(dims), expected))
        assert law.loc.shape == x


def test_moments_of_two_mixtures_are_refused() -> None:
    moments, laws = Moments(), {"s": ComplexNormal(0j, torch.ones(T, F)), "n": ComplexNormal(0j, torch.ones(T, F))}
    moments.add_given(laws, torch.randn(T, F, dtype=torch.complex64))
    with pytest.raises(ValueError, match="two mixtures"):
        moments.add_given(laws, torch.randn(T, F, dtype=torch.complex64))


def test_source_draws_go_round_iterations_starts_and_chains() -> None:
    """Laws without variance, whose mean says where they are from: 1000 recording + 100 iteration + 10 chain + start."""
    x = torch.zeros(2, 1, T, F, dtype=torch.complex64)
    draws = SourceDraws(6, iterations=3, starts=2)
    for iteration in range(3):
        loc = 1000 * torch.tensor([0, 0, 1, 1]).reshape(4, 1, 1, 1) + 100 * iteration + 10 * torch.arange(2).reshape(2, 1, 1)
        loc = (loc + torch.tensor([0, 1, 0, 1]).reshape(4, 1, 1, 1)).expand(4, 2, T, F)
        draws.add({"s": ComplexNormal(loc.to(torch.complex64), torch.zeros(4, 2, T, F))}, x.repeat_interleave(2, 0))
    values = draws.values(x)["s"]
    assert values.shape == (6, 2, 1, T, F)
    assert values[:, 0, 0, 0, 0].real.tolist() == [0, 1, 110, 111, 200, 201]
    assert values[:, 1, 0, 0, 0].real.tolist() == [1000, 1001, 1110, 1111, 1200, 1201]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [9]), (3, [3, 6, 9]), (4, [2, 4, 7, 9]), (10, list(range(10))), (20, [i // 2 for i in range(20)])],
)
def test_source_draws_are_spread_over_the_iterations(count: int, expected: list[int]) -> None:
    draws = SourceDraws(count, 10, 1)
    for i in range(10):
        draws.add({"s": ComplexNormal(torch.full((T, F), i + 0j), torch.zeros(T, F))}, torch.zeros(T, F, dtype=torch.complex64))
    assert draws.values(torch.zeros(T, F))["s"][:, 0, 0].real.tolist() == expected
