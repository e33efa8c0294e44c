"""Sources that switch, and the two views of their graph, against sums over all paths and against enumeration by Pyro."""

from itertools import product

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor

from ppse import ComplexNormal, Mixture, with_priors
from ppse.guides import mean_field, starting_guide
from ppse.hidden_markov import HiddenMarkov
from ppse.infer import BlockError, fit, log_density
from ppse.infer.discrete import forward_backward
from ppse.models import CodeChain, CodePrior, MarkovChain, MixtureSpeech, PartiallyObserved, StationaryNoise, SwitchingSpeech, VAESpeech
from ppse.switching import collapsed, drawn, fit_chain, regimes
from ppse.testing import check_source

F, T = 5, 4
TRANSITION = torch.tensor([[0.7, 0.3], [0.2, 0.8]])
INITIAL = torch.tensor([0.6, 0.4])


def _vaes(count: int = 2) -> list[VAESpeech]:
    torch.manual_seed(3)
    return [VAESpeech(F, 1 + i, (4,)) for i in range(count)]


def _model(**how: object) -> Mixture:
    how = {"transition": TRANSITION, "initial": INITIAL} | how
    return Mixture(speech=SwitchingSpeech(_vaes(), **how), noise=StationaryNoise()).double()  # type: ignore[arg-type]  # of any kind here


def _recording(*lead: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*lead, T, F, dtype=torch.complex128)


def _latents(chains: int, *lead: int) -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {f"speech.expert{i}.z": torch.randn(*lead, chains, T, 1 + i, dtype=torch.float64) for i in range(2)}


