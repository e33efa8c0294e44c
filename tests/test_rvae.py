"""The recurrent VAE: its graph, what depends on what, and its way into inference."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.poutine as poutine
import pytest
import torch

from ppse import Mixture, methods, weights
from ppse.guides import clean_guide, starting_guide
from ppse.infer import log_density
from ppse.infer.blocks import BlockError
from ppse.inference import infer
from ppse.models import FrameGain, NMFNoise, RVAESpeech, StationaryNoise, VAESpeech
from ppse.models.encoders import CleanedEncoder
from ppse.models.recurrent import Layers
from ppse.stft import POWER_FLOOR
from ppse.testing import check_source

T, F, L = 6, 9, 3
RICH = {"decoder": Layers(5, (4,), (6,), 2), "reader": Layers(4, (7,), (5,)), "past": Layers(3, (2,)), "skip": True, "relu": True, "log_input": False}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [{}, RICH], ids=["plain", "rich"])
def test_is_a_source(causal: bool, sizes: dict) -> None:
    check_source(RVAESpeech(F, L, 4, causal, **sizes), n_freqs=F, aside=("encoder",))


def test_has_the_size_of_the_published_one() -> None:
    assert sum(p.numel() for p in RVAESpeech().parameters()) == 1_026_849


@pytest.mark.parametrize("causal", [False, True])
def test_which_latents_a_frame_depends_on(causal: bool) -> None:
    speech = RVAESpeech(F, L, 4, causal)
    x, z = torch.randn(T, F, dtype=torch.complex64), torch.randn(T, L)
    moved = z.clone()
    moved[2] += 1
    one, other = (poutine.condition(Mixture(speech=speech), {"speech.z": value})(x)["speech"].var for value in (z, moved))
    assert (one >= POWER_FLOOR).all()
    assert (one != other).any(-1).tolist() == [not causal] * 2 + [True] * 4


@pytest.mark.parametrize("causal", [False, True])
def test_which_frames_the_encoder_reads(causal: bool) -> None:
    """All of them, or those to come; and the latents before, whose means pass on what they read."""
    encoder = RVAESpeech(F, L, 4, causal).encoder
    x = torch.randn(T, F, dtype=torch.complex64)
    moved = x.clone()
    moved[2] *= 3
    z = torch.randn(T, L)
    given = [encoder(s).given(z).loc for s in (x, moved)]
    assert (given[0] != given[1]).any(-1).tolist() == [True] * 3 + [not causal] * 3
    assert (encoder(x).mean != encoder(moved).mean).any(-1).all()


def test_whole_utterances_are_accepted_and_frames_refused() -> None:
    model = Mixture(speech=RVAESpeech(F, L, 4), noise=StationaryNoise())
    x = torch.randn(2, 1, T, F, dtype=torch.complex64)
    model.start(x)
    target = log_density(model, x, chains=3)
    assert target.block == ("utterances",) and target.shape == (2, 3, 1)
    with pytest.raises(BlockError, match="recurrent decoder"):
        log_density(model, x, block=("frames",))


@pytest.mark.parametrize("causal", [False, True])
def test_a_padded_batch_is_the_loop_over_its_recordings(causal: bool) -> None:
    """Density, encoders and their draws; the padding holds noise that nobody may see."""
    torch.manual_seed(0)
    model = Mixture(speech=RVAESpeech(F, L, 4, causal), noise=StationaryNoise()).double()
    lengths = (T, 1, 4)
    x = torch.randn(3, 1, T, F, dtype=torch.complex128)
    observed = (torch.arange(T) < torch.tensor(lengths).reshape(-1, 1, 1)).unsqueeze(-1)
    guide = clean_guide(model)
    assert guide is not None
    means, deviations = guide.laws(x, observed)["speech.z"]
    z = torch.randn(3, 2, T, L, dtype=torch.float64)
    batched = copy.deepcopy(model)
    batched.start(x, observed)
    with pyro.plate("chains", 2, dim=-2):
        variance = poutine.condition(batched, {"speech.z": z})(x, observed)["speech"].var
    for b, length in enumerate(lengths):
        alone = x[b, 0, :length]
        for whole, single in zip((means, deviations), guide.laws(alone)["speech.z"], strict=True):
            torch.testing.assert_close(whole[b, 0, :length], single)
        model.start(alone)
        for chain in range(2):
            expected = poutine.condition(model, {"speech.z": z[b, chain, :length]})(alone)["speech"].var
            torch.testing.assert_close(variance[b, chain, :length], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_memory_around_a_vae_adds_nothing_at_first(causal: bool) -> None:
    vae = VAESpeech(F, L, (5, 4))
    speech = RVAESpeech.around(vae, 3, causal)
    x, z = torch.randn(T, F, dtype=torch.complex64), torch.randn(T, L)
    ours, theirs = (poutine.condition(Mixture(speech=source), {"speech.z": z})(x)["speech"].var for source in (speech, vae))
    torch.testing.assert_close(ours, theirs)
    law, frame_law = speech.encoder(x), vae.encoder(x)
    torch.testing.assert_close((law.mean, law.stddev), (frame_law.mean, frame_law.stddev))
    torch.testing.assert_close(law.log_prob(z), frame_law.log_prob(z))
    with pytest.raises(ValueError, match="reads powers"):
        RVAESpeech.around(VAESpeech(F, L, (5,), log_input=False))


def test_padding_is_forgotten_with_the_recording() -> None:
    model = Mixture(speech=FrameGain(RVAESpeech(F, L, 4)))
    x = torch.randn(T, F, dtype=torch.complex64)
    speech = model.sources["speech"].source
    model.start(x, torch.arange(T).unsqueeze(-1) < 3)
    assert speech.lengths == (3,)
    model.follow(x)
    assert speech.lengths is None


def test_weights_file_builds_it_again(tmp_path: Path) -> None:
    speech = RVAESpeech(F, L, 4, **RICH)
    path = tmp_path / "r.safetensors"
    weights.write(speech, path, {})
    again = RVAESpeech.pretrained(str(path))
    assert json.loads(json.dumps(again.settings)) == json.loads(json.dumps(speech.settings))
    x = torch.randn(T, F, dtype=torch.complex64)
    torch.testing.assert_close(again.encoder(x).mean, speech.encoder(x).mean)
    assert not any(p.requires_grad for p in again.parameters())


def test_shipped_vae_lends_its_ears_where_the_stft_is_the_same() -> None:
    torch.manual_seed(0)
    x = torch.randn(20, 513, dtype=torch.complex64)
    model = Mixture(speech=RVAESpeech(hidden=8), noise=NMFNoise(2))
    guide = starting_guide(model)
    assert guide is not None and any(isinstance(module, CleanedEncoder) for module in guide.modules())
    (laws, noise), clean = guide.listen(x), clean_guide(model)
    assert clean is not None and noise is not None and (noise > 0).all()
    assert (laws["speech.z"][0] != clean.laws(x)["speech.z"][0]).any() and clean.listen(x)[1] is None
    small = starting_guide(Mixture(speech=RVAESpeech(F, L, 4)))
    assert small is not None and not any(isinstance(module, CleanedEncoder) for module in small.modules())


def test_lent_ears_stay_as_they_are() -> None:
    """Wherever the prior is, and whatever a method trains."""
    torch.manual_seed(0)
    x = torch.randn(8, 513, dtype=torch.complex64)
    model = Mixture(speech=RVAESpeech(hidden=8), noise=NMFNoise(2))
    before = starting_guide(model)
    assert before is not None
    laws = before.laws(x)["speech.z"]
    infer(model, x, methods.adapt_em(3, tune=1, average=1))
    wide = starting_guide(Mixture(speech=RVAESpeech(hidden=8).double(), noise=NMFNoise(2)))
    assert wide is not None and wide.laws(x.to(torch.complex128))["speech.z"][0].dtype == torch.float64
    torch.testing.assert_close(before.laws(x)["speech.z"], laws, rtol=0, atol=0)
    again = starting_guide(model)
    assert again is not None
    torch.testing.assert_close(again.laws(x)["speech.z"], laws, rtol=0, atol=0)


def test_cleaned_encoder_reads_the_expected_power_of_speech() -> None:
    """By hand, from what the VAE hears and proposes."""
    vae, speech = VAESpeech(F, L, (5,), 4), RVAESpeech(F, L, 4)
    assert vae.noisy_encoder is not None
    x = torch.randn(T, F, dtype=torch.complex64)
    heard = vae.noisy_encoder.hear(x)
    power = vae.decoder(vae.noisy_encoder.read(x, heard).mean).exp() + POWER_FLOOR
    gain = power / (power + heard.noise)
    expected = (gain * x).abs().square() + gain * (1 - gain) * (power + heard.noise)  # |E s|^2 + Var s
    read = speech.encoder(torch.complex(expected.sqrt(), torch.zeros_like(expected)))
    torch.testing.assert_close(CleanedEncoder(vae.noisy_encoder, vae.decoder, speech.encoder)(x).mean, read.mean)


@pytest.mark.parametrize("make", [methods.fast, methods.ld_em, methods.mala_em, methods.mcem, methods.vem, methods.peem, methods.svi_em])
def test_all_methods_run(make: Callable[..., methods.Method]) -> None:
    model = Mixture(speech=RVAESpeech(F, L, 4), noise=StationaryNoise())
    x = torch.randn(T, F, dtype=torch.complex64)
    found = infer(model, x, make(iterations=2))
    assert found.objective and all(torch.isfinite(law.var).all() for law in found.sources.values())
