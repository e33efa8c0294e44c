"""Semi-supervised training: the bound is that of clean speech, of the mixture, or between, and one loss takes every mix of data."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor

from ppse import STFT, Mixture, weights
from ppse.corpus import Speech, Waves
from ppse.distributions import ComplexNormal
from ppse.elbo import negative_elbo
from ppse.guides import EncoderGuide
from ppse.listening import distance
from ppse.models import PartiallyObserved, VAESpeech
from ppse.optimisation import Epoch, Schedule
from ppse.recordings import Recordings, Stretches
from ppse.remixing import remix
from ppse.semi import Kinds, Material, Shares, _fitted, _speech, bounds, check, clean_bound, heard_bound, train
from ppse.stft import POWER_FLOOR
from ppse.training import Read, floored

SMALL = STFT(64, 16)
B, T, F = 2, 6, SMALL.n_freqs


@pytest.fixture
def vae() -> VAESpeech:
    return VAESpeech(F, 2, (12,), context=5).double()


def _stretches(known: Tensor) -> Stretches:
    clean, noise = (torch.randn(B, 1, T, F, dtype=torch.complex128) for _ in range(2))
    return Stretches(clean + 0.5 * noise, clean, known.expand(B, 1, T, 1))


def _graded(vae: VAESpeech, loss: Callable[[], Tensor], seed: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss and its gradients, from a seed."""
    torch.manual_seed(seed)
    vae.zero_grad()
    value = loss()
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def _heard_noise(vae: VAESpeech, x: Tensor) -> Tensor:
    assert vae.noisy_encoder is not None
    return vae.noisy_encoder.hear(x).noise + POWER_FLOOR


def test_all_observed_is_training_on_clean_speech(vae: VAESpeech) -> None:
    """Loss and gradients, apart from the noise, whose likelihood is a term of its own."""
    data = _stretches(torch.tensor(True))

    def observed() -> Tensor:
        guide = EncoderGuide({"speech.z": Read(vae.encoder(floored(data.clean)))})
        noise = -ComplexNormal(0j, _heard_noise(vae, data.x)).log_prob(floored(data.x - data.clean)).sum()
        return heard_bound(vae, data, guide=guide) - noise

    ours, our_gradients = _graded(vae, observed)
    theirs, gradients = _graded(vae, lambda: clean_bound(vae, data.clean.flatten(0, 2)))
    torch.testing.assert_close(ours, theirs)
    assert any(name.startswith("encoder") for name in gradients) and any(name.startswith("decoder") for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient)
    for name in our_gradients.keys() - gradients.keys():  # the noise was taken off, so the listener feels nothing
        torch.testing.assert_close(our_gradients[name], torch.zeros_like(our_gradients[name]))


def test_none_observed_is_the_bound_of_the_mixture(vae: VAESpeech) -> None:
    data = _stretches(torch.tensor(False))

    def mixture() -> Tensor:
        assert vae.noisy_encoder is not None
        law = ComplexNormal(0j, _heard_noise(vae, data.x))
        guide = EncoderGuide({"speech.z": vae.noisy_encoder})
        return negative_elbo(Mixture(speech=vae, noise=lambda _: law), _deaf(guide, data.x), floored(data.x))

    ours, our_gradients = _graded(vae, lambda: heard_bound(vae, data, inner=0))
    theirs, gradients = _graded(vae, mixture)
    torch.testing.assert_close(ours, theirs)
    assert our_gradients.keys() == gradients.keys() and any(name.startswith("listener") for name in gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient)


def _deaf(guide: EncoderGuide, x: Tensor) -> Callable[..., dict[str, Tensor]]:
    """The guide, on what the encoder reads: the recording as it is, without the floor."""
    return lambda _, observed=None: guide(x, observed)


