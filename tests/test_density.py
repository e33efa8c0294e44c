from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor, nn

from ppse import ComplexNormal, Mixture
from ppse.infer import BlockError, LogDensity, log_density
from ppse.models import FrameGain, NMFNoise, StationaryNoise, VAESpeech

T, F = 5, 7


def _mixture() -> Mixture:
    model = Mixture(speech=VAESpeech(F, 3, (6,)), noise=NMFNoise(2)).double()
    model.requires_grad_(False)
    return model


def _x(*lead: int) -> Tensor:
    return torch.randn(*lead, T, F, dtype=torch.complex128)


def _constrained_sites() -> Callable[[], None]:
    data = torch.rand(T, dtype=torch.float64) + 0.5
    one = torch.ones((), dtype=torch.float64)

    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            rate = pyro.sample("rate", dist.Gamma(3 * one, 2 * one))
            size = pyro.sample("size", dist.LogNormal(0.3 * one, 0.5 * one))
            share = pyro.sample("share", dist.Dirichlet(2 * data.new_ones(3)))
            part = pyro.sample("part", dist.Beta(2 * one, 3 * one))
            pyro.sample("x", dist.Gamma(size, rate * part + share[..., 0]), obs=data)

    return model


@pytest.mark.parametrize("name", ["vae and nmf", "constrained sites", "bayesian nmf"])
def test_sums_to_minus_the_potential_of_pyro(name: str) -> None:
    x, model, args = _x(), _constrained_sites(), ()
    if name != "constrained sites":
        mixture, args = _mixture(), (x,)
        mixture.start(x)
        one = torch.ones((), dtype=torch.float64)
        priors = {
            "noise.W": dist.LogNormal(0 * one, one).expand([F, 2]).to_event(2),
            "noise.H": dist.Gamma(2 * one, one).expand([2]).to_event(1),
        }
        model = poutine.lift(mixture, prior=priors) if name == "bayesian nmf" else mixture
    target = log_density(model, *args, chains=3)
    position = target.init()
    value = target(position)
    assert value.dtype == torch.float64

    def under_chains(*args: Tensor) -> None:
        with pyro.plate("chains", 3, dim=-2):
            model(*args)

    potential = initialize_model(under_chains, args)[1]
    torch.testing.assert_close(value.sum(), -potential(position), rtol=1e-10, atol=1e-9)


def test_value_of_a_block_is_the_density_of_its_frame_in_closed_form() -> None:
    data = torch.randn(T, dtype=torch.float64)

    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            g = pyro.sample("g", dist.Gamma(data.new_tensor(3.0), data.new_tensor(2.0)))
            pyro.sample("x", dist.Normal(0.0, g), obs=data)

    target = log_density(model, chains=2, temperature=2.5, likelihood_power=0.5)
    u = torch.randn(2, T, dtype=torch.float64)
    g = u.exp()
    prior = dist.Gamma(data.new_tensor(3.0), data.new_tensor(2.0)).log_prob(g)
    expected = (prior + u + 0.5 * dist.Normal(0.0, g).log_prob(data)) / 2.5  # + u: the Jacobian of exp
    assert target.block == ("frames",)
    torch.testing.assert_close(target({"g": u}), expected)
    torch.testing.assert_close(target.constrain({"g": u})["g"], g)


def test_gradients_are_those_of_every_block_alone() -> None:
    x, model = _x(), _mixture()
    model.start(x)
    target = log_density(model, x, chains=2)
    position = target.init()
    value, gradient = target.value_and_grad(position)
    z = position["speech.z"].clone().requires_grad_()
    (alone,) = torch.autograd.grad(target({"speech.z": z})[1, 3], z)
    torch.testing.assert_close(alone[1, 3], gradient["speech.z"][1, 3])
    alone[1, 3] = 0
    assert not alone.any() and not value.requires_grad and value.shape == (2, T)


def test_evaluation_draws_nothing() -> None:
    x, model = _x(), _mixture()
    model.start(x)
    target = log_density(model, x)
    position, before = target.init(), torch.random.get_rng_state()
    target.value_and_grad(position)
    assert torch.equal(before, torch.random.get_rng_state())


