"""DKF, STORN, VRNN, SRNN and DSAE: what depends on what, densities against recursions by hand and closed forms, generation mode and teaching."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from ppse import Mixture, weights
from ppse.elbo import negative_elbo
from ppse.guides import clean_guide, starting_guide
from ppse.infer import log_density
from ppse.infer.blocks import BlockError
from ppse.models import DKFSpeech, DSAESpeech, NMFNoise, SRNNSpeech, StationaryNoise, STORNSpeech, VAESpeech, VRNNSpeech
from ppse.models.dynamical import DynamicalVAE
from ppse.models.feedback import Feedback, FeedbackVAE
from ppse.models.recurrent import Layers
from ppse.stft import POWER_FLOOR
from ppse.testing import assert_moments, check_source

T, F, L = 6, 17, 3
SMALL, DEEP = Layers(5, (4,), (6,)), Layers(4, (), (), 2)

PLAIN: dict[str, Callable[[], DynamicalVAE]] = {
    "dkf": lambda: DKFSpeech(F, L, (8,), reader=SMALL, past=(4,)),
    "storn": lambda: STORNSpeech(F, L, memory=SMALL, codes=(4,), reader=SMALL),
    "vrnn": lambda: VRNNSpeech(F, L, memory=SMALL, codes=(4,), transition=(5,), inference=(4,)),
    "srnn": lambda: SRNNSpeech(F, L, memory=SMALL, transition=(4,), reader=SMALL),
    "dsae": lambda: DSAESpeech(F, L, 2, (8,), transition=4, reader=SMALL, past=Layers(3)),
}
OTHER: dict[str, Callable[[], DynamicalVAE]] = {  # no dense layers where there may be none, deep memories, powers as input, and what only some have
    "dkf": lambda: DKFSpeech(F, L, (), reader=DEEP, past=(), backward=False, log_input=False, relu=True, bounded=True),
    "storn": lambda: STORNSpeech(F, L, memory=DEEP, codes=(), reader=DEEP, log_input=False, relu=True),
    "vrnn": lambda: VRNNSpeech(F, L, memory=DEEP, codes=(), transition=(), inference=(), log_input=False, relu=True),
    "srnn": lambda: SRNNSpeech(F, L, memory=DEEP, transition=(), reader=DEEP, skip=True, log_input=False, relu=True),
    "dsae": lambda: DSAESpeech(F, L, 2, (), reader=DEEP, skip=True, log_input=False, relu=True),
}
FEEDBACK = ["storn", "vrnn", "srnn"]


def speech(name: str, seed: int = 0) -> DynamicalVAE:
    """In double precision, with the untrained networks made livelier, so that all that they hear counts."""
    torch.manual_seed(seed)
    prior = PLAIN[name]().double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.mul_(2)
    return prior


def recording(*shape: int) -> Tensor:
    return torch.randn(*shape, F, dtype=torch.complex128)


def evaluated(prior: DynamicalVAE, x: Tensor, **values: Tensor) -> tuple[Tensor, Tensor]:
    """Variance of the speech (…, T, F), and log densities of z (…, T), given latents."""
    trace = poutine.trace(poutine.condition(Mixture(speech=prior), {f"speech.{site}": value for site, value in values.items()})).get_trace(x)
    trace.compute_log_prob()
    return trace.nodes["_RETURN"]["value"]["speech"].var, trace.nodes["speech.z"]["log_prob"]


def latents(prior: DynamicalVAE, *shape: int) -> dict[str, Tensor]:
    """Values of all sites; an utterance code has no frames."""
    values = {"z": torch.randn(*shape, T, L, dtype=torch.float64)}
    if isinstance(prior, DSAESpeech):
        values["v"] = torch.randn(*((*shape, 1) if shape else ()), prior.n_utterance, dtype=torch.float64)
    return values


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("make", [PLAIN, OTHER], ids=["plain", "other"])
def test_is_a_source(make: dict[str, Callable[[], DynamicalVAE]], name: str) -> None:
    check_source(make[name](), n_freqs=F, aside=("encoder", "utterance_encoder"))


def test_sizes_are_the_published_ones() -> None:
    assert sum(p.numel() for p in DKFSpeech().parameters()) == 516_641
    srnn = SRNNSpeech()
    assert sum(p.numel() for p in srnn.parameters()) - sum(p.numel() for p in srnn.encoder.memory.parameters()) == 884_993


LATER, ONLY = [False] * 2 + [True] * 4, [False] * 2 + [True] + [False] * 3


@pytest.mark.parametrize(("name", "heard", "density"), [
    ("dkf", ONLY, [False] * 2 + [True] * 2 + [False] * 2), ("storn", LATER, ONLY), ("vrnn", LATER, LATER), ("srnn", LATER, LATER),
    ("dsae", ONLY, LATER),
])
def test_what_depends_on_the_latent_of_a_frame(name: str, heard: list[bool], density: list[bool]) -> None:
    """The third of six moves: which frames of speech have another law, and which latents another density."""
    prior, x = speech(name), recording(T)
    values = latents(prior)
    moved = values | {"z": values["z"] + (torch.arange(T) == 2).unsqueeze(-1)}
    (one, p), (other, q) = (evaluated(prior, x, **given) for given in (values, moved))
    assert (one >= POWER_FLOOR).all()
    assert (one != other).any(-1).tolist() == heard and (p != q).tolist() == density


def test_code_of_the_utterance_reaches_all_frames() -> None:
    prior, x = speech("dsae"), recording(T)
    values = latents(prior)
    (one, p), (other, q) = evaluated(prior, x, **values), evaluated(prior, x, **(values | {"v": values["v"] + 1}))
    assert (one != other).any(-1).all() and torch.equal(p, q)


@pytest.mark.parametrize(("name", "frames"), [
    ("dkf", [True] * 3 + [False] * 3), ("storn", LATER), ("vrnn", LATER), ("srnn", [True] * 6), ("dsae", [True] * 6),
])
def test_which_codes_the_encoder_gives_otherwise_when_a_frame_changes(name: str, frames: list[bool]) -> None:
    prior, x, z = speech(name), recording(T), torch.randn(T, L, dtype=torch.float64)
    moved = x * (1 + (torch.arange(T) == 2)).unsqueeze(-1)
    laws = [prior.encoder(s) for s in (x, moved)]
    one, other = (law.loc if isinstance(law, Normal) else law.given(z).loc for law in laws)
    assert (one != other).any(-1).tolist() == frames
    if not isinstance(laws[0], Normal):  # the codes before count, too
        assert (laws[0].given(z + 1).loc != one).any(-1).tolist() == [False] + [True] * 5


def test_gated_transition_is_a_linear_chain_when_the_gate_is_shut() -> None:
    r, variance = 0.6, 0.4
    transition = DKFSpeech(F, L, (8,)).double().transition
    transition.forget()
    with torch.no_grad():
        torch.nn.init.constant_(transition.gate[-1].bias, -80.0)
        transition.linear.weight.copy_(r * torch.eye(L))
        transition.variance.bias.fill_(math.log(math.expm1(variance)))
    prior = DKFSpeech(F, L, (8,)).double()
    prior.transition = transition
    inverse = torch.linalg.inv(torch.eye(T, dtype=torch.float64) - r * torch.diag(torch.ones(T - 1, dtype=torch.float64), -1))
    joint = MultivariateNormal(torch.zeros(T, dtype=torch.float64), variance * inverse @ inverse.mT)
    z = torch.randn(T, L, dtype=torch.float64)
    torch.testing.assert_close(evaluated(prior, recording(T), z=z)[1].sum(), joint.log_prob(z.mT).sum())
    torch.manual_seed(3)
    with pyro.plate("chains", 2000, dim=-2), torch.no_grad():
        drawn = poutine.trace(Mixture(speech=prior)).get_trace(recording(T)).nodes["speech.z"]["value"][..., 0].reshape(500, 4, T)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(joint.covariance_matrix), drawn.unsqueeze(-1), upper=False).squeeze(-1)
    assert_moments(white, torch.zeros(T), torch.ones(T))


def test_gate_open_is_the_network() -> None:
    transition = speech("dkf").transition
    torch.nn.init.constant_(transition.gate[-1].bias, 80.0)
    past = torch.randn(4, L, dtype=torch.float64)
    loc, scale, _ = transition(past, past, None)
    torch.testing.assert_close(loc, transition.proposed(past))
    torch.testing.assert_close(scale.square(), torch.nn.functional.softplus(transition.variance(transition.proposed(past).relu())))


def by_hand(prior: FeedbackVAE, z: Tensor, s: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Log-variances (T, F), and log density of z (T,), one frame after another; s is heard where it is given."""
    net: Feedback = prior.feedback
    heard, last, state = torch.zeros(F, dtype=z.dtype), torch.zeros(L, dtype=z.dtype), None
    decoded, densities = [], []
    for t in range(T):
        match prior:
            case VRNNSpeech():
                told, shown = net.codes(last), net.codes(z[t])
            case STORNSpeech():
                told, shown = net.codes(z[t]), z[t, :0]
            case _:
                told, shown = z[t, :0], z[t]
        hidden, state = net.memory(torch.cat([net.listen(0.2 * (heard + POWER_FLOOR).log()), told]).unsqueeze(0), state)
        hidden = hidden[0]
        if not isinstance(prior, STORNSpeech):
            out = net.transition(torch.cat([hidden, last]) if isinstance(prior, SRNNSpeech) else hidden)
            densities.append(Normal(out[:L], (0.5 * out[L:]).exp()).log_prob(z[t]).sum())
        decoded.append(net.decoder(torch.cat([hidden, shown])))
        heard = decoded[-1].exp() + POWER_FLOOR if s is None else s[t].abs().square()
        last = z[t]
    return torch.stack(decoded), torch.stack(densities) if densities else None


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("taught", [False, True])
def test_recursion_is_the_one_by_hand(name: str, taught: bool) -> None:
    prior, x, z = speech(name), recording(T), torch.randn(T, L, dtype=torch.float64)
    log_variance, density = by_hand(prior, z, x if taught else None)
    with prior.teach(x, float(taught)):
        variance, found = evaluated(prior, x, z=z)
    torch.testing.assert_close(variance, log_variance.exp() + POWER_FLOOR)
    torch.testing.assert_close(found, Normal(0.0, 1.0).log_prob(z).sum(-1) if density is None else density)


