"""Samplers of coupled frames against the Kalman smoother: whole utterances and windows of frames as blocks, chains and recurrent decoders."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from ppse import Mixture, audio, methods
from ppse.infer import (
    BlockError,
    Group,
    Kernel,
    LogDensity,
    ReceptiveField,
    WindowDensity,
    Windows,
    elliptical_slice,
    frame_windows,
    gibbs,
    guide_e_step,
    hmc,
    langevin,
    log_density,
    mala,
    metropolis,
    per_frame_acceptance,
    point_e_step,
    sample,
    whitened,
    windowed,
)
from ppse.inference import infer
from ppse.methods import Method
from ppse.models import AutoregressiveVAESpeech, RVAESpeech, StationaryNoise, VAESpeech
from ppse.models.autoregressive import Autoregressive
from ppse.testing import StateSpace, around_truth, assert_calibrated, assert_moments, calibrate, check_kernel

T, L, CHAINS, MEMORY = 6, 2, 80, 0.8
DECODER = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.6]], dtype=torch.float64)
X = 2 * torch.linspace(-3, 4, T * 3, dtype=torch.float64).reshape(T, 3).sin()
EYE = torch.eye(L, dtype=torch.float64)
chain, recurrent = (StateSpace(X, DECODER, memory=MEMORY, recurrent=memory_of_decoder) for memory_of_decoder in (False, True))
MODELS = {"chain": chain, "recurrent": recurrent}


def assert_posterior(draws: Tensor, model: StateSpace) -> None:
    """Means and variances of all latents, and of their sums over neighbours, where the correlation of frames counts."""
    mean, covariance, neighbours = model.posterior()
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert_moments(draws, mean, mean.square() + variance)
    pairs = mean[1:] + mean[:-1]
    spread = variance[1:] + variance[:-1] + 2 * neighbours.diagonal(dim1=-2, dim2=-1)
    assert_moments(draws[:, :, 1:] + draws[:, :, :-1], pairs, pairs.square() + spread)


# step size and thinning, with whole utterances and with windows of two frames as blocks
SETTINGS: dict[str, tuple[Callable[[LogDensity, float], Kernel], tuple[float, int], tuple[float, int]]] = {
    "metropolis": (metropolis, (0.3, 14), (0.5, 5)),
    "mala": (mala, (0.15, 4), (0.22, 2)),
    "hmc": (lambda t, e: hmc(t, e, steps=5), (0.35, 1), (0.4, 1)),
    "slice": (lambda t, e: elliptical_slice(t), (0.0, 3), (0.0, 1)),
}
BLOCKS = pytest.mark.parametrize("block", ["utterance", "window"])


def blocked(target: LogDensity, name: str, block: str) -> tuple[Kernel, int]:
    kernel, of_utterances, of_windows = SETTINGS[name]
    step_size, thin = of_utterances if block == "utterance" else of_windows
    if block == "utterance":
        return kernel(target, step_size), thin
    return windowed(target, frame_windows(target, 2), lambda t: kernel(t, step_size)), thin


@pytest.mark.parametrize(
    ("where", "name"),
    [("chain", "metropolis"), ("chain", "mala"), ("chain", "hmc"), ("recurrent", "mala"), ("recurrent", "hmc"),
     pytest.param("recurrent", "slice", marks=pytest.mark.slow)],
)
@BLOCKS
def test_exact_kernels_draw_from_the_posterior_of_the_smoother(where: str, name: str, block: str) -> None:
    model = MODELS[where]
    target = log_density(model, chains=CHAINS)
    assert target.block == ()
    kernel, thin = blocked(target, name, block)
    assert_posterior(sample(target, kernel, target.init({"z": model.posterior().mean}), 80, warmup=20, thin=thin).values["z"], model)


WIDE = torch.tensor([[1.5, 0.0], [1.0, 0.5]], dtype=torch.float64)
"""A factor that is far from that of the posterior, so that only a right change of variables leaves it invariant."""


@pytest.mark.parametrize("how", ["utterance", "frames, then windows", "windows, then all that moves"])
def test_whitened_walks_draw_from_it_too(how: str) -> None:
    target = log_density(chain, chains=CHAINS)
    frame, windows = {"z": WIDE}, frame_windows(target, 2)
    # As a rule of the window: its two frames, of two latents each, with the correlation of neighbours.
    both = torch.linalg.cholesky(torch.kron(torch.tensor([[1.0, MEMORY], [MEMORY, 1.0]], dtype=torch.float64), EYE))
    kernel = {
        "utterance": lambda: whitened(target, frame, lambda w: hmc(w, 0.3, 8)),
        "frames, then windows": lambda: whitened(target, frame, lambda w: windowed(w, windows, lambda t: hmc(t, 0.3, 5))),
        "windows, then all that moves": lambda: windowed(target, windows, lambda t: whitened(t, {"z": both}, lambda w: hmc(w, 0.6, 5))),
    }[how]()
    assert_posterior(sample(target, kernel, target.init({"z": chain.posterior().mean}), 80, warmup=20, thin=2).values["z"], chain)


@pytest.mark.parametrize("name", ["metropolis", "mala"])
@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
def test_the_published_acceptance_of_single_frames_fails(model: StateSpace, name: str) -> None:
    """Its effective sample size is large enough, and its moments are wrong by many standard errors: an approximation, as documented."""
    target = log_density(model, chains=CHAINS)
    kernel = per_frame_acceptance(target, lambda t: SETTINGS[name][0](t, 0.2))
    draws = sample(target, kernel, target.init({"z": model.posterior().mean}), 80, warmup=20, thin=8).values["z"]
    with pytest.raises(AssertionError, match=r"is off by \d+\.\d standard errors"):
        assert_posterior(draws, model)


def test_it_is_exact_where_frames_are_independent() -> None:
    check_kernel(lambda target, step_size: per_frame_acceptance(target, lambda t: metropolis(t, step_size)))


def precision(model: StateSpace) -> Tensor:
    """Inverse of the covariance of all latents, (T L, T L)."""
    target = log_density(model)
    return -torch.autograd.functional.hessian(lambda z: target({"z": z.reshape(1, T, L)}).sum(), torch.zeros(T * L, dtype=torch.float64))


@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
def test_langevin_particles_are_wider_by_what_the_step_adds(model: StateSpace) -> None:
    """z' = z - (e / 2) P (z - m) + sqrt(e) xi keeps N(m, (P - e P^2 / 4)^-1), P the precision."""
    step_size, target, mean = 0.25, log_density(model, chains=CHAINS), model.posterior().mean
    p = precision(model)
    assert step_size * torch.linalg.eigvalsh(p).max() < 3.5, "the walk would leave"
    variance = torch.linalg.inv(p - step_size / 4 * p @ p).diagonal().reshape(T, L)
    draws = sample(target, langevin(target, step_size), target.init({"z": mean}), 80, warmup=30, thin=8).values["z"]
    assert_moments(draws, mean, mean.square() + variance)
    assert (variance > 1.05 * torch.linalg.inv(p).diagonal().reshape(T, L)).all(), "this step is too small to be told from the posterior"


