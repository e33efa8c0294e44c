import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

from ppse import ComplexNormal, Mixture
from ppse.mixture import Frames, Source
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech, learn_dictionary
from ppse.testing import check_source

T, F = 9, 11


def _vae(context: int = 0) -> VAESpeech:
    return VAESpeech(F, 3, (8, 6), context)


def _dictionary() -> Tensor:
    return 3 * torch.rand(F, 4, dtype=torch.float64)  # columns that do not sum to one


class Flicker(PyroModule):
    """A source as a user writes it: 1 / f^slope noise with a level per frame, slope for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("f", torch.arange(1.0, F + 1))
        self.slope = PyroParam(torch.tensor(1.0), constraints.positive)

    def forward(self, frames: Frames) -> ComplexNormal:
        with frames:
            level = pyro.sample("level", dist.LogNormal(self.f.new_zeros(()), 1.0))
        return ComplexNormal(0j, level.unsqueeze(-1) * self.spectrum(self.slope))

    def spectrum(self, slope: Tensor) -> Tensor:
        return self.f ** -slope.unsqueeze(-1)


def bare(frames: Frames) -> ComplexNormal:
    with frames:
        level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, level.unsqueeze(-1).expand(*level.shape, F))


SOURCES: dict[str, tuple[Source, tuple[str, ...]]] = {
    "stationary": (StationaryNoise(), ()),
    "nmf": (NMFNoise(3), ()),
    "nmf with knots": (NMFNoise(3, spacing=4), ()),
    "nmf with dictionary and knots": (NMFNoise(2, _dictionary(), spacing=3), ()),
    "nmf with dictionary": (NMFNoise(3, _dictionary()), ()),
    "dictionary alone": (NMFNoise(0, _dictionary()), ()),
    "vae": (_vae(), ("encoder",)),
    "vae with noisy encoder": (_vae(4), tuple(name for name, _ in _vae(4).named_children() if name != "decoder")),
    "frozen vae": (_vae(4).requires_grad_(False), ()),
    "gain": (FrameGain(_vae()), ("source.encoder",)),
    "gain on a started source": (FrameGain(NMFNoise(2)), ()),
    "a user's module": (Flicker(), ()),
    "a function": (bare, ()),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_contract(name: str) -> None:
    source, aside = SOURCES[name]
    check_source(source, n_frames=T - 2, n_freqs=F, aside=aside)


class LooseScalar(Flicker):
    """The classic: right as a point estimate; lifted, (C, 1) meets frequency."""

    def spectrum(self, slope: Tensor) -> Tensor:
        return self.f**-slope


class HalfForgotten(StationaryNoise):
    """Keeps what the first recording left."""

    def start(self, x: Tensor, observed: Tensor | None = None) -> None:
        if "spectrum" not in self._pyro_params:
            super().start(x, observed)


class WrongUpdate(StationaryNoise):
    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        self.spectrum = 2 * self.spectrum
        return self.spectrum.expand(own.shape)


class WrongReturn(StationaryNoise):
    def update(self, power: Tensor, own: Tensor, others: Tensor, observed: Tensor | None = None) -> Tensor:
        super().update(power, own, others, observed)
        return own


class PlainTensor(Flicker):
    def __init__(self) -> None:
        super().__init__()
        del self.f
        self.f = torch.arange(1.0, F + 1)


class SinglePrecision(StationaryNoise):
    def forward(self, frames: Frames) -> ComplexNormal:
        return ComplexNormal(0j, super().forward(frames).var.float())


class Unreached(Flicker):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(2))


class MixesChains(Flicker):
    def forward(self, frames: Frames) -> ComplexNormal:
        var = super().forward(frames).var
        return ComplexNormal(0j, var / var.mean(-3, keepdim=True) if var.dim() > 2 else var)


def own_plate(frames: Frames) -> ComplexNormal:
    with frames, pyro.plate("bins", F, dim=-4):
        level = pyro.sample("level", dist.LogNormal(torch.zeros(()), 1.0))
    return ComplexNormal(0j, torch.ones(frames.size, F) + 0 * level.sum())


def negative(frames: Frames) -> ComplexNormal:
    return ComplexNormal(0j, -torch.ones(frames.size, F), validate_args=False)


def transposed(frames: Frames) -> ComplexNormal:
    return ComplexNormal(0j, torch.ones(F, frames.size))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LooseScalar(), "every parameter lifted"),
        (HalfForgotten(), "leaves the parameter 'spectrum'"),
        (WrongUpdate(), "lowers the expected log-likelihood"),
        (WrongReturn(), "must return the new variance"),
        (PlainTensor(), r"\['f'\] as plain tensors.*register_buffer"),
        (SinglePrecision(), "float32 for a torch.complex128"),
        (Unreached(), "no gradient .* reaches the parameter 'spare'"),
        (MixesChains(), "under . chains.*not what the source gives"),
        (negative, "negative"),
        (transposed, r"x of shape \(7, 11\): .*'source' has 7 frequencies, the recording 11"),
        (own_plate, r"'source.level' lies in the plates \['bins'\]"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__) if not isinstance(value, str) else "",
)
def test_contract_notices_a_broken_source(broken: Source, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_source(broken, n_freqs=F)


class Loud(PyroModule):
    """Speech for the M-step tests: a variance per frame and bin that differs between draws."""

    def forward(self, frames: Frames) -> ComplexNormal:
        with frames:
            shape = pyro.sample("shape", dist.Gamma(torch.full((F,), 0.5, dtype=torch.float64), 0.2).to_event(1))
        return ComplexNormal(0j, shape + 1e-6)


@pytest.mark.parametrize("lead", [(), (3, 1)], ids=["one", "batch"])
@pytest.mark.parametrize("chains", [1, 5])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["stationary", "nmf", "nmf with dictionary", "dictionary alone", "gain on noise"])
def test_sixty_of_sixty_updates_do_not_lower_the_likelihood(name: str, lead: tuple[int, ...], chains: int, padded: bool) -> None:
    noise = FrameGain(StationaryNoise()) if name == "gain on noise" else SOURCES[name][0]
    model = Mixture(speech=Loud(), noise=noise).double()
    power = torch.rand(*lead, T, F, dtype=torch.float64).pow(-0.7)
    x = torch.polar(power.sqrt(), torch.rand_like(power))
    observed = None
    if padded:
        observed = torch.ones(*lead, T, F, dtype=torch.bool)
        observed[..., -2:, :] = False
        x = torch.where(observed, x, 0)
    model.start(x, observed)
    with torch.no_grad(), pyro.plate("chains", chains, dim=-2):
        draws = {"speech.shape": poutine.trace(model).get_trace(x).nodes["speech.shape"]["value"]}

    def value() -> tuple[float, dict[str, ComplexNormal]]:
        with torch.no_grad(), pyro.plate("chains", chains, dim=-2):
            conditioned = poutine.trace(poutine.condition(model, data=draws))
            laws = conditioned(x, observed)
        return conditioned.trace.log_prob_sum(lambda name, site: name == "x").item() / chains, laws

    first, laws = value()
    values = [first]
    for _ in range(60):
        with torch.no_grad():
            model.update(x, laws, observed)
        now, laws = value()
        values.append(now)
    falls = [i for i, (a, b) in enumerate(zip(values[:-1], values[1:], strict=True)) if b < a - 1e-10 * abs(a)]
    assert not falls, f"updates {falls} lower the expected log-likelihood"
    assert values[-1] > values[0]


def test_update_leaves_a_fixed_point_alone_and_finds_the_maximum_likelihood() -> None:
    """Alone, the best stationary spectrum is the mean power over time, for which no iteration is needed but the approach."""
    x = torch.randn(50, F, dtype=torch.complex128)
    noise = StationaryNoise()
    noise.start(3 * x)
    own = noise.spectrum.expand(50, F)
    for _ in range(200):
        own = noise.update(x.abs().square(), own, torch.full_like(own, 1e-12))
    torch.testing.assert_close(noise.spectrum, x.abs().square().mean(0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("spacing", [1, 4])
def test_nmf_batch_equals_loop(spacing: int) -> None:
    x = torch.randn(3, 1, T, F, dtype=torch.complex128)
    batch = Mixture(noise=NMFNoise(2, _dictionary(), spacing))
    batch.start(x)
    start = batch.noise.W.detach().clone(), batch.noise.H.detach().clone()
    with torch.no_grad():
        for _ in range(5):
            batch.update(x, batch(x))
        for b in range(3):
            one = Mixture(noise=NMFNoise(2, batch.noise.dictionary, spacing))
            one.start(x[b, 0])
            one.noise.W, one.noise.H = start[0][b, 0, 0], start[1][b, 0]
            for _ in range(5):
                one.update(x[b, 0], one(x[b, 0]))
            torch.testing.assert_close(batch(x)["noise"].var[b, 0], one(x[b, 0])["noise"].var)


def test_nmf_starts_at_the_power_of_the_recording_and_follows() -> None:
    x = 7 * torch.randn(300, 40, dtype=torch.complex64)
    noise = NMFNoise(6)
    noise.start(x)
    mean = (noise.H @ noise.W.mT).mean()
    assert 0.8 < mean / x.abs().square().mean() < 1.2
    w = noise.W.clone()
    noise.follow(x[:20])
    assert torch.equal(noise.W, w) and noise.H.shape == (20, 6)


@pytest.mark.parametrize("n_frames", [1, 2, 5, 6, 7, 40])
def test_activations_are_linear_between_knots(n_frames: int) -> None:
    noise = NMFNoise(2, spacing=5)
    noise.start(torch.randn(n_frames, F, dtype=torch.complex64))
    knots = noise.H.shape[0]
    assert knots == (1 if n_frames == 1 else math.ceil((n_frames - 1) / 5) + 1)
    variance = noise(pyro.plate("frames", n_frames, dim=-1)).var
    ends = noise.H[[0, -1]] @ noise.W.mT
    torch.testing.assert_close(variance[[0, -1]], ends)
    if n_frames == 40:  # eight stretches of 4.875 frames: what is linear has no second difference
        bends = variance.diff(n=2, dim=0).abs().amax(-1) > 1e-5 * variance.max()
        assert bends.sum() <= 2 * 7


def test_learnt_dictionary_finds_the_patterns() -> None:
    true = torch.zeros(12, 2, dtype=torch.float64) + 1e-3
    true[:5, 0], true[7:, 1] = 0.2, 0.2
    power = torch.rand(200, 2, dtype=torch.float64).pow(2) @ true.mT
    state = torch.random.get_rng_state()
    found = learn_dictionary(power, rank=2, iterations=100)
    assert torch.equal(state, torch.random.get_rng_state()) and torch.equal(found, learn_dictionary(power, rank=2, iterations=100))
    torch.testing.assert_close(found.sum(0), torch.ones(2, dtype=torch.float64))
    normal = true / true.sum(0)
    order = [0, 1] if found[0, 0] > found[0, 1] else [1, 0]
    assert (found[:, order] - normal).abs().max() < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "no pattern"), ((-1,), "no pattern"), ((2, torch.ones(3)), "non-negative"), ((2, -torch.ones(3, 2)), "non-negative"),
        ((2, None, 0), "spacing=0"),
    ],
)
def test_bad_nmf_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NMFNoise(*arguments)


@pytest.mark.parametrize("source", [NMFNoise(2), StationaryNoise(), FrameGain(_vae())], ids=["nmf", "stationary", "gain"])
def test_running_before_start_is_explained(source: Source) -> None:
    with pytest.raises(RuntimeError, match=r"call model.start\(x\)"):
        Mixture(noise=source)(torch.zeros(T, F, dtype=torch.complex64))


def test_vae_makes_no_parameter_site_of_its_weights() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    trace = poutine.trace(Mixture(speech=_vae(4))).get_trace(x)
    assert not [name for name, site in trace.nodes.items() if site["type"] == "param"]


def test_vae_law_is_the_decoder_above_the_floor() -> None:
    vae, frames = _vae(), pyro.plate("frames", T, dim=-1)
    z = torch.randn(T, 3)
    law = poutine.condition(vae, data={"z": z})(frames)
    torch.testing.assert_close(law.var, vae.decoder(z).exp() + 1e-4)
    assert (law.loc == 0).all()


def test_knots_made_in_inference_mode_serve_gradients_later() -> None:
    x = torch.randn(37, 9, dtype=torch.complex64)
    noise = NMFNoise(1, spacing=7)
    noise.start(x)
    with torch.inference_mode():
        Mixture(noise=noise)(x)
    Mixture(noise=noise)(x)["noise"].var.sum().backward()
    assert all(p.grad is not None for p in noise.parameters())