@pytest.mark.parametrize("name", FEEDBACK)
def test_observed_speech_is_heard_only_while_taught(name: str) -> None:
    prior, z, x = speech(name), torch.randn(2, 1, T, L, dtype=torch.float64), recording(2, 1, T)
    moved = x * (1 + (torch.arange(T) == 2)).unsqueeze(-1)

    def changed(share: float) -> list[bool]:
        found = []
        for s in (x, moved):
            torch.manual_seed(1)
            with prior.teach(s, share):
                found.append(evaluated(prior, s, z=z)[0])
        return (found[0] != found[1]).any(-1)[0, 0].tolist()

    assert changed(1.0) == [False] * 3 + [True] * 3  # what comes after the frame
    assert not any(changed(0.0))
    untaught = evaluated(prior, x, z=z)[0]
    with pytest.raises(RuntimeError, match="in the middle"), prior.teach(x, 1.0):
        assert (evaluated(prior, x, z=z)[0] != untaught).any()
        raise RuntimeError("in the middle")
    assert torch.equal(evaluated(prior, x, z=z)[0], untaught)
    with pytest.raises(ValueError, match="share=2; expected a probability"), prior.teach(x, 2):
        pass


@pytest.mark.parametrize("name", FEEDBACK)
def test_some_frames_are_taught(name: str) -> None:
    """Every frame by the chance of the share; what is not heard as observed is heard as generated."""
    prior, x = speech(name), recording(300, 1, T)
    z = torch.randn(300, 1, T, L, dtype=torch.float64)
    torch.manual_seed(0)
    with prior.teach(x, 0.3):
        mixed = evaluated(prior, x, z=z)[0]
        heard = prior._taught.frames
    assert heard.shape == (300, 1, T, 1) and 0.25 < heard.double().mean() < 0.35
    with prior.teach(x, 1.0):
        taught = evaluated(prior, x, z=z)[0]
    generated = evaluated(prior, x, z=z)[0]
    first = heard[:, 0, 0, 0]
    assert torch.equal(mixed[:, :, 0], generated[:, :, 0])
    torch.testing.assert_close(mixed[first][:, :, 1], taught[first][:, :, 1])
    torch.testing.assert_close(mixed[~first][:, :, 1], generated[~first][:, :, 1])
    assert (taught[first][:, :, 1] - generated[first][:, :, 1]).abs().amax(-1).min() > 1e-6


