from collections.abc import Callable

import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from ppse import Mixture
from ppse.guides import EncoderGuide, clean_guide, starting_guide
from ppse.models import FrameGain, StationaryNoise, VAESpeech

T, F, L = 6, 9, 3


def _model(context: int = 4) -> Mixture:
    return Mixture(a=FrameGain(VAESpeech(F, L, (5,), context)), noise=StationaryNoise(), b=VAESpeech(F, L, (5,)))


@pytest.mark.parametrize("make", [clean_guide, starting_guide])
@pytest.mark.parametrize("lead", [(), (2, 1)], ids=["one", "batch"])
def test_guide_matches_the_model(make: Callable[[Mixture], EncoderGuide | None], lead: tuple[int, ...]) -> None:
    model, x = _model(), torch.randn(*lead, T, F, dtype=torch.complex64)
    model.start(x)
    guide = make(model)
    assert guide is not None
    trace = poutine.trace(guide).get_trace(x)
    proposed = {name: site["value"].shape for name, site in trace.nodes.items() if name.endswith(".z")}
    assert proposed == {"a.z": (*lead, T, L), "b.z": (*lead, T, L)}
    assert Trace_ELBO().differentiable_loss(model, guide, x).isfinite()
    # The ELBO is the mean of log p - log q, by hand.
    with poutine.seed(rng_seed=3):
        loss = Trace_ELBO().differentiable_loss(model, guide, x)
    with poutine.seed(rng_seed=3):
        guided = poutine.trace(guide).get_trace(x)
        joint = poutine.trace(poutine.replay(model, trace=guided)).get_trace(x)
    torch.testing.assert_close(-loss, joint.log_prob_sum() - guided.log_prob_sum())


def test_batch_equals_loop_and_gradients_reach_the_encoder() -> None:
    vae, x = VAESpeech(F, L, (5,), 4), torch.randn(3, 1, T, F, dtype=torch.complex64)
    for encoder in (vae.encoder, vae.noisy_encoder):
        assert encoder is not None
        guide = EncoderGuide({"speech.z": encoder})
        loc, scale = guide.laws(x)["speech.z"]
        assert loc.shape == scale.shape == (3, 1, T, L) and (scale > 0).all() and (scale <= 1).all()
        for b in range(3):
            torch.testing.assert_close(guide.laws(x[b, 0])["speech.z"][0], loc[b, 0])
        guide.zero_grad()
        noise = guide.listen(x)[1]
        assert (noise is None) == (encoder is vae.encoder)
        (loc.sum() + scale.sum() + (0 if noise is None else noise.sum())).backward()
        assert all(p.grad is not None and p.grad.any() for p in guide.parameters())


@pytest.mark.parametrize("per_bin", [False, True])
def test_padding_is_no_context(per_bin: bool) -> None:
    """In a padded batch every utterance has the law that it has alone."""
    model, lengths = _model(), [T, 2, 4, 1]
    guide = starting_guide(model)
    assert guide is not None
    x = torch.randn(len(lengths), 1, T, F, dtype=torch.complex64)
    observed = (torch.arange(T) < torch.tensor(lengths).reshape(-1, 1, 1)).unsqueeze(-1)
    observed = observed.expand(x.shape) if per_bin else observed
    laws = guide.laws(torch.where(observed, x, torch.full_like(x, 100)), observed)
    for b, length in enumerate(lengths):
        for site, alone in guide.laws(x[b, 0, :length]).items():
            for one, batched in zip(alone, laws[site], strict=True):
                torch.testing.assert_close(batched[b, 0, :length], one)


def test_bins_that_no_frame_holds_leave_the_context_alone() -> None:
    """The mask (F,) of a recording below the rate of the model."""
    guide, x = starting_guide(_model()), torch.randn(T, F, dtype=torch.complex64)
    assert guide is not None
    held = torch.arange(F) < 5
    torch.testing.assert_close(guide.laws(x, held), guide.laws(x * held))


def test_clean_encoder_sees_one_frame_and_the_noisy_one_all() -> None:
    vae, x = VAESpeech(F, L, (5,), 4), torch.randn(T, F, dtype=torch.complex64)
    other = x.clone()
    other[0] *= 3

    def changed(encoder: torch.nn.Module) -> Tensor:
        return (encoder(x).mean != encoder(other).mean).any(-1)

    assert vae.noisy_encoder is not None
    assert changed(vae.encoder).tolist() == [True] + [False] * (T - 1)
    assert changed(vae.noisy_encoder).all()


def test_encoders_do_not_depend_on_the_phase() -> None:
    vae, x = VAESpeech(F, L, (5,), 4), torch.randn(T, F, dtype=torch.complex64)
    turned = x * torch.polar(torch.ones(T, F), torch.rand(T, F))
    for encoder in (vae.encoder, vae.noisy_encoder):
        assert encoder is not None
        torch.testing.assert_close(encoder(x).mean, encoder(turned).mean, atol=1e-5, rtol=0)


def test_no_encoder_means_no_guide() -> None:
    assert starting_guide(Mixture(noise=StationaryNoise())) is None
    model = _model(0)
    assert starting_guide(model) is not None  # falls back to the clean encoder


def test_what_is_not_observed_is_not_read() -> None:
    guide, x = starting_guide(Mixture(speech=VAESpeech(F, L, (5,), 4), noise=StationaryNoise())), torch.randn(T, F, dtype=torch.complex64)
    assert guide is not None
    observed = torch.rand(T, F) > 0.3
    observed[2] = False
    other = torch.where(observed, x, 30 * x + 1)
    torch.testing.assert_close(guide.laws(other, observed), guide.laws(x, observed), rtol=0, atol=0)
    torch.testing.assert_close(guide.listen(other, observed)[1], guide.listen(x, observed)[1], rtol=0, atol=0)
