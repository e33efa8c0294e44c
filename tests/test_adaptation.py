"""Adaptation of a prior to unlabelled recordings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ppse import weights
from ppse.adaptation import Adaptation, Unlabelled, Verdict, adapt, noisy_bound, remixed
from ppse.adaptation_recipe import Progress, Worse, adapt_prior, taught
from ppse.audio import AudioError
from ppse.corpus import Waves
from ppse.method import Problem
from ppse.methods import hmc_em
from ppse.models import VAESpeech
from ppse.recordings import Recordings
from ppse.stft import STFT, level

STFT_SMALL = STFT.of_freqs(17)
QUICK = Adaptation(epochs=3, batch=2, frames=20, learning_rate=0.01, anchor=0.0, patience=3)
EM = hmc_em(4, steps=1)


def tiny(shift: float = 0.0) -> VAESpeech:
    """Untrained, but its noisy encoder is off by so much: recordings can tell it so."""
    torch.manual_seed(0)
    vae = VAESpeech(17, 3, (8,), context=6)
    assert vae.listener is not None
    torch.nn.init.constant_(vae.listener.shift.bias, shift)
    return vae.requires_grad_(False).eval()


def waves(count: int, seed: int = 0) -> list[torch.Tensor]:
    return list(torch.randn(count, 1600, generator=torch.Generator().manual_seed(seed)))


def unlabelled(count: int, seed: int = 0) -> Unlabelled:
    noisy = Recordings(waves(count, seed), STFT_SMALL)
    speech = [0.6 * wave for wave in noisy.waves]
    return Unlabelled(noisy, Waves(speech, STFT_SMALL), Waves([x - s for x, s in zip(noisy.waves, speech, strict=True)], STFT_SMALL))


def test_remixed_has_the_level_of_a_recording_and_its_snr_in_range() -> None:
    data = unlabelled(3)
    assert data.speech is not None and data.noise is not None
    clean, noise = remixed(data.speech, data.noise, 64, 30, torch.Generator().manual_seed(0))
    assert clean.shape == noise.shape == (64, 1, 30, 17)
    torch.testing.assert_close(level(clean + noise), torch.ones(64, 1, 1, 1))
    snr = 10 * (level(clean) / noise.abs().square().mean((-2, -1), keepdim=True)).log10()
    assert -10.01 < snr.min() < -7 and 12 < snr.max() < 15.01


def test_noisy_bound_knows_a_worse_encoder_and_leaves_the_generator_alone() -> None:
    recordings, fine, off = Recordings(waves(2), STFT_SMALL), tiny(), tiny(3.0)
    state = torch.random.get_rng_state()
    good, bad = noisy_bound(fine, recordings), noisy_bound(off, recordings)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(a > b for a, b in zip(good, bad, strict=True))
    assert good == noisy_bound(tiny(), recordings) and len(good) == 2


def test_noisy_bound_is_below_the_evidence_of_latents_that_say_nothing() -> None:
    """Where speech does not depend on z, the bound of a law as wide as the prior's is log p(x), and of others less by the KL divergence."""
    vae, recordings = tiny(), Recordings(waves(1), STFT_SMALL)
    last: Any = vae.decoder[-1]
    last.weight.zero_()
    high = noisy_bound(vae, recordings)[0]
    assert vae.listener is not None
    vae.listener.shift.bias += 1.5
    low = noisy_bound(vae, recordings)[0]
    x = recordings.stft.analysis(recordings.waves[0])
    encoder = vae.noisy_encoder
    assert encoder is not None
    after = encoder(x).mean
    before = after - 1.5
    expected = 0.5 * float((after.square() - before.square()).sum()) / x.numel()  # of KL(N(m, s) || N(0, 1)) only the means differ
    assert high - low == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("self_taught", [True, False])