@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
def test_point_estimates_climb_to_the_mode(model: StateSpace) -> None:
    target = log_density(model)
    e_step = point_e_step(target, target.init(), steps=300, learning_rate=0.05)
    torch.testing.assert_close(e_step(0).draws["z"][0], model.posterior().mean, rtol=0, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
def test_variational_e_step_finds_the_best_independent_law(model: StateSpace) -> None:
    """Of normal laws with independent coordinates that one has the mean of the posterior, and the diagonal of its precision."""
    def guide_of(x: Tensor, observed: Tensor | None) -> None:
        model()

    guide = AutoNormal(guide_of, init_scale=0.5)
    e_step = guide_e_step(guide_of, guide, (X, None), draws=4000, steps=300, learning_rate=0.04)
    means, inverse = model.posterior().mean, precision(model).diagonal().reshape(T, L)
    found = torch.stack([e_step(i).draws["z"] for i in range(3)])[1:].flatten(0, 1)
    assert (found.mean(0) - means).abs().max() < 0.25 and (found.var(0) * inverse).log().abs().max() < 0.6
    assert (found.var(0) / model.posterior().covariance.diagonal(dim1=-2, dim2=-1)).mean() < 0.8, "it is narrower than the posterior"


def _single_frames(target: LogDensity, step_size: float | Tensor) -> Kernel:
    """Windows of a frame each, all at once, with a step size for every frame."""
    scale = {"z": target.spread(torch.as_tensor(step_size, dtype=torch.float64).expand(target.shape), "z")}
    windows = Windows(1, 5, 1, 5, ReceptiveField(0, 0), ("z",))
    return windowed(target, windows, lambda t: hmc(t, 1.0, 3, t.local(scale)))


def test_windows_keep_the_contract_of_a_kernel() -> None:
    check_kernel(_single_frames)
    target = log_density(_independent, chains=3, block=("frames",))
    assert frame_windows(target, 1) == Windows(1, T, 1, T, ReceptiveField(0, 0), ("z",))


def _independent() -> None:
    with pyro.plate("frames", T, dim=-1):
        pyro.sample("z", dist.Normal(X.new_zeros(L), 1.0).to_event(1))


@pytest.mark.parametrize(
    ("frames", "size", "reach"), [(6, 2, (1, 0)), (17, 3, (1, 1)), (5, 5, (1, 0)), (9, 4, (8, 8)), (1, 1, (0, 0)), (12, 1, (0, 2))],
)
def test_sweeps_move_every_frame_and_windows_keep_their_distance(frames: int, size: int, reach: tuple[int, int]) -> None:
    def plain() -> None:
        with pyro.plate("frames", frames, dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    target = log_density(plain, block=())
    count = max(1, frames // (size + sum(reach)))
    windows = Windows(size, count, max(1, round(frames / (count * size))), frames, ReceptiveField(*reach), ("z",))
    seen = []

    def watched(t: WindowDensity) -> Kernel:
        inside = t.over_frames(torch.arange(1, count + 1).reshape(1, -1))[0]
        assert ((inside.unsqueeze(-1) == torch.arange(1, count + 1)).sum(0) == size).all(), "a window has lost a frame"
        for near in range(1, min(sum(reach) + 1, frames - size)):
            other = inside.roll(near)
            assert ((inside == other) | (inside == 0) | (other == 0)).all() or count == 1, "two windows are so close that a term depends on both"
        seen.append(inside)
        return metropolis(t, 0.5)

    kernel = windowed(target, windows, watched)
    state = kernel.init(target.init())
    for _ in range(10):
        state, _ = kernel.step(state)
    sweeps = torch.stack(seen).unflatten(0, (10, windows.moves))
    assert (sweeps > 0).any(0).any(0).all(), "a frame has not moved in ten sweeps"
    assert 0.6 < (sweeps > 0).sum(1).double().mean() < 1.5, "frames do not move once a sweep, on average"
    assert windows.parallel == 1 and size == frames or len({tuple(w.tolist()) for w in sweeps[:, 0]}) > 1, "the seams never move"


def test_a_window_is_accepted_by_the_terms_that_depend_on_it() -> None:
    """Differences of the density of a window are those of the whole recording when that window alone moves."""
    target = log_density(chain, chains=2)
    held = target.init()
    density = WindowDensity(target, Windows(2, 2, 2, T, ReceptiveField(1, 0), ("z",))).at(4, held)  # one of them goes round the end
    here = density.local(held)
    assert torch.equal(density.whole(here)["z"], held["z"])
    for window in range(2):
        mask = density.spread(torch.arange(2) == window, "z")
        there = {"z": torch.where(mask, here["z"] + 1, here["z"])}
        change = density(there) - density(here)
        torch.testing.assert_close(change.sum(-1, keepdim=True), target(density.whole(there)) - target(held))
        assert (change[..., 1 - window] == 0).all()


def test_says_why_windows_cannot_move_side_by_side() -> None:
    targets = {name: log_density(model) for name, model in MODELS.items()}
    side, after = (str(frame_windows(target, 1)) for target in targets.values())
    why = "as the density of a frame depends on {} frames before and 0 after it"
    assert side == f"3 windows of 1 frames move side by side; 2 moves a sweep of 6 frames, {why.format(1)}"
    assert after == f"windows of 1 frames move one after another, 6 moves a sweep of 6 frames, {why.format(5)}"
    assert str(frame_windows(targets["chain"], 100)) == "one window holds all 6 frames"
    far = frame_windows(targets["chain"], 2)._replace(reach=ReceptiveField(5, 5), parallel=1, moves=3)
    assert str(far).endswith("3 moves a sweep of 6 frames, as the density of a frame reaches far, so that it counts as depending on all others")


def test_refuses_what_has_no_windows() -> None:
    def with_gain() -> None:
        gain = pyro.sample("gain", dist.LogNormal(X.new_zeros(()), 1.0))
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", Autoregressive(MEMORY, X.new_ones(T, L)).to_event(1))
            pyro.sample("x", dist.Normal(gain * z @ DECODER.mT, 1.0).to_event(1), obs=X)

    target = log_density(chain)
    for size in (0, 2.5, True, "8"):
        with pytest.raises(ValueError, match=f"size={size!r}; expected a whole number of frames from 1 on"):
            frame_windows(target, size)  # type: ignore[arg-type]
    shared = log_density(with_gain)
    with pytest.raises(BlockError, match="site 'gain' is outside of the plate 'frames'"):
        frame_windows(shared, 2)
    with pytest.raises(BlockError, match="site 'gain' is outside"):
        per_frame_acceptance(shared, lambda t: metropolis(t, 0.1))
    windows = frame_windows(shared, 2, sites=("z",))
    assert windows.sites == ("z",) and windows.reach == (1, 0)
    with pytest.raises(ValueError, match=r"a target of 6 frames and the sites \('gain', 'z'\)"):
        windowed(shared, windows, lambda t: hmc(t, 0.1))
    with pytest.raises(ValueError, match=r"a temperature of shape \(1, 6\); expected one for all frames"):
        windowed(target.tempered(X.new_ones(1, T), 1.0), windows, lambda t: hmc(t, 0.1))
    longer = windows._replace(frames=7)
    with pytest.raises(ValueError, match="windows of 7 frames"):
        windowed(target, longer, lambda t: hmc(t, 0.1))
    with pytest.raises(ValueError, match="steps=0"):
        windowed(target, windows, lambda t: hmc(t, 0.1), steps=0)
    groups = Group(("z",), lambda t: windowed(t, windows, lambda w: hmc(w, 0.2, 3))), Group(("gain",), lambda t: metropolis(t, 0.3))
    draws = sample(shared, gibbs(shared, *groups), shared.init(), 3).values
    assert draws["z"].isfinite().all() and (draws["z"][0] != draws["z"][2]).all()


SPEECH = torch.ones(300, 1, T, 4, dtype=torch.complex128)


@pytest.mark.slow
def test_windows_are_calibrated_through_the_mixture_graph() -> None:
    """Simulation-based calibration with memory in the codes and a decoder that is not linear; per-frame acceptance is found out."""
    speech = AutoregressiveVAESpeech(4, 2, (4,), correlation=0.8).double()
    with torch.no_grad():
        for weight in speech.decoder.parameters():
            weight *= 3  # so that z matters, and not only linearly
    model = Mixture(speech=speech, noise=StationaryNoise())
    model.start(0.1 * SPEECH)

    def windows(target: LogDensity) -> Kernel:
        return windowed(target, frame_windows(target, 2), lambda t: hmc(t, 0.5, 3))

    def single_frames(target: LogDensity) -> Kernel:
        return per_frame_acceptance(target, lambda t: mala(t, 0.5))

    right, wrong = (calibrate(model, SPEECH, around_truth(model, kernel, draws=9, thin=3)) for kernel in (windows, single_frames))
    assert_calibrated(right)
    with pytest.raises(AssertionError, match=r"ranks of the truth are not uniform, p-values .*log_prior"):
        assert_calibrated(wrong)


def _infer(speech: VAESpeech | RVAESpeech, method: Method) -> Tensor:
    """The estimate of speech in a few frames."""
    with pyro.poutine.seed(rng_seed=0):
        x = torch.randn(7, 9, dtype=torch.complex64)
        return infer(Mixture(speech=speech, noise=StationaryNoise()), x, method).sources["speech"].loc


METHODS: dict[str, Callable[[], Method]] = {
    "mhem_published": lambda: methods.mhem_published(2, draws=3, burn_in=1),
    "malaem_published": lambda: methods.malaem_published(2, draws=3, burn_in=1),
    "windows": lambda: methods.hmc_em(4, steps=3, settle=1, adapt=2, average=2, window=3),
    "particles": lambda: methods.ld_em(2, chains=3),
    "point": lambda: methods.peem(2, steps=3),
    "variational": lambda: methods.vem(2),
}


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("prior", ["chain", "recurrent", "causal"])
def test_methods_run_on_speech_with_memory(name: str, prior: str) -> None:
    with pyro.poutine.seed(rng_seed=1):
        speech = AutoregressiveVAESpeech(9, 2, (4,)) if prior == "chain" else RVAESpeech(9, 2, 4, causal=prior == "causal")
    estimate = _infer(speech.eval().requires_grad_(False), METHODS[name]())
    assert estimate.shape == (7, 9) and estimate.isfinite().all() and estimate.abs().max() > 0


def test_published_acceptance_and_windows_change_nothing_where_frames_are_independent() -> None:
    with pyro.poutine.seed(rng_seed=1):
        speech = VAESpeech(9, 2, (4,)).eval().requires_grad_(False)
    short: dict[str, Any] = {"iterations": 3, "draws": 4, "burn_in": 1}
    for published, exact in ((methods.mhem_published, methods.mcem), (methods.malaem_published, methods.mala_em)):
        torch.testing.assert_close(_infer(speech, published(**short)), _infer(speech, exact(**short)))
    windows, single = (_infer(speech, methods.hmc_em(4, steps=3, settle=1, adapt=2, average=2, window=window)) for window in (3, None))
    assert torch.equal(windows, single)


@pytest.mark.parametrize("window", [1, 4, 1000])
def test_a_recording_of_one_frame_has_one_window(window: int) -> None:
    speech = AutoregressiveVAESpeech(9, 2, (4,)).eval().requires_grad_(False)
    x = torch.ones(1, 9, dtype=torch.complex64)
    method = methods.hmc_em(3, steps=2, settle=1, adapt=1, average=1, window=window)
    assert infer(Mixture(speech=speech, noise=StationaryNoise()), x, method).sources["speech"].loc.isfinite().all()
    with pytest.raises(ValueError, match="size=0; expected a whole number of frames"):
        infer(Mixture(speech=speech, noise=StationaryNoise()), x.expand(3, 9), methods.hmc_em(3, settle=1, adapt=1, average=1, window=0))


def test_the_page_shows_code_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    audio.write("noisy.wav", 0.1 * torch.randn(9000).numpy(), 16_000)
    code, = re.findall("```python\n(.*?)```", (Path(__file__).parents[1] / "docs" / "coupled.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    state = names["kernel"].init(names["target"].init())
    moved = names["kernel"].step(state)[0]
    assert not torch.equal(moved.position["speech.z"], state.position["speech.z"]) and names["windows"].parallel > 1
