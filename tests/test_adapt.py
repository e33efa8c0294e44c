import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse.infer import (
    TARGET_ACCEPTANCE,
    Kernel,
    LogDensity,
    StepSizeAdapter,
    adapt_step_size,
    hmc,
    log_density,
    mala,
    mcmc_e_step,
    metropolis,
    sample,
)
from ppse.testing import KernelFactory

SCALES = torch.tensor([0.01, 0.3, 1.0, 20.0], dtype=torch.float64)
KERNELS: dict[str, KernelFactory] = {"metropolis": metropolis, "mala": mala, "hmc": hmc}


def _target(block: tuple[str, ...] = ("frames",)) -> LogDensity:
    """Frames whose scales differ by 2000, eight latents each."""

    def model() -> None:
        with pyro.plate("frames", 4, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(8, dtype=torch.float64), SCALES.unsqueeze(-1)).to_event(1))

    return log_density(model, chains=8, block=block)


@pytest.mark.parametrize("name", list(KERNELS))
def test_every_block_reaches_its_target_acceptance(name: str) -> None:
    target, wanted, kernel = _target(), TARGET_ACCEPTANCE[name], KERNELS[name]
    step_size, state = adapt_step_size(lambda e: kernel(target, e), target.init(), 300, 0.1, wanted)
    assert step_size.shape == (1, 4)
    order = step_size.squeeze()
    assert (order[1:] > order[:-1]).all()  # wider frames take longer steps
    found = sample(target, kernel(target, step_size), state.position, 150).stats.acceptance.mean((0, 1))
    assert ((found - wanted).abs() < 0.08).all(), found


def test_whole_utterances_share_a_step_size() -> None:
    target = _target(())
    step_size, state = adapt_step_size(lambda e: metropolis(target, e), target.init(), 200, 0.01, 0.234)
    assert step_size.shape == (1, 1)
    found = sample(target, metropolis(target, step_size), state, 200).stats.acceptance.mean()
    assert abs(found.item() - 0.234) < 0.08


def test_the_e_step_adapts_in_warm_up_only_then_freezes() -> None:
    target, seen = _target(), []

    def kernel(step_size: float | Tensor) -> Kernel:
        seen.append(torch.as_tensor(step_size).clone())
        return mala(target, step_size)

    e_step = mcmc_e_step(target, kernel, target.init(), step_size=0.1, draws=2, burn_in=3, adapt=10)
    for iteration in range(10):
        e_step(iteration)
    adapted = len(seen)
    assert len({tuple(s.flatten().tolist()) for s in seen}) > 10
    for iteration in range(10, 14):
        e_step(iteration)
    frozen = seen[adapted:]
    assert len(frozen) >= 4 and all(torch.equal(s, frozen[0]) for s in frozen)
    assert frozen[0].shape == (1, 4) and not torch.equal(frozen[0], seen[adapted - 1])  # the smoothed one, not the last


def test_adapter_moves_towards_the_target_by_shrinking_steps() -> None:
    adapter = StepSizeAdapter(1.0, 0.5)
    up = [adapter(torch.ones(3, 2)).log() for _ in range(50)]
    moves = torch.stack(up).diff(dim=0)
    assert up[0].shape == (1, 2) and (moves > 0).all() and (moves.diff(dim=0) < 0).all()
    assert (StepSizeAdapter(1.0, 0.5)(torch.zeros(3, 2)) < 1).all()


@pytest.mark.parametrize("change", [{"steps": 0}, {"step_size": 0.0}, {"step_size": float("nan")}, {"target_acceptance": 1.0}])
def test_bad_settings_are_refused(change: dict[str, float]) -> None:
    target = _target()
    settings = {"steps": 5, "step_size": 0.1, "target_acceptance": 0.5} | change
    with pytest.raises(ValueError, match="adapt_step_size: steps="):
        adapt_step_size(lambda e: mala(target, e), target.init(), **settings)  # type: ignore[arg-type]  # numbers by name
