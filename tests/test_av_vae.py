"""Audio-visual priors: the graph against its formula, what lips may change, and how they reach the frames of sound."""

import copy
from dataclasses import replace

import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppse import STFT, Mixture, methods
from ppse.guides import starting_guide
from ppse.inference import infer
from ppse.lips import Lips
from ppse.models import AVVAESpeech, NMFNoise, VAESpeech
from ppse.models.encoders import CleanedEncoder
from ppse.models.lip_reader import follow, prepared
from ppse.stft import POWER_FLOOR
from ppse.testing import check_source

F, HOP = 11, 5 / 16_000  # of the small speech below, STFT.of_freqs(11)


def _lips(n: int = 12, seed: int = 0, rate: float = 2 / HOP / 5) -> Lips:
    """By default 2.5 frames of sound an image, as 25 images a second are for the usual STFT."""
    return Lips.at_rate(torch.rand(n, 88, 88, generator=torch.Generator().manual_seed(seed)), rate)


def _speech(heard_lips: bool = True) -> AVVAESpeech:
    torch.manual_seed(0)
    return AVVAESpeech(n_freqs=F, n_latent=3, hidden=(7,), n_seen=5, reach=1, heard_lips=heard_lips).eval().requires_grad_(False)


def _x(frames: int, *batch: int) -> Tensor:
    return torch.randn(*batch, frames, F, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def test_the_source_keeps_the_contract() -> None:
    aside = tuple(f"speech.{part}" for part in ("lips", "prior", "encoder", "to_encoder", "to_decoder"))  # read once, when a recording starts
    check_source(_speech().requires_grad_(True).watching(_lips(3)), aside=aside)


def test_the_graph_is_the_formula() -> None:
    speech = _speech()
    source = speech.watching(_lips())
    model, x = Mixture(speech=source), _x(20)
    model.start(x)
    trace = poutine.trace(model).get_trace(x)
    told = source.told
    assert told is not None
    z = trace.nodes["speech.z"]["value"]
    expected = Normal(told.loc, told.scale).log_prob(z).sum()
    torch.testing.assert_close(trace.nodes["speech.z"]["fn"].log_prob(z).sum(), expected)
    hidden = torch.tanh(speech.decoder[0](z) + told.decoding)
    torch.testing.assert_close(trace.nodes["_RETURN"]["value"]["speech"].var, speech.decoder[2](hidden).exp() + POWER_FLOOR)
    loc = speech.encoder.network[2](torch.tanh(speech.encoder.network[0]((x.abs() ** 2 + POWER_FLOOR).log() * 0.2) + told.encoding))[:, :3]
    torch.testing.assert_close(source.encoder(x).mean, loc)


def test_around_a_vae_it_is_that_vae_until_trained() -> None:
    torch.manual_seed(0)
    vae = VAESpeech(F, 3, (7,))
    speech = AVVAESpeech.around(vae, n_seen=5)
    source, x = speech.watching(_lips()), _x(20)
    model = Mixture(speech=source)
    model.start(x)
    z = torch.randn(20, 3)
    with poutine.condition(data={"speech.z": z}):
        traces = [poutine.trace(m).get_trace(x) for m in (model, Mixture(speech=vae))]
    torch.testing.assert_close(*(t.log_prob_sum() for t in traces))
    torch.testing.assert_close(source.encoder(x).stddev, vae.encoder(x).stddev)
    with pytest.raises(ValueError, match="reads powers"):
        AVVAESpeech.around(VAESpeech(F, 3, (7,), log_input=False))


def test_without_heard_lips_they_change_the_prior_alone() -> None:
    speech, x, z = _speech(heard_lips=False), _x(20), torch.randn(20, 3)
    one, other = (speech.watching(_lips(seed=seed)) for seed in (0, 1))
    for source in (one, other):
        source.start(x)
    assert one.told is not None and other.told is not None
    assert not torch.allclose(one.told.loc, other.told.loc)
    torch.testing.assert_close(speech.decode(z, one.told), speech.decode(z, other.told))
    torch.testing.assert_close(one.encoder(x).mean, other.encoder(x).mean)


def test_an_image_tells_the_frames_around_it_alone() -> None:
    speech, lips, x = _speech(), _lips(), _x(30)
    changed = lips.frames.clone()
    changed[6] = changed[6].flip(-1)  # of the same brightness and contrast, which are the recording's
    told = []
    for frames in (lips.frames, changed):
        source = speech.watching(replace(lips, frames=frames))
        source.start(x)
        assert source.told is not None
        told.append(source.told.loc)
    differs = (told[0] != told[1]).any(-1).nonzero().squeeze(-1) * HOP + STFT.of_freqs(F).centres(1)[0]
    reach = lips.period + 1 * HOP  # interpolated between two images, and read with one neighbour
    assert differs.numel() and (differs - lips.times[6]).abs().max() <= reach + 1e-9
    assert (differs - lips.times[6]).abs().max() > lips.period - HOP


def test_embeddings_are_interpolated_linearly() -> None:
    seen, place = torch.randn(2, 4, 3), torch.tensor([[0.0, 0.25, 3.0], [1.5, 2.0, 2.75]])
    brought = follow(seen, place)
    torch.testing.assert_close(brought[0, 1], 0.75 * seen[0, 0] + 0.25 * seen[0, 1])
    torch.testing.assert_close(brought[0, 2], seen[0, 3])
    torch.testing.assert_close(brought[1, 2], 0.25 * seen[1, 2] + 0.75 * seen[1, 3])


@pytest.mark.parametrize("rate", [25.0, 29.97, 30.0])
def test_a_late_picture_is_brought_back(rate: float) -> None:
    speech, x = _speech(), _x(40)
    lips = _lips(rate=rate * 60)
    late = replace(lips, times=lips.times + 0.001)
    right, corrected, wrong = speech.watching(lips), speech.watching(late, offset=0.001), speech.watching(late)
    for source in (right, corrected, wrong):
        source.start(x)
    assert right.told is not None and corrected.told is not None and wrong.told is not None
    torch.testing.assert_close(corrected.told.loc, right.told.loc)
    assert not torch.allclose(wrong.told.loc, right.told.loc, atol=1e-3)


def test_brightness_contrast_and_a_few_wrong_images_hardly_count() -> None:
    lips = _lips(15)
    torch.testing.assert_close(prepared(0.5 * lips.frames + 0.2), prepared(lips.frames), atol=1e-4, rtol=1e-4)
    white = lips.frames.clone()
    white[:5] = 1.0
    assert (prepared(white)[5:] - prepared(lips.frames)[5:]).abs().max() < 0.3
    good = torch.arange(15) >= 5
    torch.testing.assert_close(prepared(white, good)[5:], prepared(lips.frames[5:]))
    assert prepared(torch.zeros(2, 88, 88)).isfinite().all()


def test_a_batch_is_its_recordings_one_by_one_and_starts_stand_side_by_side() -> None:
    speech, lips, x = _speech(), [_lips(seed=0), _lips(6, seed=1)], _x(20, 2, 1)
    batch = speech.watching(lips)
    batch.start(x)
    twice = speech.watching(lips)
    twice.start(x.repeat_interleave(2, 0))
    assert batch.told is not None and twice.told is not None and batch.good is not None and batch.good.shape == (2, 1, 20)
    for i, each in enumerate(lips):
        alone = speech.watching(each)
        alone.start(x[i, 0])
        assert alone.told is not None and alone.good is not None
        torch.testing.assert_close(batch.told.loc[i, 0], alone.told.loc)
        torch.testing.assert_close(twice.told.decoding[2 * i + 1, 0], alone.told.decoding)
        assert torch.equal(batch.good[i, 0], alone.good)
    assert not batch.good[1, 0].all()  # the shorter video ends before the sound


def test_inference_starts_at_its_encoder_with_borrowed_ears_and_leaves_the_networks() -> None:
    torch.manual_seed(0)
    speech = AVVAESpeech.around(VAESpeech(n_latent=4, hidden=(8,)), n_seen=5).requires_grad_(False)
    model = Mixture(speech=speech.watching(_lips(8, rate=25.0)), noise=NMFNoise(2))
    x = torch.randn(12, 513, dtype=torch.complex64)
    weights = copy.deepcopy(speech.state_dict())
    started = copy.deepcopy(model)
    started.start(x)
    guide = starting_guide(started)
    assert guide is not None and isinstance(guide.encoder0, CleanedEncoder)
    result = infer(model, x, methods.fast())
    torch.testing.assert_close(result.sources["speech"].loc + result.sources["noise"].loc, x)
    assert all(torch.equal(value, weights[key]) for key, value in speech.state_dict().items())


def test_what_cannot_be_is_refused() -> None:
    speech, x = _speech(), _x(20)
    with pytest.raises(ValueError, match="no lips to watch"):
        Mixture(speech=speech)(x)
    with pytest.raises(ValueError, match="no lips; give those"):
        speech.watching([])
    source = speech.watching([_lips(), _lips()])
    with pytest.raises(RuntimeError, match="no recording yet"):
        Mixture(speech=source)(x)
    with pytest.raises(ValueError, match="lips of 2 recordings for a batch of 1"):
        source.start(x)
    with pytest.raises(ValueError, match="lips of 2 recordings for a batch of 3"):
        source.start(_x(20, 3, 1))
    alone = speech.watching(_lips())
    alone.start(x)
    with pytest.raises(ValueError, match="known at 20 frames, the recording has 21"):
        Mixture(speech=alone)(_x(21))
    with pytest.raises(ValueError, match="inferred in one window"):
        alone.follow(x)


def test_the_shipped_priors_are_of_equal_sizes_and_the_lips_say_something() -> None:
    sound, seeing = VAESpeech.pretrained("a_vae"), AVVAESpeech.pretrained()
    for network in ("encoder", "decoder"):
        ours, theirs = (getattr(prior, network).state_dict() for prior in (sound, seeing))
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    still, moving = torch.full((10, 88, 88), 0.5), torch.rand(10, 88, 88)
    told = []
    for frames in (still, moving):
        source = seeing.watching(Lips.at_rate(frames, 25.0))
        source.start(torch.zeros(20, 513, dtype=torch.complex64))
        assert source.told is not None
        told.append(source.told)
    assert all(torch.isfinite(each).all() for one in told for each in one)
    assert (told[0].loc - told[1].loc).abs().max() > 0.1
