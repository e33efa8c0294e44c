"""A network is asked once about the same latents, and never answers for others, for other weights, or with a graph that is used up."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

import ppse
from ppse import methods
from ppse.inference import infer, resume
from ppse.memo import Memo, Recall
from ppse.models import DKFSpeech, HeardSpeech, NMFNoise, RVAESpeech, VAESpeech


class Counted:
    """A network that squares, with how often it was asked."""

    def __init__(self) -> None:
        self.network, self.memo, self.calls = nn.Linear(1, 1, bias=False).requires_grad_(False), Memo(), 0

    def decode(self, z: Tensor) -> Tensor:
        self.calls += 1
        value: Tensor = self.network(z).square()
        return value

    def __call__(self, z: Tensor, told: object = None) -> Tensor:
        return self.memo(self.decode, z, [self.network], told)

    @property
    def weight(self) -> float:
        return float(self.network.weight)


def test_what_an_m_step_decodes_serves_the_gradient_of_the_next_e_step() -> None:
    square, z = Counted(), torch.full((3, 1), 2.0, requires_grad=True)
    with torch.no_grad():
        value = square(z)
        assert not value.requires_grad
        assert torch.equal(square(z), value)
    again = square(z)
    (gradient,) = torch.autograd.grad(again.sum(), z)
    assert square.calls == 1
    torch.testing.assert_close(again.detach(), value)
    torch.testing.assert_close(gradient, torch.full((3, 1), 4 * square.weight**2))


def test_a_graph_serves_once() -> None:
    square, z = Counted(), torch.ones(3, 1, requires_grad=True)
    gradients = [torch.autograd.grad(square(z).sum(), z)[0] for _ in range(3)]
    assert square.calls == 3
    assert torch.equal(gradients[0], gradients[2])


def test_a_value_without_a_graph_is_no_answer_where_a_gradient_is_wanted() -> None:
    square, z = Counted(), torch.ones(3, 1)
    square(z)
    z.requires_grad_()
    assert torch.autograd.grad(square(z).sum(), z)[0].abs().min() > 0


@pytest.mark.parametrize("changed", ["other tensor", "in place", "weights in place", "weights replaced", "told"])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_change_is_seen(changed: str, wanted: bool) -> None:
    square, z = Counted(), torch.full((1, 1), 2.0)
    with torch.set_grad_enabled(wanted):
        square(z, told=1)
        if changed == "other tensor":
            z = torch.full((1, 1), 3.0)
        elif changed == "in place":
            z += 1.0
        elif changed == "weights in place":
            square.network.load_state_dict({"weight": torch.full((1, 1), 7.0)})
        elif changed == "weights replaced":
            square.network.weight = nn.Parameter(torch.full((1, 1), 7.0), requires_grad=False)
        value = square(z, told=2 if changed == "told" else 1)
    assert square.calls == 2
    assert value.item() == pytest.approx((square.weight * z.item()) ** 2)


def test_a_network_in_training_is_asked_every_time() -> None:
    square, z = Counted(), torch.ones(1, 1)
    square.network.requires_grad_(True)
    for _ in range(2):
        assert square(z).requires_grad
    assert square.calls == 2


@pytest.mark.parametrize("inside", [False, True], ids=["latents from outside", "latents from inside"])
def test_what_is_found_in_inference_mode_is_not_used_outside(inside: bool) -> None:
    square, z, w = Counted(), torch.ones(1, 1), torch.ones(1, 1, requires_grad=True)
    with torch.inference_mode():
        z = torch.ones(1, 1) if inside else z
        assert torch.equal(square(z), square(z))
    if not inside:
        (square(z) * w.square()).sum().backward()
        assert w.grad is not None and w.grad.item() == pytest.approx(2 * square.weight**2)


def test_weights_that_are_gone_are_not_taken_for_others() -> None:
    """Their numbers are given to others then."""
    square, z = Counted(), torch.ones(1, 1)
    for value in range(50):
        square.network.weight = nn.Parameter(torch.full((1, 1), float(value)), requires_grad=False)
        assert square(z).item() == value**2


def test_nothing_is_kept_alive() -> None:
    """The last decode has a graph that nobody goes back through."""
    x = torch.randn(6, 9, dtype=torch.complex64)
    model = ppse.Mixture(speech=RVAESpeech(n_freqs=9, n_latent=4).requires_grad_(False), noise=NMFNoise(2))
    inference = infer(model, x, methods.langevin_em(3))
    memo = weakref.ref(inference.graph.speech._decoded)
    assert memo() is not None and memo()._value.requires_grad
    del inference
    gc.collect()
    assert memo() is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda memo: pickle.loads(pickle.dumps(memo))], ids=["deepcopy", "pickle"])
def test_a_copy_is_empty(copied: object) -> None:
    square, z = Counted(), torch.ones(1, 1, requires_grad=True)
    square(z)
    square.memo = copied(square.memo)  # type: ignore[operator]
    square(z)
    assert square.calls == 2


@pytest.mark.parametrize("prior", [VAESpeech, RVAESpeech, DKFSpeech])
def test_one_decode_per_iteration(prior: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Langevin EM with twice the iterations decodes that many times more, and not twice that."""
    calls = 0

    def counted(self: nn.Module, frames: Tensor) -> Tensor:
        nonlocal calls
        calls += self is decoder
        return forward(self, frames)

    forward = nn.Sequential.forward
    monkeypatch.setattr(nn.Sequential, "forward", counted)
    model = ppse.Mixture(speech=prior(n_freqs=9, n_latent=4).requires_grad_(False), noise=NMFNoise(2))
    decoder = model.speech.decoder
    x = torch.randn(7, 9, dtype=torch.complex64)
    counts = []
    for iterations in (10, 20):
        calls = 0
        model.start(x)
        resume(model, x, methods.langevin_em(iterations, settle=5))
        counts.append(calls)
    assert counts[1] - counts[0] == 10
    assert counts[0] <= 10 - 5 + 5  # of those that settle one, and a few to set up


