"""Adaptation of a prior to unlabelled recordings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from ppse import weights
from ppse.adaptation import Adaptation, Unlabelled, Verdict, adapt, noisy_bound, own_ears, recovered
from ppse.adaptation_recipe import Progress, Worse, adapt_prior
from ppse.audio import AudioError
from ppse.cli import app
from ppse.corpus import Waves
from ppse.method import Problem
from ppse.methods import hmc_em
from ppse.mixture import Mixture
from ppse.models import HeardNoise, RVAESpeech, VAESpeech
from ppse.recordings import Recordings
from ppse.stft import STFT

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
    """Recordings of white noise; the clean speech beside them is a tone that comes and goes."""
    noisy = Recordings(waves(count, seed), STFT_SMALL)
    time = torch.arange(4000) / 16_000
    tones = [torch.sin(2 * torch.pi * (300 + 50 * i) * time) * torch.sin(20 * time) for i in range(3)]
    return Unlabelled(noisy, Waves(tones, STFT_SMALL), Waves([0.7 * x for x in noisy.waves], STFT_SMALL))


def test_what_is_recovered_tells_a_better_listener_and_leaves_the_generator_alone() -> None:
    data, fine, off = unlabelled(3), tiny(), tiny()
    assert data.speech is not None and data.noise is not None and off.listener is not None
    torch.nn.init.constant_(off.listener.noise.bias, -9.0)  # hears no noise, so all of the recording is speech
    with torch.no_grad():
        fine.decoder[-1].bias[3:] -= 9.0  # the tones lie in three bins
        off.decoder[-1].bias[3:] -= 9.0
    state = torch.random.get_rng_state()

    def drawn(vae: VAESpeech) -> Mixture:  # as networks are, before they are read
        torch.randn(3)
        return own_ears(vae)

    good, bad = recovered(fine, data.speech, data.noise, using=drawn), recovered(off, data.speech, data.noise)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(good) == 3 and all(a > b + 1 for a, b in zip(good, bad, strict=True))
    assert good == recovered(fine, data.speech, data.noise) != recovered(fine, data.speech, data.noise, seed=1)


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


def test_an_encoder_that_is_off_is_put_right(tmp_path: Path) -> None:
    vae, training, held = tiny(3.0), Unlabelled(unlabelled(4).noisy), Unlabelled(unlabelled(5, seed=1).noisy)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    log, verdict = adapt(vae, training, held, tmp_path / "best.safetensors", QUICK._replace(learning_rate=0.05))
    assert verdict.helped and verdict.gain > 0.01 and "5 of 5 better" in verdict.sentence
    assert verdict.before == noisy_bound(tiny(3.0), held.noisy) and verdict.after == noisy_bound(vae, held.noisy)
    changed = {name.split(".")[0] for name, value in vae.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"listener"}
    assert len(log) == 3 and not any(p.requires_grad for p in vae.parameters())


def test_an_encoder_learns_from_other_speech_in_the_noise(tmp_path: Path) -> None:
    vae, training, held = tiny(), unlabelled(4), unlabelled(5, seed=1)
    assert vae.listener is not None and held.speech is not None and held.noise is not None
    torch.nn.init.constant_(vae.listener.noise.bias, -9.0)
    first = recovered(vae, held.speech, held.noise)
    log, verdict = adapt(vae, training, held, tmp_path / "best.safetensors", QUICK._replace(learning_rate=0.1, epochs=4))
    assert verdict.before == first and verdict.after == recovered(vae, held.speech, held.noise)
    assert verdict.helped and verdict.sentence.startswith("helped: SI-SDR of other speech in the noise of held-out recordings")
    assert verdict.sentence.endswith(" dB, 5 of 5 better") and log[-1].validation < log[0].validation


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


def test_it_is_judged_as_it_will_be_used(tmp_path: Path) -> None:
    """Who uses it with other ears alone sees no change."""
    data, fine, off = unlabelled(2), tiny(), tiny(3.0)
    assert data.speech is not None and data.noise is not None
    expected = recovered(fine, data.speech, data.noise)
    assert expected != recovered(off, data.speech, data.noise)
    _, verdict = adapt(off, unlabelled(2, seed=1), data, tmp_path / "best.safetensors", QUICK._replace(epochs=1), using=lambda _: own_ears(fine))
    assert verdict.before == verdict.after == expected


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

    (folder / "clean").mkdir()
    for person in "ab":
        tone = 0.1 * np.sin(2 * np.pi * 300 * np.arange(8000) / 16_000) * np.sin(np.arange(8000) / 800)
        soundfile.write(folder / "clean" / f"{person}-1.wav", tone, 16_000, subtype="FLOAT")
    arguments, clean = (folder / "off.safetensors", [str(folder / "noisy")]), [str(folder / "clean")]
    with pytest.raises(KeyboardInterrupt):
        adapt_prior(*arguments, folder / "a.safetensors", QUICK, speech=clean, method=EM, progress=Progress(epoch=interrupted))
    (folder / "other").mkdir()
    for person in "ab":
        soundfile.write(folder / "other" / f"{person}-1.wav", 0.1 * np.sin(np.arange(9000) / 9), 16_000, subtype="FLOAT")
    with pytest.raises(weights.WeightsError):  # other speech, so not the same run
        adapt_prior(*arguments, folder / "a.safetensors", QUICK, speech=[str(folder / "other")], method=replace(EM, e_step=never))
    with pytest.raises(ValueError, match=r"clean speech, .*b-1.wav: 1 files of one speaker"):
        adapt_prior(*arguments, folder / "a.safetensors", QUICK, speech=[str(folder / "clean" / "b-1.wav")], method=EM)
    assert (folder / "a.adapting" / "best.safetensors").exists() and not (folder / "a.safetensors").exists()
    with pytest.raises(weights.WeightsError):  # another model finds another noise
        adapt_prior(*arguments, folder / "a.safetensors", QUICK, speech=clean, method=EM, finder=own_ears(tiny(1.0)))
    resumed = adapt_prior(*arguments, folder / "a.safetensors", QUICK, speech=clean, method=replace(EM, e_step=never))
    assert resumed == adapt_prior(*arguments, folder / "b.safetensors", QUICK, speech=clean, force=True, method=EM)


def test_how_it_will_be_used_is_passed_on(folder: Path) -> None:
    for person in "ab":
        soundfile.write(folder / f"{person}-1.wav", 0.1 * np.sin(np.arange(8000) / 9) * np.sin(np.arange(8000) / 800), 16_000, subtype="FLOAT")
    clean = [str(folder / "a-1.wav"), str(folder / "b-1.wav")]
    verdict = adapt_prior(
        folder / "off.safetensors", [str(folder / "noisy")], folder / "out.safetensors", QUICK._replace(epochs=1), speech=clean, force=True,
        method=EM, using=lambda _: own_ears(tiny()),
    )
    assert verdict.before == verdict.after and len(set(verdict.before)) > 1
    judged = weights.card(folder / "out.safetensors")["adapted"]["judged"]
    assert judged["unit"] == "dB" and judged["before"] == verdict.before


@pytest.mark.parametrize("kinds", [[], ["--speech", "clean"]])
def test_command(folder: Path, monkeypatch: pytest.MonkeyPatch, kinds: list[str]) -> None:
    asked: dict[str, Any] = {}

    def noted(*_: object, **given: Any) -> Verdict:
        asked.update(given)
        return Verdict([1.0], [2.0])

    monkeypatch.setattr("ppse.commands.adapt.adapt_prior", noted)
    result = CliRunner().invoke(app, ["adapt", "vae_aware", str(folder / "noisy"), "-o", str(folder / "out.safetensors"), *kinds])
    assert result.exit_code == 0 and "--noise heard" in result.output
    assert asked["speech"] == (kinds[1:] or None) and asked["method"].name == "default"
    if kinds:
        assert isinstance(asked["finder"].speech.source, RVAESpeech) and isinstance(asked["finder"].noise, HeardNoise)
    else:
        assert asked["finder"] is None  # nobody looks for noise
    small = VAESpeech(129, 2, (4,), 3)
    assert asked["using"](small).noise.ears.n_freqs == 129


def test_bad_input(folder: Path) -> None:
    with pytest.raises(ValueError, match="the decoder learns from the recordings alone"):
        adapt_prior(folder / "off.safetensors", [str(folder / "noisy")], folder / "out.safetensors", QUICK._replace(part="decoder"), speech=["clean"])
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