def test_between_it_is_the_graph_with_explicit_speech(vae: VAESpeech) -> None:
    """Given the latents, s is drawn where it is not known, and p(x | s) averaged: by Monte Carlo, log p(s_known) + log p(x | s_known)."""
    known = torch.arange(T).unsqueeze(-1) % 3 == 0
    data = _stretches(known)
    code = torch.randn(B, 1, T, 2, dtype=torch.float64)
    still = Normal(code, torch.full_like(code, 1e-9))
    bound = heard_bound(vae, data, beta=0.0, inner=0, guide=EncoderGuide({"speech.z": Read(still)}))
    with torch.no_grad():
        v_s = vae.decoder(code).exp() + POWER_FLOOR
        v_n = _heard_noise(vae, data.x)
        seen = ComplexNormal(0j, v_s).log_prob(floored(data.clean)) + ComplexNormal(0j, v_n).log_prob(floored(data.x - data.clean))
        draws = 10_000
        total, square = torch.zeros_like(v_s), torch.zeros_like(v_s)
        for _ in range(draws // 1000):
            s = ComplexNormal(0j, v_s).sample(torch.Size([1000]))
            p = ComplexNormal(s, v_n).log_prob(floored(data.x)).exp()
            total, square = total + p.sum(0), square + p.square().sum(0)
        mean = total / draws
        deviation = ((square / draws / mean.square() - 1) / draws).sqrt()  # of log mean, by the delta method
        mask = known.expand(B, 1, T, F)
        explicit = torch.where(mask, seen, mean.log()).sum()
        error = deviation[~mask].square().sum().sqrt()
    assert error < 0.02 * (explicit - seen[mask].sum()).abs()
    assert abs(float(-bound.detach() - explicit)) < 4 * error


def test_speech_that_is_not_known_is_not_looked_at(vae: VAESpeech) -> None:
    known = torch.arange(T).unsqueeze(-1) < 4
    data = _stretches(known)
    other = data._replace(clean=torch.where(data.known, data.clean, 100 * torch.randn_like(data.clean)))
    (ours, our_gradients), (theirs, gradients) = (_graded(vae, lambda d=d: heard_bound(vae, d)) for d in (data, other))  # type: ignore[misc]
    assert torch.equal(ours, theirs) and all(torch.equal(our_gradients[name], gradients[name]) for name in gradients)
    changed = data._replace(clean=torch.where(data.known, 1.1 * data.clean, data.clean))
    assert _graded(vae, lambda: heard_bound(vae, changed))[0] != ours


def _noise_alone(vae: VAESpeech) -> tuple[Stretches, Tensor]:
    """Unlabelled noise of one spectrum, (F,), and no speech, which the decoder is made to know."""
    with torch.no_grad():
        vae.decoder[-1].bias.fill_(-12.0)
    power = torch.logspace(-2, 1, F, dtype=torch.float64)
    x = ComplexNormal(0j, power.expand(2, 1, 40, F)).sample()
    return Stretches(x, torch.zeros_like(x), torch.zeros(2, 1, 40, 1, dtype=torch.bool)), power


@torch.no_grad()
def test_more_inner_steps_explain_the_noise_better(vae: VAESpeech) -> None:
    data, power = _noise_alone(vae)
    assert vae.noisy_encoder is not None
    speech = PartiallyObserved(vae.forward, data.clean, data.known)
    heard = vae.noisy_encoder.hear(data.x)
    law = vae.noisy_encoder.read(data.x, heard)
    losses = []
    for steps in (1, 5, 25):
        torch.manual_seed(1)
        fitted = _fitted(speech, data.x, law, heard.noise, steps)
        losses.append(-float(ComplexNormal(0j, fitted).log_prob(data.x).sum()))
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < -float(ComplexNormal(0j, power).log_prob(data.x).sum())  # the fit has more parameters than the truth


def test_the_listener_learns_what_the_fit_finds(vae: VAESpeech) -> None:
    """Unlabelled noise of one spectrum: by its bound alone, the power that is heard comes to be the power that is there."""
    data, power = _noise_alone(vae)
    assert vae.listener is not None

    def off() -> float:
        with torch.no_grad():
            return float((_heard_noise(vae, data.x) / power).log().square().mean().sqrt())

    before, optimiser = off(), torch.optim.Adam(vae.listener.noise.parameters(), lr=0.15)
    for _ in range(20):
        optimiser.zero_grad()
        (heard_bound(vae, data) / 80).backward()
        optimiser.step()
    assert off() < 0.5 * before


def _sounds(count: int, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """Voices (combs that come and go), and the same in noise."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(8000) / 16_000
    voices = []
    for _ in range(count):
        pitch = 100 + 150 * torch.rand(1, generator=generator)
        voices.append(torch.stack([torch.sin(2 * math.pi * pitch * k * time) / k for k in range(1, 12)]).sum(0) * (1 + torch.sin(20 * time)))
    return voices, [voice + 0.4 * torch.randn(voice.shape, generator=generator) for voice in voices]


class _Voices(Speech):
    """Clean speech without files."""

    def __init__(self, waves: list[Tensor]) -> None:
        Waves.__init__(self, waves, SMALL)


def _material(seed: int) -> Material:
    voices, noisy = _sounds(3, seed)
    masks = [torch.arange(voice.numel()) < 4000 for voice in voices]
    return Material(
        _Voices(voices), Recordings(noisy, SMALL), Recordings(noisy, SMALL, voices), Recordings(noisy, SMALL, voices, masks),
    )


def test_all_kinds_are_learnt_from_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    training, validation = _material(0), _material(1)
    told: list[Kinds] = []

    def run(name: str, report: Callable[[list[Epoch], Kinds], None]) -> tuple[VAESpeech, list[Epoch]]:
        torch.manual_seed(0)
        network = VAESpeech(F, 2, (12,), context=5)
        return network, train(network, training, validation, tmp_path / name, Schedule(3, 2e-2, seed=3), batch=1, frames=24, steps=3, report=report)

    def interrupt(log: list[Epoch], _: Kinds) -> None:
        if len(log) == 2:
            raise KeyboardInterrupt

    whole, log = run("whole.safetensors", lambda _, kinds: told.append(kinds))
    assert log[-1].training < log[0].training - 1 and log[-1].validation < log[0].validation - 1
    assert all(set(kinds) == set(Shares._fields) for kinds in told) and len(told) == 3
    for kind in Shares._fields:
        assert told[-1][kind][1] < told[0][kind][1], kind  # validation: the same stretches every time
    total = sum(getattr(Shares(), kind) * losses[0] for kind, losses in told[-1].items())
    assert total == pytest.approx(log[-1].training, rel=1e-4)
    with pytest.raises(KeyboardInterrupt):
        run("broken.safetensors", interrupt)
    resumed, _ = run("broken.safetensors", lambda _, kinds: told.append(kinds))
    assert len(told) == 4, "of the interrupted run one epoch was left"
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert weights.card(tmp_path / "whole.safetensors")["semi"]["shares"] == Shares()._asdict()


def test_a_weight_of_zero_leaves_a_kind_out(tmp_path: Path) -> None:
    kinds: list[Kinds] = []
    train(
        VAESpeech(F, 2, (12,), context=5), _material(0), _material(1), tmp_path / "out.safetensors", Schedule(1), Shares(simulated=0.0, noisy=0.0),
        batch=2, frames=32, steps=1, report=lambda _, told: kinds.append(told),
    )
    assert set(kinds[0]) == {"clean", "pairs", "labels", "remixed", "distance"}


def test_the_distance_stands_beside_the_bound_of_pairs_and_changes_nothing_in_it(vae: VAESpeech) -> None:
    vae.float()
    alone = Material(pairs=_material(0).pairs)
    assert alone.pairs is not None and vae.noisy_encoder is not None

    def losses(weight: float) -> dict[str, Tensor]:
        torch.manual_seed(1)
        return bounds(vae, alone, 2, 32, torch.Generator().manual_seed(2), 1.0, 1, Shares(remixed=0.0, distance=weight), torch.device("cpu"))

    data = alone.pairs.stretches(2, 32, torch.Generator().manual_seed(2))
    expected = distance(vae, vae.noisy_encoder, data.clean, data.x, vae.noisy_encoder.hear(data.x)) / 64
    beside, bound = losses(3.0), losses(0.0)
    assert set(bound) == {"pairs"} and torch.equal(beside["pairs"], bound["pairs"])
    torch.testing.assert_close(beside["distance"], expected)


def test_simulated_pairs_count_in_the_distance_too(vae: VAESpeech) -> None:
    vae.float()

    def distance_of(**weights: float) -> Tensor:
        shares = Shares(**{**dict.fromkeys(Shares._fields, 0.0), "distance": 1.0, **weights})
        return bounds(vae, _material(0), 2, 32, torch.Generator().manual_seed(2), 1.0, 1, shares, torch.device("cpu"))["distance"]

    assert distance_of(pairs=1.0) > 0 and distance_of(simulated=1.0) > 0
    assert distance_of(pairs=1.0, simulated=1.0) > distance_of(simulated=1.0)


@pytest.mark.parametrize(
    "kinds", [("clean",), ("clean", "noisy"), ("clean", "labels"), ("clean", "noisy", "pairs", "labels"), ("pairs",), ("noisy", "pairs")],
)
def test_noise_of_recordings_is_remixed_when_there_is_any(vae: VAESpeech, kinds: tuple[str, ...]) -> None:
    """With the speech of the clean folder, and without one, of the pairs."""
    whole = _material(0)
    material = Material(**{kind: getattr(whole, kind) for kind in kinds})

    def losses(remixed: float) -> dict[str, Tensor]:
        shares = Shares(remixed=remixed, distance=0.0)
        return bounds(vae.float(), material, 2, 24, torch.Generator().manual_seed(2), 1.0, 1, shares, torch.device("cpu"))

    mixed, plain = losses(1.0), losses(0.0)
    assert mixed.keys() - plain.keys() == ({"remixed"} if set(kinds) & {"noisy", "pairs", "labels"} else set())
    assert all(torch.isfinite(value) for value in mixed.values())


def test_speech_for_remixing_is_that_of_the_folder_and_of_the_pairs_by_their_lengths() -> None:
    """Told apart by their levels."""
    loud = _Voices([100 * torch.randn(6000)])
    pairs = Recordings([torch.randn(18_000)], SMALL, [torch.randn(18_000)])
    generator = torch.Generator().manual_seed(0)
    for material, expected in ((Material(loud, pairs=pairs), 0.75), (Material(loud), 0.0), (Material(pairs=pairs), 1.0)):
        speech = _speech(material, 400, 8, generator)
        assert speech.shape == (400, 8, F)
        quiet = float((speech.abs().square().mean((-2, -1)) < 100).float().mean())
        assert quiet == pytest.approx(expected, abs=0.08 if 0 < expected < 1 else 0)


def test_the_noise_of_a_kind_without_weight_is_remixed_all_the_same(vae: VAESpeech) -> None:
    shares = Shares(noisy=0.0, pairs=0.0, labels=0.0, simulated=0.0, distance=0.0)
    found = bounds(vae.float(), _material(0), 2, 24, torch.Generator().manual_seed(2), 1.0, 1, shares, torch.device("cpu"))
    assert set(found) == {"clean", "remixed"}


def test_noise_that_was_found_once_is_remixed_in_place_of_draws(vae: VAESpeech, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart by its spectrum: it is constant. It is no kind of its own, and the bounds of the recordings stay what they are."""
    whole = _material(0)
    material = whole._replace(noise=Waves([torch.ones(5000)], SMALL))
    heard: list[Tensor] = []

    def listen(speech: Tensor, noise: Tensor, generator: torch.Generator) -> Stretches:
        heard.append(noise)
        return remix(speech, noise, generator)

    monkeypatch.setattr("ppse.semi.remix", listen)

    def of(each: Material) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return bounds(vae.float(), each, 2, 24, torch.Generator().manual_seed(2), 1.0, 1, Shares(), torch.device("cpu"))

    drawn, found = of(whole), of(material)
    assert set(drawn) == set(found) == set(Shares._fields)
    assert all(torch.equal(drawn[kind], found[kind]) for kind in ("clean", "noisy", "pairs", "labels"))
    assert not torch.equal(drawn["remixed"], found["remixed"])
    assert float(heard[1][..., 16:].abs().max()) < 0.01 < float(heard[0][..., 16:].abs().mean())
    assert set(material.kinds) == {"clean", "noisy", "pairs", "labels"} and material.n_frames == whole.n_frames
    assert material.fingerprint != whole.fingerprint
    with pytest.raises(ValueError, match="noise in one of training and validation only"):
        check(material, whole, Shares())


def test_remixed_pairs_count_in_the_distance_too(vae: VAESpeech) -> None:
    vae.float()

    def distance_of(remixed: float) -> Tensor:
        shares = Shares(simulated=0.0, remixed=remixed)
        return bounds(vae, _material(0), 2, 24, torch.Generator().manual_seed(2), 1.0, 1, shares, torch.device("cpu"))["distance"]

    assert distance_of(1.0) > distance_of(0.0) > 0


def test_what_cannot_be_trained_on_is_refused(vae: VAESpeech, tmp_path: Path) -> None:
    whole = _material(0)
    with pytest.raises(ValueError, match="nothing is observed"):
        check(Material(noisy=whole.noisy), Material(noisy=whole.noisy), Shares())
    with pytest.raises(ValueError, match="nothing is noisy"):
        check(Material(clean=whole.clean), Material(clean=whole.clean), Shares(simulated=0.0))
    check(Material(clean=whole.clean), Material(clean=whole.clean), Shares())
    silent = Shares(simulated=0.0, pairs=0.0, remixed=0.0)
    for what, shares in {"observed": silent._replace(clean=0.0), "noisy": silent._replace(noisy=0.0, labels=0.0)}.items():
        with pytest.raises(ValueError, match=f"nothing {what} counts, by the weights"):
            check(whole, whole, shares)
    check(whole, whole, Shares(simulated=0.0, noisy=0.0, pairs=0.0, labels=0.0))
    with pytest.raises(ValueError, match="noisy, labels in one of training and validation only"):
        check(whole, Material(clean=whole.clean, pairs=whole.pairs), Shares())
    with pytest.raises(ValueError, match="none below 0"):
        check(whole, whole, Shares(noisy=-1.0))
    deaf = VAESpeech(F, 2, (12,))
    with pytest.raises(ValueError, match="no noisy encoder"):
        train(deaf, whole, whole, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="no noisy encoder"):
        heard_bound(deaf, _stretches(torch.tensor(True)))


def test_the_fingerprint_tells_kinds_apart() -> None:
    whole = _material(0)
    assert Material(noisy=whole.noisy).fingerprint != Material(pairs=whole.noisy).fingerprint
    assert Material(noisy=whole.noisy).fingerprint == Material(noisy=whole.noisy).fingerprint