def test_batch_equals_loop() -> None:
    x, model = _x(3, 1), Mixture(speech=FrameGain(VAESpeech(F, 3, (6,))), noise=StationaryNoise()).double()
    model.start(x)
    batch = log_density(model, x, chains=2)
    assert batch.block == ("frames", "utterances") and batch.shape == (3, 2, T)
    position = batch.init()
    value = batch(position)
    whole = log_density(model, x, chains=2, block=())
    assert whole.block == ("utterances",) and whole.shape == (3, 2, 1)
    torch.testing.assert_close(whole(position)[..., 0], value.sum(-1))
    for b in range(3):
        model.start(x[b, 0])
        torch.testing.assert_close(log_density(model, x[b, 0], chains=2)({"speech.z": position["speech.z"][b]}), value[b])


def test_masked_bins_do_not_matter_and_padding_is_prior() -> None:
    x, model = _x(2, 1), Mixture(speech=VAESpeech(F, 3, (6,)), noise=StationaryNoise()).double()
    observed = torch.ones(2, 1, T, F, dtype=torch.bool)
    observed[1, :, 3:] = False  # the second utterance has three frames
    garbage = torch.where(observed, x, 1e3 * _x(2, 1))
    model.start(x, observed)
    spectrum = model.noise.spectrum.clone()
    target = log_density(model, x, observed, chains=2)
    position = target.init()
    value = target(position)
    model.start(garbage, observed)
    torch.testing.assert_close(model.noise.spectrum, spectrum)
    torch.testing.assert_close(log_density(model, garbage, observed, chains=2)(position), value)
    z = position["speech.z"][1]
    torch.testing.assert_close(value[1, :, 3:], dist.Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)[:, 3:])
    model.start(x[1, 0, :3])
    short = log_density(model, x[1, 0, :3], chains=2)({"speech.z": z[:, :3]})
    torch.testing.assert_close(short, value[1, :, :3])


