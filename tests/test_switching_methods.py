"""Variational EM and Gibbs sampling of sources that switch, against quadrature over latents of one dimension and the sum over all paths."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppse import ComplexNormal, Mixture, methods
from ppse.guides import starting_guide
from ppse.infer import forward_backward, mala
from ppse.infer.discrete import sample_path
from ppse.inference import Keep, infer, resume
from ppse.method import Problem
from ppse.models import CodeChain, CodePrior, NMFNoise, StationaryNoise, SwitchingSpeech, VAESpeech
from ppse.switching_factored import update_noise
from ppse.switching_gibbs import RegimeGibbs, switching_gibbs
from ppse.switching_vem import VariationalPosterior, switching_vem

F, T = 3, 4
TRANSITION, INITIAL = torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([0.6, 0.4])
SLOPES = torch.tensor([[1.0, 0.4, -0.5], [-0.6, 0.8, 0.3]], dtype=torch.float64)
OFFSETS = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5]], dtype=torch.float64)
NOISE = 0.4
SHOWN = torch.tensor([0.3, 1.9, 0.8, 2.5], dtype=torch.float64)


def _expert(number: int) -> object:
    """z_t ~ N(0, 1), log-variances linear in z_t: the integral over z_t is one-dimensional."""
    def source(frames: pyro.plate) -> ComplexNormal:
        with frames:
            z = pyro.sample("z", dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1))
        return ComplexNormal(0j, (OFFSETS[number] + SLOPES[number] * z).exp())

    return source


def _noise(frames: pyro.plate) -> ComplexNormal:
    return ComplexNormal(0j, torch.full((frames.size, F), NOISE, dtype=torch.float64))


def _model(transition: object = TRANSITION, **how: object) -> Mixture:
    speech = SwitchingSpeech([_expert(0), _expert(1)], transition, INITIAL, **how)  # type: ignore[arg-type]  # of any kind here
    return Mixture(speech=speech, noise=_noise).double()


def _problem(model: Mixture, x: Tensor) -> Problem:
    model.start(x)
    return Problem(model, model, x, None, starting_guide(model), {})


def _recording(n_frames: int = T, seed: int = 5) -> tuple[Tensor, Tensor]:
    """A mixture drawn from the model, and its regimes."""
    torch.manual_seed(seed)
    path = sample_path(INITIAL.log(), TRANSITION.log(), torch.zeros(n_frames, 2))
    z = torch.randn(n_frames, 1, dtype=torch.float64)
    return ComplexNormal(0j, (OFFSETS[path] + SLOPES[path] * z).exp() + NOISE).sample(), path


def _integrals(x: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """log of the integral of p(x_t, z_t | m_t) to 1 / temperature, and E[s_t | x_t, m_t] under it, on a grid of z: (T, M), (T, M, F)."""
    nodes = torch.linspace(-12, 12, 2001, dtype=torch.float64)
    var = (OFFSETS + SLOPES * nodes[:, None, None]).exp()  # (N, M, F)
    log_prob = ComplexNormal(0j, var[:, None] + NOISE).log_prob(x[:, None]).sum(-1)  # (N, T, M)
    joint = (log_prob + dist.Normal(0.0, 1.0).log_prob(nodes)[:, None, None]) / temperature
    share = joint.softmax(0)
    speech = (share.unsqueeze(-1) * (var / (var + NOISE))[:, None]).sum(0) * x[:, None]
    return joint.logsumexp(0) + (nodes[1] - nodes[0]).log(), speech


def _exact(x: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """log p(x), p(m_t = 1 | x), and E[s | x], with p(x, z | m) to 1 / temperature in place of it."""
    emission, speech = _integrals(x, temperature)
    chain = forward_backward(INITIAL.double().log(), TRANSITION.double().log(), emission)
    return chain.log_evidence, chain.marginals[:, 1], (chain.marginals.unsqueeze(-1) * speech).sum(1)


@pytest.mark.parametrize("factored", [False, True])
def test_the_bound_never_falls(factored: bool) -> None:
    x, _ = _recording()
    torch.manual_seed(0)
    posterior = VariationalPosterior(_problem(_model(), x), draws=50, learning_rate=0.03, factored=factored)
    bounds = []
    for _ in range(30):
        for action in (lambda: bounds.append(posterior.beliefs().bound), lambda: posterior.climb(1)):
            with pyro.poutine.seed(rng_seed=1):  # the same random numbers: what changes is the posterior
                action()
    assert all(after > before - 1e-3 for before, after in zip(bounds, bounds[1:], strict=False))
    assert bounds[-1] > bounds[0] + 0.5


def test_latents_that_experts_have_in_common_climb_the_bound_too() -> None:
    """The level of the noise is a latent: its law serves both experts, the likelier one more."""
    def noise(frames: pyro.plate) -> ComplexNormal:
        with frames:
            g = pyro.sample("g", dist.Normal(torch.zeros(1, dtype=torch.float64), 2.0).to_event(1))
        return ComplexNormal(0j, (NOISE * g.exp()).expand(*g.shape[:-1], F))

    model = Mixture(speech=SwitchingSpeech([_expert(0), _expert(1)], 0.98, INITIAL), noise=noise).double()  # type: ignore[list-item]  # functions are sources
    torch.manual_seed(0)
    posterior = VariationalPosterior(_problem(model, _recording(12)[0]), draws=50)
    bounds = []
    for _ in range(100):
        for action in (lambda: bounds.append(posterior.beliefs().bound), lambda: posterior.climb(1)):
            with pyro.poutine.seed(rng_seed=1):
                action()
    assert np.diff(bounds).min() > -1e-3 and bounds[-1] > bounds[0] + 5


@pytest.mark.parametrize("factored", [False, True])
def test_the_bound_stays_below_the_evidence_and_comes_near(factored: bool) -> None:
    x, _ = _recording()
    evidence, marginal, _ = _exact(x)
    torch.manual_seed(0)
    posterior = VariationalPosterior(_problem(_model(), x), draws=100, learning_rate=0.1, factored=factored)
    posterior.climb(60)
    found = [posterior.beliefs() for _ in range(10)]
    bound, error = np.mean([f.bound for f in found]), np.std([f.bound for f in found]) / 3
    assert bound < float(evidence) + (-0.2 if factored else 3 * error)
    assert bound > float(evidence) - (0.8 if factored else 0.2)
    assert (torch.stack([f.chain.marginals[0, :, 1] for f in found]).mean(0) - marginal).abs().max() < 0.05


class _Shown(SwitchingSpeech):
    """The regime is seen beside the sound, through noise of unit deviation."""

    def show(self, regime: Tensor) -> None:
        pyro.sample("seen", dist.Normal(2.0 * regime.double(), 1.0), obs=SHOWN)


def _shown() -> tuple[Mixture, Tensor]:
    """A model of which more is seen than the sound, and log p(seen_t | m_t), (T, M)."""
    speech = _Shown([_expert(0), _expert(1)], TRANSITION, INITIAL)  # type: ignore[list-item]  # functions are sources
    return Mixture(speech=speech, noise=_noise).double(), dist.Normal(torch.tensor([0.0, 2.0]).double(), 1.0).log_prob(SHOWN.unsqueeze(-1))


def test_a_chain_that_is_not_to_hear_follows_what_it_sees() -> None:
    model, seen = _shown()
    posterior = VariationalPosterior(_problem(model, _recording()[0]), draws=2, hearing=0.0)
    exact = forward_backward(INITIAL.double().log(), TRANSITION.double().log(), seen)
    for factored in (False, True):
        posterior._factored = factored
        torch.testing.assert_close(posterior.beliefs(climb=True).chain.marginals[0], exact.marginals)


@pytest.mark.parametrize("hearing", [0.0, 0.3, 1.0])
def test_the_bound_counts_all_of_the_sound_however_little_the_chain_hears(hearing: float) -> None:
    x, _ = _recording()
    model, seen = _shown()
    sound, _ = _integrals(x)
    start = INITIAL.double().log(), TRANSITION.double().log()
    wanted = forward_backward(*start, seen + hearing * sound)
    bound_of_it = wanted.log_evidence + (1 - hearing) * (wanted.marginals * sound).sum()
    evidence = forward_backward(*start, seen + sound).log_evidence
    torch.manual_seed(0)
    posterior = VariationalPosterior(_problem(model, x), draws=100, learning_rate=0.1, hearing=hearing)
    posterior.climb(60)
    found = [posterior.beliefs() for _ in range(10)]
    bound, error = np.mean([f.bound for f in found]), np.std([f.bound for f in found]) / 3
    assert bound_of_it <= evidence + 1e-9
    assert float(bound_of_it) - 0.2 < bound < float(bound_of_it) + 3 * error
    assert (torch.stack([f.chain.marginals[0] for f in found]).mean(0) - wanted.marginals).abs().max() < 0.05


def test_what_an_expert_observes_for_itself_is_refused() -> None:
    def heard(frames: pyro.plate) -> ComplexNormal:
        law = _expert(1)(frames)  # type: ignore[operator]  # it is a function
        with frames:
            pyro.factor("heard", torch.zeros(T, dtype=torch.float64))
        return law  # type: ignore[no-any-return]  # it is one

    speech = SwitchingSpeech([_expert(0), heard], TRANSITION, INITIAL)  # type: ignore[list-item]  # functions are sources
    with pytest.raises(ValueError, match="'speech.expert1.heard' of an expert is observed whatever the regime"):
        VariationalPosterior(_problem(Mixture(speech=speech, noise=_noise).double(), _recording()[0]))


def test_a_power_of_the_sound_beyond_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hearing=1.5; expected a power in \[0, 1\]"):
        switching_vem(hearing=1.5)


def test_the_published_factor_of_the_speech_bounds_from_below() -> None:
    x, _ = _recording()
    bounds = []
    for factored in (False, True):
        torch.manual_seed(0)
        posterior = VariationalPosterior(_problem(_model(), x), draws=500, learning_rate=0.03, factored=factored)
        with pyro.poutine.seed(rng_seed=1):
            bounds.append(posterior.beliefs())
    assert bounds[1].bound < bounds[0].bound
    # log CN(x; 0, 1/a_s + v_n) - E log v_s - log a_s, written out by the terms of METHODS: E log p(x|s) + E log p(s|z) - E log r(s)
    speech = bounds[1].speech
    assert speech is not None
    var = bounds[1].found.laws["speech"].var
    mu, nu = speech.loc, speech.var
    error = (x - mu).abs().square() + nu
    second = mu.abs().square() + nu
    of_x = -(torch.pi * torch.tensor(NOISE, dtype=torch.float64)).log() - error / NOISE
    of_s = -(torch.pi * var).log().mean(-3, keepdim=True) - second * (1 / var).mean(-3, keepdim=True)
    entropy = (torch.pi * nu).log() + 1
    plain = torch.movedim((of_x + of_s + entropy).sum(-1), 0, -1)[0]
    torch.testing.assert_close(plain - plain.mean(), (speech.weights - speech.weights.mean()))
    torch.testing.assert_close(plain, speech.weights)


def test_closed_form_steps_never_lower_the_published_bound() -> None:
    torch.manual_seed(0)
    speech = SwitchingSpeech([_expert(0), _expert(1)], TRANSITION, INITIAL, learn=True)  # type: ignore[list-item]  # functions are sources
    model, (x, _) = Mixture(speech=speech, noise=NMFNoise(2)).double(), _recording(20)
    posterior = VariationalPosterior(_problem(model, x), draws=50, learning_rate=0.03, factored=True)

    def beliefs() -> object:
        with pyro.poutine.seed(rng_seed=1):
            return posterior.beliefs()

    for _ in range(15):
        before = beliefs()
        posterior.refit_chain(before.chain)  # type: ignore[attr-defined]  # of Beliefs
        middle = beliefs()
        assert middle.bound >= before.bound - 1e-4  # type: ignore[attr-defined]  # the least probability of a chain costs a little
        with torch.no_grad():
            update_noise(model, middle.found, middle.speech.noise_power(x, middle.chain.marginals), None)  # type: ignore[attr-defined]
        assert beliefs().bound >= middle.bound - 1e-9  # type: ignore[attr-defined]
        posterior.climb(2)


@pytest.mark.slow
@pytest.mark.parametrize(("clever", "temperature"), [(True, 1.0), (False, 1.0), (True, 3.0), (False, 3.0)])
def test_gibbs_sampling_agrees_with_the_sum_over_all_paths(clever: bool, temperature: float) -> None:
    """With proposals that know the frames, and with the prior as proposal."""
    x, _ = _recording()
    _, marginal, speech = _exact(x, temperature)
    problem, chains = _problem(_model(), x), 300
    torch.manual_seed(0)
    start: tuple[dict[str, Tensor], dict[str, dist.Distribution]] = ({}, {})
    if clever:
        posterior = VariationalPosterior(problem, 4, 0.05)
        posterior.climb(60)
        start = posterior.as_start()
    sampler = RegimeGibbs(problem, *start, chains, temperature)
    seen, estimate, moves = [], [], 0.0
    before = None
    for sweep in range(70):
        values, _, _ = sampler.sweep(lambda target: mala(target, 0.8), 2)
        if sweep >= 10:
            path = values["speech.regime"]
            seen.append(path.double())
            var = torch.where(path[..., None] == 1, *(
                (OFFSETS[m] + SLOPES[m] * values[f"speech.expert{m}.z"]).exp() for m in (1, 0)
            ))
            estimate.append(var / (var + NOISE) * x)
            moves += 0.0 if before is None else float((path != before).double().mean())
            before = path
    per_chain = torch.stack(seen).mean(0)
    error = per_chain.std(0) / chains**0.5
    assert ((per_chain.mean(0) - marginal).abs() < 4.5 * error).all()
    found = torch.stack(estimate).mean(0)
    spread = (found - found.mean(0)).abs().square().mean(0).sqrt() / chains**0.5
    assert ((found.mean(0) - speech).abs() < 4.5 * spread).all()
    assert moves / 60 > 0.05


def test_latents_of_an_idle_expert_follow_their_prior() -> None:
    x, _ = _recording()
    problem = _problem(_model(), x)
    torch.manual_seed(0)
    posterior = VariationalPosterior(problem, 4, 0.05)
    posterior.climb(30)
    sampler = RegimeGibbs(problem, *posterior.as_start(), 1000)
    values, _, _ = sampler.sweep(lambda target: mala(target, 0.5))
    idle = torch.cat([values[f"speech.expert{m}.z"].squeeze(-1)[values["speech.regime"] != m] for m in range(2)])
    assert abs(idle.mean()) < 4.5 / len(idle) ** 0.5 and abs(idle.var() - 1) < 4.5 * (2 / len(idle)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", [
    lambda: switching_vem(25, draws=4, learning_rate=0.1, average=5), lambda: switching_vem(25, draws=4, learning_rate=0.1, average=5, factored=True),
    lambda: switching_gibbs(25, leapfrog=3, chains=2),
])
def test_a_learnt_transition_is_that_of_the_simulation(method: object) -> None:
    x, path = _recording(1500)
    model = _model(0.5, learn=True)
    model.start(x)
    torch.manual_seed(0)
    resume(model, x, method())  # type: ignore[operator]  # of functions that make one
    speech = model.sources["speech"]
    assert isinstance(speech, SwitchingSpeech)
    moves = torch.stack([torch.stack([((path[:-1] == i) & (path[1:] == j)).double().mean() for j in range(2)]) for i in range(2)])
    assert (speech.transition.detach() - moves / moves.sum(-1, keepdim=True)).abs().max() < 0.1


@pytest.mark.parametrize("make", [switching_vem, switching_gibbs])
def test_rows_with_a_dirichlet_prior_are_drawn_from_their_posterior(make: object) -> None:
    x, path = _recording(300)
    model = _model(dist.Dirichlet(torch.ones(2)))
    torch.manual_seed(0)
    result = infer(model, x, make(30), keep=Keep(run=True))  # type: ignore[operator]  # of methods
    assert result.run is not None
    rows = result.run.values["speech.transition"]
    assert rows.shape[2:] == (1, 2, 2) and (rows.sum(-1) - 1).abs().max() < 1e-6 and float(rows.std(0).mean()) > 1e-3
    assert (rows.flatten(0, 2).mean(0) - TRANSITION).abs().max() < 0.25


@pytest.mark.parametrize("make", [methods.switching_vem, methods.switching_gibbs, methods.fast, methods.hmc_em, methods.svi_em, methods.vem])
@pytest.mark.parametrize("lead", [(), (2, 1)])
def test_every_method_separates_and_draws_regimes(make: object, lead: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Mixture(speech=SwitchingSpeech([VAESpeech(F, 2, (4,), context=3), VAESpeech(F, 1, (4,))]), noise=StationaryNoise()).double()
    x = torch.randn(*lead, 6, F, dtype=torch.complex128)
    result = infer(model, x, make(iterations=3), keep=Keep(2, True))  # type: ignore[operator]  # of methods
    assert result.run is not None and "speech.regime" in result.run.values
    torch.testing.assert_close(sum(law.loc for law in result.sources.values()), x)
    for draw in range(2):
        torch.testing.assert_close(sum(drawn[draw] for drawn in result.source_draws.values()), x)
    assert result.sources["speech"].loc.shape == x.shape and np.isfinite(result.objective).all()


def test_priors_with_memory_are_refused_where_frames_must_be_free() -> None:
    speech = SwitchingSpeech([VAESpeech(F, 2, (4,)), CodePrior(VAESpeech(F, 2, (4,)), _chain(2))])
    model, x = Mixture(speech=speech, noise=StationaryNoise()).double(), _recording()[0]
    with pytest.raises(ValueError, match="expert 0 the frames of the latents .* not independent"):
        infer(model, x, switching_vem(2))
    torch.manual_seed(0)
    assert np.isfinite(infer(model, x, methods.langevin_em(3)).objective).all()
    sampler = RegimeGibbs(_problem(model, x), chains=2)
    assert sampler.sweep(lambda target: mala(target, 0.01))[0]["speech.regime"].shape == (2, T)


def _chain(size: int) -> CodeChain:
    chain = CodeChain(size)
    chain.transition.copy_(0.9 * torch.eye(size))
    return chain


def test_a_model_that_does_not_switch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"chains \[\]; expected one source that switches"):
        infer(Mixture(speech=VAESpeech(F, 2, (4,)), noise=StationaryNoise()).double(), _recording()[0], switching_vem(2))


def test_published_factor_needs_means_of_zero() -> None:
    def hum(frames: pyro.plate) -> ComplexNormal:
        return ComplexNormal(torch.ones(frames.size, F, dtype=torch.complex128), torch.ones(frames.size, F, dtype=torch.float64))

    model = Mixture(speech=SwitchingSpeech([_expert(0), _expert(1)]), noise=hum).double()  # type: ignore[list-item]  # functions are sources
    with pytest.raises(ValueError, match="source 'noise' has a mean"):
        infer(model, _recording()[0], switching_vem(2, factored=True))
    assert np.isfinite(infer(model, _recording()[0], switching_vem(2)).objective).all()


def test_parameters_of_experts_are_fitted() -> None:
    """The closed form of an expert is not asked for when it is one of several: gradients fit it."""
    (x, _), speech = _recording(20), SwitchingSpeech([StationaryNoise(), _expert(1)])  # type: ignore[list-item]  # functions are sources
    model = Mixture(speech=speech, noise=_noise).double()
    model.start(x)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    torch.manual_seed(0)
    resume(model, x, switching_vem(3))
    assert before and all((value != before[name]).any() for name, value in model.named_parameters())
