"""What lips look like: right ones by the law that was learnt, wrong ones by a wider one, and both where the model is inferred."""

import math

import pyro
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppse import Mixture
from ppse.lips import Lips
from ppse.models import AVVAESpeech, StationaryNoise, VAESpeech
from ppse.models.lip_law import DEGREES, LOOKS, WIDER, LipLaw, Looks
from ppse.models.watched_speech import WatchedSpeech
from ppse.switching import regimes
from ppse.watched import SeenSpeech

F = 129


def _mouths(count: int, seed: int) -> Tensor:
    """Images (V, 44, 44) that move smoothly in a few directions, the same for all seeds, with a little noise of the camera."""
    patterns = torch.randn(5, 44, 44, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    phase, rate = 2 * math.pi * torch.rand(5, generator=generator), 0.15 + 0.35 * torch.rand(5, generator=generator)
    motion = (torch.arange(count).unsqueeze(-1) * rate + phase).sin()
    return torch.einsum("vk,khw->vhw", motion, patterns) + 0.05 * torch.randn(count, 44, 44, generator=generator)


@pytest.fixture(scope="module")
def law() -> LipLaw:
    law = LipLaw(5)
    law.learn([_mouths(60, seed) for seed in range(20)])
    return law


def test_the_law_tells_nothing_until_it_is_learnt() -> None:
    value = torch.randn(7, LOOKS)
    for right in (True, False):
        assert (Looks(LipLaw(), torch.full((7,), right)).log_prob(value) == 0).all()


def test_closed_form(law: LipLaw) -> None:
    value, right = 2 * torch.randn(4, LOOKS), torch.tensor([True, False, True, False])
    found = Looks(law, right, 0.4).log_prob(value)
    covariance, off = law.scale_tril @ law.scale_tril.T, value - law.loc
    normal = -0.5 * ((off @ covariance.inverse()) * off).sum(-1) - 0.5 * (2 * math.pi * covariance).logdet()
    wide = WIDER * covariance.diag().sqrt()
    distance = (off / wide).square().sum(-1)
    constant = math.lgamma((DEGREES + LOOKS) / 2) - math.lgamma(DEGREES / 2) - LOOKS / 2 * math.log(DEGREES * math.pi) - wide.log().sum()
    broad = constant - (DEGREES + LOOKS) / 2 * (distance / DEGREES).log1p()
    assert torch.allclose(found, 0.4 * law.power * torch.where(right, normal, broad), rtol=1e-3, atol=1e-4)
    assert 0 < law.power <= 1


@pytest.mark.parametrize("kind", ["black", "noisy", "covered", "frozen", "shuffled"])
def test_wrong_frames_get_less(law: LipLaw, kind: str) -> None:
    images = _mouths(60, 77)
    wrong, generator = images.clone(), torch.Generator().manual_seed(5)
    if kind == "black":
        wrong[20:40] = -3.0
    elif kind == "noisy":
        wrong[20:40] += torch.randn(20, 44, 44, generator=generator)
    elif kind == "covered":
        wrong[20:40, 10:34, 10:34] = -3.0
    elif kind == "frozen":
        wrong[20:40] = wrong[19]
    else:
        wrong[20:40] = wrong[20 + torch.randperm(20, generator=generator)]
    evidence = law.right.log_prob(law.looks(wrong)) - law.wrong.log_prob(law.looks(wrong))
    assert evidence[22:38].mean() < -1 and evidence[:18].mean() > 1


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images in 1 recordings; expected 50 or more"):
        LipLaw(5).learn([_mouths(3, 0)])


def test_what_lips_look_like_enters_the_density_of_every_regime(law: LipLaw) -> None:
    seeing = AVVAESpeech(F, 3, (8,), 4).eval()
    seeing.law = law
    source = SeenSpeech(VAESpeech(F, 3, (8,)).eval(), seeing.watching(Lips.at_rate(torch.rand(20, 88, 88), 25.0)))
    model, x = Mixture(speech=source, noise=StationaryNoise()), torch.randn(30, F, dtype=torch.complex64)
    model.start(x)
    with poutine.seed(rng_seed=0):
        found = regimes(model, (x,), {})
    site = found.trace.nodes["speech.looks"]
    sound = found.log_emission - site["log_prob"].squeeze(1).squeeze(1).T
    seen = source.experts["expert1"]
    assert isinstance(seen, WatchedSpeech) and seen.good is not None and seen.looks is not None
    per_regime = torch.stack([Looks(law, torch.full((30,), bool(m)), seen.share).log_prob(seen.looks) for m in (0, 1)], -1) * seen.good.unsqueeze(-1)
    assert torch.allclose(site["log_prob"].squeeze(1).squeeze(1).T, per_regime, atol=1e-4)
    assert per_regime.diff(dim=-1).abs().max() > 0.1 and torch.isfinite(sound).all()
    assert pyro.poutine.trace(model).get_trace(x).nodes["speech.looks"]["is_observed"]