def _of_path(model: Mixture, x: Tensor, latents: dict[str, Tensor], path: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """log p(path) and log p(x | path, latents) of every chain, by the graph itself."""
    given = latents | {"speech.regime": torch.tensor(path)}
    with pyro.plate("chains", next(iter(latents.values())).shape[0], dim=-2):
        trace = poutine.trace(poutine.condition(model, data=given)).get_trace(x)
    trace.compute_log_prob()
    return trace.nodes["speech.regime"]["log_prob"].sum(-1), trace.nodes["x"]["log_prob"].sum(-1)


PATHS = list(product(range(2), repeat=T))


def test_a_chain_draws_what_its_law_says() -> None:
    chain = MarkovChain(INITIAL, TRANSITION, 3)
    torch.manual_seed(0)
    path = chain.expand((20_000, 3)).sample()
    first = path[:, 0].double().mean()
    assert abs(first - 0.4) < 4 * (0.24 / 20_000) ** 0.5
    for i in range(2):
        moves = path[:, 2][path[:, 1] == i].double()
        assert abs(moves.mean() - TRANSITION[i, 1]) < 4 * (0.25 / len(moves)) ** 0.5
    total = sum(chain.log_prob(torch.tensor(p)).sum().exp() for p in product(range(2), repeat=3))
    torch.testing.assert_close(torch.as_tensor(total), torch.tensor(1.0))


def test_a_chain_for_every_chain_and_utterance() -> None:
    rows = torch.rand(2, 3, 1, 2, 2).softmax(-1)
    chain = MarkovChain(rows[..., 0, :], rows, 4)
    path = chain.sample()
    assert chain.batch_shape == path.shape == (2, 3, 4)
    for b, c in product(range(2), range(3)):
        alone = MarkovChain(rows[b, c, 0, 0], rows[b, c, 0], 4)
        torch.testing.assert_close(chain.log_prob(path)[b, c], alone.log_prob(path[b, c]))


@pytest.mark.parametrize("source", [
    lambda: SwitchingSpeech(_vaes(), TRANSITION), lambda: SwitchingSpeech(_vaes(), 0.6, learn=True), lambda: MixtureSpeech(_vaes(), learn=True),
    lambda: SwitchingSpeech(_vaes(3), dist.Dirichlet(torch.full((3,), 9.0))), lambda: SwitchingSpeech([StationaryNoise(), *_vaes()], 0.3),
])
def test_contract_of_a_source(source: object) -> None:
    made = source()  # type: ignore[operator]  # of functions that make one
    torch.manual_seed(8)
    check_source(made, 40, F, aside=[f"expert{i}.encoder" for i in range(3)])  # long enough for every expert to be drawn


def test_summed_out_is_the_sum_over_all_paths() -> None:
    model, x, latents = _model(), _recording(), _latents(3)
    model.start(x)
    joint = torch.stack([sum(_of_path(model, x, latents, path)) for path in PATHS])  # type: ignore[arg-type]  # of tensors
    with pyro.plate("chains", 3, dim=-2):
        trace = poutine.trace(poutine.condition(collapsed(model), data=latents)).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (3, T) and "speech.regime" not in trace.nodes
    torch.testing.assert_close(trace.nodes["x"]["log_prob"].sum(-1), joint.logsumexp(0))
    found = regimes(model, (x,), latents, 3)
    smoothed = forward_backward(*found.numbers)
    torch.testing.assert_close(smoothed.log_evidence, joint.logsumexp(0))
    expected = torch.einsum("pc,pt->ct", joint.softmax(0), torch.tensor(PATHS, dtype=torch.float64))
    torch.testing.assert_close(smoothed.marginals[..., 1], expected)


def test_summed_out_is_what_pyro_enumerates() -> None:
    """The same little model with Markov sites, one for every frame, and TraceEnum_ELBO."""
    model, x, latents = _model(), _recording(), _latents(1)
    model.start(x)
    log_emission = regimes(model, (x,), latents).log_emission[0].detach()
    prior = sum(dist.Normal(0, 1).log_prob(z).sum() for z in latents.values())

    def sequential() -> None:
        regime: int | Tensor = 0
        for t in pyro.markov(range(T)):
            regime = pyro.sample(f"m{t}", dist.Categorical(TRANSITION.double()[regime] if t else INITIAL.double()), infer={"enumerate": "parallel"})
            pyro.factor(f"x{t}", log_emission[t][regime])

    enumerated = -TraceEnum_ELBO().loss(sequential, lambda: None)

    def guide(x: Tensor) -> None:
        with pyro.plate("frames", T, dim=-1):
            for name, value in latents.items():
                pyro.sample(name, dist.Delta(value[0], event_dim=1))

    torch.testing.assert_close(-Trace_ELBO().loss(collapsed(model), guide, x), float(enumerated + prior))


def test_drawn_paths_follow_the_posterior() -> None:
    model, x = _model(), _recording()
    model.start(x)
    latents = {name: value.expand(4000, T, -1) for name, value in _latents(1).items()}
    joint = torch.stack([sum(_of_path(model, x, _latents(1), path)) for path in PATHS]).squeeze(-1)  # type: ignore[arg-type]  # of tensors
    torch.manual_seed(0)
    path = drawn(regimes(model, (x,), latents, 4000))
    counts = (path * 2 ** torch.arange(T - 1, -1, -1)).sum(-1).bincount(minlength=len(PATHS)) / 4000
    weight = joint.softmax(0).detach()
    assert ((counts - weight).abs() < 4.5 * (weight * (1 - weight) / 4000).sqrt() + 1e-3).all()


def test_frames_are_coupled_when_summed_out_and_free_when_they_are_given() -> None:
    model, x = _model(), _recording(2, 1)
    model.start(x)
    target = log_density(collapsed(model), x, chains=3)
    assert target.block == ("utterances",) and target.shape == (2, 3, 1) and "speech.regime" not in target.sites
    with pytest.raises(BlockError):
        log_density(collapsed(model), x, block=("frames",))
    given = poutine.condition(model, data={"speech.regime": torch.ones(T, dtype=torch.long)})
    assert log_density(given, x, chains=3).block == ("frames", "utterances")


def test_a_batch_is_a_loop() -> None:
    model, x, latents = _model(), _recording(2, 1), _latents(3, 2)
    model.start(x)
    whole = regimes(model, (x,), latents, 3)
    assert drawn(whole).shape == (2, 3, T)
    for b in range(2):
        alone = _model()
        alone.start(x[b, 0])
        torch.testing.assert_close(regimes(alone, (x[b, 0],), {k: v[b] for k, v in latents.items()}, 3).log_emission, whole.log_emission[b])


def test_choices_of_every_frame_alone_leave_frames_independent() -> None:
    weights = torch.tensor([0.3, 0.7])
    model, x, latents = Mixture(speech=MixtureSpeech(_vaes(), weights), noise=StationaryNoise()).double(), _recording(), _latents(2)
    model.start(x)
    found = regimes(model, (x,), latents, 2)
    torch.testing.assert_close(forward_backward(*found.numbers).marginals, (found.log_emission + weights.double().log()).softmax(-1))
    assert log_density(collapsed(model), x, chains=2).block == ("frames",)


def test_bins_that_are_known_speak_for_their_regime_too() -> None:
    x, latents = _recording(), _latents(2)
    known = torch.zeros(T, F, dtype=torch.bool)
    known[1] = True
    speech = PartiallyObserved(SwitchingSpeech(_vaes(), TRANSITION, INITIAL), 0.5 * x, known)
    model = Mixture(speech=speech, noise=StationaryNoise()).double()
    model.start(x)
    total = []
    for path in PATHS:
        with pyro.plate("chains", 2, dim=-2):
            trace = poutine.trace(poutine.condition(model, data=latents | {"speech.regime": torch.tensor(path)})).get_trace(x)
        trace.compute_log_prob()
        total.append(sum(site["log_prob"].sum(-1) for name, site in trace.nodes.items() if site["type"] == "sample" and name not in latents))
    with pyro.plate("chains", 2, dim=-2):
        trace = poutine.trace(poutine.condition(collapsed(model), data=latents)).get_trace(x)
    trace.compute_log_prob()
    seen = sum(site["log_prob"].sum(-1) for name, site in trace.nodes.items() if site["type"] == "sample" and name not in latents)
    torch.testing.assert_close(seen, torch.stack(total).logsumexp(0))


def test_what_is_drawn_of_the_summed_out_graph_follows_what_else_is_seen() -> None:
    """The states are told by the signs of what is drawn; the first and the last are excluded by what was seen before."""
    chain = MarkovChain(INITIAL, TRANSITION, 3)
    emission = dist.Normal(torch.tensor([-100.0, 100.0]).reshape(2, 1, 1, 1), 1.0).expand((2, 1, 4000, 3))
    torch.manual_seed(0)
    for before, allowed in ((None, 8), (torch.tensor([[0.0, -1e4], [0.0, 0.0], [-1e4, 0.0]]), 2)):
        law = HiddenMarkov(chain, emission, before)
        drawn_signs = (law.sample() > 0).long() @ torch.tensor([4, 2, 1])
        share = drawn_signs.bincount(minlength=8) / 4000
        weight = torch.stack([chain.log_prob(torch.tensor(p)).sum().exp() for p in product(range(2), repeat=3)])
        if before is not None:
            weight = weight * torch.tensor([0, 1, 0, 1, 0, 0, 0, 0])
        weight = weight / weight.sum()
        assert (share > 0).sum() == allowed
        assert ((share - weight).abs() < 4.5 * (weight * (1 - weight) / 4000).sqrt() + 1e-6).all()


def test_the_start_has_the_encoders_of_all_experts() -> None:
    experts = [VAESpeech(F, 2, (4,), context=3), CodePrior(VAESpeech(F, 3, (4,)), CodeChain(3))]
    model = Mixture(speech=SwitchingSpeech(experts), noise=StationaryNoise())
    guide = starting_guide(model)
    assert guide is not None and guide.sites == ("speech.expert0.z", "speech.expert1.z")
    laws, noise = guide.listen(_recording().to(torch.complex64))
    assert laws["speech.expert1.z"][0].shape == (T, 3) and noise is not None and noise.shape == (T, F)


def test_svi_on_the_summed_out_graph_climbs() -> None:
    model, x = _model(), _recording()
    model.start(x)
    graph = collapsed(model)
    guide = mean_field(graph, x)

    def bound() -> float:
        with poutine.seed(rng_seed=0):
            return -Trace_ELBO(num_particles=50).loss(graph, guide, x)

    before = bound()
    torch.manual_seed(0)
    fit(graph, guide, x, steps=60, learning_rate=0.05)
    assert bound() > before + 0.3


def test_a_chain_is_learnt_from_its_posterior() -> None:
    model, x = _model(learn=True), _recording(2, 1)
    model.start(x)
    found = regimes(model, (x,), _latents(3, 2), 3)
    smoothed = forward_backward(*found.numbers)
    fit_chain(model, smoothed, batched=True)
    speech = model.sources["speech"]
    assert isinstance(speech, SwitchingSpeech)
    counts = smoothed.pairs.sum(-3).mean(1)
    torch.testing.assert_close(speech.transition.squeeze((1, 2)), counts / counts.sum(-1, keepdim=True), atol=1e-5, rtol=0)
    torch.testing.assert_close(speech.initial.squeeze((1, 2)), smoothed.marginals[..., 0, :].mean(1), atol=1e-5, rtol=0)
    model.start(x[0, 0])
    torch.testing.assert_close(speech.transition, TRANSITION.double(), atol=1e-5, rtol=0)


def test_a_prior_of_the_transition_by_a_handler_is_the_one_of_the_constructor() -> None:
    x, latents = _recording(), _latents(3)
    rows = torch.tensor([[[[0.5, 0.5], [0.1, 0.9]]]], dtype=torch.float64).expand(3, 1, 2, 2)
    values = []
    law = dist.Dirichlet(torch.full((2, 2), 2.0, dtype=torch.float64))
    for model in (_model(learn=True), _model(transition=dist.Dirichlet(torch.full((2,), 2.0)), initial=INITIAL)):
        model.start(x)
        learnt = model.sources["speech"].learn  # type: ignore[attr-defined]
        graph = with_priors(model, {"speech.transition": law.to_event(1)}, x) if learnt else model
        values.append(regimes(graph, (x,), latents | {"speech.transition": rows}, 3).numbers)
        assert torch.equal(values[-1][1], rows[:, 0].log())
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("wrong", "message"), [
    (lambda: SwitchingSpeech(_vaes(2)[:1]), "1 experts; expected two or more"),
    (lambda: SwitchingSpeech([VAESpeech(5, 1, (4,)), VAESpeech(9, 1, (4,))]), r"\[\[5\], \[9\]\] frequencies"),
    (lambda: SwitchingSpeech(_vaes(), [[0.5, 0.4], [0.5, 0.5]]), "not stochastic"),
    (lambda: SwitchingSpeech(_vaes(), [[1.5, -0.5], [0.5, 0.5]]), "not stochastic"),
    (lambda: SwitchingSpeech(_vaes(), torch.tensor([[float("nan"), 1.0], [0.5, 0.5]])), "not stochastic"),
    (lambda: SwitchingSpeech(_vaes(), torch.eye(3)), r"shape \(3, 3\); expected \(2, 2\)"),
    (lambda: SwitchingSpeech(_vaes(), 1.2), "transition=1.2"),
    (lambda: SwitchingSpeech(_vaes(), TRANSITION, [0.5, 0.6]), "initial .* not stochastic"),
    (lambda: SwitchingSpeech(_vaes(), TRANSITION, [1.0]), r"initial has shape \(1,\)"),
    (lambda: SwitchingSpeech(_vaes(), dist.Dirichlet(torch.ones(3))), r"expected event \(2,\)"),
    (lambda: SwitchingSpeech(_vaes(), dist.Dirichlet(torch.ones(2)), learn=True), "leave learn out"),
    (lambda: MixtureSpeech(_vaes(), [0.5, 0.2]), "not stochastic"),
])
def test_what_cannot_switch_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()  # type: ignore[operator]  # of functions that fail


def test_laws_of_other_stfts_are_refused_when_they_are_met() -> None:
    def wide(frames: pyro.plate) -> ComplexNormal:
        return ComplexNormal(0j, torch.ones(frames.size, 7))

    with pytest.raises(ValueError, match=r"\[5, 7\] frequencies"):
        Mixture(speech=SwitchingSpeech([_vaes()[0], wide]))(_recording())


def test_a_model_that_does_not_switch_or_switches_twice_is_refused() -> None:
    x = _recording()
    one = Mixture(speech=_vaes()[0])
    with pytest.raises(ValueError, match=r"chains \[\]"):
        collapsed(one)(x)
    two = Mixture(a=SwitchingSpeech(_vaes()), b=SwitchingSpeech(_vaes()))
    with pytest.raises(ValueError, match=r"\['a.regime', 'b.regime'\]"):
        regimes(two, (x,), {})
