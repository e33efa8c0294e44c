"""The prior over the codes: its density in closed form, its fit, and what it does to the graph of the source it is put around."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch

from ppse import weights
from ppse.guides import starting_guide
from ppse.infer import BlockError, log_density
from ppse.mixture import Mixture
from ppse.models import CodeChain, CodePrior, FrameGain, StationaryNoise, VAESpeech
from ppse.testing import check_source

T, F, L = 6, 7, 2
TRANSITION = torch.tensor([[0.8, 0.2], [-0.3, 0.5]], dtype=torch.float64)
TRIL = torch.tensor([[0.5, 0.0], [0.2, 0.3]], dtype=torch.float64)


def _chain() -> CodeChain:
    chain = CodeChain(L).double()
    for name, value in {
        "transition": TRANSITION, "offset": torch.tensor([0.1, -0.2]), "scale_tril": TRIL, "first_loc": torch.tensor([0.3, 0.4]),
        "first_tril": torch.tensor([[1.1, 0.0], [-0.4, 0.9]]),
    }.items():
        getattr(chain, name).copy_(value)
    return chain


def _speech(chain: CodeChain | None = None) -> CodePrior:
    return CodePrior(VAESpeech(F, L, (5,)), chain or _chain()).double().requires_grad_(False)


def _joint(chain: CodeChain, n_frames: int) -> dist.MultivariateNormal:
    """The law of all frames as one vector, by carrying mean and covariance along."""
    size, a = n_frames * L, chain.transition
    loc, factor = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    loc[:L], factor[:L, :L] = chain.first_loc, chain.first_tril
    for t in range(1, n_frames):
        now, past = slice(t * L, (t + 1) * L), slice((t - 1) * L, t * L)
        loc[now] = a @ loc[past] + chain.offset
        factor[now] = a @ factor[past]
        factor[now, now] = chain.scale_tril
    return dist.MultivariateNormal(loc, covariance_matrix=factor @ factor.mT)


def test_density_is_that_of_the_joint_gaussian() -> None:
    chain, z = _chain(), torch.randn(3, 4, T, L, dtype=torch.float64)
    log_prob = chain.law(T).expand((3, 4, T)).log_prob(z)
    assert log_prob.shape == (3, 4, T)
    torch.testing.assert_close(log_prob.sum(-1), _joint(chain, T).log_prob(z.flatten(-2)))
    torch.testing.assert_close(chain.law(1).log_prob(z[..., :1, :]), log_prob[..., :1])
    assert torch.equal(log_prob[..., :3], chain.law(3).log_prob(z[..., :3, :])), "what comes later changes nothing before"


def test_draws_have_the_moments_of_the_joint_gaussian() -> None:
    chain, n = _chain(), 40_000
    drawn = chain.law(T).sample((n,)).flatten(-2)
    expected = _joint(chain, T)
    standard = (drawn - expected.loc) @ torch.linalg.inv(expected.scale_tril).mT
    torch.testing.assert_close(standard.mean(0), torch.zeros(T * L, dtype=torch.float64), atol=5 / n**0.5, rtol=0)
    torch.testing.assert_close(standard.T.cov(), torch.eye(T * L, dtype=torch.float64), atol=5 * (2 / n) ** 0.5, rtol=0)


def test_an_untrained_chain_is_the_prior_of_the_vae() -> None:
    x, speech = torch.randn(T, F, dtype=torch.complex128), _speech(CodeChain(L))
    position = {"speech.z": torch.randn(2, T, L, dtype=torch.float64)}
    values = [log_density(Mixture(speech=s), x, chains=2, block=())(position) for s in (speech, speech.source)]
    torch.testing.assert_close(*values)


def test_fit_finds_the_chain_that_made_the_codes() -> None:
    made, fitted = _chain(), CodeChain(L).double()
    fitted.fit([made.law(t).sample() for t in (30_000, 1, 20_000)])
    for name, tolerance in (("transition", 0.03), ("offset", 0.03), ("scale_tril", 0.01)):
        torch.testing.assert_close(getattr(fitted, name), getattr(made, name), atol=tolerance, rtol=0)
    stationary = torch.linalg.solve(torch.eye(L * L, dtype=torch.float64) - torch.kron(TRANSITION, TRANSITION), (TRIL @ TRIL.mT).flatten())
    torch.testing.assert_close(fitted.first_tril @ fitted.first_tril.mT, stationary.reshape(L, L), atol=0.05, rtol=0.05)
    with pytest.raises(ValueError, match="3 pairs of neighbouring frames; expected more than 4"):
        fitted.fit([torch.randn(4, L)])
    with pytest.raises(ValueError, match="the same in all frames"):
        fitted.fit([torch.randn(40, 1).expand(40, L)])


def test_contract_of_a_source() -> None:
    check_source(CodePrior(VAESpeech(11, L, (5,)), CodeChain(L)), aside=["source.encoder"])


def test_graph_has_the_chain_at_the_site_of_the_vae_and_whole_utterances_for_blocks() -> None:
    x, speech = torch.randn(T, F, dtype=torch.complex128), _speech()
    model = Mixture(speech=FrameGain(speech), noise=StationaryNoise()).double()
    model.start(x)
    z = torch.randn(3, T, L, dtype=torch.float64)
    with pyro.plate("chains", 3, dim=-2):
        trace = poutine.trace(poutine.condition(model, data={"speech.z": z})).get_trace(x)
    trace.compute_log_prob()
    torch.testing.assert_close(trace.nodes["speech.z"]["log_prob"], _chain().law(T).log_prob(z))
    assert log_density(model, x, chains=3).block == ()
    with pytest.raises(BlockError, match="'speech.z' in one member .* changes the density of others"):
        log_density(model, x, block=("frames",))
    batch = torch.randn(2, 1, T, F, dtype=torch.complex128)
    model.start(batch)
    assert log_density(model, batch, chains=3).block == ("utterances",)


def test_encoders_of_the_wrapped_source_start_inference() -> None:
    speech = _speech().float()
    x, guide = torch.randn(T, F, dtype=torch.complex64), starting_guide(Mixture(speech=speech))
    assert guide is not None and isinstance(speech.source, VAESpeech)
    with torch.no_grad():
        assert torch.equal(guide.laws(x)["speech.z"][0], speech.source.encoder(x).mean)


def test_what_it_cannot_be_put_around_is_refused() -> None:
    x = torch.randn(T, F, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"event shape \(3,\); the chain is of codes of \(2,\)"):
        Mixture(speech=CodePrior(VAESpeech(F, 3, (5,)), CodeChain(L)))(x)
    noise = StationaryNoise()
    noise.start(x)
    with pytest.raises(ValueError, match="CodePrior: the source has no site 'z'"):
        Mixture(noise=CodePrior(noise, CodeChain(L)))(x)


def test_weights_come_back(tmp_path: Path) -> None:
    path, chain = tmp_path / "codes.safetensors", _chain().float()
    weights.write(chain, path, {})
    loaded = CodeChain.pretrained(path)
    for name, value in chain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(weights.WeightsError, match="holds CodeChain, expected VAESpeech"):
        VAESpeech.pretrained(path)