@pytest.mark.parametrize("name", ["fast", "default", "mala_em", "vem", "peem"])
def test_what_is_found_is_the_same_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 9, dtype=torch.complex64)
    torch.manual_seed(1)
    model = ppse.Mixture(speech=RVAESpeech(n_freqs=9, n_latent=4).requires_grad_(False), noise=NMFNoise(2))
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(infer(model, x, getattr(methods, name)(iterations=12)))
        monkeypatch.setattr(Memo, "__call__", lambda self, decode, z, networks, told=None: decode(z))
    # Not to the last digit: an LSTM rounds differently where it keeps a graph.
    torch.testing.assert_close(found[0].sources["speech"].loc, found[1].sources["speech"].loc, rtol=1e-3, atol=1e-4)
    assert found[0].objective == pytest.approx(found[1].objective, rel=1e-4)
    assert not any(value.requires_grad for value in found[0].draws.values())


class Heard:
    """A network that is asked what it makes of a recording, with how often it was."""

    def __init__(self) -> None:
        self.network, self.recall, self.calls = nn.Linear(1, 1, bias=False), Recall[tuple[Tensor]](), 0

    def __call__(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        def make() -> tuple[Tensor]:
            self.calls += 1
            return (self.network(x).square(),)

        return self.recall(make, (x, observed), self.network)[0]


def test_a_recording_is_heard_once_as_itself_or_as_a_copy() -> None:
    hear, x = Heard(), torch.randn(5, 1)
    seen = torch.ones(5, 1, dtype=torch.bool)
    with torch.no_grad():
        values = [hear(x), hear(x), hear(x.clone()), hear(x, seen), hear(x, seen.clone()), hear(x)]
    assert hear.calls == 3  # alone, with a mask, alone again: the last is what is kept
    assert all(torch.equal(value, values[0]) for value in values)


@pytest.mark.parametrize("what", ["other values", "another length", "another type", "changed in place", "other weights", "another network"])
def test_another_recording_or_network_is_heard_anew(what: str) -> None:
    hear, x = Heard(), torch.randn(5, 1)
    with torch.no_grad():
        before = hear(x)
        if what == "changed in place":
            x.add_(1)
        elif what == "other weights":
            hear.network.weight.mul_(2)
        elif what == "another network":
            hear.network = copy.deepcopy(hear.network)
        elif what == "another type":
            hear.network.double()
        other = {"other values": x + 1, "another length": x[:3], "another type": x.double()}.get(what, x)
        after = hear(other)
        assert hear.calls == 2
        torch.testing.assert_close(after, hear.network(other).square())
        assert what in ("another length", "another type", "another network") or not torch.equal(after, before)


@pytest.mark.parametrize("fused", [False, True])
def test_a_listener_that_has_learnt_is_asked_again(fused: bool) -> None:
    """Also by a fused optimiser, which leaves the versions of the weights as they are."""
    hear, x = Heard(), torch.randn(5, 1)
    optimiser = torch.optim.Adam(hear.network.parameters(), lr=0.1, fused=fused)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(hear(x), hear.network(x).square())
        hear(x).sum().backward()
        optimiser.step()
    assert hear.calls == 4


def test_a_listener_that_learns_is_asked_every_time_and_copies_know_nothing() -> None:
    hear, x = Heard(), torch.randn(5, 1)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(hear(x).sum(), hear.network.weight)
        assert gradient.abs() > 0
    assert hear.calls == 2
    with torch.inference_mode():
        hear(x)
        hear(x)
    assert hear.calls == 4
    with torch.no_grad():
        hear(x)
        for twin in (copy.deepcopy(hear), pickle.loads(pickle.dumps(hear))):
            assert twin.calls == 5
            twin(x)
            assert twin.calls == 6


@pytest.mark.parametrize("batch", [False, True])
def test_one_pass_hears_a_recording_once(batch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    vae = VAESpeech(17, 3, (8,), context=4)
    assert vae.listener is not None
    forward = type(vae.listener).forward

    def counted(self: nn.Module, *args: Tensor) -> object:
        calls.append(1)
        return forward(self, *args)

    monkeypatch.setattr(type(vae.listener), "forward", counted)
    x = torch.randn(*((2, 1) if batch else ()), 9, 17, dtype=torch.complex64)
    x[..., 6:, :] = 0
    observed = (torch.arange(9) < 6)[:, None] if batch else None
    infer(ppse.Mixture(speech=HeardSpeech(vae, vae), noise=NMFNoise(2)), x, methods.amortised(), observed)
    assert len(calls) == 1
