"""Training of audio-visual priors: clips and their images, the loss, and that lips come to tell something."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from ppse import STFT, audio
from ppse.av_corpus import Clip, WatchedWaves, find_clips, split_clips
from ppse.av_training import av_loss, train_av, varied
from ppse.elbo import negative_elbo
from ppse.guides import EncoderGuide
from ppse.lips import Lips
from ppse.mixture import Mixture
from ppse.models import AVVAESpeech, VAESpeech
from ppse.optimisation import Schedule
from ppse.training import floored

SMALL = STFT(64, 16)
RATE = SMALL.sample_rate / SMALL.hop / 2.5  # images a second: 2.5 frames of sound each, as 25 a second have of the usual STFT


def _clips(count: int, seed: int = 0, images: int = 24) -> tuple[WatchedWaves, list[Lips]]:
    """Each image shows bright or dark lips on a wall, and the sound meanwhile is noise, low or high."""
    generator = torch.Generator().manual_seed(seed)
    waves, lips = [], []
    for _ in range(count):
        high = torch.rand(images // 4, generator=generator).round().repeat_interleave(4)
        frames = torch.rand(images, 88, 88, generator=generator) * 0.1
        frames[:, :44] += 0.5
        frames[:, 60:80, 20:70] += 0.4 * high[:, None, None]
        noise = torch.randn(int(images * 2.5) * SMALL.hop, generator=generator)
        other = noise - noise.roll(1)
        waves.append(torch.where(high.repeat_interleave(40).bool(), other, noise.cumsum(0).sub(noise.cumsum(0).mean()) * 0.1 + 0.01 * noise))
        lips.append(Lips.at_rate(frames, RATE))
    return WatchedWaves(waves, lips, SMALL), lips


def test_every_frame_of_sound_has_the_images_around_it() -> None:
    frames = torch.arange(24.0)[:, None, None].expand(24, 88, 88) / 24
    frames = frames + torch.linspace(0, 0.02, 88)  # an image of one grey has no contrast
    waves = [torch.randn(60 * SMALL.hop) for _ in range(2)]
    data = WatchedWaves(waves, [Lips.at_rate(frames, RATE)] * 2, SMALL)
    generator = torch.Generator().manual_seed(0)
    index, _ = data.places(5, 20, torch.Generator().manual_seed(0))
    stretches = data.watched(5, 20, generator)
    assert stretches.s.shape == (5, 20, 33) and stretches.images.shape[0] == 5 and stretches.images.shape[2:] == (44, 44)
    assert stretches.where.good.float().mean() > 0.9
    shown = stretches.images.mean((-1, -2)) / (stretches.images[0, 1] - stretches.images[0, 0]).mean()  # brightness in images
    for i in range(5):
        first = index[i, 0] % waves[0].numel()
        moments = (first + torch.arange(20) * SMALL.hop + SMALL.n_fft / 2) / SMALL.sample_rate
        place = stretches.where.place[i].clamp_max(len(shown[i]) - 1)
        low = place.long()
        high = (low + 1).clamp_max(len(shown[i]) - 1)
        found = shown[i, low] + (shown[i, high] - shown[i, low]) * (place - low)
        expected = (moments * RATE).clamp(0, 23)
        torch.testing.assert_close(found - found[0], (expected - expected[0]).to(found), atol=0.05, rtol=0)


def test_the_loss_is_the_negative_elbo_and_foresight() -> None:
    torch.manual_seed(0)
    vae = VAESpeech(33, 3, (7,))
    for parameter in vae.decoder.parameters():  # sounds the same whatever the code: both reconstructions are equal, and none is random
        torch.nn.init.zeros_(parameter)
    speech = AVVAESpeech.around(vae, n_seen=5).eval()
    s, seen = floored(torch.randn(2, 1, 9, 33, dtype=torch.complex64)), torch.randn(2, 1, 9, 5)
    expected = negative_elbo(Mixture(speech=vae), EncoderGuide({"speech.z": vae.encoder}), s)
    for foresight in (0.0, 0.1):
        torch.testing.assert_close(av_loss(speech, s, speech.tell(seen), foresight=foresight), expected)
    reconstruction = negative_elbo(Mixture(speech=vae), EncoderGuide({"speech.z": vae.encoder}), s, beta=0.0)
    torch.testing.assert_close(av_loss(speech, s, speech.tell(seen), beta=0.5), (expected + reconstruction) / 2)


def test_images_are_moved_not_mixed() -> None:
    images = torch.arange(3.0)[:, None, None, None].expand(3, 4, 44, 44)
    changed = varied(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert (changed.std((1, 2, 3)) < 1e-4).all() and (changed[1] != images[1]).all()
    again = varied(images, torch.Generator().manual_seed(0))
    assert torch.equal(changed, again)


@pytest.mark.slow
def test_lips_come_to_tell_what_is_heard(tmp_path: Path) -> None:
    torch.manual_seed(0)
    speech = AVVAESpeech(33, 2, (16,), n_seen=8, reach=1)
    decoder = [parameter.clone() for parameter in speech.decoder.parameters()]
    train_av(speech, _clips(3)[0], _clips(2, seed=1)[0], tmp_path / "lips.safetensors", Schedule(1), batch=4, frames=30, lips_alone=True)
    assert all(torch.equal(*pair) for pair in zip(decoder, speech.decoder.parameters(), strict=True))
    log = train_av(speech, _clips(6)[0], _clips(2, seed=1)[0], tmp_path / "av.safetensors", Schedule(14, 3e-3, seed=0), batch=8, frames=30)
    assert log[-1].validation < log[0].validation
    data, lips = _clips(4, seed=2)

    def unforeseen(wave: Tensor, shown: Lips) -> float:
        s, source = floored(SMALL.analysis(wave)), speech.watching(shown)
        source.start(s)
        return negative_elbo(Mixture(speech=source), EncoderGuide({"speech.z": source.foresight}), s).item()

    with torch.no_grad():
        right = sum(unforeseen(wave, shown) for wave, shown in zip(data.waves, lips, strict=True))
        wrong = sum(unforeseen(wave, shown) for wave, shown in zip(data.waves, lips[1:] + lips[:1], strict=True))
    assert right < wrong


def test_clips_are_videos_with_sound_beside_them_or_in_them(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mpg"):
        (tmp_path / name).touch()
    soundfile.write(tmp_path / "a.wav", np.zeros(10), 16_000)
    clips = find_clips([str(tmp_path)])
    assert clips == [Clip(tmp_path / "a.mp4", tmp_path / "a.wav"), *(Clip(tmp_path / n, tmp_path / n) for n in ("b.mp4", "c.mpg"))]
    with pytest.raises(audio.AudioError, match="without video files"):
        (tmp_path / "empty").mkdir()
        find_clips([str(tmp_path / "empty")])


def test_validation_is_by_speaker_or_by_clip(tmp_path: Path) -> None:
    clips = [Clip(tmp_path / f"s{i}_{j}.mp4", tmp_path / f"s{i}_{j}.wav") for i in range(2) for j in range(3)]
    for clip in clips:
        clip.video.write_bytes(b"video")
    training, held = split_clips(clips, 0.4)
    assert {clip.video.stem[:2] for clip in training}.isdisjoint(clip.video.stem[:2] for clip in held) and len(held) == 3
    training, held = split_clips(clips[:3], 0.4)
    assert len(training) == 2 and len(held) == 1 and {*training, *held} == set(clips[:3])
    with pytest.raises(ValueError, match="two or more"):
        split_clips(clips[:1])