def test_an_encoder_that_is_off_is_put_right(tmp_path: Path, self_taught: bool) -> None:
    vae, training, held = tiny(3.0), unlabelled(4), unlabelled(5, seed=1)
    if not self_taught:
        training, held = Unlabelled(training.noisy), Unlabelled(held.noisy)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    log, verdict = adapt(vae, training, held, tmp_path / "best.safetensors", QUICK._replace(learning_rate=0.05))
    assert verdict.helped and verdict.gain > 0.01 and "5 of 5 better" in verdict.sentence
    assert verdict.before == noisy_bound(tiny(3.0), held.noisy) and verdict.after == noisy_bound(vae, held.noisy)
    changed = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"listener"}
    assert len(log) == 3 and not any(p.requires_grad for p in vae.parameters())


def test_the_decoder_alone_and_the_anchor(tmp_path: Path) -> None:
    moved = []
    for anchor in (0.0, 1e4):
        vae, origin = tiny(), tiny().state_dict()
        adapt(vae, unlabelled(3), unlabelled(1), tmp_path / f"{anchor}.safetensors", QUICK._replace(part="decoder", anchor=anchor))
        distance = {name: float((value - origin[name]).square().sum()) for name, value in vae.state_dict().items()}
        assert {name.split(".")[0] for name, value in distance.items() if value} == {"decoder"}
        moved.append(sum(distance.values()))
    assert moved[1] < 0.2 * moved[0]


def test_offsets_alone(tmp_path: Path) -> None:
    vae, origin = tiny(3.0), tiny(3.0).state_dict()
    _, verdict = adapt(vae, Unlabelled(unlabelled(4).noisy), Unlabelled(unlabelled(5, seed=1).noisy), tmp_path / "best.safetensors",
                       QUICK._replace(part="offsets", learning_rate=0.05))
    moved = {name for name, value in vae.state_dict().items() if not torch.equal(value, origin[name])}
    assert moved == {f"listener.{head}.bias" for head in ("mask", "shift", "scale", "noise")} and verdict.helped


def test_without_a_noisy_encoder_nothing_is_adapted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no noisy encoder"):
        adapt(VAESpeech(17, 3, (8,)), unlabelled(2), unlabelled(1), tmp_path / "best.safetensors", QUICK)


def test_verdict() -> None:
    before = [1.0, 2.0, 1.0, 2.0, 1.5]
    assert Verdict(before, [1.1, 2.1, 1.1, 2.1, 1.6]).helped
    assert not Verdict(before, [1.9, 2.9, 1.9, 2.9, 1.4]).helped  # the mean gain is high, but one in five loses
    assert Verdict([1.0] * 10, [1.1] * 9 + [0.9]).helped  # one in ten may lose
    assert not Verdict([1.0] * 10, [1.1] * 9 + [-9.0]).helped  # not that much
    few = Verdict([1.0, 2.0], [1.5, 2.1])
    assert not few.helped and few.sentence.startswith("has not been shown to help, which takes 5 held out: bound of held-out")
    assert Verdict([1.5] * 5, [1.45] * 5).sentence == (
        "did not help: bound of held-out recordings 1.5000 → 1.4500 nats per bin, 0 of 5 better"
    )


def never(_: Problem) -> Any:
    raise AssertionError("EM ran again on a recording that it has done")