@pytest.mark.parametrize("name", ["dkf", "vrnn", "srnn", "dsae"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_density_of_a_draw_is_that_of_the_value(name: str, share: float) -> None:
    """Drawn frame by frame, and in one pass."""
    prior, x = speech(name), recording(2, 1, T)
    model = Mixture(speech=prior)
    torch.manual_seed(0)
    with prior.teach(x, share), pyro.plate("chains", 3, dim=-2):
        drawn = poutine.trace(model).get_trace(x)
        values = {site: drawn.nodes[site]["value"].clone() for site in drawn.nodes if site in ("speech.z", "speech.v")}
        again = poutine.trace(poutine.condition(model, values)).get_trace(x)
    for trace in (drawn, again):
        trace.compute_log_prob()
    assert drawn.nodes["speech.z"]["log_prob"].shape == (2, 3, T)
    torch.testing.assert_close(drawn.nodes["speech.z"]["log_prob"], again.nodes["speech.z"]["log_prob"])
    torch.testing.assert_close(drawn.nodes["x"]["log_prob"], again.nodes["x"]["log_prob"])


@pytest.mark.parametrize("name", PLAIN)
def test_a_padded_batch_is_the_loop_over_its_recordings(name: str) -> None:
    """Laws, encoders and losses; the padding holds noise that nobody may see."""
    prior, lengths = speech(name), (T, 1, 4)
    model, x = Mixture(speech=prior, noise=StationaryNoise()).double(), recording(3, 1, T)
    observed = (torch.arange(T) < torch.tensor(lengths).reshape(-1, 1, 1)).unsqueeze(-1)
    guide = clean_guide(model)
    assert guide is not None
    laws, values = guide.laws(x, observed), latents(prior, 3, 2)
    batched = copy.deepcopy(model)
    batched.start(x, observed)
    with pyro.plate("chains", 2, dim=-2):
        variance = poutine.condition(batched, {f"speech.{site}": value for site, value in values.items()})(x, observed)["speech"].var
    for b, length in enumerate(lengths):
        alone = x[b, 0, :length]
        for site, moments in guide.laws(alone).items():
            for whole, single in zip(laws[site], moments, strict=True):
                torch.testing.assert_close(whole[b, 0, :length] if site == "speech.z" else whole[b, 0, 0], single)
        model.start(alone)
        for chain in range(2):
            given = {"speech.z": values["z"][b, chain, :length]} | ({"speech.v": values["v"][b, chain, 0]} if "v" in values else {})
            torch.testing.assert_close(variance[b, chain, :length], poutine.condition(model, given)(alone)["speech"].var)


@pytest.mark.parametrize("name", PLAIN)
def test_whole_utterances_are_accepted_and_frames_refused(name: str) -> None:
    model, x = Mixture(speech=speech(name).float(), noise=StationaryNoise()), torch.randn(2, 1, T, F, dtype=torch.complex64)
    model.start(x)
    target = log_density(model, x, chains=3)
    assert target.block == ("utterances",) and target.shape == (2, 3, 1)
    with pytest.raises(BlockError):
        log_density(model, x, block=("frames",))


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("make", [PLAIN, OTHER], ids=["plain", "other"])
def test_weights_file_builds_it_again(make: dict[str, Callable[[], DynamicalVAE]], name: str, tmp_path: Path) -> None:
    prior, path = make[name](), tmp_path / "p.safetensors"
    weights.write(prior, path, {})
    again = type(prior).pretrained(str(path))
    assert json.loads(json.dumps(again.settings)) == json.loads(json.dumps(prior.settings))
    x = torch.randn(T, F, dtype=torch.complex64)
    torch.testing.assert_close(again.encoder(x).mean, prior.encoder(x).mean)
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("kind", [DKFSpeech, VRNNSpeech, SRNNSpeech, DSAESpeech])
def test_around_a_vae_it_is_the_vae_at_first(kind: type[DKFSpeech | VRNNSpeech | SRNNSpeech | DSAESpeech]) -> None:
    torch.manual_seed(0)
    vae = VAESpeech(F, L, (8, 5), relu=True)
    prior, x, z = kind.around(vae, 4), torch.randn(T, F, dtype=torch.complex64), torch.randn(T, L)
    variance, density = evaluated(prior, x, z=z)
    expected, independent = evaluated(vae, x, z=z)
    torch.testing.assert_close(variance, expected)
    torch.testing.assert_close(density, independent)
    for ours, theirs in zip((prior.encoder(x).mean, prior.encoder(x).stddev), (vae.encoder(x).mean, vae.encoder(x).stddev), strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match=rf"{kind.__name__}\.around: the encoder of this VAE reads powers"):
        kind.around(VAESpeech(F, L, (5,), log_input=False))


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_of_the_loss_reach_all_networks(name: str) -> None:
    prior, x = PLAIN[name](), torch.randn(3, 1, T, F, dtype=torch.complex64)
    model = Mixture(speech=prior)
    guide = clean_guide(model)
    assert guide is not None
    for share in (0.0, 0.5, 1.0):
        prior.zero_grad()
        with prior.teach(x, share):
            negative_elbo(model, guide, x).backward()
        assert [key for key, p in prior.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_guide_of_an_utterance_code_lies_outside_of_the_frames() -> None:
    model, x = Mixture(speech=PLAIN["dsae"](), noise=NMFNoise(2)), torch.randn(2, 1, T, F, dtype=torch.complex64)
    guide = clean_guide(model)
    assert guide is not None
    with pyro.plate("chains", 4, dim=-2):
        nodes = poutine.trace(guide).get_trace(x).nodes
    assert nodes["speech.v"]["value"].shape == (2, 4, 1, 2) and nodes["speech.z"]["value"].shape == (2, 4, T, L)
    single = starting_guide(model)
    assert single is not None and single(x[0, 0])["speech.v"].shape == (2,)


def test_start_of_an_utterance_code_hears_the_cleaned_recording() -> None:
    """The shipped VAE cleans it for both encoders; what it hears of the noise counts once."""
    torch.manual_seed(0)
    model, x = Mixture(speech=DSAESpeech(), noise=NMFNoise(2)), torch.randn(9, 513, dtype=torch.complex64)
    guide, clean = starting_guide(model), clean_guide(model)
    assert guide is not None and clean is not None
    (laws, noise), raw = guide.listen(x), clean.laws(x)
    assert noise is not None and noise.shape == x.shape
    assert all((laws[site][0] != raw[site][0]).all() and laws[site][0].shape == raw[site][0].shape for site in ("speech.v", "speech.z"))
