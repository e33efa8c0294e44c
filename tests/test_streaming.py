"""A stream: the same samples however it is cut, out in time, within bounds, and equal to what the model says where that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ppse import Mixture
from ppse.audio import AudioError
from ppse.models import NMFNoise, RVAESpeech, StationaryNoise, VAESpeech
from ppse.models.causal_listener import CausalListener
from ppse.stft import POWER_FLOOR, STFT
from ppse.streaming import Stream

Wave = NDArray[np.float32]


def tiny(seed: int = 1) -> Mixture:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Mixture(speech=VAESpeech(33, 3, (8,), context=4).requires_grad_(False), noise=NMFNoise(2))


def tiny_stream(**options: object) -> Stream:
    return Stream(tiny(), context=0.05, **options)  # type: ignore[arg-type]  # options of Stream


def noise(length: int, seed: int = 0) -> Wave:
    return (0.1 * np.random.default_rng(seed).normal(size=length)).astype(np.float32)


def through(stream: Stream, pieces: Iterable[Wave]) -> Wave:
    return np.concatenate([*(stream.push(piece) for piece in pieces), stream.flush()])


@pytest.mark.parametrize(("block", "look_ahead"), [(4, 4), pytest.param(1, 0, marks=pytest.mark.slow), pytest.param(2, 4, marks=pytest.mark.slow)])
def test_same_samples_however_it_is_cut(block: int, look_ahead: int) -> None:
    wave = noise(600)
    whole = through(tiny_stream(block=block, look_ahead=look_ahead), [wave])
    assert whole.shape == wave.shape and np.isfinite(whole).all() and np.abs(whole).max() > 1e-3
    for cuts in ([1, 300, 301, 302], range(16, 600, 16)):
        np.testing.assert_array_equal(through(tiny_stream(block=block, look_ahead=look_ahead), np.split(wave, list(cuts))), whole)


@pytest.mark.parametrize(("block", "look_ahead"), [(4, 4), (1, 0), (3, 4), (5, 4)])
def test_samples_come_out_in_time(block: int, look_ahead: int) -> None:
    stream = tiny_stream(block=block, look_ahead=look_ahead)
    assert stream.latency == (64 + 16 * look_ahead) / 16_000
    given = taken = 0
    waited = []
    for piece in np.array_split(noise(450), 150):
        given, taken = given + len(piece), taken + len(stream.push(piece))
        waited.append(given - taken)
    assert max(waited) < stream.latency * stream.sample_rate + 1
    assert max(waited) > (stream.latency * stream.sample_rate) - 16, "the latency is no larger than it must be said to be"


def test_look_ahead_of_the_default_is_four_hops() -> None:
    assert Stream().latency == pytest.approx(0.064 + 0.064)


def test_seed() -> None:
    wave, before = noise(500), torch.get_rng_state()
    first, same, other = (through(tiny_stream(seed=seed), [wave]) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("length", [1, 15, 16, 64, 65, 333])
def test_short_recordings_come_out_whole(length: int) -> None:
    stream = tiny_stream()
    result = through(stream, [noise(length)])
    assert result.shape == (length,) and np.isfinite(result).all()
    assert stream.flush().size == 0


def test_nothing() -> None:
    stream = tiny_stream()
    assert stream.push([]).size == 0 and stream.flush().size == 0


def test_unit_of_the_waveform_does_not_matter() -> None:
    wave = noise(600)
    wave[300:] *= 8  # the running level moves
    np.testing.assert_array_equal(through(tiny_stream(), [wave * 2**-9]), through(tiny_stream(), [wave]) * np.float32(2**-9))


def test_silence_stays_silent_and_sound_comes_back() -> None:
    wave = noise(3000)
    wave[:400] = wave[1000:2000] = 0
    result = through(tiny_stream(), np.split(wave, 10))
    assert not result[: 400 - 64].any() and not result[1064 : 2000 - 64].any()
    assert np.isfinite(result).all() and all(np.abs(result[part]).max() > 1e-3 for part in (slice(500, 900), slice(2100, 3000)))
    assert not through(tiny_stream(), [np.zeros(500, np.float32)]).any()


def test_clipped_and_integer_samples() -> None:
    wave = np.clip(40 * noise(800), -1, 1)
    assert np.isfinite(through(tiny_stream(), [wave])).all()
    integers = np.round(wave * 2**14).astype(np.int16)
    np.testing.assert_array_equal(through(tiny_stream(), [integers]), through(tiny_stream(), [integers.astype(np.float32) / 2**15]))


def test_what_is_refused_leaves_the_stream_as_it_was() -> None:
    wave, stream = noise(900), tiny_stream()
    broken = wave[300:600].copy()
    broken[5] = np.nan
    parts = [stream.push(wave[:300])]
    for bad, message in ((broken, "NaN or infinite, the first at index 5"), (np.zeros((2, 9)), "2 channels; expected one"), (["a"], "type")):
        with pytest.raises(AudioError, match=message):
            stream.push(bad)
    parts += [stream.push(wave[300:]), stream.flush()]
    np.testing.assert_array_equal(np.concatenate(parts), through(tiny_stream(), [wave]))
    with pytest.raises(ValueError, match="was flushed"):
        stream.push(wave)


@pytest.mark.parametrize("options", [{"block": 0}, {"block": 6}, {"look_ahead": 9}, {"window": 99}, {"chains": 0}, {"context": 0.0}])
def test_numbers_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"stream: .*{next(iter(options))}="):
        Stream(tiny(), **options)  # type: ignore[arg-type]  # options of Stream


@pytest.mark.parametrize("name", ["look_ahead", "block", "window", "chains", "iterations", "steps"])
def test_counts_are_whole_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"stream: {name}=1.5; expected a whole number"):
        Stream(tiny(), **{name: 1.5})  # type: ignore[arg-type]


def test_model_is_left_alone() -> None:
    model = tiny()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    through(Stream(model), [noise(500)])
    assert state.keys() == model.state_dict().keys() and all(torch.equal(state[name], value) for name, value in model.state_dict().items())


def test_memory_does_not_grow() -> None:
    def held(stream: Stream) -> int:
        parts = [stream, stream._analyse, stream._synthesise, stream._em, stream._em._level, *stream._em._noises.values()]
        values = [value for part in parts for value in (*vars(part).values(), *getattr(part, "parameters", list)())]
        return sum(value.numel() for value in values if isinstance(value, torch.Tensor))

    stream = tiny_stream()
    stream._em._level._frames = 50
    stream.push(noise(960))
    before = held(stream)
    stream.push(noise(960))
    assert held(stream) == before


def test_gain_of_a_known_model() -> None:
    """Speech of one known variance, and a sound of which every frame is the same: the noise has a fixed point, and the gain follows."""
    stft, model = STFT(64, 16), Mixture(speech=VAESpeech(33, 3, (8,), context=4).requires_grad_(False), noise=StationaryNoise())
    for weight in model.sources["speech"].decoder.parameters():  # type: ignore[attr-defined]  # a VAE
        weight.zero_()
    model.sources["speech"].decoder[-1].bias.fill_(np.log(0.005))  # type: ignore[attr-defined]
    wave = np.tile(np.random.default_rng(1).normal(size=16).astype(np.float32), 400)
    x = stft.analysis(torch.from_numpy(wave))
    power = x[50].abs().square()
    power = power / power.mean()
    speech, noise_power = 0.005 + POWER_FLOOR, torch.ones_like(power)
    for _ in range(1000):
        gain = speech / (speech + noise_power)
        noise_power = (1 - gain) ** 2 * power + gain * noise_power
    assert gain.min() < 0.01 < 0.3 < gain.max(), "a gain that says something"
    expected = stft.synthesis(gain * x, len(wave)).numpy()
    result = through(Stream(model, context=0.03), [wave])
    np.testing.assert_allclose(result[-500:-100], expected[-500:-100], atol=0.01 * np.abs(expected).max())


@pytest.mark.slow
def test_causal_rvae_streams() -> None:
    torch.manual_seed(0)
    model = Mixture(speech=RVAESpeech(hidden=8, causal=True).requires_grad_(False), noise=NMFNoise(2))
    wave = noise(12_000)
    whole = through(Stream(model), [wave])
    np.testing.assert_array_equal(through(Stream(model), np.split(wave, [5000, 5001])), whole)
    assert np.isfinite(whole).all() and 0 < np.linalg.norm(whole) < np.linalg.norm(wave)


@pytest.mark.parametrize("prior", ["vae", pytest.param("rvae_causal", marks=pytest.mark.slow)])
def test_ears_that_remember(prior: str) -> None:
    torch.manual_seed(0)
    ears = CausalListener(513, 32, 6, 4).requires_grad_(False)
    speech = RVAESpeech.pretrained(prior) if prior == "rvae_causal" else VAESpeech.pretrained(prior)
    model, wave = Mixture(speech=speech, noise=NMFNoise(2)), np.concatenate([np.zeros(3000, np.float32), noise(6000), np.zeros(3000, np.float32)])
    whole = through(Stream(model, ears=ears), [wave])
    np.testing.assert_array_equal(through(Stream(model, ears=ears), np.split(wave, [2000, 5001])), whole)
    assert np.isfinite(whole).all() and len(whole) == len(wave)
    assert not np.array_equal(whole, through(Stream(model, ears=VAESpeech.pretrained()), [wave]))


def test_ears_that_remember_are_those_of_a_stream_unless_others_are_given() -> None:
    model, wave = Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(2)), noise(3000)
    np.testing.assert_array_equal(through(Stream(model), [wave]), through(Stream(model, ears=CausalListener.pretrained()), [wave]))
    assert not np.array_equal(through(Stream(model), [wave]), through(Stream(model, ears=VAESpeech.pretrained()), [wave]))


def test_ears_that_remember_do_not_grow() -> None:
    stream = Stream(Mixture(speech=VAESpeech.pretrained(), noise=NMFNoise(2)), ears=CausalListener(513, 32, 6, 4).requires_grad_(False), context=0.4)
    held = []
    for _ in range(2):
        stream.push(noise(256 * 260))
        held.append([part.numel() for part in vars(stream._em._hear).values() if isinstance(part, torch.Tensor)])
    assert held[0] == held[1] and len(held[0]) == 5


@pytest.mark.parametrize(
    ("model", "ears", "message"),
    [
        (tiny, CausalListener(513, 32, 6, 4), "513 frequencies, the prior for 33"),
        (lambda: None, CausalListener(33, 32, 6, 4), "these ears are for 33 frequencies and 32 latents"),
        (lambda: None, CausalListener(513, 3, 6, 4), "these ears are for 513 frequencies and 3 latents"),
        (lambda: None, VAESpeech(513, 32, (4,)), "a VAE without a listener"),
    ],
)
def test_ears_that_do_not_fit_are_refused(model: Callable[[], Mixture | None], ears: CausalListener | VAESpeech, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Stream(model(), ears=ears)