def test_what_em_found_is_kept_for_a_run_that_goes_on(tmp_path: Path) -> None:
    recordings, counts = Recordings(waves(2), STFT_SMALL), []
    progress = Progress(teaching=lambda *count: counts.append(count))
    speech, noise = taught(tiny(), recordings, tmp_path, EM, 0, progress)
    assert counts == [(1, 2), (2, 2)]
    again = taught(tiny(), recordings, tmp_path, replace(EM, e_step=never), 0, progress)
    for i, wave in enumerate(recordings.waves):
        torch.testing.assert_close(speech[i] + noise[i], wave)
        assert torch.equal(again[0][i], speech[i]) and 0 < speech[i].square().mean() < wave.square().mean()
    with pytest.raises(AssertionError, match="EM ran again"):
        taught(tiny(3.0), recordings, tmp_path, replace(EM, e_step=never), 0, progress)  # of another prior


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Noisy recordings at the rate of the models."""
    rng = np.random.default_rng(0)
    (tmp_path / "noisy").mkdir()
    for i in range(10):
        soundfile.write(tmp_path / "noisy" / f"{i}.wav", 0.1 * rng.standard_normal(1600), 16_000, subtype="FLOAT")
    weights.write(tiny(3.0), tmp_path / "off.safetensors", {"licence": "mine", "validation_loss": 1.0})
    weights.write(tiny(), tmp_path / "fine.safetensors", {})
    return tmp_path


def test_from_a_folder_to_weights(folder: Path) -> None:
    out, told = folder / "out.safetensors", []
    (folder / "noisy" / "silent.wav").write_bytes((folder / "noisy" / "0.wav").read_bytes())
    soundfile.write(folder / "noisy" / "silent.wav", np.zeros(1600), 16_000)
    (folder / "noisy" / "broken.wav").write_text("no audio")
    settings = QUICK._replace(learning_rate=0.05)
    verdict = adapt_prior(folder / "off.safetensors", [str(folder / "noisy")], out, settings, method=EM, progress=Progress(left_out=told.append))
    assert verdict.helped and len(verdict.before) == 5
    assert len(told) == 2 and any("silent" in reason for reason in told) and any("broken" in reason for reason in told)
    card = weights.card(out)
    assert card["licence"] == "mine" and card["adapted"]["recordings"] == 10 and card["adapted"]["helped"] is True
    assert VAESpeech.pretrained(str(out)).noisy_encoder is not None
    assert not (folder / "out.adapting").exists()
    with pytest.raises(weights.WeightsError, match="is there already"):
        adapt_prior(folder / "off.safetensors", [str(folder / "noisy")], out, settings, method=EM)


def test_a_worse_prior_is_written_by_force_only(folder: Path) -> None:
    out, settings = folder / "worse.safetensors", QUICK._replace(learning_rate=3.0, epochs=1)
    with pytest.raises(Worse, match=r"not written, as adapting did not help.*--force"):
        adapt_prior(folder / "fine.safetensors", [str(folder / "noisy")], out, settings, method=EM)
    assert not out.exists() and not (folder / "worse.adapting").exists()
    verdict = adapt_prior(folder / "fine.safetensors", [str(folder / "noisy")], out, settings, force=True, method=EM)
    assert not verdict.helped and weights.card(out)["adapted"]["helped"] is False


def test_an_interrupted_run_goes_on(folder: Path) -> None:
    def interrupted(epoch: Any, log: list[Any]) -> None:
        if len(log) == 2:
            raise KeyboardInterrupt

    arguments = folder / "off.safetensors", [str(folder / "noisy")]
    with pytest.raises(KeyboardInterrupt):
        adapt_prior(*arguments, folder / "a.safetensors", QUICK, self_taught=True, method=EM, progress=Progress(epoch=interrupted))
    assert (folder / "a.adapting" / "best.safetensors").exists() and not (folder / "a.safetensors").exists()
    resumed = adapt_prior(*arguments, folder / "a.safetensors", QUICK, self_taught=True, method=replace(EM, e_step=never))
    assert resumed == adapt_prior(*arguments, folder / "b.safetensors", QUICK, self_taught=True, method=EM)


def test_bad_input(folder: Path) -> None:
    one = folder / "noisy" / "0.wav"
    for force, needed in ((False, 10), (True, 2)):
        with pytest.raises(AudioError, match=rf"1 recording that can be used; expected {needed} or more.*adapt_em"):
            adapt_prior(folder / "off.safetensors", [str(one)], folder / "out.safetensors", QUICK, force=force, method=EM)
    (folder / "empty").mkdir()
    with pytest.raises(AudioError):
        adapt_prior(folder / "off.safetensors", [str(folder / "empty")], folder / "out.safetensors", QUICK, method=EM)
    weights.write(VAESpeech(17, 3, (8,)), folder / "deaf.safetensors", {})
    with pytest.raises(ValueError, match="no noisy encoder to adapt"):
        adapt_prior(folder / "deaf.safetensors", [str(folder / "noisy")], folder / "out.safetensors", QUICK, method=EM)
    assert not list(folder.glob("out.*"))
