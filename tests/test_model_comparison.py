"""Leave-one-out cross-validation over frames picks the noise model that made the data."""

from collections.abc import Callable

import arviz as az
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from arviz import InferenceData
from torch import Tensor

from ppse import Mixture, to_arviz, with_priors
from ppse.infer import hmc, log_density, sample, warm_up
from ppse.mixture import Source
from ppse.models import HeavyTailed, NMFNoise, StationaryNoise

T, F, SPACING, CHAINS = 100, 4, 10, 4
ONE = torch.ones((), dtype=torch.float64)
SPECTRUM = torch.tensor([3.0, 1.0, 0.3, 1.0], dtype=torch.float64)

MODELS: dict[str, tuple[Callable[[], Source], dict[str, dist.Distribution]]] = {
    "stationary": (StationaryNoise, {"noise.spectrum": dist.LogNormal(0 * ONE, 1.5)}),
    "nmf": (lambda: NMFNoise(1, spacing=SPACING), {"noise.W": dist.LogNormal(0 * ONE, 1.5), "noise.H": dist.LogNormal(0 * ONE, 1.0)}),
    "heavy-tailed": (lambda: HeavyTailed(StationaryNoise(), dof=4.0), {"noise.source.spectrum": dist.LogNormal(0 * ONE, 1.5)}),
}


def recordings() -> Tensor:
    """(3, 1, T, F), made by the models in their order: constant; of a level that drifts between knots; of a level that each frame draws."""
    time = torch.arange(T, dtype=torch.float64)
    drift = (1.5 * torch.cos(2 * torch.pi * time / (4 * SPACING))).exp()
    drawn = dist.InverseGamma(2 * ONE, 2 * ONE).sample((T,))
    level = torch.stack([torch.ones_like(time), drift, drawn]).unsqueeze(-1)
    return ((level * SPECTRUM).sqrt() * torch.randn(3, T, F, dtype=torch.complex128)).unsqueeze(1)


def posterior(name: str, x: Tensor) -> InferenceData:
    """The noise model on all recordings side by side, parameters and all, by HMC."""
    make, priors = MODELS[name]
    source = make()
    model = Mixture(noise=source)
    model.start(x)
    graph = with_priors(model, priors, x)
    target = log_density(graph, x, chains=CHAINS)
    tuned = warm_up(target, lambda e, s: hmc(target, e, 12, s), target.init(jitter=0.1), 150, step_size=0.05, target_acceptance=0.8)
    draws = sample(target, hmc(target, tuned.step_size, 12, tuned.scale), tuned.state, 200)
    idata = to_arviz(draws, graph, x)
    if isinstance(source, HeavyTailed):
        marginal = student(x, draws.values["noise.source.spectrum"], source.dof).permute(2, 0, 1, 3)
        idata["log_likelihood"]["x"] = ("chain", "draw", "utterance", "frame"), marginal.numpy()
    return idata


def student(x: Tensor, spectrum: Tensor, dof: float) -> Tensor:
    """log p(x_t | spectrum) with the scale of the frame integrated out (docstring of HeavyTailed): (draw, utterance, chain, frame).

    Given the scale, LOO would have to leave out the one frame that the scale is known from: Pareto k-hats above 1.
    """
    a = torch.as_tensor(dof / 2)
    distance = (x.abs().square() / spectrum).sum(-1)
    return (a + F).lgamma() - a.lgamma() - F * (a * torch.pi).log() - spectrum.log().sum(-1) - (a + F) * (1 + distance / a).log()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter:UserWarning", "ignore:.*inplace:Warning")  # ArviZ; its use of pandas
def test_loo_picks_the_noise_model_that_made_the_recording() -> None:
    """It is ahead of the others by at least two standard errors of the difference, and few frames are too influential to be left out."""
    x = recordings()
    runs = {name: posterior(name, x) for name in MODELS}
    for i, truth in enumerate(MODELS):
        own = {name: idata.isel(utterance=i) for name, idata in runs.items()}
        shapes = {name: az.loo(idata, pointwise=True).pareto_k.values for name, idata in own.items()}
        assert (shapes[truth] > 0.7).sum() <= 2, f"{truth}: largest Pareto k-hats of the true model {np.sort(shapes[truth])[-5:]}"
        assert (np.concatenate(list(shapes.values())) > 0.7).mean() < 0.05
        table = az.compare(own, ic="loo")
        assert table.index[0] == truth, f"{truth} made the recording, LOO says\n{table.to_string()}"
        assert table.elpd_diff.iloc[1] > 2 * table.dse.iloc[1], f"{truth} is not clearly ahead:\n{table.to_string()}"