def test_shared_latents_of_a_batch_are_one_block() -> None:
    x = torch.randn(4, 1, T, dtype=torch.float64)

    def model() -> None:
        level = pyro.sample("level", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("utterances", 4, dim=-3), pyro.plate("frames", T, dim=-1):
            pyro.sample("x", dist.Normal(level, 1.0), obs=x)

    target = log_density(model, chains=3)
    level = torch.randn(3, 1, dtype=torch.float64)
    expected = dist.Normal(0.0, 1.0).log_prob(level) + dist.Normal(level, 1.0).log_prob(x).sum((0, 2)).unsqueeze(-1)
    assert target.block == ()
    torch.testing.assert_close(target({"level": level}).reshape(3, 1), expected)


class _Recurrent(nn.Module):
    """A speech model whose decoder remembers: it declares independent frames that are not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.lstm = kind, nn.LSTM(2, F, batch_first=True).double()

    def forward(self, frames: pyro.plate) -> ComplexNormal:
        with frames:
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        if self.kind == "lstm":
            h = self.lstm(z.reshape(-1, T, 2))[0].reshape(*z.shape[:-1], F)
        elif self.kind == "cumsum":
            h = z.cumsum(-2).sum(-1, keepdim=True).expand(*z.shape[:-1], F)
        else:  # remembers the frame before the last one only
            earlier = torch.cat([torch.zeros_like(z[..., :2, :]), z[..., :-2, :]], -2)
            h = (z + 0.5 * earlier).sum(-1, keepdim=True).expand(*z.shape[:-1], F)
        return ComplexNormal(0j, h.exp())


@pytest.mark.parametrize("kind", ["lstm", "cumsum", "skip"])
def test_recurrent_decoder_is_refused_per_frame_and_falls_back_to_utterances(kind: str) -> None:
    x = _x(3, 1)
    model = Mixture(speech=_Recurrent(kind))
    with pytest.raises(BlockError, match=r"'speech\.z'.*frames.*Use block=\(\)"):
        log_density(model, x[0, 0], block=("frames",))
    assert log_density(model, x[0, 0], chains=2).block == ()
    batch = log_density(model, x, chains=2)
    assert batch.block == ("utterances",) and batch.shape == (3, 2, 1)


def test_a_threshold_on_a_neighbour_has_no_slope_and_is_refused_too() -> None:
    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(3.0 * (z.roll(1, -1) > 0), 1.0), obs=torch.zeros(T, dtype=torch.float64))

    start = {"z": torch.full((8, T), 0.01, dtype=torch.float64)}
    with pytest.raises(BlockError, match="in one member of"):
        log_density(model, chains=8, block=("frames",))
    assert log_density(model, chains=8, block=())(start).shape == (8, 1)


def test_a_decoder_that_mixes_chains_is_refused() -> None:
    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            mixed = z + (z.mean(-2, keepdim=True) if z.dim() > 1 else 0)
            pyro.sample("x", dist.Normal(mixed, 1.0), obs=torch.zeros(T, dtype=torch.float64))

    with pytest.raises(BlockError, match="chains"):
        log_density(model, chains=3)
    with pytest.raises(BlockError, match="chains"):
        log_density(model, chains=3, block=())
    assert log_density(model, chains=3, block=(), verify=False).shape == (3, 1)
    with pytest.raises(ValueError, match="verify=False without blocks"):
        log_density(model, chains=3, verify=False)


def _global_scale(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    with pyro.plate("frames", T, dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def test_a_global_site_forbids_blocks_of_frames() -> None:
    x = torch.randn(T, dtype=torch.float64)
    with pytest.raises(BlockError, match=r"'scale' is outside of plate 'frames'.*condition on 'scale'"):
        log_density(_global_scale, x, block=("frames",))
    assert log_density(_global_scale, x, chains=2).block == ()
    conditioned = poutine.condition(_global_scale, data={"scale": torch.ones((), dtype=torch.float64)})
    assert log_density(conditioned, x, chains=2, block=("frames",)).shape == (2, T)


def test_an_observed_site_outside_of_the_frames_that_depends_on_them_is_refused() -> None:
    def model() -> None:
        with pyro.plate("frames", T, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        pyro.sample("total", dist.Normal(z.sum(-1, keepdim=True), 1.0), obs=torch.zeros((), dtype=torch.float64))

    with pytest.raises(BlockError, match="'total' is outside of plate 'frames' but depends"):
        log_density(model, chains=2, block=("frames",))
    assert log_density(model, chains=2).block == ()


def test_unknown_plates_and_models_without_latents_are_refused() -> None:
    x = torch.randn(T, dtype=torch.float64)
    with pytest.raises(BlockError, match=r"'frame' is no plate.*'frames'"):
        log_density(_global_scale, x, block=("frame",))
    with pytest.raises(ValueError, match="no latent site"):
        log_density(lambda: pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(())))


def _target() -> LogDensity:
    return log_density(_constrained_sites(), chains=4)


def test_start_from_constrained_values_and_jitter() -> None:
    target = _target()
    size = torch.rand(T, dtype=torch.float64) + 0.1
    position = target.init({"size": size})
    torch.testing.assert_close(target.constrain(position)["size"], size.expand(4, T))
    other = target.init({"size": size}, jitter=0.1)
    assert (other["size"].std(0) > 0).all() and (other["size"] - position["size"]).abs().max() < 1
    assert target.constrain(position)["share"].shape == (4, T, 3) and position["share"].shape == (4, T, 2)


@pytest.mark.parametrize("change", [{"chains": 0}, {"chains": 1.5}, {"temperature": 0}, {"temperature": float("nan")}, {"likelihood_power": -1.0}])
def test_numbers_out_of_range_are_refused(change: dict[str, float]) -> None:
    (name, value), = change.items()
    with pytest.raises(ValueError, match=f"log_density: {name}={value}; expected a"):
        log_density(_constrained_sites(), **change)  # type: ignore[arg-type]  # numbers by name
