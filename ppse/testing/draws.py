"""Whether MCMC draws have the moments they should have."""

from __future__ import annotations

import arviz as az
import torch
from torch import Tensor


def assert_moments(
    draws: Tensor, mean: Tensor, second_moment: Tensor, sigmas: float = 5.0, minimum_ess: float = 400.0,
) -> None:
    """Assert E[z] and E[z^2] of MCMC draws: |average - expected| < sigmas * sd / sqrt(ESS), each coordinate.

    The effective sample size (ESS) must be at least ``minimum_ess``, or the bound would say nothing. At 5 sigmas one
    comparison gives a false alarm with probability 6e-7; the whole suite makes fewer than 2000 of them, so a
    change of the random numbers breaks a right sampler about once in a thousand runs.

    Args:
        draws: (draw, chain, …), of a chain in equilibrium.
        mean, second_moment: exact values, (…).

    Raises:
        AssertionError: which moment is off, by how many standard errors; or that the ESS is too small.
    """
    for what, values, expected in (("mean", draws, mean), ("second moment", draws.square(), second_moment)):
        array = values.detach().transpose(0, 1).cpu().double().numpy()
        ess = torch.as_tensor(az.ess(az.convert_to_dataset({"z": array}), method="mean")["z"].values)
        lowest = ess.min().item()
        assert lowest >= minimum_ess, f"effective sample size of the {what} is {lowest:.0f}, below {minimum_ess:.0f}: take more draws"
        found = torch.as_tensor(array).flatten(0, 1)
        errors = (found.mean(0) - expected.double()).abs() / (found.std(0) / ess.sqrt())
        worst = errors.max().item()
        assert worst < sigmas, f"{what} is off by {worst:.1f} standard errors, more than {sigmas}; draws {found.mean(0)}, expected {expected}"
