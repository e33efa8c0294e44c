"""Adaptation of the noisy encoder to one recording."""

import pytest
import torch
from torch import Tensor

import ppse
from ppse.adaptive import Corrected, adapt_em, corrected
from ppse.elbo import negative_elbo
from ppse.guides import starting_guide
from ppse.inference import infer
from ppse.method import Problem
from ppse.models import NMFNoise, VAESpeech

F, L = 17, 3


@pytest.fixture
def vae() -> VAESpeech:
    torch.manual_seed(0)
    return VAESpeech(F, L, (8,), context=6).requires_grad_(False)


def recordings(count: int, frames: int = 12) -> Tensor:
    return torch.randn(count, 1, frames, F, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def problem_of(vae: VAESpeech, x: Tensor) -> Problem:
    model = ppse.Mixture(speech=vae, noise=NMFNoise(2))
    model.start(x)
    return Problem(model, model, x, None, starting_guide(model), {})


def test_no_correction_is_the_encoder(vae: VAESpeech) -> None:
    x = recordings(2)
    assert vae.noisy_encoder is not None
    ours, law = Corrected(vae.noisy_encoder, x)(x), vae.noisy_encoder(x)
    torch.testing.assert_close(ours.mean, law.mean)
    torch.testing.assert_close(ours.stddev, law.stddev)


def test_corrections_are_of_a_recording_and_constant_over_time(vae: VAESpeech) -> None:
    x = recordings(2)
    assert vae.noisy_encoder is not None
    module = Corrected(vae.noisy_encoder, x)
    module(x).mean[0].sum().backward()
    for parameter in (module.mask, module.shift):
        assert parameter.grad is not None
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0  # another recording
    assert module.mask.shape == (2, 1, 1, F) and module.shift.shape == (2, 1, 1, L)
    assert not any(name.startswith(("listener", "encoder")) for name, _ in module.named_parameters())


def test_what_is_not_observed_says_nothing(vae: VAESpeech) -> None:
    assert vae.noisy_encoder is not None
    x, observed = recordings(1), torch.ones(1, 1, 12, 1, dtype=torch.bool)
    observed[:, :, 9:] = False
    other = torch.where(observed, x, 100 * x)
    one, two = (Corrected(vae.noisy_encoder, value, observed)(value * observed, observed).mean[:, :, :9] for value in (x, other))
    torch.testing.assert_close(one, two)


def test_the_tuned_encoder_explains_the_recording_better(vae: VAESpeech) -> None:
    """An encoder that is off by a constant, which is what the correction can put right."""
    assert vae.listener is not None
    vae.listener.shift.bias += 3.0
    problem = problem_of(vae, recordings(1))
    torch.manual_seed(0)
    step = adapt_em(60, tune=20, learning_rate=0.2, average=10).e_step(problem)
    means = [step(i).draws["speech.z"].mean((-2, -3)).abs().mean() for i in range(20)]
    assert means[-1] < means[0] - 1
    assert corrected(problem).encoder0.shift.abs().sum() == 0  # the tuned one was a copy; the problem has its guide as it was


def test_enhances_a_batch_and_leaves_the_model_alone(vae: VAESpeech) -> None:
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    x = recordings(2)
    torch.manual_seed(0)
    inferred = infer(ppse.Mixture(speech=vae, noise=NMFNoise(2)), x, adapt_em(12, tune=4, average=4))
    torch.testing.assert_close(inferred.sources["speech"].loc + inferred.sources["noise"].loc, x)
    assert len(inferred.objective) == 12 and len(inferred.info) == 8  # the latter without those in which the encoder draws
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_the_bound_of_a_corrected_guide_has_gradients_of_corrections_only(vae: VAESpeech) -> None:
    problem = problem_of(vae, recordings(1))
    guide = corrected(problem)
    negative_elbo(problem.model, guide, *problem.args).backward()
    assert guide.encoder0.scale.grad is not None and guide.encoder0.scale.grad.abs().sum() > 0
    assert all(p.grad is None for p in vae.parameters())


def test_without_a_noisy_encoder_there_is_nothing_to_adapt() -> None:
    model = ppse.Mixture(speech=VAESpeech(F, L, (8,)), noise=NMFNoise(2))
    with pytest.raises(ValueError, match="no source of the model has an encoder for noisy speech"):
        infer(model, recordings(1), adapt_em(6))
